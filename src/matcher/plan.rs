//! By which part of its condition a group is found: one that every document of the group fulfils, and few others.
//!
//! Of conditions that all have to hold one is enough; of alternatives every one has to be found by itself; nothing is found by
//! what must not hold. How telling a part is, is judged by how many groups are found by the same value already, and, as long as
//! those are few, by what it is: the document's id, its owner, another value, one of several values, a range with two ends, a
//! prefix, a range with one end, a boolean, that there is something.

use std::{ops::Bound, sync::Arc};

use nexxus_storage::model::filter::{Condition, Field, Kind, Scalar, Stored, Test, packed::Fields};

use super::index::{Index, date_bits, number_bits};

/// Most entries of one group. No filter has more than values, so an entry is never more than what stands in the filter.
const MOST_ENTRIES: usize = 1_024;
/// So many groups at one value are as good as none.
const FEW: usize = 16;
/// Beyond so many around a value they are not counted.
pub(super) const MOST_COUNTED: usize = 256;

/// Where a group stands in the index of its model.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Entry {
    /// At a value of a field, by their hash.
    Equal { field: u32, hash: u64 },
    /// From a value to a value, both included: numbers and dates in an order of bits.
    Bits { field: u32, low: u64, high: u64 },
    /// The same for strings, of which some at the ends do not belong to it.
    Texts { field: u32, low: Arc<[u8]>, high: Arc<[u8]> },
    /// Wherever the field has a value.
    There { field: u32 },
}

/// Less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Weight {
    /// How many groups are in the way, in powers of two; few are none.
    crowd: u32,
    rank: u8,
    exact_crowd: usize,
}

const WEIGHTLESS: Weight = Weight { crowd: 0, rank: 0, exact_crowd: 0 };

pub(super) struct Plan {
    pub(super) entries: Vec<Entry>,
    /// The choices that led there, for [`again`].
    pub(super) choices: Vec<u8>,
    weight: Weight,
}

/// How a group with this condition is best found in an index; none when it cannot be.
pub(super) fn plan(condition: &Condition, index: &Index) -> Option<Plan> {
    match condition {
        Condition::All | Condition::Not(_) => None,
        Condition::None => Some(Plan { entries: Vec::new(), choices: Vec::new(), weight: WEIGHTLESS }),
        Condition::Test(field, test) => {
            let entries = entries_of(field, test, &index.fields, |value| index.hash(field, value))?;
            Some(Plan { weight: weigh(field, test, &entries, index), entries, choices: Vec::new() })
        }
        Condition::And(parts) => best_of(parts, index),
        Condition::Or(parts) => {
            let mut all = Plan { entries: Vec::new(), choices: Vec::new(), weight: WEIGHTLESS };
            for part in parts.iter() {
                let part = plan(part, index)?;
                all.entries.extend(part.entries);
                all.choices.extend(part.choices);
                all.weight = all.weight.max(part.weight);
            }
            (all.entries.len() <= MOST_ENTRIES).then_some(all)
        }
    }
}

fn best_of(parts: &[Condition], index: &Index) -> Option<Plan> {
    let mut best: Option<Plan> = None;
    // Where a value has few groups, nobody need be counted around the ends of ranges.
    for is_quick in [true, false] {
        for (choice, part) in (0..=u8::MAX).zip(parts) {
            if is_quick != is_quickly_weighed(part) {
                continue;
            }
            let Some(part) = plan(part, index) else { continue };
            if best.as_ref().is_none_or(|best| part.weight < best.weight) {
                let choices = std::iter::once(choice).chain(part.choices).collect();
                best = Some(Plan { choices, ..part });
            }
        }
        if best.as_ref().is_some_and(|best| best.weight.crowd == 0) {
            break;
        }
    }
    best
}

fn is_quickly_weighed(condition: &Condition) -> bool {
    match condition {
        Condition::None => true,
        // A boolean has two values, whoever asks for them by now.
        Condition::Test(field, Test::Eq(_) | Test::In(_)) => field.kind != Kind::Boolean,
        _ => false,
    }
}

