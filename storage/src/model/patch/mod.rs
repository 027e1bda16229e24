//! Patches in three notations (contract §4), and what every one of them becomes for subscribers: Nexxus patches.
//!
//! A body is read by [`PatchSet::parse`] and travels to the writer, which applies it to the document it meets there:
//! 1. the caller's view of the document is taken ([`view`]: without hidden fields for all but admins),
//! 2. the patches work on it ([`nexxus`], [`standard`]) and their values are brought into canonical form,
//! 3. the whole document is put together again, and the patches that lead to it are derived ([`outcome`], [`diff`]),
//! 4. the result is checked against the model; faults are placed in the body that caused them ([`fault`]).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

mod diff;
mod fault;
mod nexxus;
mod outcome;
mod parse;
mod standard;
mod view;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use view::visible_patches;

use super::{
    Caller, Document, FieldError, Model, Problem, UserId, change::Before, pointer::MAX_FAULTS, schema::DOCUMENT_DEPTH,
};

/// Most patches of a request, and most paths in them together.
pub const PATCHES: usize = 1_000;
/// Deepest path, and deepest value, of a patch: twice what fits a document, so that what is merely too deep for a document
/// is told from what is no sensible patch.
pub const PATCH_DEPTH: usize = 2 * DOCUMENT_DEPTH;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Replace,
    Append,
    Prepend,
    Incr,
    Decr,
    Remove,
}

/// A Nexxus patch: `path` and `value` of equal length (no value for `remove`), `.` as delimiter inside a path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    pub op: Op,
    pub path: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub value: Vec<Value>,
}

/// The body of one `PATCH`, in the notation it came in; it travels to the writer as it is, because only the writer knows the
/// document that it will meet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "format", content = "ops", rename_all = "kebab-case")]
pub enum PatchSet {
    /// `application/json`
    Nexxus(Vec<Patch>),
    /// `application/json-patch+json`, RFC 6902
    JsonPatch(json_patch::Patch),
    /// `application/merge-patch+json`, RFC 7396
    MergePatch(Value),
}

/// What a patch made of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Patched {
    /// The document after; `version`, `updated_at` still as before: they are the writer's.
    pub document: Document,
    /// What subscribers get; empty when nothing changed.
    pub patches: Vec<Patch>,
    /// What was replaced; `updated_at` that of the document before.
    pub before: Before,
}

impl PatchSet {
    /// Reads a body by its media type (without parameters). `None` for a media type that is no patch. Faults (400
    /// `invalid-patch`, the first 50) carry a JSON Pointer into the body.
    pub fn parse(media_type: &str, body: &Value) -> Option<Result<Self, Vec<FieldError>>> {
        let parsed = match media_type.to_ascii_lowercase().as_str() {
            "application/json" => parse::nexxus(body).map(Self::Nexxus),
            "application/json-patch+json" => parse::json_patch(body).map(Self::JsonPatch),
            "application/merge-patch+json" => parse::merge_patch(body).map(Self::MergePatch),
            _ => return None,
        };
        Some(parsed.map_err(|mut faults| {
            faults.truncate(MAX_FAULTS);
            faults
        }))
    }

    /// Applies it to a document: all or nothing. The result is checked against the model and is in canonical form.
    ///
    /// Refuses with 422 `invalid-document` what does not fit the model or is not the caller's to set, with 412
    /// `precondition-failed` after a failed `test`, with 409 `patch-conflict` a JSON Patch operation without a target. The
    /// size of the result is the caller's to check.
    pub fn apply(&self, document: &Document, model: &Model, caller: &Caller) -> Result<Patched, Problem> {
        let mut draft = Draft::of(document, model, caller.admin);
        match self {
            Self::Nexxus(patches) => {
                let steps = nexxus::run(patches, &mut draft)?;
                draft.finish(self, |before, after| outcome::of_steps(steps, before, after, model))
            }
            Self::JsonPatch(patch) => {
                standard::json_patch(patch, &mut draft)?;
                draft.finish(self, outcome::of_difference)
            }
            Self::MergePatch(patch) => {
                standard::merge_patch(patch, &mut draft)?;
                draft.finish(self, outcome::of_difference)
            }
        }
    }
}

