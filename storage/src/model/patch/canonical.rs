//! The canonical form of values: no nulls in objects, dates as [`Timestamp`] prints them, integral numbers as integers.
//!
//! What does not fit its definition is left as it is; the model's check says so.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use crate::model::{
    Timestamp,
    schema::{Field, FieldType},
};

/// Integers beyond this, up or down, are not exact in every client.
const LARGEST_INTEGER: i64 = 1 << 53;

/// What a value should be, as far as its form depends on it.
#[derive(Clone, Copy)]
struct Shape<'a> {
    kind: FieldType,
    element: Option<FieldType>,
    properties: Option<&'a BTreeMap<String, Field>>,
}

impl<'a> Shape<'a> {
    fn of(field: &'a Field) -> Self {
        Self { kind: field.field_type, element: field.array_type, properties: field.properties.as_ref() }
    }

    fn element(self) -> Option<Self> {
        Some(Self { kind: self.element?, element: None, properties: self.properties })
    }
}

/// A value of a field. Null stays null: it is for the caller to remove it.
pub(super) fn value(value: &Value, field: &Field) -> Value {
    shaped(value, Some(Shape::of(field)))
}

/// An element of an array field.
pub(super) fn element(value: &Value, field: &Field) -> Value {
    shaped(value, Shape::of(field).element())
}

/// All fields of a document.
pub(super) fn fields(fields: &Map<String, Value>, definitions: &BTreeMap<String, Field>) -> Map<String, Value> {
    object(fields, Some(definitions))
}

/// A number of JSON, an integer if it is one. Negative zero is zero.
pub(super) fn number(number: &Number) -> Number {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() <= LARGEST_INTEGER as f64 => {
            Number::from(float as i64)
        }
        _ => number.clone(),
    }
}

/// The sum of two numbers; none when it is not finite or, as an integer, beyond ±2^53.
pub(super) fn sum(left: &Number, right: &Number, negate_right: bool) -> Option<Number> {
    if let (Some(left), Some(right)) = (left.as_i64(), right.as_i64()) {
        let sum = if negate_right { left.checked_sub(right) } else { left.checked_add(right) };
        return sum.filter(|sum| sum.unsigned_abs() <= LARGEST_INTEGER as u64).map(Number::from);
    }
    let (left, right) = (left.as_f64()?, right.as_f64()?);
    let sum = number(&Number::from_f64(if negate_right { left - right } else { left + right })?);
    // What is still a float without a fraction is an integer out of range.
    sum.as_f64().is_some_and(|float| !sum.is_f64() || float.fract() != 0.0).then_some(sum)
}

fn shaped(value: &Value, shape: Option<Shape<'_>>) -> Value {
    match value {
        Value::Number(given) if shape.is_none_or(|shape| shape.kind != FieldType::Date) => Value::Number(number(given)),
        Value::String(_) | Value::Number(_) if shape.is_some_and(|shape| shape.kind == FieldType::Date) => {
            Timestamp::from_json(value).map_or_else(|_| value.clone(), |time| Value::String(time.to_string()))
        }
        Value::Array(elements) => {
            let element = shape.and_then(Shape::element);
            elements.iter().map(|value| shaped(value, element)).collect()
        }
        Value::Object(fields) => Value::Object(object(fields, shape.and_then(|shape| shape.properties))),
        _ => value.clone(),
    }
}

fn object(fields: &Map<String, Value>, definitions: Option<&BTreeMap<String, Field>>) -> Map<String, Value> {
    fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            let definition = definitions.and_then(|definitions| definitions.get(name));
            (name.clone(), shaped(value, definition.map(Shape::of)))
        })
        .collect()
}
