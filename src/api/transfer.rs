//! `/admin/export` and `/admin/import`: what an application has, in bulk, for moving it to another server. For the admin token only:
//! users come with the hashes of their passwords.

use std::time::Duration;

use axum::{extract::State, http::StatusCode};
use futures_util::{StreamExt as _, stream};
use nexxus_storage::{
    ErrorKind,
    documents::Stored,
    model::{AppId, Document, Event, Offset, Problem, problem::ProblemKind},
    open::Demand,
    registry::{
        Expect, Key, Kind, Write,
        records::{Device, Subscription, Typed as _, User, UserDevice, UserName},
    },
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    Answer, Api,
    auth::{AdminWithin, Asker, newest},
    body::Body,
    path::{Names, Parameters},
    problem::malformed,
    write::json_answer,
};
use crate::{domain::judge, messages::Intent};

/// Records of a page where nothing is said, and at most.
const USUAL: usize = 200;
const MOST: usize = 1_000;
/// Lines of one import.
const MOST_LINES: usize = 1_000;
/// How long an import waits for its documents to be applied; then it is to be sent again, which changes nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// Records that are written side by side.
const AT_ONCE: usize = 32;

/// `GET /admin/export/{kind}`: records of an application as they are kept: `{ items, next? }`.
pub(super) async fn export(
    State(api): State<Api>,
    AdminWithin(asker): AdminWithin,
    names: Names,
    mut parameters: Parameters,
) -> Answer {
    let kind = match names.text("kind") {
        "users" => Kind::User,
        "devices" => Kind::Device,
        "subscriptions" => Kind::Subscription,
        other => {
            let detail = format!("there are users, devices and subscriptions to export, and no {other}");
            return Err(Problem::new(ProblemKind::NotFound, detail).into());
        }
    };
    let after = parameters.take("after");
    let limit = parameters.limit(USUAL, MOST)?;
    parameters.finish()?;
    let records = api.domain.backends.registry.list(kind, Some(asker.app()), "", after.as_deref(), limit).await?;
    let next = records.last().filter(|_| records.len() == limit).map(|last| last.key.id.clone());
    let items: Result<Vec<Value>, _> = records.iter().map(|record| serde_json::from_slice(&record.value)).collect();
    let items = items.map_err(|error| Problem::new(ProblemKind::Internal, error.to_string()))?;
    let mut page = json!({ "items": items });
    if let Some(next) = next {
        page["next"] = json!(next);
    }
    Ok(json_answer(StatusCode::OK, &page))
}

/// A line of an import.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    User(User),
    Device(Device),
    Subscription(Subscription),
    Document(Document),
}

impl Line {
    fn app(&self) -> &AppId {
        match self {
            Self::User(user) => &user.app,
            Self::Device(device) => &device.app,
            Self::Subscription(subscription) => &subscription.app,
            Self::Document(document) => &document.app,
        }
    }
}

/// What became of a line.
#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    Written,
    /// It was there, as it is or newer.
    Unchanged,
    Refused(Problem),
}

/// `POST /admin/import`: lines of an export, as JSON Lines; answers `{ written, unchanged, refused: [{ line, problem }] }` when all of
/// them are in force. Sent again it changes nothing. `?notify=true`: subscribers are told of the documents.
pub(super) async fn import(
    State(api): State<Api>,
    AdminWithin(mut asker): AdminWithin,
    mut parameters: Parameters,
    body: Body,
) -> Answer {
    let notify = parameters.parsed("notify")?.unwrap_or(false);
    parameters.finish()?;
    // A schema that was just imported is in force.
    asker.application = newest(&api, asker.app()).await?;
    api.domain.backends.admit(Demand::Growth)?;
    let lines: Vec<&[u8]> = body.bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    if lines.len() > MOST_LINES {
        return Err(malformed(format!("{} lines, at most {MOST_LINES} are taken at once", lines.len())).into());
    }
    let (mut outcomes, mut records, mut documents) = (vec![Outcome::Unchanged; lines.len()], Vec::new(), Vec::new());
    for (place, line) in lines.into_iter().enumerate() {
        match read(&asker, line) {
            Ok(Line::Document(document)) => documents.push((place, document)),
            Ok(record) => records.push((place, record)),
            Err(problem) => outcomes[place] = Outcome::Refused(problem),
        }
    }
    for (place, outcome) in import_records(&api, &asker, records).await? {
        outcomes[place] = outcome;
    }
    for (place, outcome) in import_documents(&api, &asker, documents, notify).await? {
        outcomes[place] = outcome;
    }
    Ok(json_answer(StatusCode::OK, &told(outcomes)))
}

