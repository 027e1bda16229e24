//! Files of format 1, kept in `tests/data/journal`: what an old version wrote is read for good, and what a newer one wrote is refused
//! with a sentence.
//!
//! A new format gets files of its own beside these: `NEXXUS_WRITE_GOLDEN=DIRECTORY cargo test -p nexxus-storage --test formats` writes
//! such a journal.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use nexxus_storage::{
    Backends, ErrorKind, Result,
    documents::Stored,
    journal::{self, Indexer, Journal, Kind, Record},
    model::{AppId, ChangeId, Document, DocumentId, Entry, Event, ModelName, Offset, Timestamp},
    open::{ElasticsearchSettings, RedisSettings, Reserve, Settings, open},
    queue::{Durability, Message, Payload},
    registry::{Expect, Key, records::Installation},
};
use serde_json::{Map, json};

const SEGMENT: &str = "00000000000000000001.journal";
const SIDECAR: &str = "00000000000000000001.index";

/// An index that no real one looks like: whoever sees it knows that the kept one was not believed.
struct MadeAnew;

impl Indexer for MadeAnew {
    fn index(&self, _records: &mut dyn Iterator<Item = Record>) -> Vec<u8> {
        b"made anew".to_vec()
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/journal")
}

/// A data directory with the golden journal in it.
fn data() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("journal")).expect("made");
    for name in [SEGMENT, SIDECAR] {
        fs::copy(golden().join(name), dir.path().join("journal").join(name)).expect("copied");
    }
    dir
}

fn open_journal(data: &Path) -> Result<Journal> {
    let (dir, indexer) = (data.join("journal"), Arc::new(MadeAnew));
    Journal::open(journal::Options { dir, indexer, segment_bytes: 64 << 10, backlog_bytes: 1 << 20 })
}

async fn open_data(data: &Path) -> Backends {
    let settings = Settings {
        queues: "embedded".into(),
        change_log: "journal".into(),
        registry: "sled".into(),
        documents: "tantivy".into(),
        dir: data.to_owned(),
        reserve: Reserve::Bytes(0),
        segment_bytes: 1 << 20,
        history_age: Duration::from_secs(u64::from(u32::MAX)),
        history_bytes: 1 << 30,
        overlay_bytes: 16 << 20,
        index_writer_bytes: 15_000_000,
        commit_every: Duration::from_secs(1),
        redis: RedisSettings::default(),
        elasticsearch: ElasticsearchSettings::default(),
    };
    open(settings).await.expect("it opens")
}

fn tasks() -> AppId {
    AppId::parse("tasks").expect("an id")
}

fn task() -> ModelName {
    ModelName::parse("task").expect("a name")
}

fn id(text: &str) -> DocumentId {
    DocumentId::parse(text).expect("an id")
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_ms(1_764_000_000_000 + second * 1_000).expect("a time")
}

fn document(name: &str, second: i64) -> Document {
    Document {
        app: tasks(),
        model: task(),
        id: id(name),
        user: Some("ada".parse().expect("an id")),
        created_at: time(second),
        updated_at: time(second),
        version: 1,
        fields: Map::from_iter([("title".to_owned(), json!(format!("the title of {name}")))]),
    }
}

/// Two are created, the first one is deleted.
fn events() -> [Event; 3] {
    let deleted = Event::Deleted { document: document("first", 1), version: 2 };
    [Event::Created { document: document("first", 1) }, Event::Created { document: document("second", 2) }, deleted]
}

fn secrets() -> Installation {
    Installation { admin_token: "not a secret".into(), jwt_secret: "nor this".into() }
}

/// Writes the golden files where the environment asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_files_hold_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let backends = open_data(dir.path()).await;
    write_all(&backends).await;
    expect_all(&backends).await;
    backends.close().await.expect("closes");
    drop(backends);
    let first = open_journal(dir.path()).expect("opens").segments().swap_remove(0);
    let Some(target) = std::env::var_os("NEXXUS_WRITE_GOLDEN").map(PathBuf::from) else { return };
    for name in [SEGMENT, SIDECAR] {
        fs::copy(dir.path().join("journal").join(name), target.join(name)).expect("copied");
    }
    // Behind its records there are zeros only.
    let segment = fs::File::options().write(true).open(target.join(SEGMENT)).expect("opens");
    segment.set_len(first.bytes).expect("cut");
}

async fn write_all(backends: &Backends) {
    backends.registry.put(&secrets(), Expect::Absent).await.expect("written");
    backends.queues.declare("writer", Durability::Durable).await.expect("declared");
    for text in ["settled", "one", "two"] {
        let payload = Payload::from(Bytes::from(text));
        let message = Message { time: time(3), ..Message::new(ChangeId::generate(), Some(tasks()), payload) };
        backends.queues.publish("writer", vec![message]).await.expect("published");
    }
    let mut consumer = backends.queues.consume("writer", 1).await.expect("consumed");
    let settled = consumer.receive(1).await.expect("received").swap_remove(0);
    consumer.ack(vec![settled.receipt]).await.expect("acknowledged");
    drop(consumer);
    let entry = |(position, event)| {
        let (offset, time) = (Offset::new(1, position), time(position as i64));
        Entry { offset, change_id: ChangeId::generate(), time, event }
    };
    let entries = (1..).zip(events()).map(entry).collect();
    let logged = backends.change_log.append(&tasks(), Offset::default(), entries).await.expect("logged");
    backends.documents.apply(&tasks(), &logged).await.expect("applied");
    backends.change_log.mark_applied(&tasks(), Offset::new(1, 3)).await.expect("marked");
    backends.change_log.mark_told(&tasks(), Offset::new(1, 2)).await.expect("marked");
}

