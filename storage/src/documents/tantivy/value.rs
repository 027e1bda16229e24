//! Values of fields as the index keeps them.
//!
//! Everything but a string is an integer in the order of the values: a column of the index then has one type, whatever mixture of
//! `5`, `5.0` and `5.5` the documents hold, and one comparison serves equality, ranges and sorting alike.

use serde_json::Value;

use crate::model::{
    Document, Timestamp,
    filter::{Field, Kind, Scalar},
};

/// The longest string that the index takes as a term. New values are shorter; a forced change of schema can make longer ones
/// filterable.
const TERM_BYTES: usize = 60_000;

/// One value. Integers and texts never meet in one field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum IndexValue {
    Integer(i64),
    /// Compares by code point, as UTF-8 does.
    Text(Box<str>),
}

/// What a document holds in a field.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Held {
    /// The value of a plain field, the elements of an array; empty when the field does not exist. What is not of the field's kind
    /// is as good as missing, as it is for filters.
    Values(Vec<IndexValue>),
    /// The same, with a string that is too long for the index.
    TooLong(Vec<IndexValue>),
}

impl IndexValue {
    pub(super) fn from_scalar(scalar: &Scalar) -> Self {
        match scalar {
            Scalar::String(text) => Self::Text((**text).into()),
            Scalar::Number(number) => Self::Integer(ordered(*number)),
            Scalar::Boolean(boolean) => Self::Integer(i64::from(*boolean)),
            Scalar::Date(time) => Self::Integer(time.as_ms()),
        }
    }

    fn from_json(value: &Value, kind: Kind) -> Option<Self> {
        match (kind, value) {
            (Kind::String, Value::String(text)) => Some(Self::Text(text.as_str().into())),
            (Kind::Number, Value::Number(number)) => number.as_f64().map(|number| Self::Integer(ordered(number))),
            (Kind::Boolean, Value::Bool(boolean)) => Some(Self::Integer(i64::from(*boolean))),
            (Kind::Date, Value::String(text)) => Timestamp::from_printed(text).map(|time| Self::Integer(time.as_ms())),
            _ => None,
        }
    }
}

/// Whether a scalar is of the kind that a field holds; where it is not, nothing matches it.
pub(super) fn is_of_kind(scalar: &Scalar, kind: Kind) -> bool {
    matches!(
        (scalar, kind),
        (Scalar::String(_), Kind::String)
            | (Scalar::Number(_), Kind::Number)
            | (Scalar::Boolean(_), Kind::Boolean)
            | (Scalar::Date(_), Kind::Date)
    )
}

/// What a document holds in a field.
pub(super) fn held(document: &Document, field: &Field) -> Held {
    if field.is_universal {
        return Held::Values(universal(document, &field.path).into_iter().collect());
    }
    let mut names = field.path.split('.');
    let first = names.next().and_then(|name| document.fields.get(name));
    let value = names.try_fold(first, |value, name| Some(value?.as_object()?.get(name)));
    let elements = match value.flatten() {
        Some(Value::Array(elements)) if field.is_array => elements.as_slice(),
        Some(value) if !field.is_array => std::slice::from_ref(value),
        _ => &[],
    };
    let values: Vec<_> = elements.iter().filter_map(|element| IndexValue::from_json(element, field.kind)).collect();
    let is_long = |value: &IndexValue| matches!(value, IndexValue::Text(text) if text.len() > TERM_BYTES);
    if values.iter().any(is_long) { Held::TooLong(values) } else { Held::Values(values) }
}

fn universal(document: &Document, name: &str) -> Option<IndexValue> {
    let text = |text: &str| Some(IndexValue::Text(text.into()));
    match name {
        "id" => text(document.id.as_str()),
        "type" => text(document.model.as_str()),
        "appId" => text(document.app.as_str()),
        "userId" => document.user.as_ref().and_then(|user| text(user.as_str())),
        "createdAt" => Some(IndexValue::Integer(document.created_at.as_ms())),
        "updatedAt" => Some(IndexValue::Integer(document.updated_at.as_ms())),
        "version" => Some(IndexValue::Integer(ordered(document.version as f64))),
        _ => None,
    }
}

/// A number as an integer, so that integers compare as the numbers do.
pub(super) fn ordered(number: f64) -> i64 {
    let bits = (number + 0.0).to_bits() as i64; // -0.0 + 0.0 is 0.0
    if bits < 0 { bits ^ i64::MAX } else { bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_compare_as_the_numbers_do() {
        let numbers =
            [f64::MIN, -1e300, -5.5, -5.0, -1e-300, 0.0, 1e-300, 0.1, 5.0, 5.5, 9_007_199_254_740_992.0, f64::MAX];
        for (index, left) in numbers.iter().enumerate() {
            for (other, right) in numbers.iter().enumerate() {
                assert_eq!(ordered(*left).cmp(&ordered(*right)), index.cmp(&other), "{left} {right}");
            }
        }
        assert_eq!(ordered(-0.0), ordered(0.0));
    }
}
