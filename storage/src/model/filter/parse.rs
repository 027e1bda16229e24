//! Reads filters as clients write them.

use std::ops::Bound;

use serde_json::{Map, Value};

use super::{
    Condition, FILTER_CONDITIONS, FILTER_DEPTH, FILTER_VALUES, Field, InvalidFilter, Kind, Scalar, Template, Test,
    template::{Operand, UnboundTest, UserValue},
};
use crate::model::{Model, pointer::At};

type Parsed = Result<Template, InvalidFilter>;

/// A filter of a client, in which every value is what it says.
pub(super) fn plain(filter: &Value, model: &Model, privileged: bool) -> Result<Condition, InvalidFilter> {
    let mut parser = Parser { model, privileged, user_values: false, n_conditions: 0 };
    match parser.filter(filter, 0, &At::ROOT)? {
        Template::Fixed(condition) => Ok(condition),
        // Only values of the caller make anything else, and none were read as such.
        _ => Ok(Condition::None),
    }
}

impl Template {
    /// The filter of a rule, in which `$user.…` stands for the caller; it may name hidden fields.
    pub(crate) fn parse(filter: &Value, model: &Model) -> Parsed {
        Parser { model, privileged: true, user_values: true, n_conditions: 0 }.filter(filter, 0, &At::ROOT)
    }
}

struct Parser<'m> {
    model: &'m Model,
    /// Whether hidden fields may be named.
    privileged: bool,
    /// Whether `$user.…` stands for the caller.
    user_values: bool,
    n_conditions: usize,
}

