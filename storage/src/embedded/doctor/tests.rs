//! Real directories, damaged on purpose: what the doctor says, what a repair makes of them, and that the engine then has what it was
//! said to have.

use std::{os::unix::fs::FileExt, path::PathBuf, time::Duration};

use bytes::Bytes;
use serde_json::{Map, json};
use tempfile::TempDir;

use super::*;
use crate::{
    Backends,
    documents::Stored,
    model::{ChangeId, Document, Entry, Event, Offset, Timestamp},
    open::{Settings, open},
    queue::{Durability, Message, Payload},
    registry::{
        Expect, Key,
        records::{self, Installation},
    },
};

const ENTRIES: u64 = 600;

/// Many small segments, and an index that is not committed by itself.
fn settings(dir: &Path) -> Settings {
    let usual = crate::embedded::tests::settings(dir);
    Settings { segment_bytes: 64 << 10, commit_every: Duration::from_secs(3600), ..usual }
}

fn tasks() -> AppId {
    AppId::parse("tasks").expect("an id")
}

fn created(position: u64) -> Entry {
    let time = Timestamp::from_ms(1_764_000_000_000 + position as i64).expect("a time");
    let document = Document {
        app: tasks(),
        model: "task".parse().expect("a name"),
        id: format!("d{position}").parse().expect("an id"),
        user: None,
        created_at: time,
        updated_at: time,
        version: 1,
        fields: Map::from_iter([("title".to_owned(), json!(format!("task {position} {}", "x".repeat(200))))]),
    };
    Entry {
        offset: Offset::new(1, position),
        change_id: ChangeId::generate(),
        time,
        event: Event::Created { document },
    }
}

async fn log(backends: &Backends, positions: std::ops::RangeInclusive<u64>) {
    for first in positions.clone().step_by(50) {
        let entries: Vec<_> = (first..=positions.end().to_owned().min(first + 49)).map(created).collect();
        let (tail, last) = (first - 1, entries.last().expect("an entry").offset);
        let tail = if tail == 0 { Offset::default() } else { Offset::new(1, tail) };
        let logged = backends.change_log.append(&tasks(), tail, entries).await.expect("logged");
        backends.documents.apply(&tasks(), &logged).await.expect("applied");
        backends.change_log.mark_applied(&tasks(), last).await.expect("marked");
    }
}

/// A directory with a registry, a queue and a log of many entries over several segments, closed in order.
async fn filled() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let backends = open(settings(dir.path())).await.expect("it opens");
    let secrets = Installation { admin_token: "a".into(), jwt_secret: "b".into() };
    backends.registry.put(&secrets, Expect::Absent).await.expect("written");
    backends.queues.declare("writer", Durability::Durable).await.expect("declared");
    let message = Message::new(ChangeId::generate(), Some(tasks()), Payload::from(Bytes::from_static(b"waits")));
    backends.queues.publish("writer", vec![message]).await.expect("published");
    log(&backends, 1..=ENTRIES).await;
    backends.close().await.expect("closes");
    dir
}

fn examined(dir: &Path) -> Report {
    examine(dir).expect("it can be examined")
}

#[track_caller]
fn says(sentences: &[String], wanted: &str) {
    assert!(
        sentences.iter().any(|sentence| sentence.contains(wanted)),
        "{wanted:?} is missing in\n{}",
        sentences.join("\n")
    );
}

async fn repaired(dir: &Path) -> Repaired {
    let done = repair(&settings(dir), &["writer".to_owned()]).await.expect("it can be repaired");
    let after = examined(dir);
    assert!(after.is_sound(), "after the repair: {}", after.findings.join("\n"));
    done
}

/// What a server finds then: which documents there are, the marks of the log, how many messages wait, and whether the registry is there.
async fn found_in(dir: &Path) -> (Vec<u64>, Offset, usize, bool) {
    let backends = open(settings(dir)).await.expect("it opens");
    let ids: Vec<_> = (1..=ENTRIES).map(|n| format!("d{n}").parse().expect("an id")).collect();
    let stored = backends.documents.get(&tasks(), &"task".parse().expect("a name"), &ids).await.expect("got");
    let is_there = |(_, stored): &(u64, Option<Stored>)| matches!(stored, Some(Stored::Live(_)));
    let documents = (1..).zip(stored).filter(is_there).map(|(number, _)| number).collect();
    let head = backends.change_log.marks(&tasks()).await.expect("marks").head;
    let waiting = backends.queues.browse("writer", None, 10).await.map_or(0, |waiting| waiting.len());
    let secrets = backends.registry.load::<Installation>(&Key::installation()).await.expect("loaded");
    // And it can be written to.
    let (tail, next) = (head, Entry { offset: head.next(), ..created(ENTRIES + 1) });
    backends.change_log.append(&tasks(), tail, vec![next]).await.expect("it goes on");
    backends.close().await.expect("closes");
    (documents, head, waiting, secrets.is_some())
}

