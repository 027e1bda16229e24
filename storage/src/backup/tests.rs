//! From an engine that works, through a file, to an engine that goes on.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Map, json};
use tempfile::TempDir;

use super::*;
use crate::{
    Backends, ErrorKind,
    documents::Stored,
    embedded::tests::settings,
    model::{AppId, ChangeId, Document, Entry, Event, Offset, Timestamp},
    open::{Settings, open as open_backends},
    queue::{Durability, Message, Payload},
    registry::{
        Expect, Key,
        records::{Cursor, Installation},
    },
};

fn app(name: &str) -> AppId {
    AppId::parse(name).expect("an id")
}

fn about() -> About {
    About { nexxus: "0.1.0".into(), writer_queues: vec!["writer".into()] }
}

fn document(app: &AppId, number: u64) -> Document {
    Document {
        app: app.clone(),
        model: "task".parse().expect("a name"),
        id: format!("d{number}").parse().expect("an id"),
        user: None,
        created_at: Timestamp::now(),
        updated_at: Timestamp::now(),
        version: 1,
        fields: Map::from_iter([("title".to_owned(), json!("x".repeat(600)))]),
    }
}

fn command(app: &AppId, change: ChangeId) -> Message {
    Message::new(change, Some(app.clone()), Payload::from(Bytes::from_static(b"{}")))
}

/// A writer of one application, as the stage is one.
struct Writer {
    app: AppId,
    tail: Offset,
    n_written: u64,
}

impl Writer {
    fn of(name: &str) -> Self {
        Self { app: app(name), tail: Offset::default(), n_written: 0 }
    }

    /// Logs and applies documents; the last entry also writes a record, as a definition does.
    async fn write(&mut self, backends: &Backends, n: u64) {
        let entries = (0..n)
            .map(|index| {
                let number = self.n_written + index + 1;
                let document = document(&self.app, number);
                let offset = Offset::new(1, number);
                Entry {
                    offset,
                    change_id: ChangeId::generate(),
                    time: Timestamp::now(),
                    event: Event::Created { document },
                }
            })
            .collect();
        let _applying = backends.applying().await;
        let logged = backends.change_log.append(&self.app, self.tail, entries).await.expect("append");
        backends.documents.apply(&self.app, &logged).await.expect("apply");
        self.n_written += n;
        self.tail = Offset::new(1, self.n_written);
        let cursor = Cursor { app: self.app.clone(), device: "phone".parse().expect("an id"), offset: self.tail };
        let stored = backends.registry.load::<Cursor>(&Key::cursor(&self.app, &cursor.device)).await.expect("load");
        let expect = stored.map_or(Expect::Absent, |(_, revision)| Expect::Revision(revision));
        backends.registry.put(&cursor, expect).await.expect("put");
        backends.change_log.mark_applied(&self.app, self.tail).await.expect("mark");
        backends.change_log.mark_told(&self.app, self.tail).await.expect("mark");
    }
}

async fn install(backends: &Backends) {
    let secrets = Installation { admin_token: "a".into(), jwt_secret: "b".into() };
    backends.registry.put(&secrets, Expect::Absent).await.expect("put");
    backends.queues.declare("writer", Durability::Durable).await.expect("declare");
}

async fn back_up(backends: &Backends, file: &Path) -> Manifest {
    let snapshot = backends.snapshot(about()).await.expect("a snapshot");
    let out = fs::File::create(file).expect("a file");
    let written = tokio::task::spawn_blocking(move || snapshot.write(out, &mut |_| {}));
    written.await.expect("no panic").expect("written")
}

/// How many documents of an application there are, from the first on.
async fn n_documents(backends: &Backends, app: &AppId) -> u64 {
    let model = "task".parse().expect("a name");
    let mut n = 0;
    loop {
        let ids = [format!("d{}", n + 1).parse().expect("an id")];
        match backends.documents.get(app, &model, &ids).await.expect("get").remove(0) {
            Some(Stored::Live(_)) => n += 1,
            _ => return n,
        }
    }
}

