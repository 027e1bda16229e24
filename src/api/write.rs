//! Writes: checked as far as can be told now, published to the writer, answered when durable (design §3.1).
//!
//! What is checked here is a courtesy: the writer judges again, on the state that it meets. A refusal that depends on what is stored
//! first waits for everything that was accepted before it ([`barrier`](super::barrier)) and looks again.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use nexxus_storage::{
    Error, ErrorKind,
    documents::Stored,
    model::{
        ChangeId, Document, DocumentId, Entry, Event, FieldError, Model, ModelName, PatchSet, Problem, Timestamp,
        UserId,
        change::{Subject, UserFacts},
        problem::ProblemKind,
        rules::Action,
    },
    open::{Demand, Room},
    queue::{Message, Payload},
};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{Answer, Api, auth::Asker};
use crate::{
    domain::judge::{self, Judge, New},
    http::CHANGE_ID,
    messages::{Command, Expected, Intent},
};

/// How long an answer that shows a result waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

impl Api {
    /// Publishes a command; returns when it is durable. 507 when the disk has no room for it.
    pub(super) async fn publish(&self, asker: &Asker, intent: Intent) -> Result<ChangeId, Problem> {
        let is_create = matches!(intent, Intent::Create { .. });
        self.domain.backends.admit(if is_create { Demand::Growth } else { Demand::Record })?;
        let app = asker.app();
        let document = document_of(&intent);
        let message = command(asker, intent);
        let change = message.id;
        let queue = self.domain.routes.writer.queue_of(app);
        let published = self.domain.backends.queues.publish(&queue, vec![message]).await;
        let outcome = published.map(|()| change).map_err(|error| not_published(error, change));
        let is_refused = outcome.as_ref().is_err_and(|problem| problem.kind != ProblemKind::OutcomeUnknown);
        // After the publish, so that whoever finds the note sends a barrier behind it; and before the answer.
        if let Some(document) = document.filter(|_| !is_refused) {
            self.note_write(app, document, change);
        }
        outcome
    }

    /// Publishes commands in order, all or none; returns when they are durable.
    pub(super) async fn publish_all(&self, asker: &Asker, intents: Vec<Intent>) -> Result<Vec<ChangeId>, Problem> {
        let app = asker.app();
        let noted: Vec<_> = intents.iter().map(document_of).collect();
        let messages: Vec<_> = intents.into_iter().map(|intent| command(asker, intent)).collect();
        let changes: Vec<_> = messages.iter().map(|message| message.id).collect();
        let Some(last) = changes.last() else { return Ok(changes) };
        let published = self.domain.backends.queues.publish(&self.domain.routes.writer.queue_of(app), messages).await;
        published.map_err(|error| not_published(error, *last))?;
        for (document, change) in noted.into_iter().zip(&changes) {
            if let Some(document) = document {
                self.note_write(app, document, *change);
            }
        }
        Ok(changes)
    }

    /// Publishes a command and waits until it is carried out: its entry in the log, none when that takes longer than anybody
    /// wants to wait. What the writer refuses is refused.
    pub(super) async fn carry_out(
        &self,
        asker: &Asker,
        intent: Intent,
    ) -> Result<(ChangeId, Option<Arc<Entry>>), Problem> {
        let change = self.publish(asker, intent).await?;
        let outcome = timeout(PATIENCE, self.domain.backends.change_log.wait_change(asker.app(), change)).await;
        let entry = match outcome {
            Ok(Ok(entry)) => entry.entry,
            // It is accepted, whatever keeps its result from us.
            Ok(Err(_)) | Err(_) => return Ok((change, None)),
        };
        match &entry.event {
            Event::Rejected { problem, .. } => Err(problem.clone()),
            _ => Ok((change, Some(entry))),
        }
    }

    /// Changes what rules know of a user, or removes the user; in order with all other changes of the application. `Conflict` where
    /// they are not what is expected any more.
    pub(super) async fn change_user(
        &self,
        asker: &Asker,
        user: &UserId,
        after: Option<UserFacts>,
        expected: Option<UserFacts>,
    ) -> Result<ChangeId, Problem> {
        let (change, _) = self.carry_out(asker, Intent::ChangeUser { user: user.clone(), after, expected }).await?;
        Ok(change)
    }