fn all() -> Vec<u64> {
    (1..=ENTRIES).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(dir.join(JOURNAL)).expect("lists").map(|entry| entry.expect("one").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "journal"));
    paths.sort();
    paths
}

fn damage(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_directory_is_left_alone() {
    let dir = filled().await;
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).expect("lists").map(|entry| entry.expect("one").file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let report = examined(dir.path());
    assert!(report.is_sound(), "{}", report.findings.join("\n"));
    assert_eq!((report.documents.documents, report.registry.sequence().is_some()), (ENTRIES, true));
    assert_eq!(report.journal.logs[0].entries, ENTRIES);
    assert!(report.journal.segments.len() > 3, "several segments");
    assert_eq!(repaired(dir.path()).await.aside, None);
    assert_eq!(names(), before);
    assert_eq!(found_in(dir.path()).await, (all(), Offset::new(1, ENTRIES), 1, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_in_use_and_one_that_is_none_are_refused() {
    let dir = filled().await;
    let backends = open(settings(dir.path())).await.expect("it opens");
    let error = examine(dir.path()).expect_err("refused");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains(&format!("in use by process {}", std::process::id())), "{error}");
    backends.close().await.expect("closes");
    drop(backends);
    let nothing = dir.path().join("nothing");
    assert_eq!(examine(&nothing).expect_err("refused").kind, ErrorKind::Invalid);
    assert!(!nothing.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_middle_of_the_journal_ends_the_epoch_and_keeps_what_is_whole() {
    let dir = filled().await;
    let path = &segments(dir.path())[1];
    damage(path, 4096 + 3_000);
    let report = examined(dir.path());
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    says(&report.findings, &format!("journal/{name} is damaged from byte "));
    says(&report.findings, "what the lost records did to documents is in the document index");
    says(&report.findings, "changes of tasks may be gone");
    says(&report.remedies, "begin a new epoch of the change log of tasks");
    let done = repaired(dir.path()).await;
    assert_eq!(done.replaced, 1);
    let aside = PathBuf::from(done.aside.expect("something was replaced"));
    assert!(aside.join(JOURNAL).join(&name).exists() && aside.starts_with(dir.path()));
    let epoch = done.epoch.expect("a new epoch");
    assert!(epoch > 1_700_000_000, "later than any: {epoch}");
    let begins = epoch + Offset::first_epoch_of(&tasks());
    assert_eq!(found_in(dir.path()).await, (all(), Offset::new(begins, 0), 1, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_that_was_interrupted_is_finished_by_the_next_one() {
    let dir = filled().await;
    let backends = open(settings(dir.path())).await.expect("it opens");
    // A command that was decided, and is not settled yet.
    let next = created(ENTRIES + 1);
    let decided = Message::new(next.change_id, Some(tasks()), Payload::from(Bytes::from_static(b"decided")));
    backends.queues.publish("writer", vec![decided]).await.expect("published");
    backends.change_log.append(&tasks(), Offset::new(1, ENTRIES), vec![next]).await.expect("logged");
    backends.close().await.expect("closes");
    drop(backends);
    damage(&segments(dir.path())[1], 4096 + 3_000);
    // It ends where the engine would be opened.
    Examined::new(dir.path()).expect("it can be examined").repair().expect("it can be repaired");
    let error = open(settings(dir.path())).await.err().expect("refused");
    assert!(error.to_string().contains("a repair was interrupted: `nexxus doctor --repair`"), "{error}");
    let report = examined(dir.path());
    says(&report.findings, "a repair was interrupted");
    assert!(report.journal.affected.is_empty(), "the journal itself tells nothing of it any more");
    repaired(dir.path()).await;
    let (_, head, waiting, _) = found_in(dir.path()).await;
    assert!(head.epoch > 1_700_000_000, "{head}");
    assert_eq!(waiting, 1, "what was decided is not done again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_segment_is_replaced_by_empty_records() {
    let dir = filled().await;
    let paths = segments(dir.path());
    fs::remove_file(&paths[2]).expect("removed");
    let report = examined(dir.path());
    let name = paths[2].file_name().expect("a name").to_string_lossy().into_owned();
    says(&report.findings, &format!("journal/{name} is missing: the records "));
    let done = repaired(dir.path()).await;
    assert!(done.replaced > 50, "{}", done.replaced);
    let (documents, head, ..) = found_in(dir.path()).await;
    assert_eq!((documents, head.position), (all(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_head_costs_nothing_and_a_lost_salt_its_segment() {
    let dir = filled().await;
    let path = segments(dir.path())[1].clone();
    damage(&path, 14);
    says(&examined(dir.path()).findings, "the head of journal/");
    let done = repaired(dir.path()).await;
    assert_eq!((done.replaced, done.epoch), (0, None));
    assert_eq!(found_in(dir.path()).await, (all(), Offset::new(1, ENTRIES), 1, true));
    damage(&path, 21);
    let done = repaired(dir.path()).await;
    assert!(done.replaced > 50, "{}", done.replaced);
    assert_eq!(found_in(dir.path()).await.0, all());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_is_gone_or_ends_early_goes_on_in_a_new_epoch() {
    let dir = filled().await;
    let last = segments(dir.path())
        .into_iter()
        .rfind(|path| fs::metadata(path).is_ok_and(|file| file.len() > 0))
        .expect("one");
    for path in segments(dir.path()).into_iter().skip(3) {
        fs::remove_file(path).expect("removed");
    }
    assert!(!last.exists());
    let report = examined(dir.path());
    says(&report.findings, "the journal ends with record ");
    says(&report.findings, "changes of tasks may be gone");
    let done = repaired(dir.path()).await;
    let epoch = done.epoch.expect("a new epoch");
    assert_eq!(found_in(dir.path()).await, (all(), Offset::new(epoch + Offset::first_epoch_of(&tasks()), 0), 1, true));
    fs::remove_dir_all(dir.path().join(JOURNAL)).expect("removed");
    let done = repaired(dir.path()).await;
    let later = done.epoch.expect("a new epoch");
    assert!(later > epoch, "{later} after {epoch}");
    assert_eq!(found_in(dir.path()).await, (all(), Offset::new(later + Offset::first_epoch_of(&tasks()), 0), 0, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_registry_comes_back_from_its_export_or_with_a_gap() {
    let dir = filled().await;
    let store = dir.path().join(REGISTRY).join("sled");
    fs::write(store.join("conf"), b"no such thing").expect("written");
    let report = examined(dir.path());
    says(&report.findings, "the store of the registry cannot be used");
    says(&report.remedies, "make the registry anew from its export and the journal; nothing of it is lost");
    repaired(dir.path()).await;
    assert_eq!(found_in(dir.path()).await, (all(), Offset::new(1, ENTRIES), 1, true));
    // Both are gone, and the journal no longer has what they had.
    fs::remove_dir_all(dir.path().join(REGISTRY)).expect("removed");
    for path in segments(dir.path()).into_iter().take(1) {
        fs::remove_file(path).expect("removed");
    }
    let error = open(settings(dir.path())).await.err().expect("refused");
    assert!(error.to_string().contains("nexxus doctor"), "{error}");
    says(&examined(dir.path()).findings, "nothing is left of the registry, and the journal begins with record ");
    repaired(dir.path()).await;
    let (documents, _, _, has_registry) = found_in(dir.path()).await;
    assert_eq!((documents, has_registry), (all(), false));
}

fn application(app: &AppId, name: &str) -> records::Application {
    let definition = json!({
        "id": app, "name": name, "schema": { "task": { "title": { "type": "string" } } }, "authEnabled": true,
        "allowMultipleLogin": true, "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z",
        "offset": Offset::default(),
    });
    serde_json::from_value(definition).expect("a record")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_come_back_from_the_history_when_nothing_is_left_of_the_registry() {
    let dir = tempfile::tempdir().expect("a directory");
    let backends = open(settings(dir.path())).await.expect("it opens");
    let [other, kept] = ["other", "kept"].map(|name| AppId::parse(name).expect("an id"));
    let nothing = || Entry { event: Event::Unchanged { document: None }, ..created(1) };
    // Nothing of what stays of the journal defines this one, but that it has a log.
    backends.registry.put(&application(&other, "other"), Expect::Absent).await.expect("written");
    log(&backends, 1..=ENTRIES).await;
    backends.change_log.append(&other, Offset::default(), vec![nothing()]).await.expect("logged");
    backends.registry.put(&application(&kept, "kept"), Expect::Absent).await.expect("written");
    for (position, name) in [(1, "first"), (2, "last")] {
        let definition = serde_json::to_value(application(&tasks(), name)).expect("JSON");
        let offset = Offset::new(1, ENTRIES + position);
        let entry = Entry { offset, event: Event::Defined { definition, before: None }, ..created(1) };
        let tail = Offset::new(1, ENTRIES + position - 1);
        backends.change_log.append(&tasks(), tail, vec![entry]).await.expect("logged");
    }
    backends.change_log.append(&kept, Offset::default(), vec![nothing()]).await.expect("logged");
    backends.close().await.expect("closes");
    drop(backends);
    fs::remove_dir_all(dir.path().join(REGISTRY)).expect("removed");
    fs::remove_file(&segments(dir.path())[0]).expect("removed");
    let report = examined(dir.path());
    says(&report.remedies, "take applications that the registry has lost from the history, which defines tasks");
    says(
        &report.findings,
        "nothing defines other any more: made again under the same name, it has its documents again",
    );
    let done = repaired(dir.path()).await;
    let backends = open(settings(dir.path())).await.expect("it opens");
    let found: Option<(records::Application, u64)> =
        backends.registry.load(&Key::application(&tasks())).await.expect("loaded");
    let found = found.expect("it is there").0;
    assert_eq!((found.name.as_str(), found.offset), ("last", Offset::new(1, ENTRIES + 2)));
    assert_eq!((done.applications, done.undefined), (vec![tasks()], vec![other]));
    assert!(backends.registry.get(&Key::application(&kept)).await.expect("read").is_some());
    backends.close().await.expect("closes");
}

/// Sets the history of a directory to begin after what the index has: then only the index has those documents.
async fn only_in_the_index(dir: &Path) -> u64 {
    let paths = segments(dir);
    for path in &paths[..3] {
        fs::remove_file(path).expect("removed");
        let _none = fs::remove_file(path.with_extension("index"));
    }
    let oldest = examined(dir).journal.oldest;
    assert!(oldest > 100, "{oldest}");
    oldest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_index_is_made_anew_from_its_documents_and_the_history() {
    let dir = filled().await;
    let backends = open(settings(dir.path())).await.expect("it opens");
    backends.close().await.expect("closes");
    drop(backends);
    only_in_the_index(dir.path()).await;
    let index = dir.path().join(DOCUMENTS).join("index");
    fs::write(index.join("meta.json"), b"{").expect("written");
    let report = examined(dir.path());
    says(&report.findings, "the list of its segments (meta.json) cannot be used");
    assert_eq!(report.documents.documents, ENTRIES);
    let done = repaired(dir.path()).await;
    assert_eq!(done.salvaged, ENTRIES);
    assert_eq!(found_in(dir.path()).await.0, all());
    // A file that is not needed for reading them.
    let file = |extension: &str| {
        let mut paths = fs::read_dir(&index).expect("lists").map(|entry| entry.expect("one").path());
        paths.find(|path| path.extension().is_some_and(|found| found == extension)).expect("a file")
    };
    damage(&file("fast"), 20);
    says(&examined(dir.path()).findings, "damaged or missing: ");
    assert_eq!(repaired(dir.path()).await.salvaged, ENTRIES);
    // The documents themselves: what the history has comes back whole.
    damage(&file("store"), 20);
    repaired(dir.path()).await;
    let oldest = examined(dir.path()).journal.logs[0].first;
    let documents = found_in(dir.path()).await.0;
    assert!((oldest..=ENTRIES).all(|number| documents.contains(&number)), "from {oldest} on: {documents:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_index_comes_back_as_far_as_the_history_reaches() {
    let dir = filled().await;
    let index = dir.path().join(DOCUMENTS).join("index");
    fs::remove_dir_all(&index).expect("removed");
    says(&examined(dir.path()).findings, "the history reaches back to the beginning");
    repaired(dir.path()).await;
    assert_eq!(found_in(dir.path()).await.0, all());
    only_in_the_index(dir.path()).await;
    fs::rename(&index, index.with_extension("new")).expect("renamed");
    says(&examined(dir.path()).findings, "a repair was interrupted before the new index had its place");
    assert_eq!(repaired(dir.path()).await.salvaged, ENTRIES);
    fs::remove_dir_all(&index).expect("removed");
    let report = examined(dir.path());
    says(&report.findings, "documents that were not changed since were only in the index and are gone");
    repaired(dir.path()).await;
    let first = report.journal.logs[0].first;
    assert!(first > 1);
    assert_eq!(found_in(dir.path()).await.0, (first..=ENTRIES).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_that_are_damaged_are_written_anew() {
    let dir = filled().await;
    fs::write(dir.path().join("format"), b"one").expect("written");
    fs::write(dir.path().join("epoch"), b"later").expect("written");
    let report = examined(dir.path());
    says(&report.findings, "the file format is missing or does not hold a number");
    says(&report.findings, "the file epoch is missing or does not hold a number");
    repaired(dir.path()).await;
    assert_eq!(found_in(dir.path()).await, (all(), Offset::new(1, ENTRIES), 1, true));
}
