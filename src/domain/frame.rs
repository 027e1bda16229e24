//! The frames that devices get of changes (contract §7), as text, encoded once for all who get the same.

use std::{cell::OnceCell, sync::Arc};

use bytes::Bytes;
use nexxus_storage::model::{
    ChangeId, Document, DocumentId, Entry, Event, Model, ModelName, Offset, Patch, Problem, change::Subject,
    patch::visible_patches,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Application, view::Step};

/// What one device hears of one change: devices with equal ones share a frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Audience {
    /// The channels of the device that the document belongs to after the change (of a delete: before it), sorted.
    pub channels: Vec<Arc<str>>,
    /// Those of them that the document has entered.
    pub entered: Vec<Arc<str>>,
    /// The channels that the document has left; they are not in `channels`.
    pub left: Vec<Arc<str>>,
    /// Sees hidden fields.
    pub privileged: bool,
    /// The document could not be read before, or can no longer: how it changed is not shown.
    pub silent: bool,
}

impl Audience {
    /// The audience of a device whose subscriptions take these steps.
    pub fn of<'a>(steps: impl IntoIterator<Item = (&'a Arc<str>, Step, bool)>) -> Self {
        let mut audience = Self::default();
        for (channel, step, privileged) in steps {
            audience.privileged |= privileged;
            match step {
                Step::Created | Step::Stayed | Step::Deleted => audience.channels.push(channel.clone()),
                Step::Entered { unreadable } => {
                    audience.silent |= unreadable;
                    audience.channels.push(channel.clone());
                    audience.entered.push(channel.clone());
                }
                Step::Left { unreadable } => {
                    audience.silent |= unreadable;
                    audience.left.push(channel.clone());
                }
            }
        }
        audience.silent &= !audience.privileged;
        for channels in [&mut audience.channels, &mut audience.entered, &mut audience.left] {
            channels.sort_unstable();
        }
        audience
    }
}

/// Makes the frames of one entry. What audiences have in common is encoded once.
pub struct Frames<'a> {
    entry: &'a Entry,
    model: Option<&'a Model>,
    /// The document as everybody and as the privileged see it.
    shown: [OnceCell<Box<RawValue>>; 2],
}

#[derive(Serialize)]
struct Metadata<'a> {
    id: &'a DocumentId,
    r#type: &'a ModelName,
    version: u64,
    channels: &'a [Arc<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    entered: Option<&'a [Arc<str>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<&'a [Arc<str>]>,
}

#[derive(Serialize)]
struct Frame<D: Serialize, M: Serialize> {
    event: &'static str,
    data: D,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<M>,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<Offset>,
}

impl<'a> Frames<'a> {
    /// What can be told of an entry. `app`: as it is at this place of the log.
    pub fn of(app: &'a Application, entry: &'a Entry) -> Self {
        let model = entry.model().and_then(|name| app.schema.model(name.as_str())).map(|model| &**model);
        Self { entry, model, shown: Default::default() }
    }

    /// The frame for an audience; none for entries that are no change of a document.
    pub fn change(&self, audience: &Audience) -> Option<Bytes> {
        match &self.entry.event {
            Event::Created { document } => Some(self.frame(
                "model_created",
                self.shown(document, audience.privileged),
                metadata(document, document.version, audience),
                None,
            )),
            Event::Updated { document, patches, .. } => {
                let metadata = Metadata {
                    entered: Some(&audience.entered),
                    left: Some(&audience.left),
                    ..metadata(document, document.version, audience)
                };
                let shown = (!audience.entered.is_empty()).then(|| self.shown(document, audience.privileged));
                let patches = self.patches(document, patches, audience);
                Some(self.frame("model_updated", patches, metadata, shown))
            }
            Event::Deleted { document, version } => Some(self.frame(
                "model_deleted",
                Named {
                    app_id: &document.app,
                    user_id: document.user.as_ref(),
                    r#type: &document.model,
                    id: &document.id,
                },
                metadata(document, *version, audience),
                None,
            )),
            _ => None,
        }
    }

    fn frame<D: Serialize, M: Serialize>(
        &self,
        event: &'static str,
        data: D,
        metadata: M,
        document: Option<Box<RawValue>>,
    ) -> Bytes {
        to_text(&Frame { event, data, metadata: Some(metadata), document, offset: Some(self.entry.offset) })
    }

