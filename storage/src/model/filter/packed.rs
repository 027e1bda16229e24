//! Conditions as bytes, for who holds a million of them: what takes hundreds of bytes as a [`Condition`] takes tens.
//!
//! A byte says what follows: nothing, parts, or a test. Fields are numbers in a table of their own ([`Fields`]), which a matcher
//! has once for each model. Lengths and numbers of fields are LEB128. The bytes live in memory only; no other process sees them.

use std::{collections::HashMap, ops::Bound};

use super::{Condition, Field, Scalar, Stored, Test};
use crate::model::{Document, Timestamp};

const ALL: u8 = 0;
const NONE: u8 = 1;
const AND: u8 = 2;
const OR: u8 = 3;
const NOT: u8 = 4;
const EXISTS: u8 = 5;
const EQ: u8 = 6;
const IN: u8 = 7;
const PREFIX: u8 = 8;
/// Plus how the low end is bounded, plus three times how the high end is: not, with its value, without it.
const RANGE: u8 = 16;

const STRING: u8 = 0;
const NUMBER: u8 = 1;
const FALSE: u8 = 2;
const TRUE: u8 = 3;
const DATE: u8 = 4;
/// A number without a fraction: zigzag, LEB128.
const INTEGER: u8 = 5;

/// The fields that packed conditions name, by number.
#[derive(Debug, Default)]
pub struct Fields {
    known: Vec<Field>,
    numbers: HashMap<Field, u32>,
}

impl Fields {
    /// The number of a field, which it gets here where it has none.
    pub fn number_of(&mut self, field: &Field) -> u32 {
        if let Some(number) = self.numbers.get(field) {
            return *number;
        }
        let number = self.known.len() as u32;
        self.known.push(field.clone());
        self.numbers.insert(field.clone(), number);
        number
    }

    pub fn find(&self, field: &Field) -> Option<u32> {
        self.numbers.get(field).copied()
    }

    pub fn get(&self, number: u32) -> Option<&Field> {
        self.known.get(number as usize)
    }
}

/// Appends a condition to `into`. Equal bytes are equal conditions.
pub fn pack(condition: &Condition, fields: &mut Fields, into: &mut Vec<u8>) {
    match condition {
        Condition::All => into.push(ALL),
        Condition::None => into.push(NONE),
        Condition::And(parts) => pack_parts(AND, parts, fields, into),
        Condition::Or(parts) => pack_parts(OR, parts, fields, into),
        Condition::Not(inner) => {
            into.push(NOT);
            pack(inner, fields, into);
        }
        Condition::Test(field, test) => pack_test(fields.number_of(field), test, into),
    }
}

/// With their length before them, so that they can be left unread once one of them decides.
fn pack_parts(tag: u8, parts: &[Condition], fields: &mut Fields, into: &mut Vec<u8>) {
    let mut packed = Vec::new();
    parts.iter().for_each(|part| pack(part, fields, &mut packed));
    into.push(tag);
    put_bytes(&packed, into);
}

fn pack_test(field: u32, test: &Test, into: &mut Vec<u8>) {
    let bound = |bound: &Bound<Scalar>| match bound {
        Bound::Unbounded => 0,
        Bound::Included(_) => 1,
        Bound::Excluded(_) => 2,
    };
    into.push(match test {
        Test::Exists => EXISTS,
        Test::Eq(_) => EQ,
        Test::In(_) => IN,
        Test::Prefix(_) => PREFIX,
        Test::Range(low, high) => RANGE + bound(low) + 3 * bound(high),
    });
    put_number(u64::from(field), into);
    match test {
        Test::Exists => {}
        Test::Eq(value) => put_scalar(value, into),
        Test::In(values) => {
            put_number(values.len() as u64, into);
            values.iter().for_each(|value| put_scalar(value, into));
        }
        Test::Prefix(prefix) => put_bytes(prefix.as_bytes(), into),
        Test::Range(low, high) => {
            for bound in [low, high] {
                if let Bound::Included(value) | Bound::Excluded(value) = bound {
                    put_scalar(value, into);
                }
            }
        }
    }
}

