//! Reading bodies: what each notation allows, whatever the document. Faults carry JSON Pointers into the body.

use json_patch::{PatchOperation, jsonptr::Pointer};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Op, PATCH_DEPTH, PATCHES, Patch, fault::pointer};
use crate::model::FieldError;

type Parsed<T> = Result<T, Vec<FieldError>>;

/// An array of Nexxus patches, not empty.
pub(super) fn nexxus(body: &Value) -> Parsed<Vec<Patch>> {
    let items = array(body)?;
    if items.is_empty() {
        return Err(vec![FieldError::new("", "there is no patch in it")]);
    }
    let mut faults = Vec::new();
    let mut n_paths = 0;
    let mut patches = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let mut found = Faults { prefix: format!("/{index}"), found: Vec::new() };
        if let Some(patch) = nexxus_patch(item, &mut found) {
            n_paths += patch.path.len();
            patches.push(patch);
        }
        faults.append(&mut found.found);
    }
    if n_paths > PATCHES {
        faults.push(too_many("paths"));
    }
    if faults.is_empty() { Ok(patches) } else { Err(faults) }
}

fn nexxus_patch(item: &Value, faults: &mut Faults) -> Option<Patch> {
    let members = faults.object(item)?;
    for name in members.keys().filter(|name| !["op", "path", "value"].contains(&name.as_str())) {
        faults.push(&pointer(&[name]), "a patch has `op`, `path` and `value` only");
    }
    let op = Op::deserialize(members.get("op").unwrap_or(&Value::Null)).ok();
    if op.is_none() {
        faults.push("/op", "one of `replace`, `append`, `prepend`, `incr`, `decr`, `remove`");
    }
    let path = paths(members.get("path"), faults);
    let value = match members.get("value") {
        None => Some([].as_slice()),
        Some(Value::Array(values)) => Some(values.as_slice()),
        Some(_) => None,
    };
    let (Some(op), Some(path), Some(value)) = (op, path, value) else {
        if value.is_none() {
            faults.push("/value", "an array with a value for each path");
        }
        return None;
    };
    match op {
        Op::Remove if !value.is_empty() => faults.push("/value", "`remove` takes no value"),
        Op::Remove => {}
        _ if value.len() != path.len() => faults.push("/value", "`path` and `value` differ in length"),
        _ => {}
    }
    for (nth, value) in value.iter().enumerate() {
        if matches!(op, Op::Incr | Op::Decr) && !value.is_number() {
            faults.push(&format!("/value/{nth}"), "a number to add or to take away");
        } else {
            faults.depth(&format!("/value/{nth}"), value);
        }
    }
    Some(Patch { op, path, value: value.to_vec() })
}

/// Paths: names with dots between them.
fn paths(paths: Option<&Value>, faults: &mut Faults) -> Option<Vec<String>> {
    let Some(Value::Array(paths)) = paths.filter(|paths| paths.as_array().is_some_and(|paths| !paths.is_empty()))
    else {
        faults.push("/path", "an array with at least one path");
        return None;
    };
    let mut read = Vec::with_capacity(paths.len());
    for (nth, path) in paths.iter().enumerate() {
        match path.as_str() {
            Some(path) if path.split('.').any(str::is_empty) => {
                faults.push(&format!("/path/{nth}"), "an empty name in a path");
            }
            Some(path) if path.split('.').count() > PATCH_DEPTH => {
                faults.push(&format!("/path/{nth}"), &format!("a path has at most {PATCH_DEPTH} names"));
            }
            Some(path) => read.push(path.to_owned()),
            None => faults.push(&format!("/path/{nth}"), "a path is a string"),
        }
    }
    (read.len() == paths.len()).then_some(read)
}

/// RFC 6902. An empty list is allowed and changes nothing.
pub(super) fn json_patch(body: &Value) -> Parsed<json_patch::Patch> {
    let mut faults = Vec::new();
    let mut operations = Vec::new();
    for (index, item) in array(body)?.iter().enumerate() {
        let mut found = Faults { prefix: format!("/{index}"), found: Vec::new() };
        operations.extend(operation(item, &mut found));
        faults.append(&mut found.found);
    }
    if faults.is_empty() { Ok(json_patch::Patch(operations)) } else { Err(faults) }
}

