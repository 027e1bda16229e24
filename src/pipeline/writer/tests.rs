//! The writer on the real embedded backends: what it decides once it decides for good, whatever dies in between.

use nexxus_storage::{
    ErrorKind,
    changelog::ChangeLog,
    model::{
        Caller, Document, DocumentId, Event, Patch, PatchSet, Timestamp, UserId, change::UserFacts, patch::Op,
        problem::ProblemKind,
    },
    registry::records,
};
use serde_json::{Map, Value, json};

use super::*;
use crate::{
    domain::{Application, testing::Ground},
    messages::{Expected, Intent},
};

/// A writer, and its ground.
struct Desk {
    ground: Ground,
    app: Arc<Application>,
    writer: Writer,
}

impl Desk {
    async fn open() -> Self {
        let ground = Ground::open().await;
        let rules = json!({ "note": { "read": "public", "create": "public", "update": "public", "delete": "public" } });
        let app = ground.app(json!({ "rules": rules })).await;
        let writer = Writer::new(ground.domain.clone(), "writer".to_owned());
        Self { ground, app, writer }
    }

    fn log(&self) -> &dyn ChangeLog {
        &*self.ground.domain.backends.change_log
    }

    /// A writer of another process, or of this one after a crash.
    fn another(&self) -> Writer {
        Writer::new(self.ground.domain.clone(), "writer".to_owned())
    }

    fn command(&self, intent: Intent) -> Received<Command> {
        let body = Command { app: self.app.id().clone(), caller: Caller::default(), intent };
        Received {
            id: ChangeId::generate(),
            app: Some(self.app.id().clone()),
            offset: None,
            time: Timestamp::now(),
            trace: None,
            redelivered: false,
            body: Arc::new(body),
        }
    }

    fn create(&self, id: &str, text: &str) -> Received<Command> {
        self.create_in("note", id, json!({ "text": text }))
    }

    fn create_in(&self, model: &str, id: &str, fields: Value) -> Received<Command> {
        let Value::Object(fields) = fields else { panic!("no object") };
        let (model, id) = (model.parse().expect("a name"), id.parse().expect("an id"));
        self.command(Intent::Create { model, id, chosen: true, owner: None, fields })
    }

    fn patch(&self, id: &str, text: &str, version: Option<u64>) -> Received<Command> {
        let patch = Patch { op: Op::Replace, path: vec!["text".to_owned()], value: vec![json!(text)] };
        self.command(Intent::Patch {
            model: "note".parse().expect("a name"),
            id: id.parse().expect("an id"),
            patch: PatchSet::Nexxus(vec![patch]),
            expected: version.map(|version| Expected { version, created_at: None }),
        })
    }

    fn delete(&self, id: &str) -> Received<Command> {
        let (model, id) = ("note".parse().expect("a name"), id.parse().expect("an id"));
        self.command(Intent::Delete { model, id, expected: None })
    }

    /// The definition with these members.
    fn define(&self, members: Value, new: bool) -> Received<Command> {
        let mut definition = serde_json::to_value(&self.app.record).expect("JSON");
        for (name, value) in members.as_object().expect("an object") {
            definition[name] = value.clone();
        }
        self.command(Intent::Define { definition, forced: true, new })
    }

    /// Handles a batch and publishes what it leads to: the changes told.
    async fn handle(&mut self, batch: &[Received<Command>]) -> Vec<String> {
        let told = handle(&mut self.writer, batch).await.expect("handled");
        self.writer.told().await.expect("told");
        told
    }

    /// What the log holds.
    async fn logged(&self) -> Vec<String> {
        let page = self.log().read_logged(self.app.id(), Offset::new(1, 0), 1_000).await.expect("the log");
        page.entries.iter().map(|logged| shown(&logged.entry)).collect()
    }

    /// The text and the version of a stored note.
    async fn stored(&self, id: &str) -> Option<(String, u64)> {
        let id: DocumentId = id.parse().expect("an id");
        let documents = &self.ground.domain.backends.documents;
        let found = documents.get(self.app.id(), &"note".parse().expect("a name"), &[id]).await.expect("read");
        let text = |document: &Document| document.fields["text"].as_str().expect("a text").to_owned();
        match found.into_iter().next().flatten()? {
            nexxus_storage::documents::Stored::Live(document) => Some((text(&document), document.version)),
            nexxus_storage::documents::Stored::Deleted { .. } => None,
        }
    }
}