    pub(super) async fn create(
        &self,
        asker: &Asker,
        name: ModelName,
        model: &Model,
        mut fields: Map<String, Value>,
    ) -> Result<(DocumentId, ChangeId), Problem> {
        // Who has not signed in and has to, is told that and nothing else.
        asker.application.condition(&name, Action::Create, asker.caller())?;
        let mut faults = Vec::new();
        let chosen = take_id(&mut fields, &mut faults);
        let owner = take_owner(asker, &mut fields, &mut faults);
        let fields = match model.accept(fields, asker.caller().admin) {
            Ok(fields) if faults.is_empty() => fields,
            Ok(_) => return Err(judge::invalid(faults)),
            Err(more) => {
                faults.extend(more);
                return Err(judge::invalid(faults));
            }
        };
        let id = chosen.clone().unwrap_or_else(DocumentId::generate);
        let judge = self.judge(asker);
        let document = judge.make(&name, &id, New { owner, fields }, None)?;
        judge.fits(&document)?;
        judge.allow(Action::Create, &document)?;
        if chosen.is_some() {
            self.refuse_taken(asker, &name, &id).await?;
        }
        let intent = Intent::Create {
            model: name,
            id: id.clone(),
            chosen: chosen.is_some(),
            owner: document.user,
            fields: document.fields,
        };
        let change = self.publish(asker, intent).await?;
        Ok((id, change))
    }

    /// 409 when the id is taken, and still is when everything accepted before has been applied.
    async fn refuse_taken(&self, asker: &Asker, name: &ModelName, id: &DocumentId) -> Result<(), Problem> {
        if was_just_given(id) {
            self.pass_barrier(asker.app()).await?;
        }
        self.settle(asker.app(), &Subject { model: name.clone(), id: id.clone() }).await?;
        for is_last in [false, true] {
            match self.stored(asker, name, id).await? {
                Some(Stored::Live(_)) if is_last => {
                    return Err(Problem::new(ProblemKind::Exists, format!("{name} {id} exists already")));
                }
                Some(Stored::Live(_)) => self.pass_barrier(asker.app()).await?,
                Some(Stored::Deleted { .. }) | None => break,
            }
        }
        Ok(())
    }

    pub(super) async fn patch(
        &self,
        asker: &mut Asker,
        subject: Subject,
        patch: PatchSet,
        expected: Option<Expected>,
    ) -> Result<ChangeId, Problem> {
        let decide = |judge: &Judge<'_>, stored: Option<&Stored>| judge.patch(&subject, &patch, expected, stored);
        let (event, stored) = self.check(asker, Action::Update, &subject, decide).await?;
        if self.domain.backends.room() != Room::Ample && makes_larger(&event, stored.as_ref()) {
            self.domain.backends.admit(Demand::Growth)?;
        }
        let Subject { model, id } = subject;
        self.publish(asker, Intent::Patch { model, id, patch, expected }).await
    }

    pub(super) async fn delete(
        &self,
        asker: &mut Asker,
        subject: Subject,
        expected: Option<Expected>,
    ) -> Result<ChangeId, Problem> {
        let decide = |judge: &Judge<'_>, stored: Option<&Stored>| judge.delete(&subject, expected, stored);
        self.check(asker, Action::Delete, &subject, decide).await?;
        let Subject { model, id } = subject;
        self.publish(asker, Intent::Delete { model, id, expected }).await
    }

    /// Judges a write on what is stored, when what was accepted for the document is applied. Before it is refused, everything that
    /// was accepted before it is. Gives what it would do, and to what.
    async fn check(
        &self,
        asker: &mut Asker,
        action: Action,
        subject: &Subject,
        decide: impl Fn(&Judge<'_>, Option<&Stored>) -> Result<Event, Problem>,
    ) -> Result<(Event, Option<Stored>), Problem> {
        for action in [Action::Read, action] {
            asker.application.condition(&subject.model, action, asker.caller())?;
        }
        self.settle(asker.app(), subject).await?;
        let stored = self.stored(asker, &subject.model, &subject.id).await?;
        if let Ok(event) = decide(&self.judge(asker), stored.as_ref()) {
            return Ok((event, stored));
        }
        self.pass_barrier(asker.app()).await?;
        asker.look_again(self).await?;
        let stored = self.stored(asker, &subject.model, &subject.id).await?;
        decide(&self.judge(asker), stored.as_ref()).map(|event| (event, stored))
    }

    async fn stored(&self, asker: &Asker, model: &ModelName, id: &DocumentId) -> Result<Option<Stored>, Problem> {
        let ids = std::slice::from_ref(id);
        let found = self.domain.backends.documents.get(asker.app(), model, ids).await?;
        Ok(found.into_iter().next().flatten())
    }

    fn judge<'a>(&self, asker: &'a Asker) -> Judge<'a> {
        Judge {
            application: &asker.application,
            caller: asker.caller(),
            now: Timestamp::now(),
            document_bytes: self.domain.config.now().limits.document_bytes.bytes(),
        }
    }
}

