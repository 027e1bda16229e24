//! Patches in three notations (contract §4), and what every one of them becomes for subscribers: Nexxus patches.

use serde::{Deserialize, Serialize};
use serde_json::Value;

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

use super::{Caller, Document, FieldError, Model, Problem, change::Before};

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
    /// Reads a body by its media type (without parameters). `None` for a media type that is no patch.
    pub fn parse(_media_type: &str, _body: &Value) -> Option<Result<Self, Vec<FieldError>>> {
        todo!()
    }

    /// Applies it to a document: all or nothing. The result is checked against the model and is in canonical form.
    pub fn apply(&self, _document: &Document, _model: &Model, _caller: &Caller) -> Result<Patched, Problem> {
        todo!()
    }
}