/// The entries that [`plan`] gave, from its choices.
pub(super) fn again(
    condition: &Condition,
    choices: &mut impl Iterator<Item = u8>,
    fields: &Fields,
    hash: &impl Fn(&Field, Stored<'_>) -> u64,
) -> Vec<Entry> {
    match condition {
        Condition::All | Condition::Not(_) | Condition::None => Vec::new(),
        Condition::Test(field, test) => entries_of(field, test, fields, |value| hash(field, value)).unwrap_or_default(),
        Condition::And(parts) => match choices.next().and_then(|choice| parts.get(usize::from(choice))) {
            Some(part) => again(part, choices, fields, hash),
            None => Vec::new(),
        },
        Condition::Or(parts) => parts.iter().flat_map(|part| again(part, choices, fields, hash)).collect(),
    }
}

/// Where a test stands; none when it says nothing within a model, or too much.
fn entries_of(field: &Field, test: &Test, fields: &Fields, hash: impl Fn(Stored<'_>) -> u64) -> Option<Vec<Entry>> {
    // All documents of an index have the same type and application.
    if field.is_universal && matches!(&*field.path, "type" | "appId") {
        return None;
    }
    let number = fields.find(field)?;
    let equal = |value: &Scalar| Entry::Equal { field: number, hash: hash(value.as_stored()) };
    Some(match test {
        Test::Exists => vec![Entry::There { field: number }],
        Test::Eq(value) => vec![equal(value)],
        Test::In(values) if values.len() <= MOST_ENTRIES => values.iter().map(equal).collect(),
        Test::In(_) => return None,
        Test::Prefix(prefix) => {
            // No byte of UTF-8 is that great.
            let high = prefix.bytes().chain([u8::MAX]).collect();
            vec![Entry::Texts { field: number, low: prefix.as_bytes().into(), high }]
        }
        Test::Range(low, high) => vec![range(number, field.kind, low, high)?],
    })
}

fn range(field: u32, kind: Kind, low: &Bound<Scalar>, high: &Bound<Scalar>) -> Option<Entry> {
    match kind {
        Kind::String => {
            let text = |bound: &Bound<Scalar>, unbounded: &[u8]| match bound {
                Bound::Included(Scalar::String(text)) | Bound::Excluded(Scalar::String(text)) => {
                    Some(text.as_bytes().into())
                }
                Bound::Unbounded => Some(unbounded.into()),
                _ => None,
            };
            Some(Entry::Texts { field, low: text(low, &[])?, high: text(high, &[u8::MAX])? })
        }
        Kind::Number | Kind::Date => {
            let bits = |value: &Scalar| match value {
                Scalar::Number(number) => Some(number_bits(*number)),
                Scalar::Date(time) => Some(date_bits(*time)),
                _ => None,
            };
            // Between neighbouring bits there is no value.
            let low = match low {
                Bound::Included(value) => bits(value)?,
                Bound::Excluded(value) => bits(value)?.saturating_add(1),
                Bound::Unbounded => 0,
            };
            let high = match high {
                Bound::Included(value) => bits(value)?,
                Bound::Excluded(value) => bits(value)?.saturating_sub(1),
                Bound::Unbounded => u64::MAX,
            };
            Some(Entry::Bits { field, low, high })
        }
        Kind::Boolean => None,
    }
}

fn weigh(field: &Field, test: &Test, entries: &[Entry], index: &Index) -> Weight {
    let rank = match test {
        Test::Eq(_) if field.is_universal && *field.path == *"id" => 0,
        Test::Eq(_) if field.is_universal && *field.path == *"userId" => 1,
        Test::Eq(_) if field.kind != Kind::Boolean => 2,
        Test::In(_) => 3,
        Test::Range(low, high) if !matches!(low, Bound::Unbounded) && !matches!(high, Bound::Unbounded) => 4,
        Test::Prefix(_) => 5,
        Test::Range(..) => 6,
        Test::Eq(_) => 7,
        Test::Exists => 8,
    };
    let exact_crowd = entries.iter().map(|entry| index.crowd_at(entry)).max().unwrap_or(0);
    let crowd = if exact_crowd <= FEW { 0 } else { exact_crowd.ilog2() };
    Weight { crowd, rank, exact_crowd }
}