fn told(outcomes: Vec<Outcome>) -> Value {
    let count = |wanted: &Outcome| outcomes.iter().filter(|outcome| *outcome == wanted).count();
    let (written, unchanged) = (count(&Outcome::Written), count(&Outcome::Unchanged));
    let refused = outcomes.into_iter().zip(1..).filter_map(|(outcome, line): (_, u64)| match outcome {
        Outcome::Refused(problem) => Some(json!({ "line": line, "problem": problem })),
        _ => None,
    });
    json!({ "written": written, "unchanged": unchanged, "refused": refused.collect::<Vec<_>>() })
}

/// Reads a line; a document is brought into the form that its model asks for.
fn read(asker: &Asker, line: &[u8]) -> Result<Line, Problem> {
    let mut line: Line = serde_json::from_slice(line)
        .map_err(|error| Problem::new(ProblemKind::InvalidDocument, format!("it is no line of an export: {error}")))?;
    if line.app() != asker.app() {
        let detail = format!("it is of application {}, and this is {}", line.app(), asker.app());
        return Err(Problem::new(ProblemKind::InvalidDocument, detail));
    }
    if let Line::Document(document) = &mut line {
        let Some(model) = asker.application.schema.model(document.model.as_str()) else {
            return Err(Problem::new(ProblemKind::NotFound, format!("there is no model {}", document.model)));
        };
        model.canonicalize(&mut document.fields, true);
        model.check(&document.fields).map_err(judge::invalid)?;
        if document.version == 0 {
            return Err(Problem::new(ProblemKind::InvalidDocument, "a version is at least 1"));
        }
    }
    Ok(line)
}

async fn import_records(
    api: &Api,
    asker: &Asker,
    records: Vec<(usize, Line)>,
) -> Result<Vec<(usize, Outcome)>, Problem> {
    if records.is_empty() {
        return Ok(Vec::new());
    }
    // Offsets of elsewhere name nothing here: what comes from now on is told.
    let applied = api.domain.backends.change_log.marks(asker.app()).await?.applied;
    let mut outcomes = Vec::with_capacity(records.len());
    let mut rest = records;
    // What a record stands on comes before it, also where both come at once.
    for is_next in
        [|line: &Line| matches!(line, Line::User(_)), |line: &Line| matches!(line, Line::Device(_)), |_: &Line| true]
    {
        let (now, later): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, line)| is_next(line));
        rest = later;
        let importing = stream::iter(now).map(|(place, line)| async move {
            import_record(api, line, applied).await.map(|outcome| (place, outcome))
        });
        let imported: Vec<Result<_, Problem>> = importing.buffered(AT_ONCE).collect().await;
        outcomes.extend(imported.into_iter().collect::<Result<Vec<_>, _>>()?);
    }
    Ok(outcomes)
}

/// Puts a record where there is none; one that is there stays as it is.
async fn import_record(api: &Api, line: Line, applied: Offset) -> Result<Outcome, Problem> {
    let registry = &api.domain.backends.registry;
    let (key, writes) = match line {
        Line::User(user) => {
            let (app, username, id) = (user.app.clone(), user.username.clone(), user.id.clone());
            let name = UserName { app, username, user: id };
            let name_key = name.key();
            let writes = vec![Write::put(&user, Expect::Absent)?, Write::put(&name, Expect::Absent)?];
            let holder: Option<(UserName, u64)> = registry.load(&name_key).await?;
            if holder.is_some_and(|(holder, _)| holder.user != user.id) {
                let detail = format!("the user name {} belongs to another user", user.username);
                return Ok(Outcome::Refused(Problem::new(ProblemKind::Exists, detail)));
            }
            (user.key(), writes)
        }
        Line::Device(device) => {
            let device = Device { registered_at: applied, generation: 0, revoked: false, ..device };
            let mut writes = vec![Write::put(&device, Expect::Absent)?];
            if let Some(user) = &device.user {
                let named = UserDevice { app: device.app.clone(), user: user.clone(), device: device.id.clone() };
                writes.push(Write::put(&named, Expect::Anything)?);
            }
            (device.key(), writes)
        }
        Line::Subscription(subscription) => {
            let device = Key::device(&subscription.app, &subscription.device);
            let Some((device, revision)) = registry.load::<Device>(&device).await? else {
                let detail = format!("there is no device {} to subscribe", subscription.device);
                return Ok(Outcome::Refused(Problem::new(ProblemKind::NotFound, detail)));
            };
            let subscription = Subscription { since: applied, ..subscription };
            // With the device's record: an expiry that has not seen this fails.
            let writes =
                vec![Write::put(&subscription, Expect::Absent)?, Write::put(&device, Expect::Revision(revision))?];
            (subscription.key(), writes)
        }
        Line::Document(_) => return Ok(Outcome::Unchanged),
    };
    if registry.get(&key).await?.is_some() {
        return Ok(Outcome::Unchanged);
    }
    match registry.write(writes).await {
        Ok(()) => Ok(Outcome::Written),
        Err(error) if error.kind == ErrorKind::Conflict => {
            let detail = format!("{} {} is written by somebody else just now", key.kind, key.id);
            Err(Problem::new(ProblemKind::Unavailable, detail).with_retry_after(1))
        }
        Err(error) => Err(error.into()),
    }
}