fn operation(item: &Value, faults: &mut Faults) -> Option<PatchOperation> {
    let members = faults.object(item)?;
    let (has_from, has_value) = match members.get("op").and_then(Value::as_str) {
        Some("add" | "replace" | "test") => (false, true),
        Some("remove") => (false, false),
        Some("move" | "copy") => (true, false),
        _ => {
            faults.push("/op", "one of `add`, `remove`, `replace`, `move`, `copy`, `test`");
            return None;
        }
    };
    faults.json_pointer(members, "path");
    if has_from {
        faults.json_pointer(members, "from");
    }
    match members.get("value").filter(|_| has_value) {
        Some(value) => faults.depth("/value", value),
        None if has_value => faults.push("/value", "`value` is missing"),
        None => {}
    }
    if !faults.found.is_empty() {
        return None;
    }
    match PatchOperation::deserialize(item) {
        Ok(PatchOperation::Move(moved)) if moved.path.starts_with(&moved.from) && moved.path != moved.from => {
            faults.push("/path", "a value cannot be moved into itself");
            None
        }
        Ok(operation) => Some(operation),
        Err(error) => {
            faults.push("", &error.to_string());
            None
        }
    }
}

/// RFC 7396. Only an object can lead to a document.
pub(super) fn merge_patch(body: &Value) -> Parsed<Value> {
    let mut faults = Faults { prefix: String::new(), found: Vec::new() };
    faults.object(body);
    faults.depth("", body);
    if !faults.found.is_empty() {
        return Err(faults.found);
    }
    if n_leaves(body) > PATCHES { Err(vec![too_many("fields")]) } else { Ok(body.clone()) }
}

/// What a merge patch sets or removes.
fn n_leaves(value: &Value) -> usize {
    match value {
        Value::Object(members) if !members.is_empty() => members.values().map(n_leaves).sum(),
        _ => 1,
    }
}

fn array(body: &Value) -> Parsed<&[Value]> {
    match body {
        Value::Array(items) if items.len() > PATCHES => Err(vec![too_many("patches")]),
        Value::Array(items) => Ok(items),
        _ => Err(vec![FieldError::new(
            "",
            "not an array of patches; fields to set go in an object, as application/merge-patch+json",
        )]),
    }
}

fn too_many(what: &str) -> FieldError {
    FieldError::new("", format!("more than {PATCHES} {what} in one request"))
}

/// Whether a value has at most so many arrays and objects within one another.
pub(super) fn is_within(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(elements) => depth > 0 && elements.iter().all(|value| is_within(value, depth - 1)),
        Value::Object(members) => depth > 0 && members.values().all(|value| is_within(value, depth - 1)),
        _ => true,
    }
}

/// The faults of one part of a body.
struct Faults {
    prefix: String,
    found: Vec<FieldError>,
}

impl Faults {
    fn push(&mut self, path: &str, message: &str) {
        self.found.push(FieldError::new(format!("{}{path}", self.prefix), message));
    }

    fn object<'v>(&mut self, value: &'v Value) -> Option<&'v Map<String, Value>> {
        if !value.is_object() {
            self.push("", "not an object");
        }
        value.as_object()
    }

    fn depth(&mut self, path: &str, value: &Value) {
        if !is_within(value, PATCH_DEPTH) {
            self.push(path, &format!("nested more than {PATCH_DEPTH} deep"));
        }
    }

    fn json_pointer(&mut self, members: &Map<String, Value>, name: &str) {
        match members.get(name).and_then(Value::as_str).map(Pointer::parse) {
            Some(Ok(pointer)) if pointer.count() <= PATCH_DEPTH => {}
            Some(Ok(_)) => self.push(&format!("/{name}"), &format!("a pointer has at most {PATCH_DEPTH} names")),
            Some(Err(_)) | None => self.push(&format!("/{name}"), "not a JSON Pointer"),
        }
    }
}
