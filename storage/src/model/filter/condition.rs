//! Puts conditions together, and keeps them small.

use std::{cmp::Ordering, ops::Bound, sync::Arc};

use super::{Condition, Field, Scalar, Test, canonical};

impl Condition {
    /// Both have to hold; simplified where one of them decides.
    #[must_use]
    pub fn and(self, other: Condition) -> Condition {
        Self::all_of([self, other])
    }

    /// All have to hold. Flat, without repeats; the ranges on a field are joined.
    pub fn all_of(parts: impl IntoIterator<Item = Condition>) -> Condition {
        let mut all: Vec<Condition> = Vec::new();
        for part in parts {
            match part {
                Self::All => {}
                Self::None => return Self::None,
                Self::And(inner) => {
                    for part in inner.iter() {
                        if !add_required(&mut all, part.clone()) {
                            return Self::None;
                        }
                    }
                }
                part => {
                    if !add_required(&mut all, part) {
                        return Self::None;
                    }
                }
            }
        }
        match all.len() {
            0 => Self::All,
            1 => all.remove(0),
            _ => Self::And(all.into()),
        }
    }

    /// At least one has to hold. Flat, without repeats.
    pub fn any_of(parts: impl IntoIterator<Item = Condition>) -> Condition {
        let mut any: Vec<Condition> = Vec::new();
        for part in parts {
            match part {
                Self::All => return Self::All,
                Self::None => {}
                Self::Or(inner) => inner.iter().for_each(|part| add_new(&mut any, part.clone())),
                part => add_new(&mut any, part),
            }
        }
        match any.len() {
            0 => Self::None,
            1 => any.remove(0),
            _ => Self::Or(any.into()),
        }
    }

    /// It must not hold.
    #[must_use]
    pub fn negated(self) -> Condition {
        match self {
            Self::All => Self::None,
            Self::None => Self::All,
            Self::Not(inner) => (*inner).clone(),
            other => Self::Not(Arc::new(other)),
        }
    }

    /// A test on a field, in its simplest form.
    pub(super) fn test(field: Field, test: Test) -> Condition {
        match test {
            Test::Exists if field.is_always_there() => Self::All,
            Test::In(values) => Self::is_in(field, values.to_vec()),
            Test::Range(low, high) => range(field, low, high),
            Test::Prefix(prefix) if prefix.is_empty() => Self::test(field, Test::Exists),
            test => Self::Test(field, test),
        }
    }

    /// The field is one of these values.
    pub(super) fn is_in(field: Field, mut values: Vec<Scalar>) -> Condition {
        values.sort_by(|left, right| left.partial_cmp(right).unwrap_or(Ordering::Equal));
        values.dedup();
        match values.len() {
            0 => Self::None,
            1 => Self::Test(field, Test::Eq(values.remove(0))),
            _ => Self::Test(field, Test::In(values.into())),
        }
    }

    /// The same condition with its parts in canonical order, so that equal ones are equal values.
    #[must_use]
    pub fn normalized(&self) -> Condition {
        match self {
            Self::And(parts) => match Self::all_of(parts.iter().map(Self::normalized)) {
                Self::And(parts) => Self::And(sorted(&parts)),
                other => other,
            },
            Self::Or(parts) => match Self::any_of(parts.iter().map(Self::normalized)) {
                Self::Or(parts) => Self::Or(sorted(&parts)),
                other => other,
            },
            Self::Not(inner) => inner.normalized().negated(),
            other => other.clone(),
        }
    }

    /// Its text in the notation of filters: of a filter's condition, the filter's canonical text.
    pub fn canonical(&self) -> String {
        canonical::text(self).0
    }

    /// Calls for each field that it tests, as often as it does.
    pub fn each_field<'c>(&'c self, visit: &mut impl FnMut(&'c Field)) {
        match self {
            Self::All | Self::None => {}
            Self::And(parts) | Self::Or(parts) => parts.iter().for_each(|part| part.each_field(visit)),
            Self::Not(inner) => inner.each_field(visit),
            Self::Test(field, _) => visit(field),
        }
    }
}

fn sorted(parts: &[Condition]) -> Arc<[Condition]> {
    let mut parts = parts.to_vec();
    parts.sort_by_cached_key(|part| canonical::text(part).0);
    parts.into()
}

fn add_new(parts: &mut Vec<Condition>, part: Condition) {
    if !parts.contains(&part) {
        parts.push(part);
    }
}

/// Adds one of the conditions that all have to hold; false when they cannot.
fn add_required(all: &mut Vec<Condition>, part: Condition) -> bool {
    if let Condition::Test(field, Test::Range(low, high)) = &part {
        let other = all.iter_mut().find_map(|other| match other {
            Condition::Test(same, Test::Range(low, high)) if same == field => Some((low, high)),
            _ => None,
        });
        if let Some((other_low, other_high)) = other {
            let low = tighter(other_low, low, Ordering::Greater);
            let high = tighter(other_high, high, Ordering::Less);
            let joined = range(field.clone(), low, high);
            all.retain(|other| !matches!(other, Condition::Test(same, Test::Range(..)) if same == field));
            if joined == Condition::None {
                return false;
            }
            add_new(all, joined);
            return true;
        }
    }
    add_new(all, part);
    true
}

/// The bound of two that lets less through: for low ones the greater value, for high ones the lesser.
fn tighter(one: &Bound<Scalar>, other: &Bound<Scalar>, wanted: Ordering) -> Bound<Scalar> {
    let (Some(one_value), Some(other_value)) = (value_of(one), value_of(other)) else {
        return if matches!(one, Bound::Unbounded) { other.clone() } else { one.clone() };
    };
    match one_value.partial_cmp(other_value) {
        Some(Ordering::Equal) if matches!(one, Bound::Excluded(_)) => one.clone(),
        Some(order) if order == wanted => one.clone(),
        _ => other.clone(),
    }
}

fn value_of(bound: &Bound<Scalar>) -> Option<&Scalar> {
    match bound {
        Bound::Included(value) | Bound::Excluded(value) => Some(value),
        Bound::Unbounded => None,
    }
}

/// A range, or nothing when no value lies in it. Ends that meet stay a range: as a plain value it would no longer be joined with
/// another range on the field, and the same ranges in another order would be another condition.
fn range(field: Field, low: Bound<Scalar>, high: Bound<Scalar>) -> Condition {
    let order = match (value_of(&low), value_of(&high)) {
        (Some(low), Some(high)) => low.partial_cmp(high),
        _ => Some(Ordering::Less),
    };
    match (order, &low, &high) {
        (Some(Ordering::Less), ..) | (Some(Ordering::Equal), Bound::Included(_), Bound::Included(_)) => {
            Condition::Test(field, Test::Range(low, high))
        }
        _ => Condition::None,
    }
}