/// Handles a batch, and takes what it leads to, as if the process died before it was published.
async fn handle(writer: &mut Writer, batch: &[Received<Command>]) -> Result<Vec<String>> {
    let mut out = Outbox::default();
    writer.handle(batch, &mut out).await?;
    let messages = out.take().into_iter().flat_map(|(_, messages)| messages);
    Ok(messages.map(|message| shown(&message.payload.value::<Change>().expect("a change").entry)).collect())
}

/// An engine that forgets what it confirmed (a Redis that lost its last second): seen by the process that appended, and by any other that
/// knows a definition from further on.
#[tokio::test]
async fn a_log_that_lost_entries_begins_a_new_epoch() {
    let mut desk = Desk::open().await;
    let commands = [desk.create("a", "1")];
    desk.handle(&commands).await;
    let head = desk.log().marks(desk.app.id()).await.expect("marks").head;
    // This process was told of more than there is.
    desk.writer.lanes.clear();
    desk.writer.confirmed.insert(desk.app.id().clone(), Offset::new(head.epoch, head.position + 5));
    let commands = [desk.create("b", "1")];
    assert_eq!(desk.handle(&commands).await.len(), 1);
    let marks = desk.log().marks(desk.app.id()).await.expect("marks");
    let epoch = marks.head.epoch;
    assert!(epoch > head.epoch);
    assert_eq!((marks.head, marks.trimmed), (Offset::new(epoch, 1), Offset::new(epoch, 0)));
    // The definition in force is from three epochs later: nobody may be given an offset of those again.
    let record = records::Application { offset: Offset::new(epoch + 3, 7), ..desk.app.record.clone() };
    desk.ground.domain.backends.registry.put(&record, nexxus_storage::registry::Expect::Anything).await.expect("put");
    desk.ground.domain.catalog.refresh().await.expect("refresh");
    desk.writer = desk.another();
    let commands = [desk.create("c", "1"), desk.patch("a", "2", None)];
    assert_eq!(desk.handle(&commands).await.len(), 2, "what was applied stays");
    assert_eq!(desk.log().marks(desk.app.id()).await.expect("marks").head, Offset::new(epoch + 4, 2));
}

/// `POSITION WHAT …`: the entry in words.
fn shown(entry: &Entry) -> String {
    let what = match &entry.event {
        Event::Created { document } => format!("created {} {}", document.id, document.version),
        Event::Updated { document, .. } => format!("updated {} {}", document.id, document.version),
        Event::Deleted { document, version } => format!("deleted {} {version}", document.id),
        Event::Unchanged { .. } => "unchanged".to_owned(),
        Event::Rejected { problem, .. } => format!("refused {:?}", problem.kind),
        Event::Defined { .. } => "defined".to_owned(),
        Event::UserChanged { .. } => "user changed".to_owned(),
        Event::Imported { document } => format!("imported {} {}", document.id, document.version),
    };
    format!("{} {what}", entry.offset.position)
}

fn again(commands: Vec<Received<Command>>) -> Vec<Received<Command>> {
    commands.into_iter().map(|command| Received { redelivered: true, ..command }).collect()
}

#[tokio::test]
async fn the_same_batch_again_changes_nothing() {
    let mut desk = Desk::open().await;
    let batch = vec![
        desk.create("a", "one"),
        desk.patch("a", "two", None),
        desk.patch("a", "two", None),
        desk.create("a", "taken"),
        desk.create("b", "other"),
        desk.delete("b"),
        desk.patch("b", "gone", None),
    ];
    let decided = [
        "1 created a 1",
        "2 updated a 2",
        "3 unchanged",
        "4 refused Exists",
        "5 created b 1",
        "6 deleted b 2",
        "7 refused NotFound",
    ];
    assert_eq!(desk.handle(&batch).await, decided);
    let batch = again(batch);
    assert!(desk.handle(&batch).await.is_empty(), "nobody is told twice");
    desk.writer = desk.another();
    assert!(desk.handle(&batch).await.is_empty(), "nor by another writer");
    assert_eq!(desk.logged().await, decided);
    assert_eq!(desk.stored("a").await, Some(("two".to_owned(), 2)));
    assert_eq!(desk.stored("b").await, None);
}

