//! The two standards: JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7396), on the document as the client sees it.

use std::{collections::BTreeMap, slice};

use json_patch::{PatchErrorKind, PatchOperation, jsonptr::Pointer};
use serde_json::{Map, Value};

use super::{Draft, PATCH_DEPTH, fault};
use crate::model::{
    Document, FieldError, Problem,
    problem::ProblemKind,
    schema::{Field, UNIVERSAL_FIELDS, canonical_number},
};

/// Most that the `copy` operations of a patch may make together, about in bytes of JSON: a few of them, each copying the result
/// of the one before, would fill any memory.
const COPIED_BYTES: usize = 4 * 1024 * 1024;
/// Deepest nesting while a JSON Patch works. A document is less deep; this bounds recursion.
const WORKING_DEPTH: usize = 2 * PATCH_DEPTH;

/// Applies a JSON Patch to the fields of the draft. The universal fields are there to be tested and copied from.
pub(super) fn json_patch(patch: &json_patch::Patch, draft: &mut Draft<'_>) -> Result<(), Problem> {
    let faults: Vec<FieldError> = patch
        .iter()
        .enumerate()
        .filter_map(|(index, operation)| universal_target(index, operation, draft.admin))
        .collect();
    if !faults.is_empty() {
        return Err(fault::misfit(faults));
    }
    let universal = universal_fields(draft.document)?;
    let mut result = universal.clone();
    result.append(&mut draft.fields);
    let mut result = Value::Object(result);
    operate(&mut result, patch, &universal)?;
    let Value::Object(mut fields) = result else {
        return Err(fault::misfit(vec![FieldError::new("", "the result is no object")]));
    };
    for name in UNIVERSAL_FIELDS {
        let value = fields.remove(name);
        if value.as_ref() == universal.get(name) {
            continue;
        }
        if name != "userId" || !draft.admin {
            return Err(fault::misfit(vec![FieldError::new("", fault::universal(name))]));
        }
        draft.set_owner(value.as_ref()).map_err(|reason| fault::misfit(vec![FieldError::new("", reason)]))?;
    }
    draft.model.canonicalize(&mut fields, draft.admin);
    draft.fields = fields;
    Ok(())
}

/// Performs the operations, all of them or up to the first that cannot be. `universal` is what a root that is replaced as a
/// whole goes on with where it does not name it.
pub(super) fn operate(
    result: &mut Value,
    patch: &[PatchOperation],
    universal: &Map<String, Value>,
) -> Result<(), Problem> {
    let mut copied_bytes = 0;
    for (index, operation) in patch.iter().enumerate() {
        if let PatchOperation::Test(test) = operation {
            // Null is absence: what is not there is null.
            let found = result.pointer(test.path.as_str()).unwrap_or(&Value::Null);
            if !is_same(found, &test.value) {
                return Err(refusal(ProblemKind::PreconditionFailed, index, "", "the value is another"));
            }
            continue;
        }
        bound(result, operation, &mut copied_bytes)
            .map_err(|reason| refusal(ProblemKind::InvalidDocument, index, "/path", reason))?;
        json_patch::patch_unsafe(result, slice::from_ref(operation)).map_err(|error| match error.kind {
            PatchErrorKind::InvalidFromPointer => {
                refusal(ProblemKind::PatchConflict, index, "/from", "there is nothing here")
            }
            PatchErrorKind::CannotMoveInsideItself => {
                refusal(ProblemKind::PatchConflict, index, "/path", "a value cannot be moved into itself")
            }
            _ => refusal(ProblemKind::PatchConflict, index, "/path", "there is no such place in the document"),
        })?;
        if let (true, Value::Object(root)) = (operation.path().is_root(), &mut *result) {
            for (name, value) in universal {
                root.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    Ok(())
}

fn refusal(kind: ProblemKind, index: usize, part: &str, reason: &str) -> Problem {
    Problem::new(kind, format!("operation {index} of the patch: {reason}"))
        .with_errors(vec![FieldError::new(format!("/{index}{part}"), reason)])
}

/// An operation that would change a field which every document has.
fn universal_target(index: usize, operation: &PatchOperation, admin: bool) -> Option<FieldError> {
    let (from, path) = match operation {
        PatchOperation::Test(_) => return None,
        PatchOperation::Move(operation) => (Some(&*operation.from), &*operation.path),
        _ => (None, operation.path()),
    };
    let named = |pointer: &Pointer| {
        let name = pointer.first()?.decoded().into_owned();
        let is_owner = admin && name == "userId" && pointer.count() == 1;
        (UNIVERSAL_FIELDS.contains(&name.as_str()) && !is_owner).then_some(name)
    };
    if let Some(name) = named(path) {
        return Some(FieldError::new(format!("/{index}/path"), fault::universal(&name)));
    }
    let name = from.and_then(named)?;
    Some(FieldError::new(format!("/{index}/from"), fault::universal(&name)))
}

/// Keeps what an operation makes within bounds.
fn bound(document: &Value, operation: &PatchOperation, copied_bytes: &mut usize) -> Result<(), &'static str> {
    let (value, path) = match operation {
        PatchOperation::Add(operation) => (Some(&operation.value), &operation.path),
        PatchOperation::Replace(operation) => (Some(&operation.value), &operation.path),
        PatchOperation::Copy(operation) => (document.pointer(operation.from.as_str()), &operation.path),
        PatchOperation::Move(operation) => (document.pointer(operation.from.as_str()), &operation.path),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    // A source that is missing is found missing by the operation itself.
    let Some(value) = value else { return Ok(()) };
    if !super::parse::is_within(value, WORKING_DEPTH.saturating_sub(path.count())) {
        return Err("nested too deep");
    }
    if matches!(operation, PatchOperation::Copy(_)) {
        *copied_bytes += bytes(value);
        if *copied_bytes > COPIED_BYTES {
            return Err("the patch copies too much");
        }
    }
    Ok(())
}

/// About the size of a value in JSON.
fn bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len() + 8,
        Value::Array(elements) => elements.iter().map(bytes).sum::<usize>() + 8,
        Value::Object(members) => members.iter().map(|(name, value)| name.len() + 8 + bytes(value)).sum::<usize>() + 8,
    }
}

/// RFC 6902's equality: numbers by their value.
fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => {
            let canonical = |number| canonical_number(number).unwrap_or_else(|| number.clone());
            canonical(left) == canonical(right)
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| is_same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            let is_in_right = |(name, left)| right.get(name).is_some_and(|right| is_same(left, right));
            left.len() == right.len() && left.iter().all(is_in_right)
        }
        _ => left == right,
    }
}

