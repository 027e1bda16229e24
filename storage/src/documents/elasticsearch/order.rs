//! The order of a query, and where a page of it ends: the sort values and the id of its last document, without a point in time.
//!
//! A cursor is base64url of `[format, hash of the query, [value or null, …], id]` in JSON: opaque to clients, and of one query.

use std::cmp::Ordering;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{
    query::column,
    stored::{IndexValue, values},
};
use crate::{
    Error, ErrorKind, Result,
    documents::{Query, Sort},
    model::{Document, DocumentId, filter::Kind},
};

const FORMAT: u8 = 1;
const MOST_SORT_FIELDS: usize = 8;

/// The keys that documents of one model can differ in.
pub(super) struct Order {
    keys: Vec<Key>,
}

struct Key {
    sort: Sort,
    column: String,
}

/// Where a document stands in an order. A field that it lacks has no value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Position {
    values: Vec<Option<IndexValue>>,
    id: DocumentId,
}

impl Order {
    /// `Invalid` for too many fields.
    pub(super) fn new(sort: &[Sort]) -> Result<Self> {
        if sort.len() > MOST_SORT_FIELDS {
            return Err(invalid(&format!("at most {MOST_SORT_FIELDS} fields can be sorted by")));
        }
        let key = |sort: &Sort| Some(Key { sort: sort.clone(), column: column(&sort.field)? });
        Ok(Self { keys: sort.iter().filter_map(key).collect() })
    }

    pub(super) fn position(&self, document: &Document) -> Position {
        let value = |key: &Key| {
            let values = values(document, &key.sort.field).into_iter();
            if key.sort.descending { values.max_by(IndexValue::order) } else { values.min_by(IndexValue::order) }
        };
        Position { values: self.keys.iter().map(value).collect(), id: document.id.clone() }
    }

    pub(super) fn compare(&self, left: &Position, right: &Position) -> Ordering {
        let by_values = self.keys.iter().zip(left.values.iter().zip(&right.values)).map(|(key, values)| match values {
            (Some(left), Some(right)) if key.sort.descending => right.order(left),
            (Some(left), Some(right)) => left.order(right),
            (left, right) => left.is_none().cmp(&right.is_none()),
        });
        by_values.fold(Ordering::Equal, Ordering::then).then_with(|| left.id.cmp(&right.id))
    }

    /// As Elasticsearch takes it.
    pub(super) fn to_json(&self) -> Value {
        let key = |key: &Key| {
            let (order, mode) = if key.sort.descending { ("desc", "max") } else { ("asc", "min") };
            json!({ &key.column: { "order": order, "mode": mode, "missing": "_last" } })
        };
        self.keys.iter().map(key).chain([json!({ "id": { "order": "asc" } })]).collect()
    }

    /// The same for `search_after`: a missing value is what Elasticsearch puts in its place.
    pub(super) fn after(&self, position: &Position) -> Value {
        let value = |(key, value): (&Key, &Option<IndexValue>)| match (value, key.sort.field.kind) {
            (Some(value), _) => json!(value),
            (None, Kind::String) => Value::Null,
            (None, Kind::Number) => json!(if key.sort.descending { "-Infinity" } else { "Infinity" }),
            (None, Kind::Boolean | Kind::Date) => json!(if key.sort.descending { i64::MIN } else { i64::MAX }),
        };
        self.keys.iter().zip(&position.values).map(value).chain([json!(position.id)]).collect()
    }

    /// Writes where a query goes on after a position.
    pub(super) fn encode(&self, query: &Query, position: &Position) -> String {
        URL_SAFE_NO_PAD.encode(json!([FORMAT, hash(query), position.values, position.id]).to_string())
    }

    /// Reads a cursor. `Invalid` when it is none, or of another query.
    pub(super) fn decode(&self, query: &Query, cursor: &str) -> Result<Position> {
        let unreadable = || invalid("the cursor cannot be read");
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| unreadable())?;
        let (format, of, values, id): (u8, String, Vec<Option<IndexValue>>, DocumentId) =
            serde_json::from_slice(&bytes).map_err(|_| unreadable())?;
        if format != FORMAT || values.len() != self.keys.len() {
            return Err(unreadable());
        }
        if of != hash(query) {
            return Err(invalid("the cursor is of another query"));
        }
        let value = |(key, value): (&Key, Option<IndexValue>)| match (key.sort.field.kind, value) {
            (_, None) => Ok(None),
            (Kind::String, Some(value @ IndexValue::Text(_))) => Ok(Some(value)),
            (Kind::Number, Some(value @ IndexValue::Number(_))) => Ok(Some(value)),
            (Kind::Boolean | Kind::Date, Some(value @ IndexValue::Integer(_))) => Ok(Some(value)),
            _ => Err(unreadable()),
        };
        Ok(Position { values: self.keys.iter().zip(values).map(value).collect::<Result<_>>()?, id })
    }
}

/// Names the query in the text of a cursor.
fn hash(query: &Query) -> String {
    URL_SAFE_NO_PAD.encode(query.fingerprint())
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::Invalid, "search", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AppId, ModelName, filter::Condition, filter::Field};

    fn query(condition: Condition) -> Query {
        let field = |path: &str, kind| Field { path: path.into(), kind, is_array: false, is_universal: false };
        let sort = |field, descending| Sort { field, descending };
        let universal = |name| Field::universal(name).expect("a field");
        Query {
            app: AppId::parse("a").expect("an id"),
            model: ModelName::parse("task").expect("a name"),
            condition,
            sort: vec![
                sort(field("s", Kind::String), true),
                sort(universal("type"), false),
                sort(field("n", Kind::Number), false),
                sort(universal("updatedAt"), false),
            ],
            limit: 1,
            cursor: None,
            count: false,
            text: None,
            at_least: None,
        }
    }

    #[test]
    fn a_cursor_comes_back_whole_and_only_for_its_query() {
        let query = query(Condition::All);
        let order = Order::new(&query.sort).expect("an order");
        let id = DocumentId::parse("x1").expect("an id");
        let values = |number| vec![Some(IndexValue::Text("ä\0".into())), Some(number), Some(IndexValue::Integer(-7))];
        for number in [5.0, 0.1, -0.30000000000000004, 5e-324, 9_007_199_254_740_992.0] {
            let position = Position { values: values(IndexValue::Number(number)), id: id.clone() };
            assert_eq!(order.decode(&query, &order.encode(&query, &position)).expect("a position"), position);
        }
        let position = Position { values: vec![None, None, None], id: id.clone() };
        assert_eq!(order.after(&position), json!([null, "Infinity", i64::MAX, "x1"]));
        let cursor = order.encode(&query, &position);
        let wrong = Position { values: values(IndexValue::Integer(1)), id };
        let other = Query { text: Some("x".into()), ..query.clone() };
        for (query, cursor) in [
            (&other, cursor.as_str()),
            (&query, &order.encode(&query, &wrong)),
            (&query, &cursor[1..]),
            (&query, ""),
            (&query, "no cursor"),
        ] {
            let error = order.decode(query, cursor).expect_err("an error");
            assert_eq!(error.kind, ErrorKind::Invalid, "{cursor}");
        }
    }
}