#[tokio::test]
async fn a_command_that_comes_twice_in_a_batch_is_decided_once() {
    let mut desk = Desk::open().await;
    let first = desk.create("a", "one");
    let twin = Received { body: first.body.clone(), id: first.id, ..desk.create("x", "x") };
    assert_eq!(desk.handle(&[first, twin]).await, ["1 created a 1"]);
}

#[tokio::test]
async fn what_was_logged_is_applied_and_told_before_anything_is_decided() {
    let mut desk = Desk::open().await;
    let first = desk.create("a", "one");
    assert_eq!(desk.handle(&[first]).await, ["1 created a 1"]);
    // A writer logs a change, and dies before it applies it.
    let lost = desk.create("b", "logged only");
    let Intent::Create { model, id, fields, .. } = &lost.body.intent else { panic!("a create") };
    let now = Timestamp::now();
    let document = Document {
        app: desk.app.id().clone(),
        model: model.clone(),
        id: id.clone(),
        user: None,
        created_at: now,
        updated_at: now,
        version: 1,
        fields: fields.clone(),
    };
    let entry = Entry { offset: Offset::new(1, 2), change_id: lost.id, time: now, event: Event::Created { document } };
    desk.log().append(desk.app.id(), Offset::new(1, 1), vec![entry]).await.expect("logged");
    assert_eq!(desk.stored("b").await, None);
    // The next one gets the command again, and one that needs what it did.
    desk.writer = desk.another();
    let patch = desk.patch("b", "two", Some(1));
    let mut batch = again(vec![lost]);
    batch.push(patch);
    assert_eq!(desk.handle(&batch).await, ["2 created b 1", "3 updated b 2"], "with the same offset");
    assert_eq!(desk.stored("b").await, Some(("two".to_owned(), 2)));
    let marks = desk.log().marks(desk.app.id()).await.expect("marks");
    assert_eq!((marks.applied, marks.told), (Offset::new(1, 3), Offset::new(1, 3)));
}

#[tokio::test]
async fn what_was_not_told_is_told_again_with_the_same_offsets() {
    let mut desk = Desk::open().await;
    let batch = vec![desk.create("a", "one"), desk.create("a", "taken")];
    let decided = ["1 created a 1", "2 refused Exists"];
    // It dies before anything is published.
    assert_eq!(handle(&mut desk.writer, &batch).await.expect("handled"), decided);
    let batch = again(batch);
    let mut next = desk.another();
    assert_eq!(handle(&mut next, &batch).await.expect("handled"), decided);
    // Publishing fails, and the same writer is called again.
    assert_eq!(handle(&mut next, &batch).await.expect("handled"), decided);
    next.told().await.expect("told");
    assert!(handle(&mut next, &batch).await.expect("handled").is_empty());
    assert_eq!(desk.logged().await, decided);
}

/// Not every queue gives messages back in front of the new ones.
#[tokio::test]
async fn new_commands_that_come_before_the_returned_ones_are_decided_behind_what_was_logged() {
    let mut desk = Desk::open().await;
    assert_eq!(desk.handle(&[desk.create("a", "one")]).await, ["1 created a 1"]);
    // Logged and applied, not told: its writer dies.
    let returned = vec![desk.patch("a", "two", Some(1)), desk.create("b", "one")];
    let decided = ["2 updated a 2", "3 created b 1"];
    assert_eq!(handle(&mut desk.writer, &returned).await.expect("handled"), decided);
    desk.writer = desk.another();
    let new = [desk.patch("a", "three", Some(2)), desk.delete("b")];
    let told = desk.handle(&new).await;
    assert_eq!(told, [decided[0], decided[1], "4 updated a 3", "5 deleted b 2"], "with the same offsets");
    assert!(desk.handle(&again(returned)).await.is_empty(), "they were decided once");
    assert_eq!((desk.stored("a").await, desk.stored("b").await), (Some(("three".to_owned(), 3)), None));

    // What was not even logged is decided where it comes.
    let returned = again(vec![desk.patch("a", "late", Some(3)), desk.create("c", "one")]);
    desk.writer = desk.another();
    assert_eq!(desk.handle(&[desk.patch("a", "four", Some(3))]).await, ["6 updated a 4"]);
    assert_eq!(desk.handle(&returned).await, ["7 refused PreconditionFailed", "8 created c 1"]);
}

