//! What a caller sees of a document, and what of it the caller may change.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Patch, at, fault};
use crate::model::{
    FieldError, Model,
    schema::{Field, FieldType},
};

type Fields = BTreeMap<String, Field>;

/// The patches as everybody but an admin gets them: patches of hidden fields vanish, objects are stripped of theirs. They lead
/// from what such a client saw before to what it sees after; an empty list says that nothing changed for it.
pub fn visible_patches(patches: &[Patch], model: &Model) -> Vec<Patch> {
    if !model.has_hidden() {
        return patches.to_vec();
    }
    patches.iter().filter_map(|patch| visible_patch(patch, model)).collect()
}

fn visible_patch(patch: &Patch, model: &Model) -> Option<Patch> {
    let mut visible = Patch { op: patch.op, path: Vec::new(), value: Vec::new() };
    for (nth, path) in patch.path.iter().enumerate() {
        let names: Vec<String> = path.split('.').map(str::to_owned).collect();
        if model.is_hidden(&names) {
            continue;
        }
        let field = model.field(&names.iter().map(String::as_str).collect::<Vec<_>>());
        visible.path.push(path.clone());
        visible.value.extend(patch.value.get(nth).map(|value| visible_value(value, field)));
    }
    (!visible.path.is_empty()).then_some(visible)
}

fn visible_value(value: &Value, field: Option<&Field>) -> Value {
    let mut value = value.clone();
    if let Some(properties) = field.and_then(|field| field.properties.as_ref()) {
        strip_value(&mut value, properties);
    }
    value
}

/// Strips an object, or the objects in an array.
fn strip_value(value: &mut Value, properties: &Fields) {
    match value {
        Value::Object(fields) => strip(fields, properties),
        Value::Array(elements) => elements.iter_mut().for_each(|element| strip_value(element, properties)),
        _ => {}
    }
}

fn strip(fields: &mut Map<String, Value>, definitions: &Fields) {
    fields.retain(|name, value| {
        let definition = definitions.get(name);
        if let Some(properties) = definition.and_then(|field| field.properties.as_ref()) {
            strip_value(value, properties);
        }
        definition.is_none_or(|field| !field.hidden)
    });
}

/// The hidden fields in a view that should have none: their caller named what it cannot know.
pub(super) fn hidden_names(fields: &Map<String, Value>, model: &Model) -> Vec<FieldError> {
    let mut found = Vec::new();
    hidden_below(fields, &model.fields, &mut Vec::new(), &mut found);
    found
}

fn hidden_below(
    fields: &Map<String, Value>,
    definitions: &Fields,
    path: &mut Vec<String>,
    found: &mut Vec<FieldError>,
) {
    for (name, value) in fields {
        let Some(definition) = definitions.get(name) else { continue };
        path.push(name.clone());
        if definition.hidden {
            found.push(FieldError::new(fault::pointer(path), fault::unknown(&path.join("."))));
        } else if let Some(properties) = &definition.properties {
            hidden_in_value(value, properties, path, found);
        }
        path.pop();
    }
}

fn hidden_in_value(value: &Value, properties: &Fields, path: &mut Vec<String>, found: &mut Vec<FieldError>) {
    match value {
        Value::Object(fields) => hidden_below(fields, properties, path, found),
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                path.push(index.to_string());
                hidden_in_value(element, properties, path, found);
                path.pop();
            }
        }
        _ => {}
    }
}

/// Puts the hidden fields of a document back into what its caller, who does not see them, made of it.
pub(super) fn reinstate(stored: &Map<String, Value>, fields: &mut Map<String, Value>, model: &Model) {
    reinstate_fields(stored, fields, &model.fields);
}

fn reinstate_fields(stored: &Map<String, Value>, fields: &mut Map<String, Value>, definitions: &Fields) {
    for (name, value) in stored {
        let Some(definition) = definitions.get(name) else { continue };
        if definition.hidden {
            fields.insert(name.clone(), value.clone());
        } else if let (FieldType::Object, Some(properties)) = (definition.field_type, &definition.properties) {
            reinstate_object(name, value, fields, properties);
        }
    }
}

/// The same inside an object, which is made again if only its hidden part is left.
fn reinstate_object(name: &str, stored: &Value, fields: &mut Map<String, Value>, properties: &Fields) {
    let Value::Object(stored) = stored else { return };
    match fields.get_mut(name) {
        Some(Value::Object(inner)) => reinstate_fields(stored, inner, properties),
        // No object any more: the check of the model refuses it.
        Some(_) => {}
        None => {
            let mut inner = Map::new();
            reinstate_fields(stored, &mut inner, properties);
            if !inner.is_empty() {
                fields.insert(name.to_owned(), Value::Object(inner));
            }
        }
    }
}

/// The `readOnly` fields that changed. `replaced` holds old values at the paths that changed.
pub(super) fn read_only_changes(
    replaced: &[(Vec<String>, Option<Value>)],
    fields: &Map<String, Value>,
    model: &Model,
) -> Vec<FieldError> {
    let mut found = Vec::new();
    for (path, old) in replaced {
        let mut definitions = Some(&model.fields);
        for depth in 1..=path.len() {
            let definition = definitions.and_then(|definitions| definitions.get(&path[depth - 1]));
            let Some(definition) = definition else { break };
            if depth == path.len() {
                read_only_below(definition, old.as_ref(), at(fields, path), &mut path.clone(), &mut found);
            } else if definition.read_only {
                found.push(read_only(path));
                break;
            }
            definitions = definition.properties.as_ref();
        }
    }
    found
}

fn read_only_below(
    definition: &Field,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<String>,
    found: &mut Vec<FieldError>,
) {
    if old == new {
        return;
    }
    if definition.read_only {
        found.push(read_only(path));
    } else if let (FieldType::Object, Some(properties)) = (definition.field_type, &definition.properties) {
        for (name, definition) in properties {
            path.push(name.clone());
            let old = old.and_then(|old| old.get(name));
            let new = new.and_then(|new| new.get(name));
            read_only_below(definition, old, new, path, found);
            path.pop();
        }
    }
}

fn read_only(path: &[String]) -> FieldError {
    FieldError::new(fault::pointer(path), "only an admin can set this field")
}
