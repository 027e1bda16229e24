//! What stands in an index: the template of all of them, the mapping of a model's fields, and documents as they are stored.
//!
//! A document is stored whole in `doc`, which Elasticsearch does not look into; what is searched for stands beside it. Values are
//! indexed as filters compare them: strings as keywords (their bytes are in the order of the code points), numbers as doubles, dates
//! as milliseconds and booleans as 0 and 1, both in longs, which have no format and no rounding. A deleted document leaves a
//! tombstone behind under its id, with the version of the delete; searches pass it by, and it goes when the change log is past it.

use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value, json};

use super::{Options, applications::Model, names};
use crate::{
    Error, ErrorKind, Result,
    documents::Stored,
    model::{
        AppId, Document, ModelName, Timestamp,
        filter::{Field, Kind, Stored as Seen},
    },
};

/// The longest term of Lucene, in bytes. New filterable strings are far shorter; a forced change of schema can make longer ones
/// filterable.
pub(super) const TERM_BYTES: usize = 32_766;
/// Fields of an index, of all types that they ever had.
const MOST_FIELDS: u32 = 10_000;

/// What every index of documents is made by.
pub(super) fn template(options: &Options) -> Value {
    json!({
        "index_patterns": [names::pattern(&options.prefix)],
        "priority": 200,
        "_meta": { "description": "documents of Nexxus" },
        "template": {
            "settings": {
                "number_of_shards": options.shards,
                "number_of_replicas": options.replicas,
                // Searches ask for a refresh themselves.
                "refresh_interval": "30s",
                // How long the version of a tombstone that went is still known.
                "gc_deletes": "1h",
                "mapping.total_fields.limit": MOST_FIELDS,
            },
            "mappings": {
                "dynamic": false,
                "properties": {
                    "live": { "type": "boolean" },
                    "bare": { "type": "boolean" },
                    "id": { "type": "keyword" },
                    "user": { "type": "keyword" },
                    "created": { "type": "long" },
                    "updated": { "type": "long" },
                    "version": { "type": "double" },
                    "at": { "type": "long" },
                    "rev": { "type": "long" },
                    "deleted": { "type": "long" },
                    "text": { "type": "text", "norms": false, "index_options": "docs" },
                    "f": { "type": "object", "dynamic": false },
                    "doc": { "type": "object", "enabled": false },
                    "pending": { "type": "boolean" },
                },
            },
        },
    })
}

/// The body that makes the index of a model.
pub(super) fn index_of(prefix: &str, app: &AppId, model: &ModelName, known: &Model) -> Value {
    let fields: Vec<_> = known.fields.iter().map(|indexed| indexed.field()).collect();
    let mut mappings = mapping(&fields);
    mappings["_meta"] = json!({ "app": app, "model": model });
    json!({
        "aliases": { names::entrance(&known.index): {}, names::all_documents(prefix): {} },
        "mappings": mappings,
    })
}

/// The mapping of fields, to be added to what is there.
pub(super) fn mapping(fields: &[Field]) -> Value {
    let property = |field: &Field| {
        let kind = match field.kind {
            Kind::String => "keyword",
            Kind::Number => "double",
            Kind::Boolean | Kind::Date => "long",
        };
        (names::key(field), json!({ "type": kind }))
    };
    let properties: Map<String, Value> = fields.iter().map(property).collect();
    json!({ "properties": { "f": { "properties": properties } } })
}

/// A value as it is indexed, or compared with what is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum IndexValue {
    Integer(i64),
    Number(f64),
    Text(Box<str>),
}

impl IndexValue {
    pub(super) fn of(seen: Seen<'_>) -> Self {
        match seen {
            Seen::String(text) => Self::Text(text.into()),
            Seen::Number(number) => Self::Number(number + 0.0), // -0.0 + 0.0 is 0.0
            Seen::Boolean(boolean) => Self::Integer(i64::from(boolean)),
            Seen::Date(time) => Self::Integer(time.as_ms()),
        }
    }

    /// How they compare; values of one field are of one kind.
    pub(super) fn order(&self, other: &Self) -> std::cmp::Ordering {
        match (self, other) {
            (Self::Integer(this), Self::Integer(other)) => this.cmp(other),
            (Self::Number(this), Self::Number(other)) => this.total_cmp(other),
            (Self::Text(this), Self::Text(other)) => this.cmp(other),
            _ => std::cmp::Ordering::Equal,
        }
    }
}

/// The values of a document in a field.
pub(super) fn values(document: &Document, field: &Field) -> Vec<IndexValue> {
    let mut values = Vec::new();
    field.any_value(document, |seen| {
        values.push(IndexValue::of(seen));
        false
    });
    values
}

/// What is written under a key.
pub(super) enum Source<'d> {
    Live {
        document: &'d Document,
        model: &'d Model,
        /// Without its search fields, which the index would not take: it is found by looking at it.
        bare: bool,
    },
    Deleted {
        /// That of the delete.
        version: u64,
        at: Timestamp,
    },
}

/// Where an entry of the log stands, as the version of what it left behind.
pub(super) type Version = u64;