#[tokio::test]
async fn what_cannot_be_read_is_logged_as_refused_once() {
    let mut desk = Desk::open().await;
    let payload = Payload::from(bytes::Bytes::from_static(b"no command"));
    let unread = Message::new(ChangeId::generate(), Some(desk.app.id().clone()), payload);
    let of_nobody = Message { app: None, ..unread.clone() };
    let barrier = Message { id: ChangeId::generate(), durable: false, ..unread.clone() };
    for _ in 0..2 {
        for message in [&unread, &of_nobody, &barrier] {
            desk.writer.unreadable(message, "no JSON", &mut Outbox::default()).await.expect("refused");
        }
    }
    assert_eq!(desk.logged().await, ["1 refused Internal"]);
    let found = desk.log().find(desk.app.id(), &[unread.id]).await.expect("found");
    let Some(Event::Rejected { problem, .. }) = found[0].as_ref().map(|logged| &logged.entry.event) else {
        panic!("not refused: {found:?}")
    };
    assert!(problem.detail.contains("no JSON") && problem.change_id == Some(unread.id), "{problem:?}");
}

#[tokio::test]
async fn a_definition_holds_from_its_place_in_the_batch_on() {
    let mut desk = Desk::open().await;
    let mut schema = desk.app.record.schema.clone();
    schema["page"] = json!({ "title": { "type": "string" } });
    let batch = [
        desk.create_in("page", "p", json!({ "title": "too early" })),
        desk.define(json!({ "schema": schema, "rules": { "page": { "create": "public" } } }), false),
        desk.create_in("page", "p", json!({ "title": "in time" })),
        desk.define(json!({ "schema": schema, "rules": { "page": { "create": "none" } } }), false),
        desk.create_in("page", "q", json!({ "title": "too late" })),
        desk.define(json!({}), true),
        desk.define(json!({ "schema": { "page": { "title": { "type": "nonsense" } } } }), false),
    ];
    let decided = [
        "1 refused NotFound",
        "2 defined",
        "3 created p 1",
        "4 defined",
        "5 refused Forbidden",
        "6 refused Exists",
        "7 refused InvalidDefinition",
    ];
    assert_eq!(desk.handle(&batch).await, decided);
    let known = desk.ground.domain.catalog.find(desk.app.id()).expect("an application");
    assert_eq!(known.record.offset, Offset::new(1, 4), "what is in force");
    // Judged by what was in force then, also by who comes later.
    desk.writer = desk.another();
    assert!(desk.handle(&again(batch.into())).await.is_empty());
    assert_eq!(desk.logged().await, decided);
}

#[tokio::test]
async fn of_two_who_met_the_same_version_one_wins() {
    let mut desk = Desk::open().await;
    let batch = [desk.create("a", "one"), desk.patch("a", "mine", Some(1)), desk.patch("a", "yours", Some(1))];
    assert_eq!(desk.handle(&batch).await, ["1 created a 1", "2 updated a 2", "3 refused PreconditionFailed"]);
    let late = [desk.patch("a", "late", Some(1)), desk.patch("a", "right", Some(2))];
    assert_eq!(desk.handle(&late).await, ["4 refused PreconditionFailed", "5 updated a 3"]);
    assert_eq!(desk.stored("a").await, Some(("right".to_owned(), 3)));
}

#[tokio::test]
async fn a_refusal_stays_one_though_its_reason_is_gone() {
    let mut desk = Desk::open().await;
    let refused = desk.create("a", "two");
    let refused_id = refused.id;
    let batch = [desk.create("a", "one"), refused, desk.delete("a")];
    assert_eq!(desk.handle(&batch).await, ["1 created a 1", "2 refused Exists", "3 deleted a 2"]);
    assert!(desk.handle(&again(batch.into())).await.is_empty());
    assert_eq!(desk.stored("a").await, None);
    let found = desk.log().find(desk.app.id(), &[refused_id]).await.expect("found");
    let Some(Event::Rejected { problem, .. }) = found[0].as_ref().map(|logged| &logged.entry.event) else {
        panic!("no refusal: {found:?}")
    };
    assert_eq!((problem.kind, problem.change_id), (ProblemKind::Exists, Some(refused_id)));
}

