//! The entries of an application's change log: what was decided, in the one total order of that application.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ChangeId, DeviceId, Document, DocumentId, ModelName, Offset, Patch, Problem, Timestamp, UserId};

/// One decision of the writer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub offset: Offset,
    #[serde(rename = "changeId")]
    pub change_id: ChangeId,
    pub time: Timestamp,
    #[serde(flatten)]
    pub event: Event,
}

/// What was decided. An entry says all that later readers need: the document after, whole, and what it was before, so that
/// today's rules and filters can be tested on both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    #[serde(rename = "model_created")]
    Created { document: Document },
    #[serde(rename = "model_updated")]
    Updated { document: Document, before: Before, patches: Vec<Patch> },
    /// `document` is the last one; `version` counts the delete.
    #[serde(rename = "model_deleted")]
    Deleted { document: Document, version: u64 },
    /// A document that was put as it was elsewhere, with its version and times, whatever was there: nobody is told.
    #[serde(rename = "model_imported")]
    Imported { document: Document },
    /// A command that changed nothing: its change counts as applied, nobody is told.
    Unchanged {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        document: Option<Subject>,
    },
    /// A command that the writer refused: for its device only.
    Rejected {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        document: Option<Subject>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<DeviceId>,
        problem: Problem,
    },
    /// The application was defined, or its schema, rules or settings changed. `definition` is the whole new definition as
    /// the registry keeps it (`registry::records::Application`).
    Defined {
        definition: Value,
        /// The definition before, so that a replay can tell what the change altered.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<Value>,
    },
    /// The type or the details of a user changed, or the user was removed (`none`): `before` and `after` as the rules see it.
    UserChanged { user: UserId, before: Option<UserFacts>, after: Option<UserFacts> },
}

/// The document that a command was about; none for definitions and users.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subject {
    #[serde(rename = "type")]
    pub model: ModelName,
    pub id: DocumentId,
}

/// What rules know of a user besides the id.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserFacts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_type: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub details: Map<String, Value>,
}

/// What an update replaced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Before {
    pub updated_at: Timestamp,
    /// The owner before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// The old values at the paths that changed, none where there was nothing. No path is a prefix of another.
    pub fields: Vec<(Vec<String>, Option<Value>)>,
}

impl Entry {
    /// About how many bytes of memory it takes.
    pub fn weight(&self) -> usize {
        let document = |document: &Document| 256 + fields_weight(&document.fields);
        let event = match &self.event {
            Event::Created { document: after }
            | Event::Imported { document: after }
            | Event::Deleted { document: after, .. } => document(after),
            Event::Updated { document: after, before, patches } => {
                let old: usize = before.fields.iter().filter_map(|(_, value)| value.as_ref()).map(weight).sum();
                let new: usize = patches.iter().flat_map(|patch| &patch.value).map(weight).sum();
                document(after) + old + new + 64 * (before.fields.len() + patches.len())
            }
            Event::Unchanged { .. } | Event::Rejected { .. } => 512,
            Event::Defined { definition, before } => weight(definition) + before.as_ref().map_or(0, weight),
            Event::UserChanged { before, after, .. } => {
                let facts = before.iter().chain(after);
                256 + facts.map(|facts| fields_weight(&facts.details)).sum::<usize>()
            }
        };
        128 + event
    }

    /// The document that this entry leaves behind.
    pub fn after(&self) -> Option<&Document> {
        match &self.event {
            Event::Created { document } | Event::Updated { document, .. } | Event::Imported { document } => {
                Some(document)
            }
            _ => None,
        }
    }

    /// The document as it was before this entry.
    pub fn before(&self) -> Option<Document> {
        match &self.event {
            Event::Deleted { document, .. } => Some(document.clone()),
            Event::Updated { document, before, .. } => Some(before.restore(document)),
            _ => None,
        }
    }