fn put_scalar(scalar: &Scalar, into: &mut Vec<u8>) {
    match scalar {
        Scalar::String(text) => {
            into.push(STRING);
            put_bytes(text.as_bytes(), into);
        }
        Scalar::Number(number) if number.fract() == 0.0 => {
            let integer = *number as i64;
            into.push(INTEGER);
            put_number((integer << 1 ^ integer >> 63).cast_unsigned(), into);
        }
        Scalar::Number(number) => {
            into.push(NUMBER);
            into.extend_from_slice(&number.to_le_bytes());
        }
        Scalar::Boolean(truth) => into.push(if *truth { TRUE } else { FALSE }),
        Scalar::Date(time) => {
            into.push(DATE);
            into.extend_from_slice(&time.as_ms().to_le_bytes());
        }
    }
}

/// Appends a number in LEB128.
pub fn put_number(mut number: u64, into: &mut Vec<u8>) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn put_bytes(bytes: &[u8], into: &mut Vec<u8>) {
    put_number(bytes.len() as u64, into);
    into.extend_from_slice(bytes);
}

/// Takes such a number off the front; none when there is none.
pub fn take_number(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Whether a document fulfils a packed condition: the same as [`Condition::matches`]. Nothing is allocated. What is no packed
/// condition of these fields, nothing fulfils.
pub fn matches(packed: &[u8], fields: &Fields, document: &Document) -> bool {
    Reader { bytes: packed, fields }.holds(document) == Some(true)
}

/// The condition that was packed.
pub fn unpack(packed: &[u8], fields: &Fields) -> Option<Condition> {
    Reader { bytes: packed, fields }.condition()
}

struct Reader<'p> {
    bytes: &'p [u8],
    fields: &'p Fields,
}

impl<'p> Reader<'p> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*byte)
    }

    fn eight(&mut self) -> Option<[u8; 8]> {
        let (eight, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(*eight)
    }

    fn number(&mut self) -> Option<u64> {
        take_number(&mut self.bytes)
    }

    fn bytes(&mut self) -> Option<&'p [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<&'p str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    fn field(&mut self) -> Option<&'p Field> {
        self.fields.get(u32::try_from(self.number()?).ok()?)
    }

    fn value(&mut self) -> Option<Stored<'p>> {
        Some(match self.byte()? {
            STRING => Stored::String(self.text()?),
            NUMBER => Stored::Number(f64::from_le_bytes(self.eight()?)),
            INTEGER => {
                let zigzag = self.number()?;
                Stored::Number(((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed()) as f64)
            }
            FALSE => Stored::Boolean(false),
            TRUE => Stored::Boolean(true),
            DATE => Stored::Date(Timestamp::from_ms(i64::from_le_bytes(self.eight()?)).ok()?),
            _ => return None,
        })
    }

    fn bound(&mut self, kind: u8) -> Option<Bound<Stored<'p>>> {
        Some(match kind {
            0 => Bound::Unbounded,
            1 => Bound::Included(self.value()?),
            _ => Bound::Excluded(self.value()?),
        })
    }

    /// The parts of an `And` or `Or`.
    fn parts(&mut self) -> Option<Self> {
        Some(Self { bytes: self.bytes()?, fields: self.fields })
    }

    /// Reads one condition to its end.
    fn holds(&mut self, document: &Document) -> Option<bool> {
        Some(match self.byte()? {
            ALL => true,
            NONE => false,
            NOT => !self.holds(document)?,
            tag @ (AND | OR) => {
                let mut parts = self.parts()?;
                while !parts.bytes.is_empty() {
                    if parts.holds(document)? == (tag == OR) {
                        return Some(tag == OR);
                    }
                }
                tag == AND
            }
            tag => self.test_holds(tag, document)?,
        })
    }

    fn test_holds(&mut self, tag: u8, document: &Document) -> Option<bool> {
        let field = self.field()?;
        let equals = |wanted: Stored<'_>, value: Stored<'_>| wanted.order(value) == Some(std::cmp::Ordering::Equal);
        Some(match tag {
            EXISTS => field.any_value(document, |_| true),
            EQ => {
                let wanted = self.value()?;
                field.any_value(document, |value| equals(wanted, value))
            }
            IN => {
                let n_values = self.number()?;
                let listed = self.bytes;
                for _ in 0..n_values {
                    self.value()?;
                }
                field.any_value(document, |value| {
                    let mut listed = Reader { bytes: listed, fields: self.fields };
                    (0..n_values).any(|_| listed.value().is_some_and(|wanted| equals(wanted, value)))
                })
            }
            PREFIX => {
                let prefix = self.text()?;
                field.any_value(document, |value| matches!(value, Stored::String(text) if text.starts_with(prefix)))
            }
            RANGE.. => {
                let (low, high) = ((tag - RANGE) % 3, (tag - RANGE) / 3);
                let (low, high) = (self.bound(low)?, self.bound(high)?);
                field.any_value(document, |value| value.is_within(low, high))
            }
            _ => return None,
        })
    }

    fn condition(&mut self) -> Option<Condition> {
        Some(match self.byte()? {
            ALL => Condition::All,
            NONE => Condition::None,
            NOT => Condition::Not(self.condition()?.into()),
            tag @ (AND | OR) => {
                let (mut reader, mut parts) = (self.parts()?, Vec::new());
                while !reader.bytes.is_empty() {
                    parts.push(reader.condition()?);
                }
                if tag == AND { Condition::And(parts.into()) } else { Condition::Or(parts.into()) }
            }
            tag => Condition::Test(self.field()?.clone(), self.test(tag)?),
        })
    }

    fn test(&mut self, tag: u8) -> Option<Test> {
        Some(match tag {
            EXISTS => Test::Exists,
            EQ => Test::Eq(self.value()?.into()),
            IN => {
                let n_values = self.number()?;
                Test::In((0..n_values).map(|_| Some(self.value()?.into())).collect::<Option<_>>()?)
            }
            PREFIX => Test::Prefix(self.text()?.into()),
            RANGE.. => {
                let (low, high) = ((tag - RANGE) % 3, (tag - RANGE) / 3);
                Test::Range(self.bound(low)?.map(Scalar::from), self.bound(high)?.map(Scalar::from))
            }
            _ => return None,
        })
    }
}