    fn shown(&self, document: &Document, privileged: bool) -> Box<RawValue> {
        self.shown[usize::from(privileged)]
            .get_or_init(|| {
                let raw = match self.model {
                    Some(model) if !privileged && model.has_hidden() => {
                        let mut document = document.clone();
                        model.hide(&mut document.fields);
                        serde_json::value::to_raw_value(&document)
                    }
                    _ => serde_json::value::to_raw_value(document),
                };
                raw.unwrap_or_else(|_| RawValue::NULL.to_owned())
            })
            .clone()
    }

    fn patches<'d>(&self, document: &'d Document, patches: &[Patch], audience: &'d Audience) -> Vec<ShownPatch<'d>> {
        if audience.silent {
            return Vec::new();
        }
        let patches = match self.model {
            Some(model) if !audience.privileged && model.has_hidden() => visible_patches(patches, model),
            _ => patches.to_vec(),
        };
        let shown = |patch| ShownPatch { patch, metadata: metadata(document, document.version, audience) };
        patches.into_iter().map(shown).collect()
    }
}

#[derive(Serialize)]
struct ShownPatch<'a> {
    #[serde(flatten)]
    patch: Patch,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Named<'a> {
    app_id: &'a nexxus_storage::model::AppId,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a nexxus_storage::model::UserId>,
    r#type: &'a ModelName,
    id: &'a DocumentId,
}

fn metadata<'a>(document: &'a Document, version: u64, audience: &'a Audience) -> Metadata<'a> {
    Metadata {
        id: &document.id,
        r#type: &document.model,
        version,
        channels: &audience.channels,
        entered: None,
        left: None,
    }
}

/// `change_rejected`, for the device that asked for the change.
pub fn change_rejected(change: ChangeId, document: Option<&Subject>, problem: &Problem, offset: Offset) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Rejected<'a> {
        change_id: ChangeId,
        #[serde(flatten)]
        document: Option<&'a Subject>,
    }
    to_text(&Frame {
        event: "change_rejected",
        data: problem,
        metadata: Some(Rejected { change_id: change, document }),
        document: None,
        offset: Some(offset),
    })
}

/// `resync_required`: these channels have to be asked for anew. `after`: seconds to wait, spread over devices.
pub fn resync_required(
    channels: &[Arc<str>],
    reason: Option<&str>,
    after: Option<u32>,
    offset: Option<Offset>,
) -> Bytes {
    #[derive(Serialize)]
    struct Resync<'a> {
        channels: &'a [Arc<str>],
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        after: Option<u32>,
    }
    let data = Resync { channels, reason, after };
    to_text(&Frame { event: "resync_required", data, metadata: None::<()>, document: None, offset })
}

/// `progress`: everything of the application up to here that concerns the device was sent.
pub fn progress(offset: Offset) -> Bytes {
    #[derive(Serialize)]
    struct Progress {
        event: &'static str,
        offset: Offset,
    }
    to_text(&Progress { event: "progress", offset })
}

