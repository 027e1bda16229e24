//! Filters as queries of Elasticsearch: exactly the documents that `Condition::matches` finds, among those with search fields.

use std::ops::Bound;

use serde_json::{Map, Value, json};

use super::{
    names,
    stored::{IndexValue, TERM_BYTES},
};
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
    // A longer one is in no index, and Elasticsearch refuses to look for it.
    let is_indexable = |scalar: &Scalar| !matches!(scalar, Scalar::String(text) if text.len() > TERM_BYTES);
    match test {
        Test::Exists => json!({ "exists": { "field": column } }),
        Test::Eq(scalar) if is_of_kind(scalar) && is_indexable(scalar) => {
            json!({ "term": { column: { "value": value(scalar) } } })
        }
        Test::Eq(_) => json!({ "match_none": {} }),
        Test::In(scalars) => {
            let fitting = scalars.iter().filter(|scalar| is_of_kind(scalar) && is_indexable(scalar));
            json!({ "terms": { column: fitting.map(value).collect::<Vec<_>>() } })
        }
        Test::Range(low, high) => {
            let is_fitting = |bound: &Bound<Scalar>| match bound {
                Bound::Included(scalar) | Bound::Excluded(scalar) => is_of_kind(scalar),
                Bound::Unbounded => true,
            };
            if !is_fitting(low) || !is_fitting(high) {
                return json!({ "match_none": {} });
            }
            range(column, low.as_ref().map(value), high.as_ref().map(value))
        }
        // As a range, for prefixes may be a thousand characters long at most.
        Test::Prefix(prefix) => {
            let low = Bound::Included(IndexValue::Text((**prefix).into()));
            let high =
                after_prefix(prefix).map_or(Bound::Unbounded, |end| Bound::Excluded(IndexValue::Text(end.into())));
            range(column, low, high)
        }
    }
}

fn range(column: &str, low: Bound<IndexValue>, high: Bound<IndexValue>) -> Value {
    let mut bounds = Map::new();
    match low {
        Bound::Included(IndexValue::Text(text)) | Bound::Excluded(IndexValue::Text(text))
            if text.len() > TERM_BYTES =>
        {
            match indexable_after(&text) {
                Some(next) => bounds.insert("gte".to_owned(), json!(next)),
                None => return json!({ "match_none": {} }),
            };
        }
        Bound::Included(value) => drop(bounds.insert("gte".to_owned(), json!(value))),
        Bound::Excluded(value) => drop(bounds.insert("gt".to_owned(), json!(value))),
        Bound::Unbounded => {}
    }
    match high {
        Bound::Included(IndexValue::Text(text)) | Bound::Excluded(IndexValue::Text(text))
            if text.len() > TERM_BYTES =>
        {
            bounds.extend(indexable_after(&text).map(|next| ("lt".to_owned(), json!(next))));
        }
        Bound::Included(value) => drop(bounds.insert("lte".to_owned(), json!(value))),
        Bound::Excluded(value) => drop(bounds.insert("lt".to_owned(), json!(value))),
        Bound::Unbounded => {}
    }
    json!({ "range": { column: bounds } })
}

/// The first text after all that begin with the prefix; none when there is no such text.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut characters = prefix.to_owned();
    while let Some(last) = characters.pop() {
        // The code points of surrogates are no characters.
        let next = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = next {
            characters.push(next);
            return Some(characters);
        }
    }
    None
}

/// The first text that an index can hold after one that is too long for it; none when there is no such text.
fn indexable_after(text: &str) -> Option<String> {
    let mut text = text.to_owned();
    while text.len() > TERM_BYTES {
        // What begins so and can be indexed goes on with characters of fewer bytes than the one that is cut: it comes before the text.
        text.truncate(text.floor_char_boundary(TERM_BYTES));
        text = after_prefix(&text)?;
    }
    Some(text)
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
    fn texts_that_no_index_holds_are_not_looked_for() {
        let long = "x".repeat(TERM_BYTES);
        let next = format!("{}y", &long[1..]);
        check(json!({ "s": format!("{long}a") }), json!({ "match_none": {} }));
        check(
            json!({ "s": { "$in": [format!("{long}a"), "b", "c"] } }),
            json!({ "terms": { "f.string-s": ["b", "c"] } }),
        );
        let range = |bounds: Value| json!({ "range": { "f.string-s": bounds } });
        check(json!({ "s": { "$gt": format!("{long}a") } }), range(json!({ "gte": next })));
        check(json!({ "s": { "$lte": format!("{long}a") } }), range(json!({ "lt": next })));
        check(json!({ "s": { "$lte": long } }), range(json!({ "lte": long })));
        // The character that is cut has more bytes than are left.
        let umlaut = format!("{}ä", &long[1..]);
        check(json!({ "s": { "$gte": umlaut } }), range(json!({ "gte": format!("{}y", &long[2..]) })));
        assert_eq!(indexable_after(&"\u{10ffff}".repeat(TERM_BYTES)), None);
        for (prefix, end) in
            [("a", Some("b")), ("a\u{d7ff}", Some("a\u{e000}")), ("a\u{10ffff}", Some("b")), ("", None)]
        {
            assert_eq!(after_prefix(prefix).as_deref(), end, "{prefix:?}");
        }
        // One byte longer than what it replaces: it is cut again.
        let edge = format!("{}a\u{7f}z", &long[2..]);
        assert_eq!(indexable_after(&edge).as_deref(), Some(format!("{}b", &long[2..]).as_str()));
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
        check(json!({ "s": { "$prefix": "a" } }), json!({ "range": { "f.string-s": { "gte": "a", "lt": "b" } } }));
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