struct Place {
    _dir: TempDir,
    data: PathBuf,
    file: PathBuf,
    restored: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let within = |name: &str| dir.path().join(name);
        Self { data: within("data"), file: within("b.backup"), restored: within("restored"), _dir: dir }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_writes_is_of_one_moment() {
    let place = Place::new();
    let backends = Arc::new(open_backends(settings(&place.data)).await.expect("it opens"));
    install(&backends).await;
    let (mut one, mut other) = (Writer::of("one"), Writer::of("other"));
    one.write(&backends, 50).await;
    other.write(&backends, 5).await;
    let (go_on, writes) = (Arc::new(std::sync::atomic::AtomicBool::new(true)), backends.clone());
    let goes_on = go_on.clone();
    let writing = tokio::spawn(async move {
        while goes_on.load(std::sync::atomic::Ordering::Relaxed) {
            one.write(&writes, 7).await;
        }
        one
    });
    let manifest = back_up(&backends, &place.file).await;
    go_on.store(false, std::sync::atomic::Ordering::Relaxed);
    let one = writing.await.expect("no panic");
    assert_eq!(verify(&place.file, &mut |_| {}).expect("it is whole"), manifest);

    let restored = restore(&place.file, &settings(&place.restored), |_| {}).await.expect("restored");
    assert_eq!(restored.manifest, manifest);
    let again = open_backends(settings(&place.restored)).await.expect("it opens");
    let ended = |id: &str| manifest.applications.iter().find(|app| app.id.as_str() == id).expect("it is there").offset;
    for (writer, id) in [(&one, "one"), (&other, "other")] {
        let upto = ended(id).position;
        assert!((if id == "one" { 50 } else { 5 }..=writer.n_written).contains(&upto), "{id}: {upto}");
        assert_eq!(n_documents(&again, &writer.app).await, upto, "{id}");
        // What the registry has of a change goes with the change.
        let key = Key::cursor(&writer.app, &"phone".parse().expect("an id"));
        let (cursor, _) = again.registry.load::<Cursor>(&key).await.expect("load").expect("it is there");
        assert_eq!(cursor.offset.position, upto, "{id}");
        let marks = again.change_log.marks(&writer.app).await.expect("marks");
        assert_eq!(marks.head, Offset::new(restored.epoch + Offset::first_epoch_of(&writer.app), 0));
        assert_eq!(again.change_log.read(&writer.app, ended(id), 10).await.expect_err("gone").kind, ErrorKind::Gone);
    }
    let secrets = again.registry.load::<Installation>(&Key::installation()).await.expect("load").expect("there");
    assert_eq!(secrets.0.admin_token, "a");
    // Applications that are not there yet do not get offsets again that they had in the life before.
    let epoch = restored.epoch + Offset::first_epoch_of(&app("new"));
    assert_eq!(again.change_log.marks(&app("new")).await.expect("marks").head.epoch, epoch);
    assert_eq!(again.change_log.begin_epoch(&app("new")).await.expect("begun").epoch, epoch + 1);
    again.close().await.expect("it closes");
    backends.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_wait_are_kept_and_decided_ones_do_not_come_again() {
    let place = Place::new();
    let backends = open_backends(settings(&place.data)).await.expect("it opens");
    install(&backends).await;
    let tasks = app("tasks");
    let ids: Vec<ChangeId> = (0..5).map(|_| ChangeId::generate()).collect();
    let commands = ids.iter().map(|id| command(&tasks, *id)).collect();
    backends.queues.publish("writer", commands).await.expect("publish");
    // The first two are decided and applied, and the queue does not know yet.
    let entry = |number: u64| Entry {
        offset: Offset::new(1, number),
        change_id: ids[number as usize - 1],
        time: Timestamp::now(),
        event: Event::Created { document: document(&tasks, number) },
    };
    let logged = backends.change_log.append(&tasks, Offset::default(), vec![entry(1), entry(2)]).await.expect("append");
    backends.documents.apply(&tasks, &logged).await.expect("apply");
    back_up(&backends, &place.file).await;
    backends.close().await.expect("it closes");

    let restored = restore(&place.file, &settings(&place.restored), |_| {}).await.expect("restored");
    assert_eq!(restored.waiting, 3);
    let again = open_backends(settings(&place.restored)).await.expect("it opens");
    again.queues.declare("writer", Durability::Durable).await.expect("declare");
    let waiting = again.queues.browse("writer", None, 10).await.expect("browse");
    assert_eq!(waiting.iter().map(|message| message.id).collect::<Vec<_>>(), ids[2..]);
    assert_eq!(n_documents(&again, &tasks).await, 2);
    again.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_is_kept_while_it_is_copied_and_the_history_stays_behind() {
    let place = Place::new();
    let history = Settings { history_bytes: 1, history_age: Duration::ZERO, ..settings(&place.data) };
    let backends = open_backends(history).await.expect("it opens");
    install(&backends).await;
    let mut writer = Writer::of("tasks");
    let ids = [ChangeId::generate()];
    backends.queues.publish("writer", vec![command(&writer.app, ids[0])]).await.expect("publish");
    for _ in 0..12 {
        writer.write(&backends, 500).await;
    }
    let snapshot = backends.snapshot(about()).await.expect("a snapshot");
    let second = backends.snapshot(about()).await.err().expect("one at a time");
    assert_eq!(second.kind, ErrorKind::Unavailable);
    assert!(snapshot.manifest().journal_from > 1, "the history is not in it: {:?}", snapshot.manifest());
    for _ in 0..12 {
        writer.write(&backends, 500).await;
    }
    let out = fs::File::create(&place.file).expect("a file");
    let manifest = snapshot.write(out, &mut |_| {}).expect("written");
    backends.close().await.expect("it closes");
    let restored = restore(&place.file, &settings(&place.restored), |_| {}).await.expect("restored");
    assert_eq!(restored.waiting, 1, "what waited in the part that is left out was carried");
    let again = open_backends(settings(&place.restored)).await.expect("it opens");
    assert_eq!(n_documents(&again, &writer.app).await, 6_000);
    assert_eq!(manifest.applications[0].offset.position, 6_000);
    again.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_of_what_cannot_be_restored() {
    let place = Place::new();
    let backends = open_backends(settings(&place.data)).await.expect("it opens");
    install(&backends).await;
    Writer::of("tasks").write(&backends, 10).await;
    back_up(&backends, &place.file).await;
    backends.close().await.expect("it closes");
    let whole = fs::read(&place.file).expect("a file");
    let refuse = async |bytes: &[u8], kind: ErrorKind| {
        fs::write(&place.file, bytes).expect("written");
        let error = restore(&place.file, &settings(&place.restored), |_| {}).await.expect_err("refused");
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains("b.backup"), "{error}");
        assert!(!place.restored.exists() && !place.restored.with_extension("part").exists());
    };
    refuse(&whole[..whole.len() - 1], ErrorKind::Corrupt).await;
    refuse(&whole[..100], ErrorKind::Corrupt).await;
    refuse(b"", ErrorKind::Corrupt).await;
    let mut altered = whole.clone();
    altered[whole.len() / 2] ^= 1;
    refuse(&altered, ErrorKind::Corrupt).await;
    let mut newer = whole.clone();
    newer[8] = 9;
    let sum = crc32fast::hash(&newer[..12]);
    newer[12..16].copy_from_slice(&sum.to_le_bytes());
    refuse(&newer, ErrorKind::Unsupported).await;

    fs::write(&place.file, &whole).expect("written");
    fs::create_dir(&place.restored).expect("a directory");
    fs::write(place.restored.join("mine"), "x").expect("a file");
    let error = restore(&place.file, &settings(&place.restored), |_| {}).await.expect_err("not empty");
    assert!(error.kind == ErrorKind::Conflict && error.message.contains("not empty: it holds mine"), "{error}");
    assert_eq!(fs::read_dir(&place.restored).expect("read").count(), 1);

    // An empty directory is as good as none, also where it is the root of a disk.
    fs::remove_file(place.restored.join("mine")).expect("removed");
    fs::create_dir(place.restored.join("lost+found")).expect("a directory");
    restore(&place.file, &settings(&place.restored), |_| {}).await.expect("restored");
    assert!(!place.restored.join("restore.part").exists());
    let again = open_backends(settings(&place.restored)).await.expect("it opens");
    assert_eq!(n_documents(&again, &app("tasks")).await, 10);
    again.close().await.expect("it closes");
}
