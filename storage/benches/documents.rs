//! What the document store costs: `cargo bench -p nexxus-storage --bench documents`.
//!
//! 100,000 documents of about 300 bytes with five filterable fields. `get` and `search` on all of them in the index, and with
//! 5,000 newer versions above it; `apply` of new versions of random documents, logged, as fast as they are taken. Once it has
//! begun, `apply` runs at the speed of the index: the overlay is full.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nexxus_storage::{
    Documents,
    changelog::{LogEntry, embedded::codec},
    documents::{
        Query, Sort,
        tantivy::{Options, TantivyDocuments},
    },
    embedded::indexer::StreamIndexer,
    journal::{self, Journal, Kind},
    model::{
        AppId, ChangeId, Document, DocumentId, Entry, Event, Filter, Model, ModelName, Offset, Timestamp, UserId,
        filter::Field,
    },
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const DOCUMENTS: u64 = 100_000;
const ABOVE: u64 = 5_000;
const BATCH: u64 = 64;

struct Store {
    runtime: Runtime,
    journal: Journal,
    documents: TantivyDocuments,
    app: AppId,
    model: Model,
    tail: Offset,
    chance: u64,
    _dir: tempfile::TempDir,
}

impl Store {
    fn open() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(journal::Options {
            dir: dir.path().join("journal"),
            indexer: Arc::new(StreamIndexer),
            segment_bytes: 64 << 20,
            backlog_bytes: 32 << 20,
        })
        .expect("a journal");
        let options = Options {
            dir: dir.path().join("documents"),
            overlay_bytes: 64 << 20,
            writer_bytes: 32 << 20,
            commit_every: Duration::from_secs(1),
        };
        let documents = TantivyDocuments::open(options, journal.clone()).expect("documents");
        let model = Model::parse(&json!({
            "status": { "type": "string", "filterable": true },
            "priority": { "type": "number", "filterable": true },
            "title": { "type": "string", "filterable": true },
            "due": { "type": "date", "filterable": true },
            "done": { "type": "boolean", "filterable": true },
            "notes": { "type": "string" },
        }))
        .expect("a model");
        let app = AppId::parse("bench").expect("an id");
        let tail = Offset::new(1, 0);
        let mut store = Self { runtime, journal, documents, app, model, tail, chance: 7, _dir: dir };
        let fields = store.model.filterable();
        store.runtime.block_on(store.documents.define(&store.app, &thing(), &fields)).expect("defined");
        for first in (0..DOCUMENTS).step_by(BATCH as usize) {
            store.apply((first..DOCUMENTS.min(first + BATCH)).collect());
        }
        store.runtime.block_on(store.documents.commit()).expect("committed");
        store
    }

    fn random(&mut self) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance
    }

    fn entry(&mut self, n: u64) -> Entry {
        self.tail = self.tail.next();
        let chance = self.random();
        let time = Timestamp::from_ms(1_700_000_000_000 + self.tail.position as i64).expect("a time");
        let fields = json!({
            "status": (["todo", "doing", "done", "late", "dropped"][(chance % 5) as usize]),
            "priority": chance / 5 % 100,
            "title": format!("task {:08x}", chance >> 32),
            "due": Timestamp::from_ms(1_700_000_000_000 + (chance % 10_000_000_000) as i64).expect("a time"),
            "done": chance.is_multiple_of(2),
            "notes": "some words that nobody filters by, as long as notes are ".repeat(2),
        });
        let Value::Object(fields) = fields else { unreachable!("an object") };
        let document = Document {
            app: self.app.clone(),
            model: thing(),
            id: name(n),
            user: Some(UserId::parse(&format!("user-{}", n % 500)).expect("an id")),
            created_at: time,
            updated_at: time,
            version: 1,
            fields,
        };
        Entry { offset: self.tail, change_id: ChangeId::generate(), time, event: Event::Created { document } }
    }

    fn log(&mut self, documents: Vec<u64>) -> Vec<LogEntry> {
        let entries: Vec<_> = documents.into_iter().map(|n| self.entry(n)).collect();
        let record = |entry: &Entry| (Kind::LogEntry, codec::encode(&self.app, entry).expect("bytes"));
        let places = loop {
            match self.journal.append(entries.iter().map(record).collect()) {
                Ok(places) => break places,
                Err(error) if error.is_transient() => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        let logged = entries.into_iter().zip(places);
        logged.map(|(entry, place)| LogEntry { entry: Arc::new(entry), place: place.sequence }).collect()
    }

    fn apply(&mut self, documents: Vec<u64>) {
        let entries = self.log(documents);
        self.apply_entries(&entries);
    }

    fn apply_entries(&self, entries: &[LogEntry]) {
        self.runtime.block_on(self.documents.apply(&self.app, entries)).expect("applied");
    }

    fn query(&self, filter: Value, sort: &[(&str, bool)]) -> Query {
        let field = |path: &str| -> Field {
            let own = self.model.filterable().into_iter().find(|field| *field.path == *path);
            own.or_else(|| Field::universal(path)).expect("a field")
        };
        let sort = sort.iter().map(|(path, descending)| Sort { field: field(path), descending: *descending });
        Query {
            app: self.app.clone(),
            model: thing(),
            condition: Filter::parse(&filter, &self.model, true).expect("a filter").condition().clone(),
            sort: sort.collect(),
            limit: 20,
            cursor: None,
            count: false,
            text: None,
            at_least: None,
        }
    }
}

fn thing() -> ModelName {
    ModelName::parse("thing").expect("a name")
}

fn name(n: u64) -> DocumentId {
    DocumentId::parse(&format!("document-{n:012}")).expect("an id")
}

fn reads(criterion: &mut Criterion, store: &mut Store, state: &str) {
    let mut group = criterion.benchmark_group(format!("get {state}"));
    group.bench_function("one", |bencher| {
        let mut n = 0;
        bencher.iter(|| {
            n = (n + 7_919) % DOCUMENTS;
            let ids = [name(n)];
            let found = store.runtime.block_on(store.documents.get(&store.app, &thing(), &ids)).expect("found");
            assert!(found[0].is_some());
            found
        });
    });
    group.bench_function("none", |bencher| {
        let ids = [name(DOCUMENTS + 1)];
        bencher.iter(|| store.runtime.block_on(store.documents.get(&store.app, &thing(), &ids)).expect("found"));
    });
    group.finish();

    let mut group = criterion.benchmark_group(format!("search {state}"));
    let todo = json!({ "status": "todo" });
    let urgent = json!({ "status": "todo", "priority": { "$gte": 90 } });
    for (what, query) in [
        ("a user's 200, newest first", store.query(json!({ "userId": "user-77" }), &[("updatedAt", true)])),
        ("20,000 of a status, newest first", store.query(todo.clone(), &[("updatedAt", true)])),
        ("2,000 of a status and a range, by two fields", store.query(urgent, &[("priority", false), ("due", true)])),
        (
            "a prefix of titles, by title",
            store.query(json!({ "title": { "$prefix": "task 00" } }), &[("title", false)]),
        ),
        ("all, by a number", store.query(json!({}), &[("priority", true)])),
        ("all, by a string", store.query(json!({}), &[("title", false)])),
        ("20,000 of a status, counted", Query { count: true, ..store.query(todo, &[("updatedAt", true)]) }),
    ] {
        group.bench_function(what, |bencher| {
            bencher.iter(|| {
                let found = store.runtime.block_on(store.documents.search(black_box(query.clone()))).expect("found");
                assert_eq!(found.documents.len(), 20);
                found
            });
        });
    }
    group.finish();
}

/// Logged before the clock runs: the journal has a bench of its own.
fn applies(criterion: &mut Criterion, store: &mut Store) {
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(BATCH)).sample_size(20).measurement_time(Duration::from_secs(20));
    group.bench_function("64 new versions", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                let documents = (0..BATCH).map(|_| store.random() % DOCUMENTS).collect();
                let entries = store.log(documents);
                let begun = Instant::now();
                store.apply_entries(&entries);
                took += begun.elapsed();
            }
            took
        });
    });
    group.finish();
}

fn documents(criterion: &mut Criterion) {
    let mut store = Store::open();
    reads(criterion, &mut store, "from the index");
    for first in (0..ABOVE).step_by(BATCH as usize) {
        store.apply((first..first + BATCH).map(|n| n * 7_919 % DOCUMENTS).collect());
    }
    reads(criterion, &mut store, "with newer versions above");
    applies(criterion, &mut store);
}

criterion_group!(benches, documents);
criterion_main!(benches);
