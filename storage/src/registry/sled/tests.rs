//! The embedded registry as a whole: its promises, crashes, damage, and a model.

use std::{collections::BTreeMap, fs, sync::atomic::AtomicU32};

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    conformance::registry::Subject,
    journal::{Indexer, Options as JournalOptions, Record as JournalRecord},
    registry::News,
};

/// A registry in a directory of its own, on a journal of its own.
struct Embedded {
    registry: Option<Arc<SledRegistry>>,
    journal: Journal,
    engine: Arc<dyn Engine>,
    gather: Duration,
    pending_bytes: usize,
    hangs_after: Duration,
    /// The last to be dropped.
    dir: TempDir,
}

struct NoIndex;

impl Indexer for NoIndex {
    fn index(&self, _records: &mut dyn Iterator<Item = JournalRecord>) -> Vec<u8> {
        Vec::new()
    }
}

fn open_journal(dir: &Path) -> Journal {
    open_small_journal(dir, 8 * 1024 * 1024)
}

fn open_small_journal(dir: &Path, backlog_bytes: usize) -> Journal {
    let options = JournalOptions {
        dir: dir.join("journal"),
        indexer: Arc::new(NoIndex),
        segment_bytes: 8 * 1024 * 1024,
        backlog_bytes,
    };
    Journal::open(options).expect("open the journal")
}

impl Embedded {
    fn new() -> Self {
        Self::with(Arc::new(Sled), Duration::from_millis(20))
    }

    fn with(engine: Arc<dyn Engine>, gather: Duration) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = open_journal(dir.path());
        let (pending_bytes, hangs_after) = (32 * 1024 * 1024, Duration::from_secs(60));
        let mut embedded = Self { dir, engine, gather, pending_bytes, hangs_after, journal, registry: None };
        embedded.open().expect("open the registry");
        embedded
    }

    fn open(&mut self) -> Result<()> {
        let options = Options {
            engine: self.engine.clone(),
            gather: self.gather,
            look_every: Duration::from_millis(50),
            pending_bytes: self.pending_bytes,
            patience: Duration::from_millis(200),
            hangs_after: self.hangs_after,
            ..Options::new(&self.registry_dir())
        };
        self.registry = Some(Arc::new(SledRegistry::open_with(options, self.journal.clone())?));
        Ok(())
    }

    fn registry_dir(&self) -> PathBuf {
        self.dir.path().join("registry")
    }

    fn registry(&self) -> Arc<SledRegistry> {
        self.registry.clone().expect("an open registry")
    }

    /// Ends the registry without closing it.
    fn stop(&mut self) {
        let registry =
            self.registry.take().map(|registry| Arc::try_unwrap(registry).ok().expect("nobody else uses it"));
        drop(registry);
    }

    /// Closes the journal and opens it again: it seals its segment and begins another.
    fn begin_segment(&mut self) {
        self.stop();
        self.journal.close().expect("close the journal");
        let empty = tempfile::tempdir().expect("a directory");
        self.journal = open_journal(empty.path());
        self.journal = open_journal(self.dir.path());
        self.open().expect("open the registry again");
    }

    async fn close(&mut self) {
        self.registry().close().await.expect("close");
        self.stop();
    }

    async fn put(&self, id: &str, value: &str) {
        self.registry().write(vec![put(id, value)]).await.expect("write");
    }

    async fn users(&self) -> BTreeMap<String, String> {
        let page = self.registry().list(Kind::User, None, "", None, 1_000_000).await.expect("list");
        page.into_iter()
            .map(|record| (record.key.id, String::from_utf8(record.value.to_vec()).expect("a text")))
            .collect()
    }

    /// Waits until the store has everything that the journal has.
    async fn settled(&self) {
        let head = self.journal.head();
        self.registry().shared.desk.hurry();
        wait_until("the store has everything", || self.registry().shared.marked.load(Ordering::Acquire) >= head).await;
    }

    fn set_aside(&self) -> usize {
        let entries = fs::read_dir(self.registry_dir()).expect("read the directory");
        entries
            .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().contains("damaged")))
            .count()
    }
}