fn universal_fields(document: &Document) -> Result<Map<String, Value>, Problem> {
    let bare = Document {
        app: document.app.clone(),
        model: document.model.clone(),
        id: document.id.clone(),
        user: document.user.clone(),
        created_at: document.created_at,
        updated_at: document.updated_at,
        version: document.version,
        fields: Map::new(),
    };
    match serde_json::to_value(bare) {
        Ok(Value::Object(fields)) => Ok(fields),
        _ => Err(Problem::new(ProblemKind::Internal, "the document cannot be shown as JSON")),
    }
}

/// Applies a JSON Merge Patch to the fields of the draft.
pub(super) fn merge_patch(patch: &Value, draft: &mut Draft<'_>) -> Result<(), Problem> {
    let Value::Object(members) = patch else {
        return Err(fault::unreadable(vec![FieldError::new("", "not an object")]));
    };
    let mut faults = Vec::new();
    let mut members = members.clone();
    for name in UNIVERSAL_FIELDS {
        let Some(value) = members.remove(name) else { continue };
        let result = match name {
            "userId" if draft.admin => draft.set_owner(Some(&value)),
            _ => Err(fault::universal(name)),
        };
        faults.extend(result.err().map(|reason| FieldError::new(format!("/{name}"), reason)));
    }
    let definitions = &draft.model.fields;
    removes_unknown(&members, Some(definitions), Some(&draft.fields), draft.partial, &mut Vec::new(), &mut faults);
    if !faults.is_empty() {
        return Err(fault::misfit(faults));
    }
    let mut result = Value::Object(std::mem::take(&mut draft.fields));
    json_patch::merge(&mut result, &Value::Object(members));
    if let Value::Object(mut fields) = result {
        draft.model.canonicalize(&mut fields, draft.admin);
        draft.fields = fields;
    }
    Ok(())
}

/// Finds nulls for fields that neither the model nor the document has: a misspelt name is told, whether it is set or removed.
fn removes_unknown(
    members: &Map<String, Value>,
    definitions: Option<&BTreeMap<String, Field>>,
    current: Option<&Map<String, Value>>,
    partial: bool,
    path: &mut Vec<String>,
    faults: &mut Vec<FieldError>,
) {
    for (name, value) in members {
        path.push(name.clone());
        let definition = definitions.and_then(|fields| fields.get(name)).filter(|field| !(partial && field.hidden));
        let current = current.and_then(|fields| fields.get(name));
        match value {
            Value::Null if definition.is_none() && current.is_none() => {
                faults.push(FieldError::new(fault::pointer(path), fault::UNKNOWN));
            }
            Value::Object(members) => {
                let properties = definition.and_then(|field| field.properties.as_ref());
                let current = current.and_then(Value::as_object);
                removes_unknown(members, properties, current, partial, path, faults);
            }
            _ => {}
        }
        path.pop();
    }
}
