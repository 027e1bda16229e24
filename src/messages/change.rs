//! What the writer tells the transport manager, and custom workers: a change that was logged and applied.

use std::sync::Arc;

use bytes::Bytes;
use nexxus_storage::{
    model::{AppId, Entry, Event},
    queue::Encode,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Typed, to_json};

/// A change on its way to the transport manager and to custom workers.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The application whose log holds it.
    pub app: AppId,
    /// The entry of the log, whole: with the document before and after.
    pub entry: Arc<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<D, E> {
    /// `event` and `data` as the contract shows them to workers in other languages.
    event: String,
    data: D,
    app_id: AppId,
    /// The whole entry, with the document before and after.
    change: E,
}

impl Encode for Change {
    fn encode(&self) -> Bytes {
        let (event, data) = self.shown();
        to_json(&Wire { event: event.into(), data, app_id: self.app.clone(), change: &*self.entry })
    }

    fn weight(&self) -> usize {
        self.entry.weight()
    }
}

impl Typed for Change {
    fn decode(bytes: &Bytes) -> serde_json::Result<Self> {
        let wire: Wire<serde::de::IgnoredAny, Entry> = serde_json::from_slice(bytes)?;
        Ok(Self { app: wire.app_id, entry: Arc::new(wire.change) })
    }
}

impl Change {
    fn shown(&self) -> (&'static str, Value) {
        match &self.entry.event {
            Event::Created { document } => ("model_created", json!(document)),
            Event::Imported { document } => ("model_imported", json!(document)),
            Event::Updated { document, patches, .. } => {
                let metadata =
                    json!({ "appId": self.app, "id": document.id, "type": document.model, "userId": document.user });
                let shown = patches.iter().map(|patch| {
                    let mut value = json!(patch);
                    value["metadata"] = metadata.clone();
                    value
                });
                ("model_updated", shown.collect())
            }
            Event::Deleted { document, .. } => (
                "model_deleted",
                json!({ "appId": self.app, "userId": document.user, "type": document.model, "id": document.id }),
            ),
            Event::Unchanged { document } => ("unchanged", json!({ "document": document })),
            Event::Rejected { document, problem, .. } => {
                ("change_rejected", json!({ "document": document, "problem": problem }))
            }
            Event::Defined { .. } => ("application_defined", Value::Null),
            Event::UserChanged { user, .. } => ("user_changed", json!({ "userId": user })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexxus_storage::model::{
        ChangeId, DocumentId, ModelName, Offset, Problem, Timestamp, change::Subject, problem::ProblemKind,
    };

    #[test]
    fn a_change_comes_back_from_the_wire() {
        let document = serde_json::from_value(json!({
            "id": "d", "type": "task", "appId": "a", "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
            "version": 1, "title": "x"
        }))
        .expect("a document");
        let rejected = Event::Rejected {
            document: Some(Subject {
                model: ModelName::parse("task").expect("a name"),
                id: DocumentId::parse("d").expect("an id"),
            }),
            device: None,
            problem: Problem::new(ProblemKind::Exists, "taken"),
        };
        for event in [Event::Created { document }, rejected] {
            let entry = Entry {
                offset: Offset::new(1, 2),
                change_id: ChangeId::generate(),
                time: Timestamp::from_ms(5).expect("a time"),
                event,
            };
            let change = Change { app: AppId::parse("a").expect("an id"), entry: Arc::new(entry) };
            assert_eq!(Change::decode(&change.encode()).expect("decodes"), change);
        }
    }
}