    /// The model that it is about.
    pub fn model(&self) -> Option<&ModelName> {
        match &self.event {
            Event::Created { document }
            | Event::Updated { document, .. }
            | Event::Deleted { document, .. }
            | Event::Imported { document } => Some(&document.model),
            Event::Unchanged { document } | Event::Rejected { document, .. } => {
                document.as_ref().map(|subject| &subject.model)
            }
            Event::Defined { .. } | Event::UserChanged { .. } => None,
        }
    }
}

impl Before {
    /// The document before the update that led to `after`.
    pub fn restore(&self, after: &Document) -> Document {
        let mut document = after.clone();
        document.updated_at = self.updated_at;
        document.user = self.user.clone();
        document.version = after.version.saturating_sub(1);
        for (path, value) in &self.fields {
            put(&mut document.fields, path, value.clone());
        }
        document
    }
}

fn weight(value: &Value) -> usize {
    32 + match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(weight).sum(),
        Value::Object(fields) => fields_weight(fields),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

fn fields_weight(fields: &Map<String, Value>) -> usize {
    fields.iter().map(|(name, value)| 24 + name.len() + weight(value)).sum()
}

/// Sets or removes the value at a path through objects. Setting makes the objects that are missing, removing does not; a path
/// that leads through something else changes nothing.
pub(super) fn put(fields: &mut Map<String, Value>, path: &[impl AsRef<str>], value: Option<Value>) {
    let Some((last, parents)) = path.split_last() else { return };
    let mut fields = fields;
    for name in parents {
        let name = name.as_ref();
        if value.is_some() && !fields.contains_key(name) {
            fields.insert(name.to_owned(), Value::Object(Map::new()));
        }
        let Some(Value::Object(inner)) = fields.get_mut(name) else { return };
        fields = inner;
    }
    match value {
        Some(value) => fields.insert(last.as_ref().to_owned(), value),
        None => fields.remove(last.as_ref()),
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_replaced_is_put_back() {
        let after: Document = serde_json::from_value(json!({
            "id": "d1", "type": "task", "appId": "a", "userId": "bob", "createdAt": "2026-11-24T17:11:29.123Z",
            "updatedAt": "2026-11-24T17:11:31.000Z", "version": 8,
            "title": "b", "meta": { "a": 2, "made": { "x": 1 } }, "made": { "y": { "z": 1 } },
        }))
        .expect("a document");
        let before: Before = serde_json::from_value(json!({
            "updatedAt": "2026-11-24T17:11:30.000Z", "user": "anna",
            "fields": [
                [["title"], "a"], [["meta", "a"], 1], [["meta", "made"], null], [["made"], null], [["gone"], { "x": [1] }],
            ],
        }))
        .expect("what was replaced");
        assert_eq!(
            serde_json::to_value(before.restore(&after)).expect("json"),
            json!({
                "id": "d1", "type": "task", "appId": "a", "userId": "anna", "createdAt": "2026-11-24T17:11:29.123Z",
                "updatedAt": "2026-11-24T17:11:30.000Z", "version": 7,
                "title": "a", "meta": { "a": 1 }, "gone": { "x": [1] },
            })
        );
    }

    #[test]
    fn a_path_leads_through_objects_only() {
        for (path, value, after) in [
            (vec!["a", "b"], Some(json!(2)), json!({ "a": { "b": 2 }, "t": "x" })),
            (vec!["n", "m", "o"], Some(json!(2)), json!({ "a": { "b": 1 }, "t": "x", "n": { "m": { "o": 2 } } })),
            (vec!["a", "b"], None, json!({ "a": {}, "t": "x" })),
            (vec!["n", "m"], None, json!({ "a": { "b": 1 }, "t": "x" })),
            (vec!["t", "m"], Some(json!(2)), json!({ "a": { "b": 1 }, "t": "x" })),
            (vec![], Some(json!(2)), json!({ "a": { "b": 1 }, "t": "x" })),
        ] {
            let mut fields: Map<String, Value> =
                serde_json::from_value(json!({ "a": { "b": 1 }, "t": "x" })).expect("fields");
            put(&mut fields, &path, value);
            assert_eq!(Value::Object(fields), after, "{path:?}");
        }
    }
}
