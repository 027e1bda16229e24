//! Filters (contract §3): one parser, one canonical form, one meaning in queries, subscriptions and rules.
//!
//! A filter is read by [`parse`], reduced to a [`Condition`] by [`condition`], printed by [`canonical`] and tested on documents
//! by [`evaluate`]; every other evaluator has to agree with the last one. [`template`] is for rules, whose filters name values
//! of the caller that are known only later.

use std::{
    ops::Bound,
    sync::{Arc, LazyLock},
};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Document, Model, Timestamp, pointer::At, schema::UNIVERSAL_FIELDS, schema::canonical_number};

mod canonical;
mod condition;
mod evaluate;
pub mod packed;
mod parse;
mod template;

pub use evaluate::Stored;
pub(crate) use template::Template;

/// Most `$and`, `$or` and `$not` within one another.
pub const FILTER_DEPTH: usize = 8;
/// Most conditions of a filter: operators on fields, all counted.
pub const FILTER_CONDITIONS: usize = 64;
/// Most values of one `$in` or `$nin`.
pub const FILTER_VALUES: usize = 256;

/// A parsed filter: its condition, and the canonical text that its channel key is the hash of.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    condition: Condition,
    canonical: Arc<str>,
    hash: Arc<str>,
}

/// What a document has to fulfil. Cloning one is cheap: its parts are shared. Everything the notation offers is reduced to
/// these: `$ne` is `Not(Eq)`, `$nin` is `Not(In)`, `{field: null}` is `Not(Exists)`.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    All,
    None,
    And(Arc<[Condition]>),
    Or(Arc<[Condition]>),
    Not(Arc<Condition>),
    Test(Field, Test),
}

/// A filterable field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Field {
    /// With dots between the names.
    pub path: Arc<str>,
    /// What its values (of an array: its elements) are.
    pub kind: Kind,
    /// Whether a test means "has such an element".
    pub is_array: bool,
    /// Whether it is one of the fields that every document has.
    pub is_universal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    String,
    Number,
    Boolean,
    Date,
}

/// A test on one field. A missing field fulfils none of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    Exists,
    Eq(Scalar),
    /// Sorted, without repeats.
    In(Arc<[Scalar]>),
    /// Never on arrays or booleans. At least one end is bounded.
    Range(Bound<Scalar>, Bound<Scalar>),
    /// Strings only, never on arrays.
    Prefix(Arc<str>),
}

/// A value to compare with. Strings compare by code point.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
pub enum Scalar {
    String(Arc<str>),
    /// Within ±2^53; never negative zero.
    Number(f64),
    Boolean(bool),
    Date(Timestamp),
}

/// Combinators in their bare spelling: top-level fields of these names cannot be filtered by.
pub(crate) const BARE_COMBINATORS: [&str; 3] = ["and", "or", "not"];

/// Why a filter cannot be used, and where: a JSON Pointer into the filter.
pub type InvalidFilter = super::FieldError;

impl Filter {
    /// Parses a filter of the model; `privileged` callers may name hidden fields. A JSON null or an absent filter is not
    /// passed here. The canonical text of a filter is parsed to the same filter.
    pub fn parse(filter: &Value, model: &Model, privileged: bool) -> Result<Self, InvalidFilter> {
        let condition = parse::plain(filter, model, privileged)?.normalized();
        let (canonical, depth) = canonical::text(&condition);
        // Fields that are tested twice with one operator need an `$and` that the given spelling may have done without.
        if depth > FILTER_DEPTH {
            return Err(At::ROOT.fault(format!("$and, $or and $not lie more than {FILTER_DEPTH} deep in one another")));
        }
        let mut hash = String::with_capacity(32);
        for byte in Sha256::digest(&canonical).iter().take(16) {
            hash.extend([byte >> 4, byte & 15].map(|half| char::from_digit(half.into(), 16).unwrap_or_default()));
        }
        Ok(Self { condition, canonical: canonical.into(), hash: hash.into() })
    }

    pub fn condition(&self) -> &Condition {
        &self.condition
    }

    /// The canonical text: keys sorted, `$` spelling, `$in` sorted. Filters that differ only in spelling have the same: plain
    /// values for `$eq`, one object instead of `$and` where the keys allow it, the parts of `$and` and `$or` sorted and without
    /// repeats, ranges on one field joined, dates and numbers as documents have them.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// The first 16 bytes, in hex, of SHA-256 over the canonical text.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    pub fn matches(&self, document: &Document) -> bool {
        self.condition.matches(document)
    }
}

impl Field {
    /// A universal field by its name in documents.
    pub fn universal(name: &str) -> Option<Field> {
        static FIELDS: LazyLock<[Field; UNIVERSAL_FIELDS.len()]> = LazyLock::new(|| {
            UNIVERSAL_FIELDS.map(|name| Field {
                path: name.into(),
                kind: match name {
                    "createdAt" | "updatedAt" => Kind::Date,
                    "version" => Kind::Number,
                    _ => Kind::String,
                },
                is_array: false,
                is_universal: true,
            })
        });
        FIELDS.iter().find(|field| *field.path == *name).cloned()
    }

    /// Whether every document has it.
    fn is_always_there(&self) -> bool {
        self.is_universal && *self.path != *"userId"
    }
}

impl Scalar {
    /// A JSON value as a value of a field of this kind; none when it is of another.
    pub fn from_json(kind: Kind, value: &Value) -> Option<Self> {
        match (kind, value) {
            (Kind::String, Value::String(text)) => Some(Self::String(text.as_str().into())),
            (Kind::Number, Value::Number(number)) => canonical_number(number)?.as_f64().map(Self::Number),
            (Kind::Boolean, Value::Bool(value)) => Some(Self::Boolean(*value)),
            (Kind::Date, value) => Timestamp::from_json(value).ok().map(Self::Date),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
