//! What a caller sees of a document, and what of it the caller may change.

use std::collections::{BTreeMap, VecDeque};

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
            found.push(FieldError::new(fault::pointer(path), fault::UNKNOWN));
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
///
/// An object that is removed stays for the sake of what it hides. The elements of an array have no names: those that the caller
/// left as they were keep their hidden fields, and those between them if there are as many as before (see [`paired`]).
pub(super) fn reinstate(stored: &Map<String, Value>, fields: &mut Map<String, Value>, model: &Model) {
    reinstate_fields(stored, fields, &model.fields);
}

fn reinstate_fields(stored: &Map<String, Value>, fields: &mut Map<String, Value>, definitions: &Fields) {
    for (name, stored) in stored {
        let Some(definition) = definitions.get(name) else { continue };
        match (stored, &definition.properties) {
            _ if definition.hidden => drop(fields.insert(name.clone(), stored.clone())),
            (Value::Object(stored), Some(properties)) => match fields.get_mut(name) {
                Some(Value::Object(inner)) => reinstate_fields(stored, inner, properties),
                // No object any more: the check of the model refuses it.
                Some(_) => {}
                None => {
                    let mut inner = Map::new();
                    reinstate_fields(stored, &mut inner, properties);
                    if !inner.is_empty() {
                        fields.insert(name.clone(), Value::Object(inner));
                    }
                }
            },
            (Value::Array(stored), Some(properties)) if any_hidden(properties) => {
                if let Some(Value::Array(elements)) = fields.get_mut(name) {
                    reinstate_elements(stored, elements, properties);
                }
            }
            _ => {}
        }
    }
}

fn reinstate_elements(stored: &[Value], elements: &mut [Value], properties: &Fields) {
    let mut seen = stored.to_vec();
    seen.iter_mut().for_each(|element| strip_value(element, properties));
    for (element, pair) in paired(&seen, elements).into_iter().enumerate() {
        let stored = pair.and_then(|pair| stored.get(pair));
        if let (Some(Value::Object(stored)), Some(Value::Object(element))) = (stored, elements.get_mut(element)) {
            reinstate_fields(stored, element, properties);
        }
    }
}

/// Which element of an array before each element after is, as far as that can be told: those that are equal at the beginning and
/// at the end, then equal ones in between, then, if equally many are left on both sides, the rest in order.
fn paired(before: &[Value], after: &[Value]) -> Vec<Option<usize>> {
    let equal = |(left, right): &(&Value, &Value)| left == right;
    let head = before.iter().zip(after).take_while(equal).count();
    let tail = before[head..].iter().rev().zip(after[head..].iter().rev()).take_while(equal).count();
    let mut pairs = vec![None; after.len()];
    let mut places: BTreeMap<String, VecDeque<usize>> = BTreeMap::new();
    for (place, element) in before.iter().enumerate().take(before.len() - tail).skip(head) {
        places.entry(element.to_string()).or_default().push_back(place);
    }
    for (place, pair) in pairs.iter_mut().enumerate() {
        *pair = if place < head {
            Some(place)
        } else if place >= after.len() - tail {
            Some(before.len() + place - after.len())
        } else {
            places.get_mut(&after[place].to_string()).and_then(VecDeque::pop_front)
        };
    }
    let mut rest: Vec<usize> = places.into_values().flatten().collect();
    if pairs.iter().filter(|pair| pair.is_none()).count() == rest.len() {
        rest.sort_unstable();
        pairs.iter_mut().filter(|pair| pair.is_none()).zip(rest).for_each(|(pair, place)| *pair = Some(place));
    }
    pairs
}

/// Whether some of what a field holds may be hidden.
pub(super) fn holds_hidden(field: &Field) -> bool {
    field.properties.as_ref().is_some_and(any_hidden)
}

fn any_hidden(definitions: &Fields) -> bool {
    definitions.values().any(|field| field.hidden || holds_hidden(field))
}

/// The `readOnly` fields that changed. `replaced` holds old values at the paths that changed.
///
/// An element of an array may go with all that is in it, and come without; it may not come with another value than it had.
pub(super) fn read_only_changes(
    replaced: &[(Vec<String>, Option<Value>)],
    fields: &Map<String, Value>,
    model: &Model,
) -> Vec<FieldError> {
    let mut guard = ReadOnly { path: Vec::new(), in_array: false, found: Vec::new() };
    for (path, old) in replaced {
        guard.path.clone_from(path);
        let mut definitions = Some(&model.fields);
        for depth in 1..=path.len() {
            let definition = definitions.and_then(|definitions| definitions.get(&path[depth - 1]));
            let Some(definition) = definition else { break };
            if depth == path.len() {
                guard.compare(definition, old.as_ref(), at(fields, path));
            } else if definition.read_only {
                guard.refuse();
                break;
            }
            definitions = definition.properties.as_ref();
        }
    }
    guard.found
}

struct ReadOnly {
    path: Vec<String>,
    in_array: bool,
    found: Vec<FieldError>,
}

impl ReadOnly {
    fn refuse(&mut self) {
        self.found.push(FieldError::new(fault::pointer(&self.path), "read-only: only an admin may set it"));
    }

    fn compare(&mut self, definition: &Field, old: Option<&Value>, new: Option<&Value>) {
        if old == new || (self.in_array && new.is_none()) {
            return;
        }
        if definition.read_only {
            return self.refuse();
        }
        let Some(properties) = &definition.properties else { return };
        if definition.field_type == FieldType::Object {
            self.compare_fields(properties, old, new);
        } else if let Some(Value::Array(new)) = new {
            let was_in_array = std::mem::replace(&mut self.in_array, true);
            let old = old.and_then(Value::as_array).map_or([].as_slice(), Vec::as_slice);
            for (place, pair) in paired(old, new).into_iter().enumerate() {
                self.path.push(place.to_string());
                self.compare_fields(properties, pair.and_then(|pair| old.get(pair)), new.get(place));
                self.path.pop();
            }
            self.in_array = was_in_array;
        }
    }

    fn compare_fields(&mut self, properties: &Fields, old: Option<&Value>, new: Option<&Value>) {
        for (name, definition) in properties {
            self.path.push(name.clone());
            self.compare(definition, old.and_then(|old| old.get(name)), new.and_then(|new| new.get(name)));
            self.path.pop();
        }
    }
}
