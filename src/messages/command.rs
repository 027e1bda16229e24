//! What the API asks the writer to do.

use bytes::Bytes;
use nexxus_storage::{
    model::{AppId, Caller, Document, DocumentId, ModelName, Patch, PatchSet, Timestamp, UserId, change::UserFacts},
    queue::Encode,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Typed, to_json};

/// One write that was accepted. The id of its message is its `changeId`. The caller travels along, as the API saw it: the
/// writer judges it again on the state that it meets.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The application that it is about.
    pub app: AppId,
    /// Who asked, as the API saw them.
    pub caller: Caller,
    /// What is asked for.
    pub intent: Intent,
}

/// What a command asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Intent {
    /// Makes a document.
    Create {
        /// The document's model.
        model: ModelName,
        /// The document's id; `chosen` says whose choice it is.
        id: DocumentId,
        /// The client chose the id, so it may be taken; a generated one needs no look-up.
        chosen: bool,
        /// Whose document it becomes; nobody's where there is none.
        owner: Option<UserId>,
        /// Accepted by the model: in canonical form.
        fields: Map<String, Value>,
    },
    /// Changes a document.
    Patch {
        /// The document's model.
        model: ModelName,
        /// The document's id.
        id: DocumentId,
        /// The patches, in the notation in which they came.
        patch: PatchSet,
        /// The version that it has to meet, where the client named one.
        expected: Option<Expected>,
    },
    /// Deletes a document.
    Delete {
        /// The document's model.
        model: ModelName,
        /// The document's id.
        id: DocumentId,
        /// The version that it has to meet, where the client named one.
        expected: Option<Expected>,
    },
    /// Puts a document as it was elsewhere, accepted by its model, with its version and times; what is stored with that version or a
    /// later one stays. Subscribers are told if they are to be notified.
    Import {
        /// As it was elsewhere.
        document: Document,
        /// Whether subscribers are told.
        notify: bool,
    },
    /// Makes or changes an application: the whole definition (`registry::records::Application`), checked by the API. `forced`
    /// past conflicts with stored documents. `new`: it must not exist yet.
    Define {
        /// The whole definition, as the registry keeps it.
        definition: Value,
        /// Also where stored documents or open subscriptions stand against it.
        forced: bool,
        /// The application must not exist yet; else it must.
        new: bool,
    },
    /// Changes what rules know of a user, or (none) removes the user with devices and sessions. `expected`: what `after` was made
    /// of; whoever changed it in between is not written over.
    ChangeUser {
        /// The user.
        user: UserId,
        /// What rules know of the user from then on; none: the user is gone.
        after: Option<UserFacts>,
        /// What `after` was made of; none: whatever is there.
        expected: Option<UserFacts>,
    },
    /// Changes nothing: the writer says that it has passed it.
    Barrier,
}

/// The version that a write expects to meet (`If-Match`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    /// The version.
    pub version: u64,
    /// Set when the client sent the ETag: tells a document from one that was made again under its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    event: String,
    /// As the contract shows it to workers in other languages.
    data: Value,
    app_id: AppId,
    #[serde(default)]
    caller: Caller,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    r#type: Option<ModelName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<DocumentId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    chosen: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    patch: Option<PatchSet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expected: Option<Expected>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    forced: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    new: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    notify: bool,
}