#[async_trait]
impl Subject for Embedded {
    fn registry(&self) -> Arc<dyn Registry> {
        self.registry()
    }

    async fn crash(&mut self) {
        self.stop();
        self.open().expect("open the registry again");
    }
}

async fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn put(id: &str, value: &str) -> Write {
    let value = Some(Bytes::copy_from_slice(value.as_bytes()));
    Write { key: Key::new(Kind::User, None, id), value, expect: Expect::Anything }
}

fn users<const N: usize>(users: [(&str, &str); N]) -> BTreeMap<String, String> {
    users.map(|(id, value)| (id.to_owned(), value.to_owned())).into()
}

crate::registry_conformance!(sled, || async { Embedded::new() });
// Nothing reaches the store, and everything at once: the same promises.
crate::registry_conformance!(in_memory, || async { Embedded::with(Arc::new(Sled), Duration::from_secs(3600)) });
crate::registry_conformance!(in_the_store, || async { Embedded::with(Arc::new(Sled), Duration::ZERO) });

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_registry_opens_with_nothing_to_replay() {
    let mut embedded = Embedded::new();
    embedded.put("a", "1").await;
    let feed = embedded.registry().feed(&[Kind::User]).await.unwrap();
    let registry = embedded.registry();
    registry.close().await.unwrap();
    assert_eq!(registry.flushed(), embedded.journal.head());
    for outcome in [registry.get(&put("a", "").key).await.map(drop), registry.write(vec![put("b", "2")]).await] {
        assert_eq!(outcome.unwrap_err().kind, ErrorKind::Unavailable);
    }
    assert!(registry.export().await.is_err());
    let mut feed = feed;
    assert_eq!(feed.changed().await.unwrap_err().kind, ErrorKind::Unavailable);
    drop((registry, feed));
    embedded.stop();
    embedded.open().unwrap();
    assert_eq!(embedded.users().await, users([("a", "1")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn volatile_records_are_gone_at_the_next_start() {
    let mut embedded = Embedded::new();
    let key = Key::new(Kind::Connection, None, "phone/ws-1");
    let write = Write { key: key.clone(), value: Some(Bytes::new()), expect: Expect::Absent };
    embedded.registry().write(vec![write]).await.unwrap();
    embedded.close().await;
    embedded.open().unwrap();
    assert_eq!(embedded.registry().get(&key).await.unwrap(), None);
    assert_eq!(embedded.journal.head(), 0, "nothing was written to the journal");
}

/// Whatever happens to the store, the registry comes back with everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_made_anew() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 5] = [
        ("the data is overwritten", |store| overwrite(&store.join("db"), |_| 0xa5)),
        ("every other byte is off", |store| overwrite(&store.join("db"), |byte| byte ^ 0x11)),
        ("the settings are nonsense", |store| {
            fs::write(store.join("conf"), b"no settings at all, no settings").unwrap()
        }),
        ("the data is cut to nothing", |store| fs::write(store.join("db"), b"").unwrap()),
        ("it is gone", |store| fs::remove_dir_all(store).unwrap()),
    ];
    for (damage, inflict) in damages {
        let mut embedded = Embedded::new();
        let mut expected = BTreeMap::new();
        for round in 0..300 {
            let (id, value) = (format!("u{}", round % 200), format!("{round} {}", "x".repeat(200)));
            embedded.put(&id, &value).await;
            expected.insert(id, value);
        }
        let exported = embedded.registry().export().await.unwrap();
        embedded.put("u7", "after the export").await;
        embedded.registry().write(vec![Write::remove(put("u8", "").key)]).await.unwrap();
        expected.insert("u7".to_owned(), "after the export".to_owned());
        expected.remove("u8");
        embedded.settled().await;
        let revision = embedded.registry().get(&put("u7", "").key).await.unwrap().unwrap().revision;
        embedded.stop();
        inflict(&embedded.registry_dir().join("sled"));
        embedded.journal.release(exported).unwrap();
        embedded.open().unwrap_or_else(|error| panic!("{damage}: {error}"));
        assert_eq!(embedded.users().await, expected, "{damage}");
        let record = embedded.registry().get(&put("u7", "").key).await.unwrap().unwrap();
        assert_eq!(record.revision, revision, "{damage}");
    }
}

fn overwrite(path: &Path, change: fn(u8) -> u8) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, bytes.into_iter().map(change).collect::<Vec<_>>()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_kept_for_a_look() {
    let mut embedded = Embedded::new();
    embedded.put("a", "1").await;
    embedded.settled().await;
    embedded.stop();
    overwrite(&embedded.registry_dir().join("sled/db"), |_| 0xa5);
    embedded.open().unwrap();
    assert_eq!(embedded.set_aside(), 1);
    assert_eq!(embedded.users().await, users([("a", "1")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_export_is_written_again() {
    let mut embedded = Embedded::new();
    embedded.put("a", "1").await;
    embedded.close().await;
    let export = embedded.registry_dir().join("export.jsonl");
    let whole = fs::read(&export).unwrap();
    fs::write(&export, &whole[..whole.len() / 2]).unwrap();
    embedded.open().unwrap();
    assert_eq!(embedded.registry().flushed(), embedded.journal.head());
    assert!(export::check(&embedded.registry_dir()).unwrap().is_some());
    assert_eq!(embedded.users().await, users([("a", "1")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_between_store_and_journal_is_refused() {
    let mut embedded = Embedded::new();
    embedded.put("a", "1").await;
    embedded.begin_segment();
    embedded.put("a", "2").await;
    embedded.stop();
    // Store and export are gone, and so is the beginning of the journal.
    fs::remove_dir_all(embedded.registry_dir()).unwrap();
    assert_eq!(embedded.journal.release(2).unwrap(), 1);
    let error = embedded.open().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.message.contains("records are missing"), "{error}");
}

/// Whichever of the two reaches the journal is taken.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_store_gives_way_to_a_newer_export() {
    let mut embedded = Embedded::new();
    embedded.put("a", "1").await;
    embedded.close().await;
    let (store, old) = (embedded.registry_dir().join("sled"), embedded.dir.path().join("old"));
    fs::rename(&store, &old).unwrap();
    embedded.open().unwrap();
    embedded.put("a", "2").await;
    embedded.close().await;
    fs::remove_dir_all(&store).unwrap();
    fs::rename(&old, &store).unwrap();
    embedded.begin_segment();
    embedded.put("b", "3").await;
    embedded.stop();
    assert_eq!(embedded.journal.release(3).unwrap(), 1);
    embedded.open().unwrap();
    assert_eq!(embedded.users().await, users([("a", "2"), ("b", "3")]));
}

/// Any damage of the file is seen or does no harm.
#[tokio::test(flavor = "multi_thread")]
async fn single_bytes_off_lose_nothing() {
    let mut embedded = Embedded::new();
    let writes = (0..400).map(|n| put(&format!("u{n}"), &format!("{n} {}", "x".repeat(n)))).collect();
    embedded.registry().write(writes).await.unwrap();
    embedded.close().await;
    embedded.open().unwrap();
    let expected = embedded.users().await;
    embedded.close().await;
    let db = embedded.registry_dir().join("sled/db");
    let length = fs::read(&db).unwrap().iter().rposition(|byte| *byte != 0).unwrap();
    for at in (0..length).step_by(length / 40) {
        let mut bytes = fs::read(&db).unwrap();
        let last = bytes.len() - 1;
        bytes[at.min(last)] ^= 0x40;
        fs::write(&db, bytes).unwrap();
        embedded.open().unwrap();
        assert!(embedded.users().await == expected, "byte {at} of {length}");
        embedded.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_behind_the_store_is_refused() {
    let mut embedded = Embedded::new();
    embedded.put("a", "1").await;
    embedded.close().await;
    let other = tempfile::tempdir().unwrap();
    embedded.journal = open_journal(other.path());
    let error = embedded.open().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.message.contains("do not belong together"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mark_follows_the_journal_without_writes() {
    let embedded = Embedded::new();
    embedded.journal.append((0..10).map(|_| (journal::Kind::LogEntry, vec![1])).collect()).unwrap();
    embedded.journal.durable(10).await.unwrap();
    embedded.settled().await;
    assert_eq!(embedded.registry().flushed(), 0, "the export is still at the beginning");
    assert_eq!(embedded.registry().export().await.unwrap(), 10);
    assert_eq!(embedded.registry().flushed(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_while_it_is_written_to() {
    let mut embedded = Embedded::new();
    let writer = embedded.registry();
    let writing = tokio::spawn(async move {
        for round in 0..3_000 {
            let call = (0..4).map(|n| put(&format!("u{}", (round * 7 + n) % 2_500), &round.to_string()));
            let call: BTreeMap<String, Write> = call.map(|write| (write.key.id.clone(), write)).collect();
            let mut call: Vec<Write> = call.into_values().collect();
            call[0].value = if round % 5 == 0 { None } else { call[0].value.take() };
            writer.write(call).await.unwrap();
        }
    });
    let mut last = 0;
    while !writing.is_finished() {
        last = embedded.registry().export().await.unwrap();
    }
    writing.await.unwrap();
    let expected = embedded.users().await;
    embedded.stop();
    fs::remove_dir_all(embedded.registry_dir().join("sled")).unwrap();
    embedded.journal.release(last).unwrap();
    embedded.open().unwrap();
    assert_eq!(embedded.users().await, expected);
}

/// An engine whose stores fail when they are told to.
#[derive(Default)]
struct Faulty {
    /// Calls of `flush` that fail.
    flushes: AtomicU32,
    /// Calls of `get` that fail.
    gets: AtomicU32,
    opens: AtomicU32,
    /// `flush` hangs.
    hangs: AtomicBool,
}

struct FaultyStore {
    store: Box<dyn Store>,
    engine: Arc<Faulty>,
}

struct FaultyEngine(Arc<Faulty>);

fn fails(count: &AtomicU32) -> Result<()> {
    match count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)) {
        Ok(_) => Err(Error::new(ErrorKind::DiskFull, "test", "told to fail")),
        Err(_) => Ok(()),
    }
}

impl Engine for FaultyEngine {
    fn open(&self, dir: &Path) -> Result<Box<dyn Store>> {
        fails(&self.0.opens)?;
        Ok(Box::new(FaultyStore { store: Sled.open(dir)?, engine: self.0.clone() }))
    }
}

impl Store for FaultyStore {
    fn get(&self, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>> {
        fails(&self.engine.gets)?;
        self.store.get(kind, key)
    }

    fn put(&self, kind: Kind, key: &[u8], value: &[u8]) -> Result<()> {
        self.store.put(kind, key, value)
    }

    fn delete(&self, kind: Kind, key: &[u8]) -> Result<()> {
        self.store.delete(kind, key)
    }

    fn scan(&self, kind: Kind, range: &Range, visit: &mut store::Visitor<'_>) -> Result<()> {
        self.store.scan(kind, range, visit)
    }

    fn mark(&self) -> Result<Option<Vec<u8>>> {
        self.store.mark()
    }

    fn set_mark(&self, mark: &[u8]) -> Result<()> {
        self.store.set_mark(mark)
    }

    fn flush(&self) -> Result<()> {
        fails(&self.engine.flushes)?;
        while self.engine.hangs.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.store.flush()
    }

    fn size_on_disk(&self) -> Result<u64> {
        self.store.size_on_disk()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_is_opened_again_and_nothing_is_lost() {
    let faulty = Arc::new(Faulty::default());
    let mut embedded = Embedded::with(Arc::new(FaultyEngine(faulty.clone())), Duration::ZERO);
    embedded.put("a", "1").await;
    embedded.settled().await;
    for (id, fault) in [("flush", &faulty.flushes), ("get", &faulty.gets)] {
        fault.store(1, Ordering::Release);
        faulty.opens.store(1, Ordering::Release);
        embedded.put(id, "2").await;
        let _failing = embedded.registry().get(&put("a", "").key).await;
        wait_until("the fault has struck", || faulty.opens.load(Ordering::Acquire) == 0).await;
        embedded.put(id, "3").await;
        embedded.settled().await;
        wait_until("it is open again", || embedded.registry().shared.store.read().is_some()).await;
        assert_eq!(embedded.registry().get(&put("a", "").key).await.unwrap().unwrap().value, "1");
    }
    embedded.close().await;
    embedded.open().unwrap();
    assert_eq!(embedded.users().await, users([("a", "1"), ("flush", "3"), ("get", "3")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_wait_for_room_and_are_refused_when_none_comes() {
    let faulty = Arc::new(Faulty::default());
    let mut embedded = Embedded::with(Arc::new(FaultyEngine(faulty.clone())), Duration::from_millis(5));
    embedded.stop();
    embedded.pending_bytes = 10_000;
    embedded.open().unwrap();
    for round in 0..200 {
        embedded.put(&format!("u{round}"), &"x".repeat(500)).await;
    }
    faulty.opens.store(u32::MAX, Ordering::Release);
    faulty.flushes.store(u32::MAX, Ordering::Release);
    let mut refused = None;
    for round in 0..100 {
        if let Err(error) = embedded.registry().write(vec![put(&format!("late{round}"), &"x".repeat(500))]).await {
            refused = Some(error.kind);
            break;
        }
    }
    assert_eq!(refused, Some(ErrorKind::Full));
    let late = embedded.registry().get(&put("late0", "").key).await.unwrap();
    assert!(late.is_some(), "what was accepted is readable without the store");
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_wait_for_room_in_the_journal() {
    let mut embedded = Embedded::new();
    embedded.stop();
    embedded.dir = tempfile::tempdir().unwrap();
    embedded.journal = open_small_journal(embedded.dir.path(), 2_000);
    embedded.open().unwrap();
    let writers = (0..50).map(|n| {
        let registry = embedded.registry();
        tokio::spawn(async move { registry.write(vec![put(&format!("u{n}"), &"x".repeat(1_000))]).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap().unwrap();
    }
    assert_eq!(embedded.users().await.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_stops_the_node() {
    let faulty = Arc::new(Faulty::default());
    let mut embedded = Embedded::with(Arc::new(FaultyEngine(faulty.clone())), Duration::ZERO);
    embedded.stop();
    embedded.hangs_after = Duration::from_millis(50);
    embedded.open().unwrap();
    faulty.hangs.store(true, Ordering::Release);
    embedded.put("a", "1").await;
    let registry = embedded.registry();
    wait_until("it hangs", || registry.shared.desk.busy_for() > embedded.hangs_after).await;
    registry.flushed();
    assert_eq!(registry.failed().await.message, "its store hangs");
    assert_eq!(registry.close().await.unwrap_err().kind, ErrorKind::Timeout);
    faulty.hangs.store(false, Ordering::Release);
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    PutIf(u8, u8, Expectation),
    Remove(u8),
    Both(u8, u8),
    Crash,
    Close,
    Settle,
    LoseStore,
    Export,
}

#[derive(Debug, Clone)]
enum Expectation {
    Absent,
    Known,
    Old,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let expectation = prop_oneof![Just(Expectation::Absent), Just(Expectation::Known), Just(Expectation::Old)];
    let step = prop_oneof![
        6 => (0_u8..6, any::<u8>()).prop_map(|(id, value)| Step::Put(id, value)),
        4 => (0_u8..6, any::<u8>(), expectation).prop_map(|(id, value, expectation)| Step::PutIf(id, value, expectation)),
        3 => (0_u8..6).prop_map(Step::Remove),
        2 => (0_u8..6, any::<u8>()).prop_map(|(id, value)| Step::Both(id, value)),
        1 => Just(Step::Crash),
        1 => Just(Step::Close),
        1 => Just(Step::Settle),
        1 => Just(Step::LoseStore),
        1 => Just(Step::Export),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What the registry has to hold: id → value and revision.
type Model = BTreeMap<String, (String, u64)>;

async fn take_step(embedded: &mut Embedded, model: &mut Model, step: Step) {
    let id = |id: u8| format!("u{id}");
    match step {
        Step::Put(key, value) => write_both(embedded, model, vec![put(&id(key), &value.to_string())]).await,
        Step::Remove(key) => write_both(embedded, model, vec![Write::remove(put(&id(key), "").key)]).await,
        Step::Both(key, value) => {
            let other = id((key + 1) % 6);
            write_both(embedded, model, vec![put(&id(key), &value.to_string()), put(&other, "both")]).await;
        }
        Step::PutIf(key, value, expectation) => {
            let known = model.get(&id(key)).map_or(1, |(_, revision)| *revision);
            let expect = match expectation {
                Expectation::Absent => Expect::Absent,
                Expectation::Known => Expect::Revision(known),
                Expectation::Old => Expect::Revision(known - 1),
            };
            write_both(embedded, model, vec![Write { expect, ..put(&id(key), &value.to_string()) }]).await;
        }
        Step::Crash => {
            embedded.stop();
            embedded.open().unwrap();
        }
        Step::Close => {
            embedded.close().await;
            embedded.open().unwrap();
        }
        Step::Settle => embedded.settled().await,
        Step::LoseStore => {
            embedded.stop();
            fs::remove_dir_all(embedded.registry_dir().join("sled")).unwrap();
            embedded.open().unwrap();
        }
        Step::Export => {
            let exported = embedded.registry().export().await.unwrap();
            assert_eq!(exported, embedded.journal.head());
        }
    }
}

async fn write_both(embedded: &Embedded, model: &mut Model, call: Vec<Write>) {
    let holds = call.iter().all(|write| match (write.expect, model.get(&write.key.id)) {
        (Expect::Anything, _) | (Expect::Absent, None) => true,
        (Expect::Revision(expected), Some((_, revision))) => expected == *revision,
        _ => false,
    });
    match embedded.registry().write(call.clone()).await {
        Ok(()) => assert!(holds, "{call:?} has to conflict"),
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
            assert!(!holds, "{call:?} must not conflict");
            return;
        }
    }
    for Write { key, value, .. } in call {
        match value {
            None => drop(model.remove(&key.id)),
            Some(value) => {
                let record = embedded.registry().get(&key).await.unwrap().expect("it was written");
                let before = model.insert(key.id, (String::from_utf8(value.to_vec()).unwrap(), record.revision));
                assert!(before.is_none_or(|(_, before)| before < record.revision), "revisions rise");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn it_is_a_map(steps in steps(), gather in prop_oneof![Just(0_u64), Just(5), Just(3_600_000)]) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut embedded = Embedded::with(Arc::new(Sled), Duration::from_millis(gather));
            let mut model = Model::new();
            let mut feed = embedded.registry().feed(&[Kind::User]).await.unwrap();
            let mut followed = BTreeMap::new();
            for step in steps {
                let reopens = matches!(step, Step::Crash | Step::Close | Step::LoseStore);
                take_step(&mut embedded, &mut model, step).await;
                let expected: BTreeMap<String, String> =
                    model.iter().map(|(id, (value, _))| (id.clone(), value.clone())).collect();
                assert_eq!(embedded.users().await, expected);
                if reopens {
                    feed = embedded.registry().feed(&[Kind::User]).await.unwrap();
                    followed = embedded.users().await;
                }
                for news in feed.read().await.unwrap() {
                    let News::Written { key, value } = news else { panic!("reload") };
                    match value {
                        Some(value) => drop(followed.insert(key.id, String::from_utf8(value.to_vec()).unwrap())),
                        None => drop(followed.remove(&key.id)),
                    }
                }
                assert_eq!(followed, expected);
            }
        });
    }
}
