//! The canonical text of a condition, in the notation of filters. [`parse`](super::parse) reads it back to the same condition.

use std::{collections::BTreeMap, ops::Bound};

use serde_json::Number;

use super::{Condition, Field, Scalar, Test};

/// What stands under a key of a filter.
enum Member {
    /// Under a field: operators, each with its value.
    Operators(BTreeMap<&'static str, String>),
    /// Under `$and`, `$or`, `$not`.
    Combined(String),
}

/// The text, and how deep `$and`, `$or` and `$not` lie in one another in it.
pub(super) fn text(condition: &Condition) -> (String, usize) {
    match condition {
        Condition::All => ("{}".to_owned(), 0),
        Condition::And(parts) => object(parts),
        other => object(std::slice::from_ref(other)),
    }
}

/// The object of conditions that all have to hold. Those that find their key taken go into an `$and`.
fn object(parts: &[Condition]) -> (String, usize) {
    let mut members: BTreeMap<&str, Member> = BTreeMap::new();
    let (mut left_over, mut deepest) = (Vec::new(), 0);
    for part in parts {
        if let Some((field, operators)) = operators(part) {
            let member = members.entry(&field.path).or_insert_with(|| Member::Operators(BTreeMap::new()));
            match member {
                Member::Operators(taken) if !operators.iter().any(|(name, _)| taken.contains_key(name)) => {
                    taken.extend(operators);
                }
                _ => left_over.push(part),
            }
            continue;
        }
        let (key, (text, depth)) = match part {
            Condition::Not(inner) => ("$not", text(inner)),
            Condition::Or(parts) => ("$or", list(parts.iter())),
            // What stands for itself only: nothing at all.
            _ => ("$or", list([].iter())),
        };
        if members.contains_key(key) {
            left_over.push(part);
        } else {
            deepest = deepest.max(depth + 1);
            members.insert(key, Member::Combined(text));
        }
    }
    if !left_over.is_empty() {
        let (text, depth) = list(left_over.into_iter());
        deepest = deepest.max(depth + 1);
        members.insert("$and", Member::Combined(text));
    }
    (print(&members), deepest)
}

fn list<'c>(parts: impl Iterator<Item = &'c Condition>) -> (String, usize) {
    let (texts, depths): (Vec<String>, Vec<usize>) = parts.map(text).unzip();
    (format!("[{}]", texts.join(",")), depths.into_iter().max().unwrap_or(0))
}

fn print(members: &BTreeMap<&str, Member>) -> String {
    let members = members.iter().map(|(key, member)| match member {
        Member::Combined(text) => format!("\"{key}\":{text}"),
        Member::Operators(operators) => match operators.get("$eq") {
            Some(value) if operators.len() == 1 => format!("\"{key}\":{value}"),
            _ => {
                let operators: Vec<_> = operators.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                format!("\"{key}\":{{{}}}", operators.join(","))
            }
        },
    });
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// What a condition is under its field, if the notation can say it there.
fn operators(condition: &Condition) -> Option<(&Field, Vec<(&'static str, String)>)> {
    let (negated, condition) = match condition {
        Condition::Not(inner) => (true, &**inner),
        other => (false, other),
    };
    let Condition::Test(field, test) = condition else { return None };
    let operators = match (test, negated) {
        (Test::Exists, negated) => vec![("$exists", (!negated).to_string())],
        (Test::Eq(value), false) => vec![("$eq", scalar(value))],
        (Test::Eq(value), true) => vec![("$ne", scalar(value))],
        (Test::In(values), false) => vec![("$in", scalars(values))],
        (Test::In(values), true) => vec![("$nin", scalars(values))],
        (Test::Prefix(prefix), false) => vec![("$prefix", string(prefix))],
        (Test::Range(low, high), false) => {
            let low = match low {
                Bound::Included(value) => Some(("$gte", scalar(value))),
                Bound::Excluded(value) => Some(("$gt", scalar(value))),
                Bound::Unbounded => None,
            };
            let high = match high {
                Bound::Included(value) => Some(("$lte", scalar(value))),
                Bound::Excluded(value) => Some(("$lt", scalar(value))),
                Bound::Unbounded => None,
            };
            low.into_iter().chain(high).collect()
        }
        (Test::Prefix(_) | Test::Range(..), true) => return None,
    };
    Some((field, operators))
}

fn scalars(values: &[Scalar]) -> String {
    format!("[{}]", values.iter().map(scalar).collect::<Vec<_>>().join(","))
}

fn scalar(value: &Scalar) -> String {
    match value {
        Scalar::String(text) => string(text),
        Scalar::Number(number) if number.fract() == 0.0 => (*number as i64).to_string(),
        // Not finite is what `Scalar` says it never is.
        Scalar::Number(number) => Number::from_f64(*number).map_or_else(String::new, |number| number.to_string()),
        Scalar::Boolean(value) => value.to_string(),
        Scalar::Date(time) => format!("\"{time}\""),
    }
}

/// A JSON string; printing one does not fail.
fn string(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}
