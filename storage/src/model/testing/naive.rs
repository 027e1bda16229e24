//! Filters by their definition, on JSON as written: slow, plain, and independent of the parser and the evaluator.

use std::cmp::Ordering;

use serde_json::Value;

use crate::model::{
    Caller, Document, Model, Timestamp,
    schema::{Field, FieldType},
};

/// Whether a document fulfils a filter, which has to be a valid one. Only definitely true is true.
pub fn naive_matches(filter: &Value, document: &Document, model: &Model) -> bool {
    let document = serde_json::to_value(document).expect("json");
    truth(filter, &Reader { document: &document, model, caller: None }) == Some(true)
}

/// Whether the filter of a rule, which has to be a valid one, grants a document to a caller.
pub fn naive_grants(filter: &Value, document: &Document, model: &Model, caller: &Caller) -> bool {
    let document = serde_json::to_value(document).expect("json");
    truth(filter, &Reader { document: &document, model, caller: Some(caller) }) == Some(true)
}

struct Reader<'a> {
    document: &'a Value,
    model: &'a Model,
    /// Whose values stand for `$user.…`, in rules.
    caller: Option<&'a Caller>,
}

/// True, false, or neither: Kleene's logic.
type Truth = Option<bool>;

fn all(parts: impl Iterator<Item = Truth>) -> Truth {
    let parts: Vec<Truth> = parts.collect();
    if parts.contains(&Some(false)) {
        Some(false)
    } else if parts.contains(&None) {
        None
    } else {
        Some(true)
    }
}

fn not(truth: Truth) -> Truth {
    truth.map(|truth| !truth)
}

fn truth(filter: &Value, reader: &Reader<'_>) -> Truth {
    let filters = |value: &Value| value.as_array().expect("filters").clone();
    all(filter.as_object().expect("a filter").iter().map(|(key, value)| match key.as_str() {
        "$and" | "and" => all(filters(value).iter().map(|filter| truth(filter, reader))),
        // One holds unless none does.
        "$or" | "or" => not(all(filters(value).iter().map(|filter| not(truth(filter, reader))))),
        "$not" | "not" => not(truth(value, reader)),
        path => match value {
            Value::Object(operators) => {
                all(operators.iter().map(|(name, value)| holds(path, name.trim_start_matches('$'), value, reader)))
            }
            value => holds(path, "eq", value, reader),
        },
    }))
}

fn holds(path: &str, operator: &str, value: &Value, reader: &Reader<'_>) -> Truth {
    let field_type = reader.field_type(path);
    let found = reader.values(path);
    let any_is = |wanted: &Value, fits: fn(Ordering) -> bool| {
        found.iter().any(|found| fits(compare(field_type, found, wanted).expect("comparable")))
    };
    match operator {
        "exists" => Some(found.is_empty() != value.as_bool().expect("a boolean")),
        "eq" if value.is_null() => Some(found.is_empty()),
        "ne" if value.is_null() => Some(!found.is_empty()),
        "ne" => not(holds(path, "eq", value, reader)),
        "nin" => not(holds(path, "in", value, reader)),
        "in" => {
            let listed: Vec<Option<Value>> = match value {
                Value::Array(values) => values.iter().map(|value| reader.bound(value, field_type)).collect(),
                name => reader
                    .user_value(name.as_str().expect("a name"))?
                    .as_array()?
                    .iter()
                    .map(|element| Some(element.clone()).filter(|element| is_of(field_type, element)))
                    .collect(),
            };
            let listed: Vec<Value> = listed.into_iter().collect::<Option<_>>()?;
            Some(listed.iter().any(|wanted| any_is(wanted, Ordering::is_eq)))
        }
        _ => {
            let wanted = reader.bound(value, field_type)?;
            Some(match operator {
                "eq" | "contains" => any_is(&wanted, Ordering::is_eq),
                "gt" => any_is(&wanted, Ordering::is_gt),
                "gte" => any_is(&wanted, Ordering::is_ge),
                "lt" => any_is(&wanted, Ordering::is_lt),
                "lte" => any_is(&wanted, Ordering::is_le),
                "prefix" => {
                    let prefix: Vec<char> = wanted.as_str().expect("a string").chars().collect();
                    found.iter().any(|text| {
                        let text: Vec<char> = text.as_str().expect("a string").chars().collect();
                        text.len() >= prefix.len() && text[..prefix.len()] == prefix[..]
                    })
                }
                unknown => panic!("unknown operator {unknown}"),
            })
        }
    }
}

impl Reader<'_> {
    fn definition(&self, path: &str) -> Option<&Field> {
        let mut fields = &self.model.fields;
        let names: Vec<&str> = path.split('.').collect();
        for name in &names[..names.len() - 1] {
            fields = fields.get(*name)?.properties.as_ref()?;
        }
        fields.get(names[names.len() - 1])
    }

    fn field_type(&self, path: &str) -> FieldType {
        match path {
            "id" | "type" | "appId" | "userId" => FieldType::String,
            "createdAt" | "updatedAt" => FieldType::Date,
            "version" => FieldType::Number,
            _ => {
                let field = self.definition(path).expect("a field");
                field.array_type.unwrap_or(field.field_type)
            }
        }
    }

    /// What there is at a path: nothing, one value, or the elements of an array.
    fn values(&self, path: &str) -> Vec<Value> {
        let mut value = self.document;
        for name in path.split('.') {
            match value.get(name) {
                Some(inner) => value = inner,
                None => return Vec::new(),
            }
        }
        match value {
            Value::Null => Vec::new(),
            Value::Array(elements) => elements.clone(),
            value => vec![value.clone()],
        }
    }

    /// A value of the filter, or what it stands for; none when the caller does not have it.
    fn bound(&self, value: &Value, field_type: FieldType) -> Option<Value> {
        match value.as_str() {
            Some(name) if self.caller.is_some() && name.starts_with("$user.") => {
                self.user_value(name).filter(|value| is_of(field_type, value))
            }
            _ => Some(value.clone()),
        }
    }

    fn user_value(&self, name: &str) -> Option<Value> {
        let caller = self.caller?;
        let user = serde_json::json!({
            "id": caller.user.as_ref()?, "type": caller.facts.user_type, "details": caller.facts.details,
        });
        name.split('.').skip(1).try_fold(&user, |value, name| value.get(name)).cloned().filter(|value| !value.is_null())
    }
}

fn is_of(field_type: FieldType, value: &Value) -> bool {
    compare(field_type, value, value).is_some()
}

fn compare(field_type: FieldType, left: &Value, right: &Value) -> Option<Ordering> {
    match field_type {
        FieldType::String => Some(left.as_str()?.chars().cmp(right.as_str()?.chars())),
        FieldType::Number => left.as_f64()?.partial_cmp(&right.as_f64()?),
        FieldType::Boolean => Some(left.as_bool()?.cmp(&right.as_bool()?)),
        FieldType::Date => Some(Timestamp::from_json(left).ok()?.cmp(&Timestamp::from_json(right).ok()?)),
        FieldType::Array | FieldType::Object => None,
    }
}