/// A command as a message to the writer, under a new change id.
fn command(asker: &Asker, intent: Intent) -> Message {
    let app = asker.app();
    let command = Command { app: app.clone(), caller: asker.caller().clone(), intent };
    Message {
        id: ChangeId::generate(),
        app: Some(app.clone()),
        offset: None,
        time: Timestamp::now(),
        trace: asker.trace.clone(),
        dead: None,
        durable: true,
        payload: Payload::new(Arc::new(command)),
    }
}

/// Whether an id may be one that was given to another document moments ago, which is noted nowhere until it is applied.
fn was_just_given(id: &DocumentId) -> bool {
    const MOMENTS_MS: u64 = 10 * 60 * 1000;
    let given_at = id.as_str().to_ascii_uppercase().parse::<ChangeId>().map(ChangeId::timestamp_ms);
    given_at.is_ok_and(|given_at| ChangeId::generate().timestamp_ms().saturating_sub(given_at) < MOMENTS_MS)
}

/// Whether a document takes more room after a change than it does now.
fn makes_larger(event: &Event, stored: Option<&Stored>) -> bool {
    let size = |document: &Document| serde_json::to_vec(&document.fields).map_or(0, |json| json.len());
    match (event, stored) {
        (Event::Updated { document, .. }, Some(Stored::Live(before))) => size(document) > size(before),
        _ => false,
    }
}

/// The document that has to be settled before the next write to it is judged. Creates under a generated id need none: before they
/// are applied the document is not found, and a refusal waits anyway.
fn document_of(intent: &Intent) -> Option<Subject> {
    let (model, id) = match intent {
        Intent::Create { model, id, chosen: true, .. }
        | Intent::Patch { model, id, .. }
        | Intent::Delete { model, id, .. } => (model, id),
        Intent::Import { document, .. } => (&document.model, &document.id),
        _ => return None,
    };
    Some(Subject { model: model.clone(), id: id.clone() })
}

/// The id that a client chose.
fn take_id(fields: &mut Map<String, Value>, faults: &mut Vec<FieldError>) -> Option<DocumentId> {
    let fault = match fields.remove("id")? {
        Value::Null => return None,
        Value::String(text) => match text.parse() {
            Ok(id) => return Some(id),
            Err(error) => format!("{error}"),
        },
        _ => "an id is a string".to_owned(),
    };
    faults.push(FieldError::new("/id", fault));
    None
}

/// Whose a new document is: the caller's. Admins name somebody, or nobody.
fn take_owner(asker: &Asker, fields: &mut Map<String, Value>, faults: &mut Vec<FieldError>) -> Option<UserId> {
    let caller = asker.caller();
    let named = match fields.remove("userId") {
        None | Some(Value::Null) => return caller.user.clone(),
        Some(Value::String(text)) => text.parse::<UserId>().map_err(|error| error.to_string()),
        Some(_) => Err("a user id is a string".to_owned()),
    };
    let fault = match named {
        Ok(user) if caller.admin || caller.user.as_ref() == Some(&user) => return Some(user),
        Ok(_) => "only an admin makes documents for others".to_owned(),
        Err(error) => error,
    };
    faults.push(FieldError::new("/userId", fault));
    None
}

/// What became of a command that could not be published: nothing, or nobody knows.
fn not_published(error: Error, change: ChangeId) -> Problem {
    let is_refused = matches!(
        error.kind,
        ErrorKind::Full | ErrorKind::DiskFull | ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::Conflict
    );
    if is_refused {
        return error.into();
    }
    let is_late = error.kind == ErrorKind::Timeout;
    tracing::warn!(%change, %error, "nobody knows whether a write was accepted");
    let detail = format!("ask /changes/{change} whether the change was accepted");
    let mut problem = Problem::new(ProblemKind::OutcomeUnknown, detail).with_change_id(change).with_retry_after(1);
    if is_late {
        problem.status = ProblemKind::Timeout.status();
    }
    problem
}