impl From<Stored<'_>> for Scalar {
    fn from(value: Stored<'_>) -> Self {
        match value {
            Stored::String(text) => Self::String(text.into()),
            Stored::Number(number) => Self::Number(number),
            Stored::Boolean(truth) => Self::Boolean(truth),
            Stored::Date(time) => Self::Date(time),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        Filter,
        testing::{filtered_documents, naive_matches},
    };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn packed_conditions_mean_what_they_were((model, documents, filter) in filtered_documents(12)) {
            let condition = Filter::parse(&filter, &model, true).expect("a filter").condition().clone();
            let (mut fields, mut packed) = (Fields::default(), Vec::new());
            pack(&condition, &mut fields, &mut packed);
            for document in &documents {
                prop_assert_eq!(matches(&packed, &fields, document), condition.matches(document));
                prop_assert_eq!(matches(&packed, &fields, document), naive_matches(&filter, document, &model));
            }
            prop_assert_eq!(unpack(&packed, &fields), Some(condition));
        }

        #[test]
        fn no_bytes_make_it_panic((model, documents, filter) in filtered_documents(1), bytes: Vec<u8>, cut in 0_usize..200) {
            let condition = Filter::parse(&filter, &model, true).expect("a filter").condition().clone();
            let (mut fields, mut packed) = (Fields::default(), Vec::new());
            pack(&condition, &mut fields, &mut packed);
            packed.truncate(cut);
            for bytes in [&bytes, &packed] {
                matches(bytes, &fields, &documents[0]);
                let _any = unpack(bytes, &fields);
            }
        }
    }

    #[test]
    fn an_owner_and_a_priority_take_few_bytes() {
        let model = serde_json::json!({
            "owner": { "type": "string", "filterable": true }, "priority": { "type": "number", "filterable": true },
        });
        let model = crate::model::Model::parse(&model).expect("a model");
        let filter = serde_json::json!({ "owner": "a".repeat(20), "priority": { "$gt": 5 } });
        let filter = Filter::parse(&filter, &model, false).expect("a filter");
        let mut packed = Vec::new();
        pack(filter.condition(), &mut Fields::default(), &mut packed);
        assert_eq!(packed.len(), 30);
    }
}
