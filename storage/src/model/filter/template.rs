//! Filters of rules: conditions in which values of the caller stand, bound when the caller is known.
//!
//! A test on a value that the caller does not have is neither true nor false, and so is its negation. What is left of it after
//! binding is whatever grants nothing: nothing at all under an even number of negations, everything under an odd one. That is
//! three-valued logic in which only "true" grants; branches of an `$or` that do not need the value still do.

use std::ops::Bound;

use serde_json::Value;

use super::{Condition, Field, Kind, Scalar, Test};
use crate::model::Caller;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Template {
    /// Nothing in it depends on the caller.
    Fixed(Condition),
    And(Vec<Template>),
    Or(Vec<Template>),
    Not(Box<Template>),
    Test(Field, UnboundTest),
}

/// A test with at least one value of the caller.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum UnboundTest {
    Eq(UserValue),
    /// One value that the caller does not have is enough for the whole test to be neither true nor false.
    In(Vec<Operand>),
    /// One of the elements of a detail that is an array.
    InList(UserValue),
    Gt(UserValue),
    Gte(UserValue),
    Lt(UserValue),
    Lte(UserValue),
    Prefix(UserValue),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Fixed(Scalar),
    User(UserValue),
}

/// A value of the signed-in user.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum UserValue {
    /// `$user.id`
    Id,
    /// `$user.type`
    Type,
    /// `$user.details.FIELD`, through objects
    Detail(Vec<String>),
}

impl Template {
    pub(crate) fn all_of(parts: Vec<Template>) -> Self {
        match fixed(parts) {
            Ok(conditions) => Self::Fixed(Condition::all_of(conditions)),
            Err(parts) => Self::And(parts),
        }
    }

    pub(crate) fn any_of(parts: Vec<Template>) -> Self {
        match fixed(parts) {
            Ok(conditions) => Self::Fixed(Condition::any_of(conditions)),
            Err(parts) => Self::Or(parts),
        }
    }

    pub(crate) fn negated(self) -> Self {
        match self {
            Self::Fixed(condition) => Self::Fixed(condition.negated()),
            Self::Not(inner) => *inner,
            other => Self::Not(Box::new(other)),
        }
    }

    /// What a document has to fulfil for this caller.
    pub(crate) fn bind(&self, caller: &Caller) -> Condition {
        self.bind_under(caller, false)
    }

    fn bind_under(&self, caller: &Caller, negated: bool) -> Condition {
        match self {
            Self::Fixed(condition) => condition.clone(),
            Self::And(parts) => Condition::all_of(parts.iter().map(|part| part.bind_under(caller, negated))),
            Self::Or(parts) => Condition::any_of(parts.iter().map(|part| part.bind_under(caller, negated))),
            Self::Not(inner) => inner.bind_under(caller, !negated).negated(),
            Self::Test(field, test) => match test.bind(field, caller) {
                Some(condition) => condition,
                None if negated => Condition::All,
                None => Condition::None,
            },
        }
    }

    /// Calls for each field that it tests, as often as it does.
    pub(crate) fn each_field<'t>(&'t self, visit: &mut impl FnMut(&'t Field)) {
        match self {
            Self::Fixed(condition) => condition.each_field(visit),
            Self::And(parts) | Self::Or(parts) => parts.iter().for_each(|part| part.each_field(visit)),
            Self::Not(inner) => inner.each_field(visit),
            Self::Test(field, _) => visit(field),
        }
    }
}

/// The conditions of parts that are all fixed, or the parts.
fn fixed(parts: Vec<Template>) -> Result<Vec<Condition>, Vec<Template>> {
    if !parts.iter().all(|part| matches!(part, Template::Fixed(_))) {
        return Err(parts);
    }
    let condition = |part| if let Template::Fixed(condition) = part { Some(condition) } else { None };
    Ok(parts.into_iter().filter_map(condition).collect())
}

impl UnboundTest {
    /// None when the caller lacks a value.
    fn bind(&self, field: &Field, caller: &Caller) -> Option<Condition> {
        let value = |value: &UserValue| value.of(caller, field.kind);
        let test = match self {
            Self::Eq(user) => Test::Eq(value(user)?),
            Self::Gt(user) => Test::Range(Bound::Excluded(value(user)?), Bound::Unbounded),
            Self::Gte(user) => Test::Range(Bound::Included(value(user)?), Bound::Unbounded),
            Self::Lt(user) => Test::Range(Bound::Unbounded, Bound::Excluded(value(user)?)),
            Self::Lte(user) => Test::Range(Bound::Unbounded, Bound::Included(value(user)?)),
            Self::Prefix(user) => match value(user)? {
                Scalar::String(prefix) => Test::Prefix(prefix),
                _ => return None,
            },
            Self::In(operands) => {
                let values = operands.iter().map(|operand| match operand {
                    Operand::Fixed(scalar) => Some(scalar.clone()),
                    Operand::User(user) => value(user),
                });
                return Some(Condition::is_in(field.clone(), values.collect::<Option<_>>()?));
            }
            Self::InList(user) => return Some(Condition::is_in(field.clone(), user.list_of(caller, field.kind)?)),
        };
        Some(Condition::test(field.clone(), test))
    }
}

impl UserValue {
    /// The caller's value, if it has one of this kind. A caller without a user has none at all.
    fn of(&self, caller: &Caller, kind: Kind) -> Option<Scalar> {
        let user = caller.user.as_ref()?;
        match self {
            Self::Id if kind == Kind::String => Some(Scalar::String(user.as_str().into())),
            Self::Type if kind == Kind::String => Some(Scalar::String(caller.facts.user_type.as_deref()?.into())),
            Self::Id | Self::Type => None,
            Self::Detail(path) => Scalar::from_json(kind, detail(caller, path)?),
        }
    }

    /// The elements of the caller's detail, if it is an array of this kind.
    fn list_of(&self, caller: &Caller, kind: Kind) -> Option<Vec<Scalar>> {
        caller.user.as_ref()?;
        let Self::Detail(path) = self else { return None };
        detail(caller, path)?.as_array()?.iter().map(|element| Scalar::from_json(kind, element)).collect()
    }
}

fn detail<'c>(caller: &'c Caller, path: &[String]) -> Option<&'c Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(caller.facts.details.get(first)?, |value, name| value.as_object()?.get(name))
}