/// A document while it is patched, as its caller sees it.
struct Draft<'a> {
    document: &'a Document,
    model: &'a Model,
    admin: bool,
    /// Whether `fields` lacks the hidden ones.
    partial: bool,
    fields: Map<String, Value>,
    user: Option<UserId>,
}

impl<'a> Draft<'a> {
    fn of(document: &'a Document, model: &'a Model, admin: bool) -> Self {
        let partial = !admin && model.has_hidden();
        let mut fields = document.fields.clone();
        if partial {
            model.hide(&mut fields);
        }
        Self { document, model, admin, partial, fields, user: document.user.clone() }
    }

    /// Puts the whole document together, derives what led to it and checks it.
    fn finish(
        mut self,
        patch: &PatchSet,
        outcome: impl FnOnce(&Map<String, Value>, &Map<String, Value>) -> outcome::Outcome,
    ) -> Result<Patched, Problem> {
        let document = self.document;
        let mut faults = Vec::new();
        if self.partial {
            faults = view::hidden_names(&self.fields, self.model);
            view::reinstate(&document.fields, &mut self.fields, self.model);
        }
        let mut outcome = outcome(&document.fields, &self.fields);
        outcome.patches.extend(owner_patch(document.user.as_ref(), self.user.as_ref()));
        let before = Before { updated_at: document.updated_at, user: document.user.clone(), fields: outcome.replaced };
        if outcome.patches.is_empty() && faults.is_empty() {
            return Ok(Patched { document: document.clone(), patches: outcome.patches, before });
        }
        if !self.admin {
            faults.extend(view::read_only_changes(&before.fields, &self.fields, self.model));
        }
        if let Err(misfits) = self.model.check(&self.fields) {
            // One reason for a place is enough; and of a field that the caller cannot know, only that it is unknown.
            let is_told = |misfit: &FieldError| !faults.iter().any(|fault| fault::is_within(&misfit.path, &fault.path));
            let misfits: Vec<_> = misfits.into_iter().filter(is_told).collect();
            faults.extend(misfits);
        }
        if !faults.is_empty() {
            return Err(fault::misfit_of(patch, faults));
        }
        let document = Document {
            app: document.app.clone(),
            model: document.model.clone(),
            id: document.id.clone(),
            user: self.user,
            created_at: document.created_at,
            updated_at: document.updated_at,
            version: document.version,
            fields: self.fields,
        };
        Ok(Patched { document, patches: outcome.patches, before })
    }

    /// Takes a new owner; null is nobody.
    fn set_owner(&mut self, owner: Option<&Value>) -> Result<(), String> {
        self.user = match owner {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(UserId::parse(id).map_err(|error| error.to_string())?),
            Some(_) => return Err("the owner is a user id".to_owned()),
        };
        Ok(())
    }
}

/// What leads from a document to another state of it that came from elsewhere, and what it replaced: whole fields.
pub fn between(before: &Document, after: &Document) -> (Vec<Patch>, Before) {
    let (mut patches, mut replaced) = (Vec::new(), Vec::new());
    for (name, value) in &after.fields {
        let old = before.fields.get(name);
        if old != Some(value) {
            patches.push(Patch { op: Op::Replace, path: vec![name.clone()], value: vec![value.clone()] });
            replaced.push((vec![name.clone()], old.cloned()));
        }
    }
    for (name, old) in before.fields.iter().filter(|(name, _)| !after.fields.contains_key(*name)) {
        patches.push(Patch { op: Op::Remove, path: vec![name.clone()], value: Vec::new() });
        replaced.push((vec![name.clone()], Some(old.clone())));
    }
    patches.extend(owner_patch(before.user.as_ref(), after.user.as_ref()));
    (patches, Before { updated_at: before.updated_at, user: before.user.clone(), fields: replaced })
}

/// What tells subscribers of a new owner.
fn owner_patch(before: Option<&UserId>, after: Option<&UserId>) -> Option<Patch> {
    let path = vec!["userId".to_owned()];
    match after {
        _ if before == after => None,
        Some(user) => Some(Patch { op: Op::Replace, path, value: vec![Value::from(user.as_str())] }),
        None => Some(Patch { op: Op::Remove, path, value: Vec::new() }),
    }
}

/// The value at a path through objects.
fn at<'v>(fields: &'v Map<String, Value>, path: &[impl AsRef<str>]) -> Option<&'v Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(fields.get(first.as_ref())?, |value, name| value.as_object()?.get(name.as_ref()))
}