impl Source<'_> {
    /// Whether the index takes the document's search fields.
    pub(super) fn fits(document: &Document, model: &Model) -> bool {
        let is_long = |field: &Field| {
            field.any_value(document, |seen| matches!(seen, Seen::String(text) if text.len() > TERM_BYTES))
        };
        !model.fields.iter().map(|indexed| indexed.field()).any(|field| field.kind == Kind::String && is_long(&field))
    }

    /// As a line of a bulk.
    pub(super) fn encode(&self, version: Version, into: &mut Vec<u8>) -> Result<()> {
        let written = match self {
            Self::Live { document, model, bare } => {
                serde_json::to_writer(&mut *into, &Live { document, model, bare: *bare, version })
            }
            Self::Deleted { version: deleted, at } => serde_json::to_writer(
                &mut *into,
                &json!({ "live": false, "version": deleted, "at": version, "deleted": at.as_ms() }),
            ),
        };
        written.map_err(|error| {
            Error::new(ErrorKind::Internal, "apply", "a document cannot be written").with_source(error)
        })
    }
}

struct Live<'d> {
    document: &'d Document,
    model: &'d Model,
    bare: bool,
    version: Version,
}

impl Serialize for Live<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let document = self.document;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("live", &true)?;
        map.serialize_entry("id", &document.id)?;
        if let Some(user) = &document.user {
            map.serialize_entry("user", user)?;
        }
        map.serialize_entry("created", &document.created_at.as_ms())?;
        map.serialize_entry("updated", &document.updated_at.as_ms())?;
        map.serialize_entry("version", &document.version)?;
        map.serialize_entry("at", &self.version)?;
        map.serialize_entry("rev", &self.model.revision)?;
        if self.bare {
            map.serialize_entry("bare", &true)?;
        } else {
            map.serialize_entry("f", &Fields { document, model: self.model })?;
        }
        let mut texts = Vec::new();
        document.fields.values().for_each(|value| collect_texts(value, &mut texts));
        map.serialize_entry("text", &texts)?;
        map.serialize_entry("doc", document)?;
        map.end()
    }
}

struct Fields<'d> {
    document: &'d Document,
    model: &'d Model,
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for field in self.model.fields.iter().map(|indexed| indexed.field()) {
            let values = values(self.document, &field);
            if !values.is_empty() {
                map.serialize_entry(&names::key(&field), &values)?;
            }
        }
        map.end()
    }
}

/// The strings of a document, without its dates.
fn collect_texts<'v>(value: &'v Value, texts: &mut Vec<&'v str>) {
    match value {
        Value::String(text) if Timestamp::from_printed(text).is_none() => texts.push(text),
        Value::Array(elements) => elements.iter().for_each(|element| collect_texts(element, texts)),
        Value::Object(fields) => fields.values().for_each(|value| collect_texts(value, texts)),
        _ => {}
    }
}

/// The members of [`Held`].
pub(super) const HELD: [&str; 3] = ["live", "doc", "version"];

/// What stands under a key, as it is read back.
#[derive(Debug, Deserialize)]
pub(super) struct Held {
    live: bool,
    doc: Option<Document>,
    version: u64,
}

impl Held {
    pub(super) fn stored(self) -> Result<Stored> {
        match (self.live, self.doc) {
            (true, Some(document)) => Ok(Stored::Live(document)),
            (false, None) => Ok(Stored::Deleted { version: self.version }),
            _ => Err(Error::new(
                ErrorKind::Corrupt,
                "read documents",
                "what Elasticsearch holds is neither live nor deleted",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(fields: Value) -> Document {
        serde_json::from_value(json!({
            "id": "x", "type": "task", "appId": "a", "createdAt": "1969-12-31T23:59:59.999Z",
            "updatedAt": "1970-01-01T00:00:00.001Z", "version": 3, "fields": null,
        }))
        .map(|document: Document| Document { fields: fields.as_object().cloned().unwrap_or_default(), ..document })
        .expect("a document")
    }

    fn model(schema: Value) -> Model {
        let fields = crate::model::Model::parse(&schema).expect("a model").filterable();
        let mut application = super::super::applications::Application::default();
        let task = ModelName::parse("task").expect("a name");
        application.define(&task, &fields, true);
        application.models.remove(&task).expect("defined")
    }

    #[test]
    fn values_stand_beside_the_document_as_filters_compare_them() {
        let model = model(json!({
            "n": { "type": "number", "filterable": true },
            "b": { "type": "boolean", "filterable": true },
            "d": { "type": "date", "filterable": true },
            "t": { "type": "array", "arrayType": "string", "filterable": true },
            "gone": { "type": "string", "filterable": true },
        }));
        let document = document(json!({
            "n": 5, "b": true, "d": "1970-01-01T00:00:01.000Z", "t": ["ä", "a b"], "gone": 7, "other": { "x": ["y", 1] },
        }));
        let mut line = Vec::new();
        Source::Live { document: &document, model: &model, bare: false }.encode(9, &mut line).expect("written");
        let line: Value = serde_json::from_slice(&line).expect("json");
        assert_eq!(
            line["f"],
            json!({ "number-n": [5.0], "boolean-b": [1], "date-d": [1000], "strings-t": ["ä", "a b"] })
        );
        assert_eq!((&line["created"], &line["at"], &line["rev"]), (&json!(-1), &json!(9), &json!(1)));
        assert_eq!(line["text"], json!(["y", "ä", "a b"]));
        let held: Held = serde_json::from_value(line).expect("held");
        assert_eq!(held.stored().expect("stored"), Stored::Live(document));
    }

    #[test]
    fn a_string_that_no_term_can_hold_does_not_fit() {
        let model = model(json!({ "s": { "type": "string", "filterable": true }, "o": { "type": "string" } }));
        for (length, fits) in [(TERM_BYTES, true), (TERM_BYTES + 1, false)] {
            assert_eq!(Source::fits(&document(json!({ "s": "x".repeat(length), "o": "" })), &model), fits);
            assert!(Source::fits(&document(json!({ "o": "x".repeat(length) })), &model));
        }
    }
}