/// The text of a frame. Frames are made of texts, numbers and lists only, which always have a JSON text.
pub fn to_text(frame: &impl Serialize) -> Bytes {
    serde_json::to_vec(frame).map(Bytes::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::catalog;
    use nexxus_storage::{
        model::{Timestamp, change::Before, patch::Op, problem::ProblemKind},
        registry::records,
    };
    use serde_json::{Value, json};

    fn application() -> Application {
        let record: records::Application = serde_json::from_value(json!({
            "id": "a", "name": "a", "authEnabled": true, "allowMultipleLogin": true, "offset": Offset::new(1, 1),
            "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z",
            "schema": { "task": { "title": { "type": "string" }, "cost": { "type": "number", "hidden": true } } },
        }))
        .expect("a record");
        catalog::Application::compile(record).expect("a valid application")
    }

    fn document(version: u64) -> Document {
        serde_json::from_value(json!({
            "id": "d", "type": "task", "appId": "a", "userId": "u", "createdAt": "2026-01-01T00:00:00.000Z",
            "updatedAt": "2026-01-01T00:00:00.000Z", "version": version, "title": "x", "cost": 5,
        }))
        .expect("a document")
    }

    fn entry(event: Event) -> Entry {
        Entry { offset: Offset::new(1, 7), change_id: ChangeId::generate(), time: Timestamp::now(), event }
    }

    fn update() -> Entry {
        let patches =
            ["title", "cost"].map(|name| Patch { op: Op::Replace, path: vec![name.into()], value: vec![json!(1)] });
        let before = Before { updated_at: Timestamp::now(), user: None, fields: Vec::new() };
        entry(Event::Updated { document: document(2), before, patches: patches.into() })
    }

    fn frame_of(entry: &Entry, steps: &[(&str, Step, bool)]) -> Value {
        let steps: Vec<(Arc<str>, Step, bool)> =
            steps.iter().map(|(channel, step, privileged)| ((*channel).into(), *step, *privileged)).collect();
        let audience = Audience::of(steps.iter().map(|(channel, step, privileged)| (channel, *step, *privileged)));
        let application = application();
        let text = Frames::of(&application, entry).change(&audience).expect("a frame");
        serde_json::from_slice(&text).expect("JSON")
    }

    #[test]
    fn hidden_fields_are_for_the_privileged() {
        let created = entry(Event::Created { document: document(1) });
        let shown = frame_of(&created, &[("c", Step::Created, false)]);
        assert_eq!(shown["data"]["title"], "x");
        assert_eq!(shown["data"].get("cost"), None);
        assert_eq!(shown["metadata"], json!({ "id": "d", "type": "task", "version": 1, "channels": ["c"] }));
        assert_eq!(shown["offset"], "00000001-0000000000000007");
        assert_eq!(frame_of(&created, &[("c", Step::Created, true)])["data"]["cost"], 5);

        let paths = |frame: &Value| {
            frame["data"].as_array().map(|data| data.iter().map(|patch| patch["path"].clone()).collect::<Vec<_>>())
        };
        assert_eq!(paths(&frame_of(&update(), &[("c", Step::Stayed, false)])), Some(vec![json!(["title"])]));
        assert_eq!(
            paths(&frame_of(&update(), &[("c", Step::Stayed, true)])),
            Some(vec![json!(["title"]), json!(["cost"])])
        );
    }

    #[test]
    fn entering_and_leaving_are_listed_by_channel() {
        let frame = frame_of(
            &update(),
            &[
                ("z", Step::Stayed, false),
                ("b", Step::Entered { unreadable: false }, false),
                ("a", Step::Left { unreadable: false }, false),
            ],
        );
        assert_eq!(frame["metadata"]["channels"], json!(["b", "z"]));
        assert_eq!(frame["metadata"]["entered"], json!(["b"]));
        assert_eq!(frame["metadata"]["left"], json!(["a"]));
        assert_eq!(frame["document"]["title"], "x");
        assert_eq!(frame["document"].get("cost"), None);
        assert_eq!(
            frame["data"][0]["metadata"],
            json!({ "id": "d", "type": "task", "version": 2, "channels": ["b", "z"] })
        );
        assert_eq!(frame_of(&update(), &[("z", Step::Stayed, false)]).get("document"), None);
    }

    #[test]
    fn what_may_not_be_read_is_not_shown() {
        let left = frame_of(&update(), &[("c", Step::Left { unreadable: true }, false)]);
        assert_eq!((&left["data"], left.get("document")), (&json!([]), None));
        let entered = frame_of(&update(), &[("c", Step::Entered { unreadable: true }, false)]);
        assert_eq!(entered["data"], json!([]));
        assert_eq!(entered["document"]["title"], "x");
    }

    #[test]
    fn a_delete_names_the_document_and_counts_as_a_version() {
        let deleted =
            frame_of(&entry(Event::Deleted { document: document(3), version: 4 }), &[("c", Step::Deleted, false)]);
        assert_eq!(deleted["data"], json!({ "appId": "a", "userId": "u", "type": "task", "id": "d" }));
        assert_eq!(deleted["metadata"]["version"], 4);
    }

    #[test]
    fn a_refusal_says_which_change_and_which_document() {
        let change = ChangeId::generate();
        let subject = serde_json::from_value(json!({ "type": "task", "id": "d" })).expect("a subject");
        let text =
            change_rejected(change, Some(&subject), &Problem::new(ProblemKind::Exists, "taken"), Offset::new(1, 2));
        let frame: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(frame["metadata"], json!({ "changeId": change, "id": "d", "type": "task" }));
        assert_eq!(frame["data"]["type"], "exists");
    }
}
