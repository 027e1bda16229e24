//! What the contract of documents leaves to the adapter: requests, versions, several processes, documents without search fields.

use std::sync::atomic::Ordering;

use serde_json::json;

use super::*;
use crate::{
    ErrorKind,
    conformance::documents::{Author, id, model, names as found_names, task},
    documents::{Query, Stored},
    model::{Event, Filter, Model, Offset, Timestamp, filter::Condition},
};

impl Engine {
    /// Another process that uses the same documents.
    async fn second(&self) -> Arc<ElasticsearchDocuments> {
        open(&self.options).await
    }

    fn bulks(&self) -> u64 {
        self.documents.inner.client.figures.bulks.load(Ordering::Relaxed)
    }

    async fn statistics(&self) -> Value {
        self.documents.statistics().await.expect("statistics")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_one_bulk() {
    let engine = Engine::start().await;
    let mut author = Author::defined(&engine, "a").await;
    author.put("x0", json!({})).await;
    let before = engine.bulks();
    let requests = engine.documents.inner.client.figures.requests.load(Ordering::Relaxed);
    let mut events = Vec::new();
    for n in 0..500 {
        let document = author.document(&format!("x{n}"), json!({ "title": "t", "priority": n }));
        events.push(author.put_event(document));
    }
    let entries = author.log(events).await;
    engine.documents.apply(&author.app, &entries).await.expect("applied");
    assert_eq!(engine.bulks() - before, 1);
    // Whoever applied the entry before asks nothing else.
    assert_eq!(engine.documents.inner.client.figures.requests.load(Ordering::Relaxed) - requests, 1);
    assert_eq!(author.found(json!({ "priority": { "$gte": 490 } })).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_text_finds_documents_with_all_the_words() {
    let engine = Engine::start().await;
    let mut author = Author::defined(&engine, "a").await;
    author
        .put("a", json!({ "title": "The quick Fox", "notes": "jumps over", "due": "2026-01-01T00:00:00.000Z" }))
        .await;
    author.put("b", json!({ "title": "a fox", "tags": ["lazy dog", "quick"] })).await;
    author.put("c", json!({ "meta": { "place": { "name": "quick-fox Street" } }, "priority": 7 })).await;
    author.delete("c").await;
    for (text, expected) in [
        ("fox quick", vec!["a", "b"]),
        ("FOX jumps", vec!["a"]),
        ("fox dog", vec!["b"]),
        ("street", vec![]),
        ("2026", vec![]),
        ("fo", vec![]),
        ("?!", vec![]),
    ] {
        let query = Query { text: Some(text.into()), count: true, ..author.query(json!({})) };
        let found = engine.documents.search(query).await.expect("found");
        assert_eq!(found_names(&found), expected, "{text}");
        assert_eq!(found.total, Some(expected.len() as u64), "{text}");
    }
    let both = Query { text: Some("fox".into()), ..author.query(json!({ "tags": "quick" })) };
    assert_eq!(found_names(&engine.documents.search(both).await.expect("found")), ["b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_index_takes_is_stored_and_found_all_the_same() {
    let engine = Engine::start().await;
    let mut author = Author::defined(&engine, "a").await;
    let long = "x".repeat(40_000);
    author.put("b", json!({ "title": "short", "priority": 2 })).await;
    author.put("a", json!({ "title": long, "priority": 1 })).await;
    author.put("d", json!({ "title": "short", "priority": 4 })).await;
    author.put("c", json!({ "title": format!("{long}y"), "priority": 3 })).await;
    assert_eq!(author.get("a").await, Some(Stored::Live(author.live[&id("a")].clone())));
    assert_eq!(author.found(json!({})).await, ["a", "b", "c", "d"]);
    assert_eq!(author.found(json!({ "title": { "$prefix": "xx" } })).await, ["a", "c"]);
    assert_eq!(author.found(json!({ "title": long })).await, ["a"]);
    assert_eq!(author.found(json!({ "title": { "$ne": "short" }, "priority": { "$gt": 1 } })).await, ["c"]);
    assert_eq!(author.sorted(&[("priority", true)]).await, ["d", "c", "b", "a"]);
    // Page by page they are in their places, too.
    let mut query = Query { limit: 1, count: true, ..author.query(json!({})) };
    let mut seen = Vec::new();
    loop {
        let found = engine.documents.search(query.clone()).await.expect("found");
        assert_eq!(found.total, Some(4));
        seen.extend(found_names(&found));
        query.cursor = found.cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["a", "b", "c", "d"]);
    assert_eq!(engine.statistics().await["bareDocuments"], 2);
    author.put("a", json!({ "title": "short" })).await;
    author.delete("c").await;
    assert_eq!(author.found(json!({ "title": "short" })).await, ["a", "b", "d"]);
    assert_eq!(engine.statistics().await["storedBare"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_refused_is_stored_and_the_others_are_indexed() {
    let engine = Engine::start().await;
    let mut author = Author::defined(&engine, "a").await;
    author.put("x", json!({})).await;
    // Somebody else has changed the mapping: numbers of a field are refused there.
    let index = engine.documents.inner.applications.known(&author.app).await.expect("known").application.models
        [&task()]
        .index
        .clone();
    let odd = json!({ "properties": { "f": { "properties": { "number-odd": { "type": "boolean" } } } } });
    engine.call(Method::PUT, &format!("/{index}/_mapping"), Body::json(&odd)).await;
    let fields =
        Model::parse(&json!({ "odd": { "type": "number", "filterable": true } })).expect("a model").filterable();
    let known = |application: &mut super::super::applications::Application| application.define(&task(), &fields, true);
    engine.documents.inner.applications.change(&author.app, known).await.expect("changed");
    let mut events = Vec::new();
    for (name, of) in [("a", json!({ "odd": 5 })), ("b", json!({})), ("c", json!({ "odd": 7 }))] {
        let document = author.document(name, of);
        events.push(author.put_event(document));
    }
    let entries = author.log(events).await;
    engine.documents.apply(&author.app, &entries).await.expect("applied");
    assert_eq!(author.found(json!({})).await, ["a", "b", "c", "x"]);
    let statistics = engine.statistics().await;
    assert_eq!((&statistics["bareDocuments"], &statistics["storedBare"]), (&json!(2), &json!(2)));
    assert_eq!(author.get("a").await, Some(Stored::Live(author.live[&id("a")].clone())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_sees_what_this_one_did() {
    let engine = Engine::start().await;
    let other = engine.second().await;
    let mut author = Author::new(&engine, "a");
    let condition = |filter: Value| Filter::parse(&filter, &model(), true).expect("a filter").condition().clone();
    let query = |author: &Author<'_, Engine>, filter| Query { condition: condition(filter), ..author.query(json!({})) };
    assert_eq!(other.get(&author.app, &task(), &[id("x")]).await.expect("got"), [None]);
    assert!(other.search(query(&author, json!({}))).await.expect("found").documents.is_empty());
    engine.documents.define(&author.app, &task(), &model().filterable()).await.expect("defined");
    for n in 0..4 {
        author.put("x", json!({ "priority": n })).await;
        let live = Stored::Live(author.live[&id("x")].clone());
        assert_eq!(other.get(&author.app, &task(), &[id("x")]).await.expect("got"), [Some(live)]);
        let found = other.search(query(&author, json!({ "priority": n }))).await.expect("found");
        assert_eq!(found_names(&found), ["x"]);
        assert_eq!(other.count(&author.app, &task()).await.expect("counted"), 1);
    }
    engine.documents.drop_application(&author.app).await.expect("dropped");
    assert_eq!(other.get(&author.app, &task(), &[id("x")]).await.expect("got"), [None]);
    assert_eq!(other.count(&author.app, &task()).await.expect("counted"), 0);
    let error = other.search(query(&author, json!({ "priority": 3 }))).await.expect_err("nothing is defined");
    assert_eq!(error.kind, ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_writer_changes_nothing_when_it_wakes() {
    let engine = Engine::start().await;
    let paused = engine.second().await;
    let mut author = Author::defined(&engine, "a").await;
    let first = author.put("x", json!({ "title": "1" })).await;
    paused.apply(&author.app, &first).await.expect("applied");
    let document = author.document("x", json!({ "title": "2" }));
    let event = author.put_event(document);
    let late = author.log(vec![event]).await;
    // What it was about to apply, its successor applied, and more.
    engine.documents.apply(&author.app, &late).await.expect("applied");
    author.put("x", json!({ "title": "3", "priority": 1 })).await;
    paused.apply(&author.app, &late).await.expect("applied");
    assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
    assert_eq!(author.found(json!({ "priority": 1 })).await, ["x"]);
    author.delete("x").await;
    paused.apply(&author.app, &late).await.expect("applied");
    assert_eq!(author.get("x").await, Some(Stored::Deleted { version: 4 }));
    // Nor does it bring back an application that is gone: not even its index.
    engine.documents.drop_application(&author.app).await.expect("dropped");
    paused.apply(&author.app, &late).await.expect("applied");
    assert_eq!(author.get("x").await, None);
    assert_eq!(engine.documents.count(&author.app, &task()).await.expect("counted"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_that_nobody_applied_is_void_once_there_is_a_later_one() {
    let engine = Engine::start().await;
    let mut author = Author::defined(&engine, "a").await;
    let event = |author: &mut Author<'_, Engine>, name: &str| {
        let document = author.document(name, json!({}));
        author.put_event(document)
    };
    author.resume((Offset::new(5, 1), Default::default(), Default::default()));
    let of_five = event(&mut author, "five");
    let of_five = author.log(vec![of_five]).await;
    author.resume((Offset::new(9, 0), Default::default(), Default::default()));
    author.put("nine", json!({})).await;
    engine.documents.apply(&author.app, &of_five).await.expect("passed over");
    assert_eq!(author.found(json!({})).await, ["nine"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tombstones_go_when_the_log_is_past_them() {
    let engine = Engine::start().await;
    let mut author = Author::defined(&engine, "a").await;
    for name in ["gone", "again", "there"] {
        author.put(name, json!({})).await;
    }
    author.delete("gone").await;
    author.delete("again").await;
    author.put("again", json!({})).await;
    author.found(json!({})).await;
    // Entries are a second apart, from 1970 on.
    let at = |seconds: i64| Timestamp::from_ms(seconds * 1_000).expect("a time");
    assert_eq!(engine.documents.inner.expire_deletes(at(3_600)).await.expect("expired"), 0);
    assert_eq!(author.get("gone").await, Some(Stored::Deleted { version: 2 }));
    assert_eq!(engine.documents.inner.expire_deletes(at(3_700)).await.expect("expired"), 1);
    assert_eq!(author.get("gone").await, None);
    assert_eq!(author.found(json!({})).await, ["again", "there"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_at_the_same_time_share_a_refresh() {
    let engine = Engine::start().await;
    let mut author = Author::defined(&engine, "a").await;
    author.put("x", json!({})).await;
    author.found(json!({})).await;
    let requests = || engine.documents.inner.client.figures.requests.load(Ordering::Relaxed);
    let before = requests();
    let searches = (0..50).map(|_| engine.documents.search(author.query(json!({}))));
    for found in futures_util::future::join_all(searches).await {
        assert_eq!(found_names(&found.expect("found")), ["x"]);
    }
    // A search each, and rounds of a refresh and a look at the application: one that is on its way, and one for all who wait.
    assert!(requests() - before <= 50 + 2 * 3, "{}", requests() - before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_documents_are_indexed_by_a_new_field_while_the_writer_goes_on() {
    let engine = Engine::start().await;
    let mut author = Author::new(&engine, "a");
    for part in 0..5 {
        let mut events = Vec::new();
        for n in 0..400 {
            let document = author.document(&format!("x{part}-{n}"), json!({ "priority": n }));
            events.push(author.put_event(document));
        }
        let entries = author.log(events).await;
        engine.documents.apply(&author.app, &entries).await.expect("applied");
    }
    let field = crate::conformance::documents::field("priority");
    engine.documents.define(&author.app, &task(), &[field]).await.expect("defined");
    let begun = tokio::time::Instant::now();
    let mut n_written = 0;
    loop {
        author.put(&format!("x0-{}", n_written % 400), json!({ "priority": -1 })).await;
        n_written += 1;
        let shares = engine.documents.indexing(&author.app, &task()).await.expect("progress");
        if shares.is_empty() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{shares:?}");
    }
    let total = async |filter: Value| {
        let query = Query { limit: 0, count: true, ..author.query(filter) };
        engine.documents.search(query).await.expect("found").total
    };
    assert_eq!(total(json!({ "priority": -1 })).await, Some(n_written.min(400)));
    assert_eq!(total(json!({ "priority": { "$exists": true } })).await, Some(2_000));
    assert_eq!(total(json!({ "priority": 399 })).await, Some(if n_written >= 400 { 4 } else { 5 }));
    assert_eq!(author.get("x4-7").await, Some(Stored::Live(author.live[&id("x4-7")].clone())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_removes_is_made_again() {
    let engine = Engine::start().await;
    let mut author = Author::defined(&engine, "a").await;
    author.put("x", json!({ "priority": 1 })).await;
    let known = engine.documents.inner.applications.known(&author.app).await.expect("known");
    let index = known.application.models[&task()].index.clone();
    engine.call(Method::DELETE, &format!("/{index}"), Body::None).await;
    assert_eq!(author.get("x").await, None);
    assert!(author.found(json!({ "priority": 1 })).await.is_empty());
    author.put("y", json!({ "priority": 1 })).await;
    assert_eq!(author.found(json!({ "priority": 1 })).await, ["y"]);
    let mapping = engine.call(Method::GET, &format!("/{index}/_mapping"), Body::None).await;
    assert_eq!(mapping[&index]["mappings"]["_meta"], json!({ "app": "a", "model": "task" }));
    assert_eq!(mapping[&index]["mappings"]["dynamic"], "false");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_recovered_from() {
    let engine = Engine::start().await;
    let mut author = Author::defined(&engine, "a").await;
    author.put("x", json!({ "priority": 1 })).await;
    let known = engine.documents.inner.applications.known(&author.app).await.expect("known");
    let settings = format!("/{}/_settings", known.application.models[&task()].index);
    // What Elasticsearch does to indices when the disk is nearly full.
    let block = |on: Value| Body::json(&json!({ "index.blocks.read_only_allow_delete": on }));
    engine.call(Method::PUT, &settings, block(json!(true))).await;
    let document = author.document("y", json!({ "priority": 1 }));
    let event = author.put_event(document);
    let Event::Created { .. } = event else { panic!("not new") };
    let entries = author.log(vec![event]).await;
    let error = engine.documents.apply(&author.app, &entries).await.expect_err("full");
    assert_eq!(error.kind, ErrorKind::DiskFull, "{error}");
    assert!(error.is_transient());
    assert_eq!(author.found(json!({ "priority": 1 })).await, ["x"]);
    engine.call(Method::PUT, &settings, block(Value::Null)).await;
    engine.documents.apply(&author.app, &entries).await.expect("applied");
    assert_eq!(author.found(json!({ "priority": 1 })).await, ["x", "y"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_too_large_for_one_answer_come_in_parts() {
    let engine = Engine::start().await;
    let mut author = Author::defined(&engine, "a").await;
    let large = "x y ".repeat(1 << 20); // 4 MiB
    for n in 0..20 {
        author.put(&format!("x{n:02}"), json!({ "notes": large })).await;
    }
    let ids: Vec<_> = author.live.keys().cloned().collect();
    let got = engine.documents.get(&author.app, &task(), &ids).await.expect("got");
    assert!(got.iter().zip(author.live.values()).all(|(got, live)| *got == Some(Stored::Live(live.clone()))));
    let mut query = Query { condition: Condition::All, ..author.query(json!({})) };
    let mut seen = Vec::new();
    loop {
        let found = engine.documents.search(query.clone()).await.expect("found");
        seen.extend(found_names(&found));
        query.cursor = found.cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ids.iter().map(|id| id.as_str()).collect::<Vec<_>>());
}