impl Encode for Command {
    fn encode(&self) -> Bytes {
        let mut wire = Wire {
            event: String::new(),
            data: Value::Null,
            app_id: self.app.clone(),
            caller: self.caller.clone(),
            r#type: None,
            id: None,
            chosen: false,
            patch: None,
            expected: None,
            forced: false,
            new: false,
            notify: false,
        };
        match &self.intent {
            Intent::Create { model, id, chosen, owner, fields } => {
                wire.event = "model_created".into();
                wire.chosen = *chosen;
                let mut data = fields.clone();
                data.insert("appId".into(), json!(self.app));
                data.insert("type".into(), json!(model));
                data.insert("id".into(), json!(id));
                if let Some(owner) = owner {
                    data.insert("userId".into(), json!(owner));
                }
                wire.data = Value::Object(data);
            }
            Intent::Patch { model, id, patch, expected } => {
                wire.event = "model_updated".into();
                (wire.r#type, wire.id, wire.expected) = (Some(model.clone()), Some(id.clone()), *expected);
                match patch {
                    PatchSet::Nexxus(patches) => {
                        let metadata = json!({ "appId": self.app, "id": id, "type": model });
                        wire.data = patches.iter().map(|patch| with_metadata(patch, &metadata)).collect();
                    }
                    other => {
                        wire.data = json!([]);
                        wire.patch = Some(other.clone());
                    }
                }
            }
            Intent::Delete { model, id, expected } => {
                wire.event = "model_deleted".into();
                wire.expected = *expected;
                wire.data = json!({ "appId": self.app, "type": model, "id": id });
            }
            Intent::Import { document, notify } => {
                wire.event = "model_imported".into();
                (wire.data, wire.notify) = (json!(document), *notify);
            }
            Intent::Define { definition, forced, new } => {
                wire.event = "application_defined".into();
                (wire.data, wire.forced, wire.new) = (definition.clone(), *forced, *new);
            }
            Intent::ChangeUser { user, after, expected } => {
                wire.event = "user_changed".into();
                wire.data = json!({ "userId": user, "after": after });
                if let Some(expected) = expected {
                    wire.data["expected"] = json!(expected);
                }
            }
            Intent::Barrier => wire.event = "barrier".into(),
        }
        to_json(&wire)
    }
}

fn with_metadata(patch: &Patch, metadata: &Value) -> Value {
    let mut value = json!(patch);
    if let Value::Object(map) = &mut value {
        map.insert("metadata".into(), metadata.clone());
    }
    value
}

impl Typed for Command {
    fn decode(bytes: &Bytes) -> serde_json::Result<Self> {
        use serde::de::Error as _;
        let wire: Wire = serde_json::from_slice(bytes)?;
        let intent = match wire.event.as_str() {
            "model_created" => {
                let Value::Object(mut fields) = wire.data else {
                    return Err(serde_json::Error::custom("data is no object"));
                };
                fields.remove("appId");
                let mut take = |name: &str| fields.remove(name).unwrap_or_default();
                Intent::Create {
                    model: serde_json::from_value(take("type"))?,
                    id: serde_json::from_value(take("id"))?,
                    owner: serde_json::from_value(take("userId"))?,
                    chosen: wire.chosen,
                    fields,
                }
            }
            "model_updated" => Intent::Patch {
                model: wire.r#type.ok_or_else(|| serde_json::Error::missing_field("type"))?,
                id: wire.id.ok_or_else(|| serde_json::Error::missing_field("id"))?,
                expected: wire.expected,
                patch: match wire.patch {
                    Some(patch) => patch,
                    None => PatchSet::Nexxus(without_metadata(wire.data)?),
                },
            },
            "model_deleted" => {
                #[derive(Deserialize)]
                struct Named {
                    r#type: ModelName,
                    id: DocumentId,
                }
                let named: Named = serde_json::from_value(wire.data)?;
                Intent::Delete { model: named.r#type, id: named.id, expected: wire.expected }
            }
            "model_imported" => Intent::Import { document: serde_json::from_value(wire.data)?, notify: wire.notify },
            "application_defined" => Intent::Define { definition: wire.data, forced: wire.forced, new: wire.new },
            "user_changed" => {
                #[derive(Deserialize)]
                #[serde(rename_all = "camelCase")]
                struct Named {
                    user_id: UserId,
                    after: Option<UserFacts>,
                    #[serde(default)]
                    expected: Option<UserFacts>,
                }
                let named: Named = serde_json::from_value(wire.data)?;
                Intent::ChangeUser { user: named.user_id, after: named.after, expected: named.expected }
            }
            "barrier" => Intent::Barrier,
            other => return Err(serde_json::Error::custom(format!("unknown event {other}"))),
        };
        Ok(Self { app: wire.app_id, caller: wire.caller, intent })
    }
}

fn without_metadata(data: Value) -> serde_json::Result<Vec<Patch>> {
    let mut patches: Vec<Map<String, Value>> = serde_json::from_value(data)?;
    patches
        .iter_mut()
        .map(|patch| {
            patch.remove("metadata");
            serde_json::from_value(Value::Object(std::mem::take(patch)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexxus_storage::model::patch::Op;

    #[test]
    fn every_command_comes_back_from_the_wire() {
        let model = ModelName::parse("task").expect("a name");
        let id = DocumentId::parse("d1").expect("an id");
        let user = UserId::parse("u1").expect("an id");
        let expected = Some(Expected { version: 3, created_at: Some(Timestamp::now()) });
        let Value::Object(fields) = json!({ "title": "x", "meta": { "n": 1 } }) else { panic!("no object") };
        let patch = Patch { op: Op::Replace, path: vec!["title".into()], value: vec![json!("y")] };
        let imported: Document = serde_json::from_value(json!({
            "id": "d1", "type": "task", "appId": "a", "userId": "u1", "createdAt": "2026-01-01T00:00:00.000Z",
            "updatedAt": "2026-01-02T00:00:00.000Z", "version": 7, "title": "x",
        }))
        .expect("a document");
        for intent in [
            Intent::Create { model: model.clone(), id: id.clone(), chosen: true, owner: Some(user.clone()), fields },
            Intent::Create { model: model.clone(), id: id.clone(), chosen: false, owner: None, fields: Map::new() },
            Intent::Patch { model: model.clone(), id: id.clone(), patch: PatchSet::Nexxus(vec![patch]), expected },
            Intent::Patch {
                model: model.clone(),
                id: id.clone(),
                patch: PatchSet::MergePatch(json!({ "title": null })),
                expected: None,
            },
            Intent::Delete { model, id, expected },
            Intent::Import { document: imported.clone(), notify: true },
            Intent::Import { document: imported, notify: false },
            Intent::Define { definition: json!({ "id": "a" }), forced: true, new: false },
            Intent::ChangeUser { user: user.clone(), after: None, expected: None },
            Intent::ChangeUser {
                user: user.clone(),
                after: Some(UserFacts::default()),
                expected: Some(UserFacts::default()),
            },
            Intent::Barrier,
        ] {
            let caller = Caller { user: Some(user.clone()), ..Caller::default() };
            let command = Command { app: AppId::parse("a").expect("an id"), caller, intent };
            assert_eq!(Command::decode(&command.encode()).expect("decodes"), command);
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for bad in ["", "{}", "[]", r#"{"event":"nonsense","data":{},"appId":"a"}"#] {
            assert!(Command::decode(&Bytes::from_static(bad.as_bytes())).is_err(), "{bad}");
        }
    }
}
