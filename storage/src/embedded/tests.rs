use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Map, json};
use tempfile::TempDir;

use super::*;
use crate::{
    Backends, ChangeLog, Queues,
    changelog::LogEntry,
    documents::Stored,
    model::{AppId, ChangeId, Document, Entry, Event, Offset, Timestamp},
    open::{ElasticsearchSettings, RedisSettings, Reserve, open},
    queue::{Delivery, Durability, Message, Payload},
    registry::{
        Expect,
        records::{Cursor, Installation},
    },
};

fn app(name: &str) -> AppId {
    AppId::parse(name).expect("an id")
}

/// Small and quick, for tests of the whole engine.
pub(crate) fn settings(dir: &Path) -> Settings {
    Settings {
        queues: "embedded".into(),
        change_log: "journal".into(),
        registry: "sled".into(),
        documents: "tantivy".into(),
        dir: dir.to_owned(),
        reserve: Reserve::Bytes(0),
        segment_bytes: 1 << 20,
        history_age: Duration::from_secs(3600),
        history_bytes: 1 << 30,
        overlay_bytes: 16 << 20,
        index_writer_bytes: 15_000_000,
        commit_every: Duration::from_millis(100),
        redis: RedisSettings::default(),
        elasticsearch: ElasticsearchSettings::default(),
    }
}

fn create(app: &AppId, offset: Offset, text: &str) -> Entry {
    let now = Timestamp::now();
    let document = Document {
        app: app.clone(),
        model: "task".parse().expect("a name"),
        id: format!("d{}", offset.position).parse().expect("an id"),
        user: None,
        created_at: now,
        updated_at: now,
        version: 1,
        fields: Map::from_iter([("title".to_owned(), json!(text))]),
    };
    Entry { offset, change_id: ChangeId::generate(), time: now, event: Event::Created { document } }
}

fn message(app: &AppId, text: &str) -> Message {
    Message::new(ChangeId::generate(), Some(app.clone()), Payload::from(Bytes::copy_from_slice(text.as_bytes())))
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    let text = |delivery: &Delivery| String::from_utf8_lossy(delivery.message.payload.bytes()).into_owned();
    deliveries.iter().map(text).collect()
}

/// A little of everything.
async fn write_something(backends: &Backends) -> Vec<LogEntry> {
    let tasks = app("tasks");
    let secrets = Installation { admin_token: "a".into(), jwt_secret: "b".into() };
    backends.registry.put(&secrets, Expect::Absent).await.expect("write the registry");
    backends.queues.declare("writer", Durability::Durable).await.expect("declare");
    let commands = ["one", "two", "three"].map(|text| message(&tasks, text));
    backends.queues.publish("writer", commands.into()).await.expect("publish");
    let entries = (1..=5).map(|position| create(&tasks, Offset::new(1, position), "x")).collect();
    let logged = backends.change_log.append(&tasks, Offset::default(), entries).await.expect("append");
    backends.documents.apply(&tasks, &logged).await.expect("apply");
    backends.change_log.mark_applied(&tasks, Offset::new(1, 5)).await.expect("mark applied");
    backends.change_log.mark_told(&tasks, Offset::new(1, 5)).await.expect("mark told");
    logged
}

