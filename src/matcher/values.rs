//! Values as keys: what an equality asks for, and what a document has.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use nexxus_storage::model::{
    Document, Timestamp,
    filter::{Field, Kind, Scalar},
};
use serde_json::Value;

/// The number of a group in its index.
pub(super) type Number = u32;

/// The groups that are found by a value of one field.
#[derive(Default)]
pub(super) struct Values {
    texts: HashMap<Arc<str>, BTreeSet<Number>>,
    bits: HashMap<u64, BTreeSet<Number>>,
}

/// A value of a field. A field has values of one kind only, so what is no text is told apart by its bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    Text(Arc<str>),
    Bits(u64),
}

impl Key {
    pub(super) fn of(value: &Scalar) -> Self {
        match value {
            Scalar::String(text) => Self::Text(text.clone()),
            Scalar::Number(number) => Self::Bits(number_bits(*number)),
            Scalar::Boolean(truth) => Self::Bits(u64::from(*truth)),
            Scalar::Date(time) => Self::Bits(date_bits(*time)),
        }
    }
}

impl Values {
    pub(super) fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.bits.is_empty()
    }

    pub(super) fn insert(&mut self, key: Key, number: Number) {
        match key {
            Key::Text(text) => self.texts.entry(text).or_default().insert(number),
            Key::Bits(bits) => self.bits.entry(bits).or_default().insert(number),
        };
    }

    pub(super) fn remove(&mut self, key: &Key, number: Number) {
        let numbers = match key {
            Key::Text(text) => self.texts.get_mut(text),
            Key::Bits(bits) => self.bits.get_mut(bits),
        };
        let is_left_empty = numbers.is_some_and(|numbers| numbers.remove(&number) && numbers.is_empty());
        match key {
            Key::Text(text) if is_left_empty => drop(self.texts.remove(text)),
            Key::Bits(bits) if is_left_empty => drop(self.bits.remove(bits)),
            _ => {}
        }
    }

    /// How many groups are found by a value.
    pub(super) fn count(&self, key: &Key) -> usize {
        let numbers = match key {
            Key::Text(text) => self.texts.get(text),
            Key::Bits(bits) => self.bits.get(bits),
        };
        numbers.map_or(0, BTreeSet::len)
    }

    /// The groups that are found by the values that a document has in the field (of an array: by each of its elements).
    pub(super) fn collect(&self, field: &Field, document: &Document, into: &mut Vec<Number>) {
        if field.is_universal {
            return into.extend(self.of_universal(&field.path, document).into_iter().flatten());
        }
        let mut names = field.path.split('.');
        let first = names.next().and_then(|name| document.fields.get(name));
        match first.and_then(|first| names.try_fold(first, |value, name| value.get(name))) {
            Some(Value::Array(elements)) => {
                into.extend(elements.iter().filter_map(|element| self.of_json(field.kind, element)).flatten());
            }
            Some(value) => into.extend(self.of_json(field.kind, value).into_iter().flatten()),
            None => {}
        }
    }

    fn of_universal(&self, name: &str, document: &Document) -> Option<&BTreeSet<Number>> {
        match name {
            "id" => self.texts.get(document.id.as_str()),
            "userId" => self.texts.get(document.user.as_ref()?.as_str()),
            "version" => self.bits.get(&number_bits(document.version as f64)),
            "createdAt" => self.bits.get(&date_bits(document.created_at)),
            "updatedAt" => self.bits.get(&date_bits(document.updated_at)),
            _ => None,
        }
    }

    fn of_json(&self, kind: Kind, value: &Value) -> Option<&BTreeSet<Number>> {
        match kind {
            Kind::String => self.texts.get(value.as_str()?),
            Kind::Number => self.bits.get(&number_bits(value.as_f64()?)),
            Kind::Boolean => self.bits.get(&u64::from(value.as_bool()?)),
            Kind::Date => self.bits.get(&date_bits(value.as_str()?.parse().ok()?)),
        }
    }
}

fn number_bits(number: f64) -> u64 {
    // Adding zero turns negative zero into zero: they are one value.
    (number + 0.0).to_bits()
}

fn date_bits(time: Timestamp) -> u64 {
    time.as_ms().cast_unsigned()
}