/// 202: the change is durable.
pub(super) fn accepted(model: &ModelName, id: &DocumentId, change: ChangeId) -> Answer<Response<Body>> {
    // Ids need no escapes.
    let mut response = Response::new(Body::from(format!(r#"{{"id":"{id}","changeId":"{change}"}}"#)));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(location) = HeaderValue::try_from(format!("/model/{model}/{id}")) {
        headers.insert(header::LOCATION, location);
    }
    Ok(with_change(response, change))
}

/// The answer to a write names its change.
pub(super) fn with_change(mut response: Response<Body>, change: ChangeId) -> Response<Body> {
    if let Ok(change) = HeaderValue::try_from(change.to_string()) {
        response.headers_mut().insert(CHANGE_ID, change);
    }
    response
}

pub(super) fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// JSON with a status.
pub(super) fn json_answer(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A list is an object with `items`.
pub(super) fn list_answer(items: Vec<Value>) -> Response<Body> {
    json_answer(StatusCode::OK, &json!({ "items": items }))
}

/// The `ETag` of a version of a document: it also tells documents apart that were made under the same id one after the other.
pub(super) fn etag_of(version: u64, created_at: Timestamp) -> String {
    format!("\"{version}-{:x}\"", created_at.as_ms())
}

/// Reads `If-Match`: an ETag, or the plain version. Any other tag names no version that there is.
pub(super) fn expected(headers: &HeaderMap) -> Result<Option<Expected>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    if text.contains(',') {
        return Err(Problem::new(ProblemKind::Malformed, "If-Match: one ETag or version is taken, not a list"));
    }
    let tag = text.trim_matches('"');
    let (version, created_at) = match tag.split_once('-') {
        Some((version, created_at)) => {
            let created_at = i64::from_str_radix(created_at, 16).ok().and_then(|ms| Timestamp::from_ms(ms).ok());
            (version.parse().ok().filter(|_| created_at.is_some()), created_at)
        }
        None => (tag.parse().ok(), None),
    };
    // Versions begin with 1.
    Ok(Some(Expected { version: version.unwrap_or(0), created_at }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn if_match(text: &str) -> Result<Option<Expected>, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, text.parse().expect("a value"));
        expected(&headers).map_err(|problem| problem.status)
    }

    #[test]
    fn if_match_takes_an_etag_or_a_version() {
        let created_at = Timestamp::from_ms(1_700_000_000_123).expect("a time");
        let plain = |version| Ok(Some(Expected { version, created_at: None }));
        assert_eq!(expected(&HeaderMap::new()).map_err(|problem| problem.status), Ok(None));
        assert_eq!(if_match("*"), Ok(None));
        assert_eq!(if_match(&etag_of(7, created_at)), Ok(Some(Expected { version: 7, created_at: Some(created_at) })));
        for (text, version) in [("7", 7), ("\"7\"", 7), ("seven", 0), ("\"7-xyz\"", 0), ("W/\"7\"", 0), ("", 0)] {
            assert_eq!(if_match(text), plain(version), "{text}");
        }
        assert_eq!(if_match("\"1\", \"2\""), Err(400));
    }

    #[test]
    fn ids_that_were_just_given_are_told_by_their_time() {
        assert!(was_just_given(&DocumentId::generate()));
        for id in ["t-1", "01jdzzzzzzzzzzzzzzzzzzzzzz", "0000000000zzzzzzzzzzzzzzzz"] {
            assert!(!was_just_given(&DocumentId::parse(id).expect("an id")), "{id}");
        }
    }

    #[test]
    fn an_unknown_outcome_names_the_change() {
        let change = ChangeId::generate();
        for (kind, slug, status) in [
            (ErrorKind::Full, "unavailable", 503),
            (ErrorKind::DiskFull, "disk-full", 507),
            (ErrorKind::Unavailable, "outcome-unknown", 503),
            (ErrorKind::Internal, "outcome-unknown", 503),
            (ErrorKind::Timeout, "outcome-unknown", 504),
        ] {
            let problem = not_published(Error::new(kind, "publish", "queue writer"), change);
            assert_eq!((problem.kind.slug(), problem.status), (slug, status), "{kind:?}");
            assert_eq!(problem.change_id, (slug == "outcome-unknown").then_some(change));
        }
    }
}
