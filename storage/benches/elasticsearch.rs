//! What documents in Elasticsearch cost, against a real one: `tests/cluster/up elasticsearch`, then
//! `cargo bench -p nexxus-storage --features elasticsearch --bench elasticsearch`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nexxus_storage::{
    Documents,
    changelog::LogEntry,
    documents::{
        Query, Sort,
        elasticsearch::{ElasticsearchDocuments, Options},
    },
    model::{
        AppId, ChangeId, Document, DocumentId, Entry, Event, Filter, Model, ModelName, Offset, Timestamp,
        filter::Condition,
    },
};
use serde_json::{Map, json};

const BATCH: u64 = 500;
const BATCHES: u64 = 40;
const CALLS: usize = 300;

fn app() -> AppId {
    AppId::parse("bench").expect("an id")
}

fn task() -> ModelName {
    ModelName::parse("task").expect("a name")
}

fn entry(position: u64) -> LogEntry {
    let now = Timestamp::now();
    let fields = json!({
        "title": format!("task number {position} with some words"), "priority": position % 100, "done": position.is_multiple_of(3),
        "tags": ["a", format!("t{}", position % 50)], "notes": "some more text that nobody filters by",
    });
    let document = Document {
        app: app(),
        model: task(),
        id: DocumentId::parse(&format!("d{position}")).expect("an id"),
        user: None,
        created_at: now,
        updated_at: now,
        version: 1,
        fields: fields.as_object().cloned().unwrap_or_else(Map::new),
    };
    let event = Event::Created { document };
    let entry = Entry { offset: Offset::new(1, position), change_id: ChangeId::generate(), time: now, event };
    LogEntry { entry: Arc::new(entry), place: 0 }
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!("{what}: p50 {:.1?}, p99 {:.1?}, {} times", at(50), at(99), times.len());
}

async fn timed<T>(times: &mut Vec<Duration>, call: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let outcome = call.await;
    times.push(begun.elapsed());
    outcome
}

#[tokio::main]
async fn main() {
    let node = std::env::var("NEXXUS_TEST_ELASTICSEARCH").unwrap_or_else(|_| "http://127.0.0.1:26041".to_owned());
    let documents = ElasticsearchDocuments::open(Options {
        nodes: vec![node],
        username: None,
        password: None,
        api_key: None,
        ca_file: None,
        prefix: format!("b{}", ChangeId::generate().to_string().to_lowercase()),
        shards: 1,
        replicas: 0,
        timeout: Duration::from_secs(60),
        patience: Duration::from_secs(3),
        keep_deletes: Duration::from_secs(3_600),
    });
    let documents = documents.await.expect("tests/cluster/up starts an Elasticsearch");
    let model = Model::parse(&json!({
        "title": { "type": "string", "filterable": true }, "priority": { "type": "number", "filterable": true },
        "done": { "type": "boolean", "filterable": true }, "notes": { "type": "string" },
        "tags": { "type": "array", "arrayType": "string", "filterable": true },
    }));
    let model = model.expect("a model");
    documents.define(&app(), &task(), &model.filterable()).await.expect("defined");
    let (mut applied, begun) = (Vec::new(), Instant::now());
    for batch in 0..BATCHES {
        let entries: Vec<_> = (1..=BATCH).map(|n| entry(batch * BATCH + n)).collect();
        timed(&mut applied, documents.apply(&app(), &entries)).await.expect("applied");
    }
    println!("{:.0} creates/s", (BATCH * BATCHES) as f64 / begun.elapsed().as_secs_f64());
    tell("apply 500 creates", applied);
    let query = |condition: Condition, sort: Vec<Sort>| Query {
        app: app(),
        model: task(),
        condition,
        sort,
        limit: 50,
        cursor: None,
        count: false,
        text: None,
        at_least: None,
    };
    let filter = Filter::parse(&json!({ "priority": { "$gte": 90 }, "tags": "t7" }), &model, true).expect("a filter");
    let field = model.filter_field("priority", true).expect("a field");
    let sort = vec![Sort { field, descending: true }];
    let (mut got, mut found, mut found_after) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..CALLS as u64 {
        let id = DocumentId::parse(&format!("d{}", n * 61 + 1)).expect("an id");
        timed(&mut got, documents.get(&app(), &task(), &[id])).await.expect("got");
        let query = query(filter.condition().clone(), sort.clone());
        timed(&mut found, documents.search(query)).await.expect("found");
    }
    for n in 0..CALLS as u64 {
        let one = [entry(BATCH * BATCHES + n + 1)];
        documents.apply(&app(), &one).await.expect("applied");
        let query = query(filter.condition().clone(), sort.clone());
        timed(&mut found_after, documents.search(query)).await.expect("found");
    }
    tell("get one", got);
    tell("filter + sort, 50 of 20,000, nothing written since", found);
    tell("the same, each after a write", found_after);
    documents.drop_application(&app()).await.expect("dropped");
}