async fn expect_something(backends: &Backends, logged: &[LogEntry]) {
    let tasks = app("tasks");
    let secrets = backends.registry.load::<Installation>(&crate::registry::Key::installation()).await.expect("load");
    assert_eq!(secrets.expect("it is there").0.admin_token, "a");
    let page = backends.change_log.read(&tasks, Offset::new(1, 0), 10).await.expect("read");
    assert_eq!(page.entries, logged);
    let ids: Vec<_> = (1..=5).map(|n| format!("d{n}").parse().expect("an id")).collect();
    let documents = backends.documents.get(&tasks, &"task".parse().expect("a name"), &ids).await.expect("get");
    assert!(documents.iter().all(|document| matches!(document, Some(Stored::Live(_)))), "{documents:?}");
    let mut consumer = backends.queues.consume("writer", 10).await.expect("consume");
    assert_eq!(texts(&consumer.receive(10).await.expect("receive")), ["one", "two", "three"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_a_close_and_after_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let backends = open(settings(dir.path())).await.expect("it opens");
    let logged = write_something(&backends).await;
    backends.close().await.expect("it closes");
    drop(backends);
    for _crash in 0..3 {
        let backends = open(settings(dir.path())).await.expect("it opens again");
        expect_something(&backends, &logged).await;
        drop(backends);
    }
    let backends = open(settings(dir.path())).await.expect("it opens again");
    let told = backends.change_log.marks(&app("tasks")).await.expect("marks").told;
    assert_eq!(told, Offset::new(1, 5), "an orderly close leaves nothing to tell again");
    backends.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_close_nothing_is_accepted() {
    let dir = tempfile::tempdir().expect("a directory");
    let backends = open(settings(dir.path())).await.expect("it opens");
    write_something(&backends).await;
    backends.close().await.expect("it closes");
    let error = backends.queues.publish("writer", vec![message(&app("tasks"), "late")]).await.expect_err("closed");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    let cursor = Cursor { app: app("tasks"), device: "d".parse().expect("an id"), offset: Offset::new(1, 1) };
    assert!(backends.registry.put(&cursor, Expect::Anything).await.is_err());
    let late = vec![create(&app("tasks"), Offset::new(1, 6), "late")];
    assert!(backends.change_log.append(&app("tasks"), Offset::new(1, 5), late).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().expect("a directory");
    let backends = open(settings(dir.path())).await.expect("it opens");
    let error = open(settings(dir.path())).await.err().expect("it is open already");
    assert!(error.message.contains("journal"), "{error}");
    backends.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_statistics_speak_of_every_part() {
    let dir = tempfile::tempdir().expect("a directory");
    let backends = open(settings(dir.path())).await.expect("it opens");
    write_something(&backends).await;
    let statistics = backends.statistics().await.expect("statistics");
    assert!(statistics["journal"]["fsyncs"].as_u64().expect("a count") > 0, "{statistics}");
    assert!(statistics["documents"].is_object() && statistics["registry"].is_object(), "{statistics}");
    assert_eq!(statistics["disk"]["room"], "ample", "{statistics}");
    backends.close().await.expect("it closes");
}

#[tokio::test]
async fn adapters_that_are_not_there_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let check = async |change: fn(&mut Settings), kind, says: &str| {
        let mut settings = settings(&dir.path().join("never-made"));
        change(&mut settings);
        let error = open(settings).await.err().expect("it is refused");
        assert_eq!((error.kind, error.message.contains(says)), (kind, true), "{error}");
    };
    let unsupported = ErrorKind::Unsupported;
    check(|s| s.queues = "rabbitmq".into(), unsupported, r#"compiled without the feature "rabbitmq""#).await;
    if cfg!(feature = "redis") {
        check(|s| s.registry = "redis".into(), ErrorKind::Invalid, "`redis.nodes` is empty").await;
        check(|s| s.change_log = "redis".into(), ErrorKind::Invalid, "only where everything else is in engines").await;
    } else {
        check(|s| s.registry = "redis".into(), unsupported, r#"compiled without the feature "redis""#).await;
        check(|s| s.change_log = "redis".into(), unsupported, r#"compiled without the feature "redis""#).await;
    }
    if cfg!(feature = "elasticsearch") {
        check(|s| s.documents = "elasticsearch".into(), ErrorKind::Invalid, "`database.prefix`").await;
    } else {
        check(|s| s.documents = "elasticsearch".into(), unsupported, r#"the feature "elasticsearch""#).await;
    }
    check(|s| s.queues = "kafka".into(), ErrorKind::Invalid, r#"there is no adapter "kafka": "embedded" is allowed"#)
        .await;
    check(|s| s.documents = String::new(), ErrorKind::Invalid, "database.adapter").await;
    assert!(!dir.path().join("never-made").exists());
}

/// Journal, queues and change log in tiny segments, with the duties in the hands of the test.
struct Small {
    dir: TempDir,
    settled: Arc<AtomicU64>,
    duties: Option<Duties>,
    prepared: Option<upkeep::Prepared>,
}

impl Small {
    const HISTORY: u64 = 512 << 10;

    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut small = Self { dir, settled: Arc::default(), duties: None, prepared: None };
        small.reopen();
        small
    }

    fn reopen(&mut self) {
        (self.duties, self.prepared) = (None, None);
        let journal = open_journal(self.dir.path(), 64 << 10).expect("a journal");
        let settled = self.settled.clone();
        self.duties = Some(Duties {
            change_log: EmbeddedChangeLog::open(journal.clone()).expect("a change log"),
            queues: EmbeddedQueues::open(journal.clone(), Limits::default()).expect("queues"),
            journal,
            history: History { age: Duration::from_secs(3600), bytes: Self::HISTORY },
            settled: vec![Box::new(move || settled.load(Ordering::Relaxed))],
            releasing: Box::new(|_| {}),
            space: Space::of_dir(self.dir.path(), Reserve::Bytes(0)),
        });
    }

    fn duties(&self) -> &Duties {
        self.duties.as_ref().expect("it is open")
    }

    fn look(&mut self) {
        let duties = self.duties.as_ref().expect("it is open");
        for _ in 0..2 {
            match duties.look(&mut self.prepared) {
                Err(error) if error.kind == ErrorKind::Full => {}
                outcome => outcome.expect("look"),
            }
        }
    }

    /// One command, decided, applied, told and settled.
    async fn turn(&self, app: &AppId, position: u64) {
        let Duties { queues, change_log, .. } = self.duties();
        queues.publish("writer", vec![message(app, &"x".repeat(1_000))]).await.expect("publish");
        let mut consumer = queues.consume("writer", 10).await.expect("consume");
        let received = consumer.receive(10).await.expect("receive");
        let tail = if position == 1 { Offset::default() } else { Offset::new(1, position - 1) };
        let entry = create(app, Offset::new(1, position), &"x".repeat(1_000));
        change_log.append(app, tail, vec![entry]).await.expect("append");
        change_log.mark_applied(app, Offset::new(1, position)).await.expect("mark applied");
        change_log.mark_told(app, Offset::new(1, position)).await.expect("mark told");
        consumer.ack(received.into_iter().map(|delivery| delivery.receipt).collect()).await.expect("ack");
    }

    fn held(&self) -> u64 {
        self.duties().journal.segments().iter().map(|segment| segment.bytes).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_churn_the_journal_stays_small_and_nothing_that_is_needed_goes() {
    let mut small = Small::new();
    let (busy, idle) = (app("busy"), app("idle"));
    small.duties().queues.declare("writer", Durability::Durable).await.expect("declare");
    small.duties().queues.declare("writer.dead", Durability::Durable).await.expect("declare");
    small.turn(&idle, 1).await;
    small.turn(&idle, 2).await;
    let dead = ["first", "second"].map(|text| message(&busy, text));
    small.duties().queues.publish("writer.dead", dead.into()).await.expect("publish");
    let mut first_held = 1;
    for position in 1..=3_000 {
        small.turn(&busy, position).await;
        if position % 100 == 0 {
            small.duties().save().expect("save");
            small.settled.store(small.duties().journal.durable_upto(), Ordering::Relaxed);
            small.look();
            let oldest = small.duties().journal.segments()[0].first;
            assert!(oldest >= first_held);
            first_held = oldest;
        }
        if position % 1_000 == 0 {
            small.reopen();
            small.duties().queues.declare("writer", Durability::Durable).await.expect("declare");
            let mut consumer = small.duties().queues.consume("writer", 1_000).await.expect("consume");
            // What was settled in the last moment may come again.
            while let Ok(again) = tokio::time::timeout(Duration::from_millis(20), consumer.receive(1_000)).await {
                let receipts = again.expect("receive").into_iter().map(|delivery| delivery.receipt).collect();
                consumer.ack(receipts).await.expect("ack");
            }
        }
    }
    assert!(first_held > 2_000, "the oldest record is {first_held}");
    assert!(small.held() < 3 * Small::HISTORY, "{} bytes are held", small.held());

    small.reopen();
    let Duties { queues, change_log, .. } = small.duties();
    let mut consumer = queues.consume("writer.dead", 10).await.expect("consume");
    assert_eq!(texts(&consumer.receive(10).await.expect("receive")), ["first", "second"]);
    let marks = change_log.marks(&idle).await.expect("marks");
    assert_eq!((marks.head, marks.told, marks.trimmed), (Offset::new(1, 2), Offset::new(1, 2), Offset::new(1, 2)));
    let marks = change_log.marks(&busy).await.expect("marks");
    assert_eq!(marks.head, Offset::new(1, 3_000));
    let page = change_log.read(&busy, marks.trimmed, 10).await.expect("read");
    assert_eq!(page.entries[0].entry.offset, marks.trimmed.next());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_needs_is_not_released() {
    let mut small = Small::new();
    let busy = app("busy");
    small.duties().queues.declare("writer", Durability::Durable).await.expect("declare");
    for position in 1..=1_000 {
        small.turn(&busy, position).await;
        if position % 100 == 0 {
            small.look();
        }
    }
    assert_eq!(small.duties().journal.segments()[0].first, 1, "nobody says that the documents are safe");
    assert!(small.held() > 2 * Small::HISTORY);
    small.settled.store(small.duties().journal.durable_upto(), Ordering::Relaxed);
    let started = std::time::Instant::now();
    while small.held() > Small::HISTORY {
        assert!(started.elapsed().as_secs() < 20, "{} bytes are held", small.held());
        small.look();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_releases_what_all_its_parts_have_passed() {
    const HISTORY: u64 = 2 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let settings = Settings { history_bytes: HISTORY, ..settings(dir.path()) };
    let engine = tokio::task::spawn_blocking(move || Engine::open(&settings)).await.expect("no panic").expect("opens");
    let tasks = app("tasks");
    let (queues, change_log, documents) = (engine.queues(), engine.change_log(), engine.index().expect("an index"));
    queues.declare("writer", Durability::Durable).await.expect("declare");
    let mut consumer = queues.consume("writer", 100).await.expect("consume");
    let mut tail = Offset::default();
    for first in (1..=4_000).step_by(50) {
        let commands = (0..50).map(|_| message(&tasks, &"x".repeat(1_000))).collect();
        queues.publish("writer", commands).await.expect("publish");
        let entries = (first..first + 50).map(|n| create(&tasks, Offset::new(1, n), &"x".repeat(1_000))).collect();
        let logged = change_log.append(&tasks, tail, entries).await.expect("append");
        tail = Offset::new(1, first + 49);
        documents.apply(&tasks, &logged).await.expect("apply");
        change_log.mark_applied(&tasks, tail).await.expect("mark applied");
        change_log.mark_told(&tasks, tail).await.expect("mark told");
        let received = consumer.receive(100).await.expect("receive");
        consumer.ack(received.into_iter().map(|delivery| delivery.receipt).collect()).await.expect("ack");
    }
    let held = || engine.inner.journal.segments().iter().map(|segment| segment.bytes).sum::<u64>();
    assert!(held() > 4 * HISTORY);
    engine.registry().expect("a registry").export().await.expect("an export");
    let started = std::time::Instant::now();
    while held() > HISTORY + (1 << 20) {
        assert!(started.elapsed().as_secs() < 30, "{} bytes are held", held());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let trimmed = change_log.marks(&tasks).await.expect("marks").trimmed;
    assert!(trimmed.position > 2_000, "{trimmed:?}");
    let found = documents.get(&tasks, &"task".parse().expect("a name"), &["d1".parse().expect("an id")]).await;
    assert!(matches!(found.expect("get")[0], Some(Stored::Live(_))), "a document outlives its entry");
    engine.close().await.expect("it closes");
}