impl Parser<'_> {
    /// A filter below `depth` combinators.
    fn filter(&mut self, filter: &Value, depth: usize, at: &At<'_>) -> Parsed {
        let Value::Object(members) = filter else { return Err(at.fault("a filter is an object")) };
        let mut parts = Vec::with_capacity(members.len());
        for (key, value) in members {
            let at = at.name(key);
            parts.push(match key.as_str() {
                "$and" | "and" => Template::all_of(self.list(value, depth + 1, &at)?),
                "$or" | "or" => Template::any_of(self.list(value, depth + 1, &at)?),
                "$not" | "not" => {
                    check_depth(depth + 1, &at)?;
                    self.filter(value, depth + 1, &at)?.negated()
                }
                _ if key.starts_with('$') => return Err(at.fault("unknown; beside fields there are $and, $or, $not")),
                path => self.field_conditions(path, value, &at)?,
            });
        }
        Ok(Template::all_of(parts))
    }

    fn list(&mut self, filters: &Value, depth: usize, at: &At<'_>) -> Result<Vec<Template>, InvalidFilter> {
        check_depth(depth, at)?;
        let Value::Array(filters) = filters else { return Err(at.fault("not an array of filters")) };
        filters.iter().enumerate().map(|(index, filter)| self.filter(filter, depth, &at.index(index))).collect()
    }

    /// What a filter says of one field: null, a plain value, or operators.
    fn field_conditions(&mut self, path: &str, value: &Value, at: &At<'_>) -> Parsed {
        let field = self.model.filter_field(path, self.privileged).map_err(|error| at.fault(error.to_string()))?;
        match value {
            Value::Object(operators) => self.operators(&field, operators, at),
            value => {
                self.count(at)?;
                self.equals(&field, value, at)
            }
        }
    }

    fn operators(&mut self, field: &Field, operators: &Map<String, Value>, at: &At<'_>) -> Parsed {
        if operators.is_empty() {
            return Err(at.fault("no operator, e.g. $eq"));
        }
        let mut parts = Vec::with_capacity(operators.len());
        for (name, value) in operators {
            let at = at.name(name);
            self.count(&at)?;
            parts.push(self.operator(field, name, value, &at)?);
        }
        Ok(Template::all_of(parts))
    }

    fn operator(&self, field: &Field, name: &str, value: &Value, at: &At<'_>) -> Parsed {
        let range = |fixed: fn(Scalar) -> Test, unbound: fn(UserValue) -> UnboundTest| {
            if field.is_array || field.kind == Kind::Boolean {
                return Err(at.fault("ranges are for numbers, dates and strings"));
            }
            self.test(field, value, fixed, unbound, at)
        };
        match name.strip_prefix('$').unwrap_or(name) {
            "eq" => self.equals(field, value, at),
            "ne" => Ok(self.equals(field, value, at)?.negated()),
            "in" => self.is_in(field, value, at),
            "nin" => Ok(self.is_in(field, value, at)?.negated()),
            "gt" => range(|low| Test::Range(Bound::Excluded(low), Bound::Unbounded), UnboundTest::Gt),
            "gte" => range(|low| Test::Range(Bound::Included(low), Bound::Unbounded), UnboundTest::Gte),
            "lt" => range(|high| Test::Range(Bound::Unbounded, Bound::Excluded(high)), UnboundTest::Lt),
            "lte" => range(|high| Test::Range(Bound::Unbounded, Bound::Included(high)), UnboundTest::Lte),
            "exists" => match value {
                Value::Bool(true) => Ok(exists(field)),
                Value::Bool(false) => Ok(exists(field).negated()),
                _ => Err(at.fault("true or false")),
            },
            "contains" if field.is_array => self.test(field, value, Test::Eq, UnboundTest::Eq, at),
            "contains" => Err(at.fault("$contains is for arrays; strings have $prefix")),
            "prefix" if field.kind == Kind::String && !field.is_array => {
                let prefix = |value| match value {
                    Scalar::String(prefix) => Test::Prefix(prefix),
                    other => Test::Eq(other),
                };
                self.test(field, value, prefix, UnboundTest::Prefix, at)
            }
            "prefix" => Err(at.fault("$prefix is for strings")),
            _ => Err(at.fault(
                "unknown operator; there are $eq, $ne, $gt, $gte, $lt, $lte, $in, $nin, $exists, $contains, $prefix",
            )),
        }
    }

    /// Null is absence: to equal it is not to exist.
    fn equals(&self, field: &Field, value: &Value, at: &At<'_>) -> Parsed {
        if value.is_null() {
            Ok(exists(field).negated())
        } else {
            self.test(field, value, Test::Eq, UnboundTest::Eq, at)
        }
    }

    fn test(
        &self,
        field: &Field,
        value: &Value,
        fixed: fn(Scalar) -> Test,
        unbound: fn(UserValue) -> UnboundTest,
        at: &At<'_>,
    ) -> Parsed {
        Ok(match self.operand(field, value, at)? {
            Operand::Fixed(scalar) => Template::Fixed(Condition::test(field.clone(), fixed(scalar))),
            Operand::User(user) => Template::Test(field.clone(), unbound(user)),
        })
    }

    fn is_in(&self, field: &Field, values: &Value, at: &At<'_>) -> Parsed {
        let values = match values {
            Value::Array(values) => values,
            Value::String(text) if self.user_values && text.starts_with("$user") => {
                return match user_value(text, at)? {
                    user @ UserValue::Detail(_) => Ok(Template::Test(field.clone(), UnboundTest::InList(user))),
                    _ => Err(at.fault("not a list of values")),
                };
            }
            _ => return Err(at.fault("not an array of values")),
        };
        if values.len() > FILTER_VALUES {
            return Err(at.fault(format!("more than {FILTER_VALUES} values")));
        }
        let operands: Vec<Operand> = values
            .iter()
            .enumerate()
            .map(|(index, value)| self.operand(field, value, &at.index(index)))
            .collect::<Result<_, _>>()?;
        let scalars = operands.iter().map(|operand| match operand {
            Operand::Fixed(scalar) => Some(scalar.clone()),
            Operand::User(_) => None,
        });
        Ok(match scalars.collect::<Option<Vec<Scalar>>>() {
            Some(scalars) => Template::Fixed(Condition::is_in(field.clone(), scalars)),
            None => Template::Test(field.clone(), UnboundTest::In(operands)),
        })
    }

    /// A value to compare the field with.
    fn operand(&self, field: &Field, value: &Value, at: &At<'_>) -> Result<Operand, InvalidFilter> {
        if let Value::String(text) = value
            && self.user_values
            && (text == "$user" || text.starts_with("$user."))
        {
            let user = user_value(text, at)?;
            if field.kind != Kind::String && matches!(user, UserValue::Id | UserValue::Type) {
                return Err(at.fault(format!("{text} is a string, the field is not")));
            }
            return Ok(Operand::User(user));
        }
        Scalar::from_json(field.kind, value).map(Operand::Fixed).ok_or_else(|| {
            at.fault(match field.kind {
                Kind::String => "not a string",
                Kind::Number => "not a number within ±2^53",
                Kind::Boolean => "not a boolean",
                Kind::Date => "not a date: RFC 3339, e.g. 2026-01-31T12:00:00Z, or epoch seconds",
            })
        })
    }

    fn count(&mut self, at: &At<'_>) -> Result<(), InvalidFilter> {
        self.n_conditions += 1;
        if self.n_conditions > FILTER_CONDITIONS {
            return Err(at.fault(format!("more than {FILTER_CONDITIONS} conditions")));
        }
        Ok(())
    }
}

fn exists(field: &Field) -> Template {
    Template::Fixed(Condition::test(field.clone(), Test::Exists))
}

fn check_depth(depth: usize, at: &At<'_>) -> Result<(), InvalidFilter> {
    if depth > FILTER_DEPTH {
        return Err(at.fault(format!("$and, $or and $not lie more than {FILTER_DEPTH} deep in one another")));
    }
    Ok(())
}

fn user_value(text: &str, at: &At<'_>) -> Result<UserValue, InvalidFilter> {
    match text {
        "$user.id" => return Ok(UserValue::Id),
        "$user.type" => return Ok(UserValue::Type),
        _ => {}
    }
    match text.strip_prefix("$user.details.").map(|path| path.split('.').map(str::to_owned).collect::<Vec<_>>()) {
        Some(path) if path.iter().all(|name| !name.is_empty()) => Ok(UserValue::Detail(path)),
        _ => Err(at.fault("of the user there are $user.id, $user.type and $user.details.FIELD")),
    }
}