async fn expect_all(backends: &Backends) {
    let kept = backends.registry.load::<Installation>(&Key::installation()).await.expect("loaded");
    assert_eq!(kept.map(|(kept, _)| kept.admin_token).as_deref(), Some("not a secret"));
    let waiting = backends.queues.browse("writer", None, 10).await.expect("browsed");
    let texts: Vec<_> = waiting.iter().map(|message| message.payload.bytes().clone()).collect();
    assert_eq!(texts, ["one", "two"]);
    assert!(waiting.iter().all(|message| message.app == Some(tasks()) && message.time == time(3)), "{waiting:?}");
    let page = backends.change_log.read(&tasks(), Offset::new(1, 0), 10).await.expect("read");
    let found: Vec<_> = page.entries.iter().map(|logged| (logged.entry.time, logged.entry.event.clone())).collect();
    assert_eq!(found, (1..).map(time).zip(events()).collect::<Vec<_>>());
    let marks = backends.change_log.marks(&tasks()).await.expect("marks");
    assert_eq!((marks.applied, marks.told), (Offset::new(1, 3), Offset::new(1, 2)));
    let stored = backends.documents.get(&tasks(), &task(), &[id("first"), id("second")]).await.expect("got");
    assert!(matches!(&stored[0], Some(Stored::Deleted { version: 2 })), "{stored:?}");
    assert!(matches!(&stored[1], Some(Stored::Live(found)) if *found == document("second", 2)), "{stored:?}");
}

#[test]
fn a_segment_and_its_sidecar_of_format_1_are_read() {
    let data = data();
    let journal = open_journal(data.path()).expect("opens");
    let first = journal.segments().swap_remove(0);
    assert!(first.sealed && first.indexed, "{first:?}");
    let mut kinds = Vec::new();
    let mut visit = |record: Record| {
        assert_eq!(record.sequence, kinds.len() as u64 + 1);
        kinds.push(record.kind);
        Ok(())
    };
    journal.replay(1, &mut visit).expect("it can be read");
    assert_eq!(kinds.len() as u64, first.last);
    for kind in [Kind::QueueMessage, Kind::QueueState, Kind::LogEntry, Kind::LogState, Kind::Registry] {
        assert!(kinds.contains(&kind), "{kind:?} is missing among {kinds:?}");
    }
    let index = journal.index(1).expect("reads").expect("it is there");
    assert!(fs::read(golden().join(SIDECAR)).expect("reads").ends_with(&index), "the kept index was not believed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_format_1_holds_is_there_again() {
    let data = data();
    for is_sidecar_there in [true, false] {
        if !is_sidecar_there {
            fs::remove_file(data.path().join("journal").join(SIDECAR)).expect("removed");
        }
        let backends = open_data(data.path()).await;
        expect_all(&backends).await;
        backends.close().await.expect("closes");
    }
}

/// Puts a number over a file, and a checksum of the bytes before it behind them.
fn overwrite(path: &Path, at: u64, bytes: &[u8], summed: usize) {
    let file = fs::File::options().read(true).write(true).open(path).expect("opens");
    file.write_all_at(bytes, at).expect("written");
    let mut head = vec![0; summed];
    file.read_exact_at(&mut head, 0).expect("reads");
    file.write_all_at(&crc32fast::hash(&head).to_le_bytes(), summed as u64).expect("written");
}

#[test]
fn a_newer_segment_is_refused_with_a_sentence() {
    let data = data();
    overwrite(&data.path().join("journal").join(SEGMENT), 8, &2_u32.to_le_bytes(), 24);
    let error = open_journal(data.path()).err().expect("refused");
    assert_eq!(error.kind, ErrorKind::Unsupported);
    for words in [SEGMENT, "has format 2", "reads up to 1", "start the version that wrote it, or a newer one"] {
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_newer_sidecar_is_made_anew() {
    let data = data();
    overwrite(&data.path().join("journal").join(SIDECAR), 8, &2_u32.to_le_bytes(), 52);
    let journal = open_journal(data.path()).expect("opens");
    assert_eq!(journal.index(1).expect("reads").expect("it is there"), &b"made anew"[..]);
}

#[test]
fn a_record_of_a_newer_kind_is_refused_with_a_sentence() {
    let data = data();
    let path = data.path().join("journal").join(SEGMENT);
    let mut segment = fs::read(&path).expect("reads");
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    let salt = number(&segment[20..]);
    let record = &mut segment[4096..];
    let length = 21 + number(record) as usize;
    record[20] = 99;
    let mut sum = crc32fast::Hasher::new_with_initial(salt);
    sum.update(&record[..4]);
    sum.update(&record[8..length]);
    record[4..8].copy_from_slice(&sum.finalize().to_le_bytes());
    fs::write(&path, segment).expect("written");
    fs::remove_file(data.path().join("journal").join(SIDECAR)).expect("removed");
    let error = open_journal(data.path()).err().expect("refused");
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.to_string().contains("a kind that this version does not know: a newer one wrote it"), "{error}");
}