#[tokio::test]
async fn an_import_puts_what_is_newer_than_what_it_meets_in_the_same_batch_too() {
    let mut desk = Desk::open().await;
    let import = |desk: &Desk, id: &str, version: u64, text: &str, notify: bool| {
        let document = json!({
            "id": id, "type": "note", "appId": desk.app.id(), "version": version, "text": text,
            "createdAt": "2020-01-01T00:00:00.000Z", "updatedAt": "2020-01-02T00:00:00.000Z",
        });
        desk.command(Intent::Import { document: serde_json::from_value(document).expect("a document"), notify })
    };
    let batch = [
        import(&desk, "a", 7, "moved", false),
        import(&desk, "a", 7, "moved", false),
        desk.patch("a", "changed here", None),
        import(&desk, "a", 8, "older by time", false),
        import(&desk, "b", 2, "loud", true),
        import(&desk, "b", 5, "louder", true),
    ];
    let told = ["1 imported a 7", "2 unchanged", "3 updated a 8", "4 unchanged", "5 created b 2", "6 updated b 5"];
    assert_eq!(desk.handle(&batch).await, told);
    assert_eq!(desk.stored("a").await, Some(("changed here".to_owned(), 8)));
    assert_eq!(desk.stored("b").await, Some(("louder".to_owned(), 5)));
    // A crash, and all of it comes again.
    desk.writer = desk.another();
    let [first, ..] = batch;
    assert_eq!(desk.handle(&again(vec![first, import(&desk, "b", 5, "louder", true)])).await, ["7 unchanged"]);
}

#[tokio::test]
async fn a_barrier_is_passed_when_all_before_it_is_applied_and_leaves_no_trace() {
    let mut desk = Desk::open().await;
    let barrier = desk.command(Intent::Barrier);
    let id = barrier.id;
    assert_eq!(desk.handle(&[desk.create("a", "one"), barrier]).await, ["1 created a 1"]);
    desk.log().wait_passed(desk.app.id(), id).await.expect("passed");
    assert_eq!(desk.logged().await, ["1 created a 1"]);
}

#[tokio::test]
async fn what_died_is_logged_as_refused_once() {
    let mut desk = Desk::open().await;
    let (dead, barrier) = (desk.create("a", "one"), desk.command(Intent::Barrier));
    for _ in 0..2 {
        desk.writer.dead(&dead, "it is poisonous", &mut Outbox::default()).await.expect("refused");
        desk.writer.dead(&barrier, "it is poisonous", &mut Outbox::default()).await.expect("passed over");
    }
    assert_eq!(desk.logged().await, ["1 refused Internal"]);
    // It is over, though somebody gives it back.
    let told = desk.handle(&again(vec![dead])).await;
    assert_eq!(told, ["1 refused Internal"], "not told before");
    assert_eq!(desk.stored("a").await, None);
}

#[tokio::test]
async fn a_writer_that_was_overtaken_is_fenced_off_and_begins_again() {
    let mut desk = Desk::open().await;
    assert_eq!(desk.handle(&[desk.create("a", "one")]).await, ["1 created a 1"]);
    let mut other = desk.another();
    let theirs = [desk.patch("a", "theirs", None)];
    assert_eq!(handle(&mut other, &theirs).await.expect("handled"), ["2 updated a 2"]);
    other.told().await.expect("told");
    let mine = [desk.patch("a", "mine", None)];
    let fenced = handle(&mut desk.writer, &mine).await.expect_err("fenced off");
    assert_eq!(fenced.kind, ErrorKind::Fenced);
    assert_eq!(desk.handle(&mine).await, ["3 updated a 3"], "on what the other one wrote");
    assert_eq!(desk.logged().await, ["1 created a 1", "2 updated a 2", "3 updated a 3"]);
}

