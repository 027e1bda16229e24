//! Whether a document fulfils a condition. Nothing is allocated: this runs for every change and every subscription.
//!
//! It recurses as deep as the condition is, which the parser bounds.

use std::{cmp::Ordering, ops::Bound};

use serde_json::{Map, Value};

use super::{Condition, Field, Kind, Scalar, Test};
use crate::model::{Document, Timestamp};

impl Condition {
    /// The meaning of filters, queries and rules; stores that search have to agree with it.
    pub fn matches(&self, document: &Document) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::And(parts) => parts.iter().all(|part| part.matches(document)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(document)),
            Self::Not(inner) => !inner.matches(document),
            Self::Test(field, test) => field.any_value(document, |value| test.holds(value)),
        }
    }
}

/// A value of a document, or of a filter, as filters see it.
#[derive(Debug, Clone, Copy)]
pub enum Stored<'d> {
    String(&'d str),
    Number(f64),
    Boolean(bool),
    Date(Timestamp),
}

impl Field {
    /// Whether its value, or any of its elements, is as wanted. What is not of its kind (left behind by a forced change of
    /// schema) is as good as missing.
    pub fn any_value(&self, document: &Document, mut wanted: impl FnMut(Stored<'_>) -> bool) -> bool {
        if self.is_universal {
            return universal_value(&self.path, document).is_some_and(wanted);
        }
        match value_at(&document.fields, &self.path) {
            Some(Value::Array(elements)) if self.is_array => {
                elements.iter().any(|element| stored(self.kind, element).is_some_and(&mut wanted))
            }
            Some(value) if !self.is_array => stored(self.kind, value).is_some_and(wanted),
            _ => false,
        }
    }

    /// Whether two documents certainly have the same in it.
    pub fn is_same_in(&self, one: &Document, other: &Document) -> bool {
        if self.is_universal {
            let values = (universal_value(&self.path, one), universal_value(&self.path, other));
            return match values {
                (Some(one), Some(other)) => one.order(other) == Some(Ordering::Equal),
                (None, None) => true,
                _ => false,
            };
        }
        value_at(&one.fields, &self.path) == value_at(&other.fields, &self.path)
    }
}

fn universal_value<'d>(name: &str, document: &'d Document) -> Option<Stored<'d>> {
    match name {
        "id" => Some(Stored::String(document.id.as_str())),
        "type" => Some(Stored::String(document.model.as_str())),
        "appId" => Some(Stored::String(document.app.as_str())),
        "userId" => document.user.as_ref().map(|user| Stored::String(user.as_str())),
        "createdAt" => Some(Stored::Date(document.created_at)),
        "updatedAt" => Some(Stored::Date(document.updated_at)),
        "version" => Some(Stored::Number(document.version as f64)),
        _ => None,
    }
}

/// The value at a dotted path through objects.
fn value_at<'d>(fields: &'d Map<String, Value>, path: &str) -> Option<&'d Value> {
    let mut names = path.split('.');
    let first = fields.get(names.next()?)?;
    names.try_fold(first, |value, name| value.as_object()?.get(name))
}

fn stored(kind: Kind, value: &Value) -> Option<Stored<'_>> {
    match (kind, value) {
        (Kind::String, Value::String(text)) => Some(Stored::String(text)),
        (Kind::Number, Value::Number(number)) => number.as_f64().map(Stored::Number),
        (Kind::Boolean, Value::Bool(value)) => Some(Stored::Boolean(*value)),
        (Kind::Date, Value::String(text)) => Timestamp::from_printed(text).map(Stored::Date),
        _ => None,
    }
}

impl Test {
    fn holds(&self, value: Stored<'_>) -> bool {
        match self {
            Self::Exists => true,
            Self::Eq(wanted) => wanted.order(value) == Some(Ordering::Equal),
            // A value of another kind is not found, wherever the search goes.
            Self::In(wanted) => wanted.binary_search_by(|wanted| wanted.order(value).unwrap_or(Ordering::Less)).is_ok(),
            Self::Range(low, high) => {
                value.is_within(low.as_ref().map(Scalar::as_stored), high.as_ref().map(Scalar::as_stored))
            }
            Self::Prefix(prefix) => matches!(value, Stored::String(text) if text.starts_with(&**prefix)),
        }
    }
}

impl Scalar {
    pub fn as_stored(&self) -> Stored<'_> {
        match self {
            Self::String(text) => Stored::String(text),
            Self::Number(number) => Stored::Number(*number),
            Self::Boolean(truth) => Stored::Boolean(*truth),
            Self::Date(time) => Stored::Date(*time),
        }
    }

    fn order(&self, value: Stored<'_>) -> Option<Ordering> {
        self.as_stored().order(value)
    }
}

impl Stored<'_> {
    /// How they compare; none when they are of different kinds. UTF-8 bytes are in the order of the code points.
    pub(super) fn order(self, other: Stored<'_>) -> Option<Ordering> {
        match (self, other) {
            (Self::String(this), Stored::String(other)) => Some(this.cmp(other)),
            (Self::Number(this), Stored::Number(other)) => this.partial_cmp(&other),
            (Self::Boolean(this), Stored::Boolean(other)) => Some(this.cmp(&other)),
            (Self::Date(this), Stored::Date(other)) => Some(this.cmp(&other)),
            _ => None,
        }
    }

    pub(super) fn is_within(self, low: Bound<Stored<'_>>, high: Bound<Stored<'_>>) -> bool {
        let above = match low {
            Bound::Included(low) => matches!(low.order(self), Some(Ordering::Less | Ordering::Equal)),
            Bound::Excluded(low) => low.order(self) == Some(Ordering::Less),
            Bound::Unbounded => true,
        };
        above
            && match high {
                Bound::Included(high) => matches!(high.order(self), Some(Ordering::Greater | Ordering::Equal)),
                Bound::Excluded(high) => high.order(self) == Some(Ordering::Greater),
                Bound::Unbounded => true,
            }
    }
}
