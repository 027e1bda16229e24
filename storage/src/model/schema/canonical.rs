//! The canonical form of what is stored: no nulls in objects, dates as [`Timestamp`] prints them, integral numbers as integers,
//! no negative zero. What does not fit its definition is left as it is; [`fit`](super::fit) says so.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use super::{ARRAY_ELEMENTS, Field, FieldType, LARGEST_NUMBER};
use crate::model::Timestamp;

/// Brings fields into canonical form. The null of a field that the caller cannot know stays, so that it is refused as unknown.
pub(super) fn fields(fields: &mut Map<String, Value>, definitions: &BTreeMap<String, Field>, privileged: bool) {
    fields.retain(|name, value| match definitions.get(name) {
        Some(field) if field.hidden && !privileged => true,
        Some(_) if value.is_null() => false,
        Some(field) => {
            field_value(value, field, privileged);
            true
        }
        None => true,
    });
}

/// Brings the value of a field into canonical form.
pub(super) fn field_value(value: &mut Value, field: &Field, privileged: bool) {
    match (field.array_type, value) {
        // More elements are refused anyway.
        (Some(element_type), Value::Array(elements)) if elements.len() <= ARRAY_ELEMENTS => {
            elements.iter_mut().for_each(|element| single(element, element_type, field, privileged));
        }
        (Some(_), _) => {}
        (None, value) => single(value, field.field_type, field, privileged),
    }
}

fn single(value: &mut Value, field_type: FieldType, field: &Field, privileged: bool) {
    match (field_type, value) {
        (FieldType::Object, Value::Object(inner)) => {
            if let Some(properties) = &field.properties {
                fields(inner, properties, privileged);
            }
        }
        (FieldType::Number, value @ Value::Number(_)) => {
            let number = value.as_number().filter(|number| number.is_f64()).and_then(canonical_number);
            if let Some(number) = number {
                *value = Value::Number(number);
            }
        }
        (FieldType::Date, value) => {
            if let Ok(time) = Timestamp::from_json(value) {
                *value = Value::String(time.to_string());
            }
        }
        _ => {}
    }
}

/// A number as it is stored: an integer where it is integral, else a float. None beyond ±2^53.
pub(crate) fn canonical_number(number: &Number) -> Option<Number> {
    if let Some(integer) = number.as_i64() {
        return (integer.unsigned_abs() <= LARGEST_NUMBER.unsigned_abs()).then(|| number.clone());
    }
    let float = number.as_f64().filter(|float| number.is_f64() && float.abs() <= LARGEST_NUMBER as f64)?;
    if float.fract() == 0.0 { Some(Number::from(float as i64)) } else { Some(number.clone()) }
}

/// Gives each missing field its default, also inside objects that are there.
pub(super) fn fill_defaults(fields: &mut Map<String, Value>, definitions: &BTreeMap<String, Field>) {
    for (name, field) in definitions {
        match (fields.get_mut(name), &field.default) {
            (Some(value), _) => fill_inside(value, field),
            (None, Some(default)) => {
                fields.insert(name.clone(), default.clone());
            }
            (None, None) => {}
        }
    }
}

pub(super) fn fill_inside(value: &mut Value, field: &Field) {
    match (&field.properties, value) {
        (Some(properties), Value::Object(inner)) => fill_defaults(inner, properties),
        (Some(_), Value::Array(elements)) => elements.iter_mut().for_each(|element| fill_inside(element, field)),
        _ => {}
    }
}