/// Sends documents down the path of all writes, and waits until they are applied.
async fn import_documents(
    api: &Api,
    asker: &Asker,
    documents: Vec<(usize, Document)>,
    notify: bool,
) -> Result<Vec<(usize, Outcome)>, Problem> {
    let (mut outcomes, mut intents, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for (place, document) in documents {
        if is_there(api, asker, &document).await? {
            outcomes.push((place, Outcome::Unchanged));
        } else {
            places.push(place);
            intents.push(Intent::Import { document, notify });
        }
    }
    let changes = api.publish_all(asker, intents).await?;
    let Some(last) = changes.last() else { return Ok(outcomes) };
    let log = &api.domain.backends.change_log;
    let waited = timeout(PATIENCE, log.wait_change(asker.app(), *last)).await;
    waited.map_err(|_| {
        let detail = "the documents are accepted and not applied yet: send them again later, which changes nothing";
        Problem::new(ProblemKind::Unavailable, detail).with_retry_after(5)
    })??;
    let entries = log.find(asker.app(), &changes).await?;
    let imported = entries.into_iter().map(|entry| match entry.as_ref().map(|entry| &entry.entry.event) {
        Some(Event::Rejected { problem, .. }) => Outcome::Refused(problem.clone()),
        Some(Event::Unchanged { .. }) => Outcome::Unchanged,
        _ => Outcome::Written,
    });
    outcomes.extend(places.into_iter().zip(imported));
    Ok(outcomes)
}

/// Whether this version or a later one is stored: then it need not be logged to be left as it is. The writer looks again.
async fn is_there(api: &Api, asker: &Asker, document: &Document) -> Result<bool, Problem> {
    let documents = &api.domain.backends.documents;
    let ids = std::slice::from_ref(&document.id);
    let stored = documents.get(asker.app(), &document.model, ids).await?;
    Ok(match stored.first() {
        Some(Some(Stored::Live(stored))) => stored.version >= document.version,
        Some(Some(Stored::Deleted { version })) => *version >= document.version,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_export_are_understood() {
        let document = json!({ "document": { "id": "d", "type": "task", "appId": "a", "version": 3,
            "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z", "title": "x" } });
        let user = json!({ "user": { "app": "a", "id": "u", "username": "anna", "passwordHash": "$argon2id$x",
            "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z" } });
        for line in [document, user] {
            let read: Line = serde_json::from_value(line.clone()).expect("a line");
            assert_eq!(read.app().as_str(), "a", "{line}");
        }
        for bad in [json!({}), json!({ "nonsense": {} }), json!({ "user": {} }), json!([])] {
            assert!(serde_json::from_value::<Line>(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn outcomes_are_counted_and_refusals_named_by_their_line() {
        let refused = Outcome::Refused(Problem::new(ProblemKind::Exists, "taken"));
        let said = told(vec![Outcome::Written, refused, Outcome::Unchanged, Outcome::Written]);
        assert_eq!((&said["written"], &said["unchanged"]), (&json!(2), &json!(1)));
        assert_eq!(said["refused"][0]["line"], 2);
        assert_eq!(said["refused"][0]["problem"]["type"], "exists");
    }
}
