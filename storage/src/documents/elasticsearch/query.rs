//! Filters as queries of Elasticsearch: exactly the documents that `Condition::matches` finds, among those with search fields.

use std::ops::Bound;

use serde_json::{Map, Value, json};

use super::{names, stored::IndexValue};
use crate::model::{
    AppId, Document, DocumentId, ModelName, Timestamp,
    filter::{Condition, Field, Kind, Scalar, Test},
};

/// Where the values of a field stand in the index; none for what is the same in all documents of it.
pub(super) fn column(field: &Field) -> Option<String> {
    if !field.is_universal {
        return Some(format!("f.{}", names::key(field)));
    }
    match &*field.path {
        "type" | "appId" => None,
        "userId" => Some("user".to_owned()),
        "createdAt" => Some("created".to_owned()),
        "updatedAt" => Some("updated".to_owned()),
        other => Some(other.to_owned()), // id, version
    }
}

/// The documents of one model that match, as a query.
pub(super) fn query(app: &AppId, model: &ModelName, condition: &Condition) -> Value {
    // What `type` and `appId` are tested on.
    let nothing = Timestamp::from_ms(0).unwrap_or_else(|_| Timestamp::now());
    let example = DocumentId::parse("x").ok().map(|id| Document {
        app: app.clone(),
        model: model.clone(),
        id,
        user: None,
        created_at: nothing,
        updated_at: nothing,
        version: 1,
        fields: Map::new(),
    });
    Translator { example }.translate(condition)
}

struct Translator {
    example: Option<Document>,
}

impl Translator {
    fn translate(&self, condition: &Condition) -> Value {
        match condition {
            Condition::All => json!({ "match_all": {} }),
            Condition::None => json!({ "match_none": {} }),
            Condition::And(parts) => self.conjunction(parts),
            Condition::Or(parts) if parts.is_empty() => json!({ "match_none": {} }),
            Condition::Or(parts) => {
                let parts: Vec<_> = parts.iter().map(|part| self.translate(part)).collect();
                json!({ "bool": { "should": parts, "minimum_should_match": 1 } })
            }
            Condition::Not(part) => json!({ "bool": { "must_not": [self.translate(part)] } }),
            Condition::Test(field, test) => match column(field) {
                Some(column) => on_column(&column, field, test),
                None if self.example.as_ref().is_some_and(|example| condition.matches(example)) => {
                    json!({ "match_all": {} })
                }
                None => json!({ "match_none": {} }),
            },
        }
    }

    /// Negations join the conjunction that they stand in: less deep, and quicker.
    fn conjunction(&self, parts: &[Condition]) -> Value {
        let (mut all, mut none) = (Vec::new(), Vec::new());
        for part in parts {
            match part {
                Condition::Not(part) => none.push(self.translate(part)),
                part => all.push(self.translate(part)),
            }
        }
        json!({ "bool": { "filter": all, "must_not": none } })
    }
}

fn on_column(column: &str, field: &Field, test: &Test) -> Value {
    let is_of_kind = |scalar: &Scalar| {
        matches!(
            (scalar, field.kind),
            (Scalar::String(_), Kind::String)
                | (Scalar::Number(_), Kind::Number)
                | (Scalar::Boolean(_), Kind::Boolean)
                | (Scalar::Date(_), Kind::Date)
        )
    };
    let value = |scalar: &Scalar| IndexValue::of(scalar.as_stored());
    match test {
        Test::Exists => json!({ "exists": { "field": column } }),
        Test::Eq(scalar) if is_of_kind(scalar) => json!({ "term": { column: { "value": value(scalar) } } }),
        Test::In(scalars) => {
            let values: Vec<_> = scalars.iter().filter(|scalar| is_of_kind(scalar)).map(value).collect();
            json!({ "terms": { column: values } })
        }
        Test::Range(low, high) => {
            let mut bounds = Map::new();
            for (bound, including, excluding) in [(low, "gte", "gt"), (high, "lte", "lt")] {
                let (name, scalar) = match bound {
                    Bound::Included(scalar) => (including, scalar),
                    Bound::Excluded(scalar) => (excluding, scalar),
                    Bound::Unbounded => continue,
                };
                if !is_of_kind(scalar) {
                    return json!({ "match_none": {} });
                }
                bounds.insert(name.to_owned(), json!(value(scalar)));
            }
            json!({ "range": { column: bounds } })
        }
        Test::Prefix(prefix) => json!({ "prefix": { column: { "value": prefix } } }),
        // Of another kind.
        Test::Eq(_) => json!({ "match_none": {} }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Filter, Model};

    fn check(filter: Value, expected: Value) {
        let model = Model::parse(&json!({
            "n": { "type": "number", "filterable": true },
            "s": { "type": "string", "filterable": true },
            "d": { "type": "date", "filterable": true },
        }));
        let filter = Filter::parse(&filter, &model.expect("a model"), true).expect("a filter");
        let (app, task) = (AppId::parse("a").expect("an id"), ModelName::parse("task").expect("a name"));
        assert_eq!(query(&app, &task, filter.condition()), expected, "{}", filter.canonical());
    }

    #[test]
    fn filters_become_queries() {
        check(json!({}), json!({ "match_all": {} }));
        check(json!({ "n": 5 }), json!({ "term": { "f.number-n": { "value": 5.0 } } }));
        check(
            json!({ "n": { "$gt": 1, "$lte": 2.5 } }),
            json!({ "range": { "f.number-n": { "gt": 1.0, "lte": 2.5 } } }),
        );
        check(json!({ "d": { "$lt": 1 } }), json!({ "range": { "f.date-d": { "lt": 1000 } } }));
        check(json!({ "s": { "$prefix": "a" } }), json!({ "prefix": { "f.string-s": { "value": "a" } } }));
        check(json!({ "userId": null }), json!({ "bool": { "must_not": [{ "exists": { "field": "user" } }] } }));
        check(
            json!({ "id": "x", "s": { "$ne": "y" } }),
            json!({ "bool": {
                "filter": [{ "term": { "id": { "value": "x" } } }],
                "must_not": [{ "term": { "f.string-s": { "value": "y" } } }],
            } }),
        );
        check(
            json!({ "$or": [{ "type": "task" }, { "appId": "b" }] }),
            json!({ "bool": { "should": [{ "match_none": {} }, { "match_all": {} }], "minimum_should_match": 1 } }),
        );
    }
}