#[tokio::test]
async fn what_was_asked_of_a_former_life_is_not_done_to_the_next() {
    let mut desk = Desk::open().await;
    let late = desk.create("b", "of the former life");
    let deleted = desk.define(json!({ "deleted": true }), false);
    assert_eq!(desk.handle(&[desk.create("a", "one"), deleted]).await, ["1 created a 1", "2 defined"]);
    assert_eq!(desk.handle(&[desk.create("c", "nobody is there")]).await, ["3 refused NotFound"]);
    assert_eq!(desk.handle(&[desk.define(json!({}), true)]).await, ["1 defined"], "in a new epoch");
    assert_eq!(desk.stored("a").await, None, "nothing is left of it");
    assert_eq!(desk.handle(&again(vec![late])).await, ["2 refused Conflict"]);
    assert_eq!(desk.handle(&[desk.create("a", "anew")]).await, ["3 created a 1"]);
}

#[tokio::test]
async fn a_deleted_application_is_gone_at_once_and_purged_after_that() {
    let mut desk = Desk::open().await;
    let domain = desk.ground.domain.clone();
    let app = desk.app.id().clone();
    let n_users = async || domain.users(&app, None, 10).await.expect("read").len();
    let is_purged = async || {
        let key = nexxus_storage::registry::Key::application(&app);
        let record: Option<(records::Application, u64)> = domain.backends.registry.load(&key).await.expect("read");
        record.is_some_and(|(record, _)| record.deleted && record.purged)
    };
    for is_killed in [false, true] {
        desk.ground.register(&desk.app, "anna").await;
        let batch = [desk.create("a", "one"), desk.define(json!({ "deleted": true }), false)];
        desk.handle(&batch).await;
        assert!(domain.catalog.find(&app).is_none(), "gone for clients");
        assert_eq!((n_users().await, is_purged().await), (1, false));
        if is_killed {
            desk.writer = desk.another();
        }
        desk.writer.tick(&mut Outbox::default()).await.expect("purged");
        assert_eq!((n_users().await, is_purged().await), (0, true));
        assert_eq!(desk.stored("a").await, None);
        desk.handle(&[desk.define(json!({}), true)]).await;
        assert!(domain.catalog.find(&app).is_some());
    }
    // Made again before that: nothing of the former life is left either.
    desk.ground.register(&desk.app, "anna").await;
    let deleted = desk.define(json!({ "deleted": true }), false);
    desk.handle(&[desk.create("a", "one"), deleted, desk.define(json!({}), true)]).await;
    assert_eq!((n_users().await, desk.stored("a").await), (0, None));
    desk.ground.register(&desk.app, "ben").await;
    desk.writer.tick(&mut Outbox::default()).await.expect("nothing to do");
    assert_eq!(n_users().await, 1, "what is of the next life stays");
}

#[tokio::test]
async fn changes_of_a_user_are_made_of_what_is_there() {
    let mut desk = Desk::open().await;
    let user = UserId::parse("anna").expect("an id");
    let record: records::User = serde_json::from_value(json!({
        "app": "a", "id": "anna", "username": "anna", "createdAt": Timestamp::now(), "updatedAt": Timestamp::now(),
    }))
    .expect("a user");
    let registry = &desk.ground.domain.backends.registry;
    registry.put(&record, nexxus_storage::registry::Expect::Absent).await.expect("written");
    let facts = |name: &str| {
        let details = Map::from_iter([(name.to_owned(), json!(1))]);
        Some(UserFacts { details, ..UserFacts::default() })
    };
    let change = |after, expected| desk.command(Intent::ChangeUser { user: user.clone(), after, expected });
    let none = Some(UserFacts::default());
    let batch = [
        change(facts("a"), none.clone()),
        change(facts("b"), none),
        change(facts("a"), facts("b")),
        change(facts("c"), facts("a")),
        change(None, None),
        change(facts("d"), None),
    ];
    let decided = [
        "1 user changed",
        "2 refused Conflict",
        "3 unchanged",
        "4 user changed",
        "5 user changed",
        "6 refused NotFound",
    ];
    assert_eq!(desk.handle(&batch).await, decided);
}
