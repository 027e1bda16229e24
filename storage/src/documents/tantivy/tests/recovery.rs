//! Crashes, full disks, full memory, documents that no index takes: nothing is lost, and what is wrong is said.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tokio::time::timeout;

use super::*;
use crate::{
    conformance::documents::{Author, id, names, task},
    documents::Sort,
    model::{Event, Offset, filter::Field},
};

/// Everything that was logged is in the index.
fn is_whole(store: &Store) -> bool {
    store.tantivy().committed() == store.journal().head()
}

async fn count_in_index(store: &Store) -> u64 {
    let statistics = store.tantivy().statistics().await.expect("statistics");
    let count = |name: &str| statistics[name].as_u64().expect("a number");
    count("documents") + count("deletesRemembered")
}

#[tokio::test]
async fn an_entry_that_was_not_applied_holds_the_journal() {
    let mut store = Store::new();
    let late = {
        let mut slow = Author::new(&store, "slow");
        let document = slow.document("x", json!({}));
        let event = Event::Created { document };
        let late = slow.log(vec![event]).await;
        let mut quick = Author::new(&store, "quick");
        for n in 0..5 {
            quick.put(&format!("x{n}"), json!({})).await;
        }
        late[0].place
    };
    store.tantivy().commit().await.expect("committed");
    assert_eq!(count_in_index(&store).await, 5);
    assert_eq!(store.tantivy().committed(), late - 1);
    // It was never applied, but the journal has it: the next start shows it, and the others once.
    store.crash().await;
    assert!(Author::new(&store, "slow").get("x").await.is_some());
    store.tantivy().commit().await.expect("committed");
    assert_eq!(count_in_index(&store).await, 6);
    assert!(is_whole(&store));
}

#[tokio::test]
async fn an_entry_that_nobody_applies_is_applied_in_the_end() {
    let store = Store::with(|indexer| indexer.with_patience(Duration::ZERO));
    let mut slow = Author::new(&store, "slow");
    let document = slow.document("x", json!({}));
    slow.log(vec![Event::Created { document: document.clone() }]).await;
    while slow.get("x").await.is_none() {
        store.tantivy().commit().await.expect("committed");
    }
    assert_eq!(slow.get("x").await, Some(Stored::Live(document)));
    store.tantivy().commit().await.expect("committed");
    assert!(is_whole(&store));
}

/// tantivy gives the first operation of a new writer the number of the last commit. A merge that began before that was committed passed
/// it over in segments of which the last commit had deleted something: the old document stayed beside the new one.
#[tokio::test]
async fn the_first_document_after_a_start_is_replaced_like_any_other() {
    let mut store = Store::new();
    let mut author = Author::new(&store, "a");
    // A large segment without deletes, and a small one of which so much is deleted that the next start merges them.
    for numbers in [0..12, 20..24, 20..22] {
        for number in numbers {
            author.put(&format!("x{number}"), json!({})).await;
        }
        // They are not merged at once, so that it is left to the next start.
        store.disk.pass_one_commit();
        store.tantivy().commit().await.expect("committed");
    }
    let written = author.written();
    drop(author);
    store.crash().await;
    let mut author = Author::new(&store, "a");
    author.resume(written);
    author.put("x23", json!({ "title": "newer" })).await;
    store.tantivy().commit().await.expect("committed");
    for number in 0..5 {
        author.put(&format!("y{number}"), json!({})).await;
        store.tantivy().commit().await.expect("committed");
    }
    assert_eq!(count_in_index(&store).await, author.live.len() as u64);
}

#[tokio::test]
async fn records_of_others_do_not_hold_the_journal() {
    let store = Store::new();
    Author::new(&store, "a").put("x", json!({})).await;
    let records = [Kind::QueueMessage, Kind::QueueState, Kind::LogState, Kind::Registry].map(|kind| (kind, vec![7]));
    let appended = store.journal().append(records.to_vec()).expect("appended");
    store.journal().durable(appended[3].sequence).await.expect("durable");
    store.tantivy().commit().await.expect("committed");
    assert!(is_whole(&store));
}

#[tokio::test]
async fn a_full_disk_loses_nothing_wherever_it_strikes() {
    for space in [0, 1, 100, 300, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000] {
        let mut store = Store::new();
        let mut author = Author::defined(&store, "a").await;
        author.put("old", json!({ "title": "before" })).await;
        author.put("gone", json!({ "title": "before" })).await;
        store.tantivy().commit().await.expect("committed");
        let committed = store.tantivy().committed();

        store.disk.limit(space);
        for n in 0..200 {
            author
                .put(&format!("x{n:03}"), json!({ "title": format!("title {}", n * 7919 % 1000), "priority": n }))
                .await;
        }
        author.put("old", json!({ "title": "after" })).await;
        author.delete("gone").await;
        let wanted = store.tantivy().shared.wish_commit();
        until(|| store.disk.failures() > 1 || store.tantivy().shared.progress().commits >= wanted).await;
        let has_failed = store.disk.failures() > 1;
        assert!(has_failed || space > 1_000, "{space} bytes were enough");
        // Readers see everything meanwhile, and the journal is kept.
        assert_eq!(author.found(json!({ "title": "after" })).await, ["old"]);
        assert_eq!(author.found(json!({})).await.len(), 201);
        if has_failed && store.tantivy().shared.progress().commits < wanted {
            assert_eq!(store.tantivy().committed(), committed);
        }

        store.disk.unlimit();
        store.tantivy().commit().await.expect("committed");
        assert!(is_whole(&store));
        let live = author.live.clone();
        drop(author);
        store.kill();
        store.open(|indexer| indexer).expect("open");
        // Nothing of this is from the journal.
        assert_eq!(store.tantivy().shared.overlay.read().documents(), 0);
        let author = Author::new(&store, "a");
        let found = author.documents.search(author.query(json!({}))).await.expect("found").documents;
        assert_eq!(found, live.into_values().collect::<Vec<_>>(), "{space} bytes");
        assert_eq!(author.get("gone").await, Some(Stored::Deleted { version: 2 }));
    }
}

#[tokio::test]
async fn a_commit_that_fails_says_so_to_who_asks_for_admission() {
    let store = Store::with_overlay(100_000);
    assert!(store.tantivy().admission().is_ok());
    store.disk.limit(0);
    let mut author = Author::new(&store, "a");
    let mut n = 0;
    while store.tantivy().admission().is_ok() {
        author.put(&format!("x{n}"), json!({ "title": "x".repeat(1_000) })).await;
        n += 1;
    }
    until(|| store.disk.failures() > 0 && store.tantivy().shared.progress().failing.is_some()).await;
    let error = store.tantivy().admission().expect_err("full");
    assert_eq!(error.kind, ErrorKind::Full);
    assert!(error.is_transient() && error.to_string().contains("cannot be written"), "{error}");
    store.disk.unlimit();
    store.tantivy().commit().await.expect("committed");
    assert!(store.tantivy().admission().is_ok());
    assert_eq!(count_in_index(&store).await, n);
}

#[tokio::test]
async fn apply_waits_while_the_overlay_is_full() {
    let store = Store::with_overlay(100_000);
    store.disk.hold_commits();
    let mut author = Author::new(&store, "a");
    let mut events = Vec::new();
    for n in 0..100 {
        let document = author.document(&format!("x{n:02}"), json!({ "title": "x".repeat(2_000) }));
        events.push(author.put_event(document));
    }
    let entries = author.log(events).await;
    let documents = store.tantivy().clone();
    let applying = tokio::spawn({
        let (documents, app) = (documents.clone(), author.app.clone());
        async move { documents.apply(&app, &entries).await }
    });
    until(|| documents.admission().is_err() && store.disk.is_holding()).await;
    assert!(documents.shared.overlay.read().bytes() <= 100_000);
    assert!(!applying.is_finished());
    store.disk.pass_commits();
    timeout(Duration::from_secs(60), applying).await.expect("in time").expect("no panic").expect("applied");
    assert_eq!(documents.count(&author.app, &task()).await.expect("counted"), 100);
    // What is larger than the overlay goes through it all the same.
    author.put("large", json!({ "title": "x".repeat(200_000) })).await;
    author.put("small", json!({})).await;
    assert_eq!(documents.count(&author.app, &task()).await.expect("counted"), 102);
}

#[tokio::test]
async fn dropping_it_in_the_middle_of_commits_loses_nothing() {
    let mut store = Store::restless();
    let mut written = (Offset::new(1, 0), Default::default(), Default::default());
    for round in 0..12_u32 {
        {
            let mut author = Author::defined(&store, "a").await;
            author.resume(written);
            for n in 0..(40 + round * 13) {
                author.put(&format!("x{:02}", n % 37), json!({ "priority": n, "title": format!("t{round}") })).await;
                if n % 11 == 3 {
                    author.delete(&format!("x{:02}", n % 37)).await;
                }
            }
            written = author.written();
        }
        store.crash().await;
        let author = Author::new(&store, "a");
        let found = author.documents.search(author.query(json!({ "priority": { "$gte": 0 } }))).await.expect("found");
        assert_eq!(found.documents, written.1.values().cloned().collect::<Vec<_>>(), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn every_search_sees_every_document_once_while_the_index_moves() {
    const DOCUMENTS: usize = 120;
    let store = Store::restless();
    let mut author = Author::defined(&store, "a").await;
    for n in 0..DOCUMENTS {
        author.put(&format!("x{n:03}"), json!({ "priority": 0 })).await;
    }
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = [false, true]
        .into_iter()
        .map(|descending| {
            let (documents, done) = (author.documents.clone(), done.clone());
            let priority = crate::conformance::documents::field("priority");
            let query = Query {
                sort: vec![Sort { field: priority, descending }],
                count: descending,
                ..author.query(json!({}))
            };
            tokio::spawn(async move {
                let mut n_searches = 0;
                while !done.load(Ordering::Relaxed) || n_searches < 50 {
                    let found = documents.search(query.clone()).await.expect("found");
                    let mut seen = names(&found);
                    seen.sort();
                    seen.dedup();
                    assert_eq!((seen.len(), found.documents.len()), (DOCUMENTS, DOCUMENTS));
                    assert_eq!(found.total, descending.then_some(DOCUMENTS as u64));
                    n_searches += 1;
                }
            })
        })
        .collect();
    for round in 1..20 {
        for n in 0..DOCUMENTS {
            author.put(&format!("x{:03}", n * 7 % DOCUMENTS), json!({ "priority": round * n % 17 })).await;
        }
        store.tantivy().commit().await.expect("committed");
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.expect("no panic");
    }
}

#[tokio::test]
async fn a_document_that_no_index_takes_is_stored_without_its_search_fields() {
    let mut store = Store::with(|indexer| indexer.with_poison("poison"));
    let mut author = Author::defined(&store, "a").await;
    for n in 0..20 {
        let title = if n % 9 == 4 { "poison" } else { "fine" };
        author.put(&format!("x{n:02}"), json!({ "title": title, "priority": n })).await;
    }
    store.tantivy().commit().await.expect("committed");
    assert!(is_whole(&store));
    let statistics = store.tantivy().statistics().await.expect("statistics");
    assert_eq!((&statistics["documents"], &statistics["bareDocuments"]), (&json!(20), &json!(2)));
    // They are found all the same, in their place.
    for _ in 0..2 {
        assert_eq!(author.found(json!({ "title": "poison" })).await, ["x04", "x13"]);
        assert_eq!(author.found(json!({ "priority": { "$gt": 2, "$lt": 6 } })).await, ["x03", "x04", "x05"]);
        assert_eq!(author.sorted(&[("priority", true)]).await[..2], ["x19", "x18"]);
        assert_eq!(author.sorted(&[("title", true), ("priority", true)]).await[..3], ["x13", "x04", "x19"]);
        assert_eq!(author.documents.count(&author.app, &task()).await.expect("counted"), 20);
        author.put("y", json!({ "title": "over it" })).await;
        author.delete("y").await;
    }
    author.put("x04", json!({ "title": "fine again" })).await;
    assert_eq!(author.found(json!({ "title": { "$ne": "fine" } })).await, ["x04", "x13"]);
    store.tantivy().commit().await.expect("committed");
    drop(author);
    store.crash().await;
    let author = Author::new(&store, "a");
    assert_eq!(author.found(json!({ "title": { "$ne": "fine" } })).await, ["x04", "x13"]);
    assert_eq!(store.tantivy().statistics().await.expect("statistics")["bareDocuments"], 1);
}

#[tokio::test]
async fn strings_that_are_too_long_for_the_index_are_compared_all_the_same() {
    let store = Store::new();
    let mut author = Author::defined(&store, "a").await;
    let long = |last: &str| format!("{}{last}", "m".repeat(80_000));
    author.put("b", json!({ "title": long("b") })).await;
    author.put("a", json!({ "title": long("a") })).await;
    author.put("c", json!({ "title": "m" })).await;
    author.put("d", json!({ "title": "z", "tags": ["x", long("t")] })).await;
    for step in 0..3 {
        assert_eq!(author.found(json!({ "title": { "$prefix": "mmm" } })).await, ["a", "b"]);
        assert_eq!(author.found(json!({ "tags": "x" })).await, ["d"]);
        assert_eq!(author.sorted(&[("title", false)]).await.concat(), "cabd");
        assert_eq!(author.sorted(&[("title", true)]).await.concat(), "dbac");
        store.stir(step).await;
    }
}

#[tokio::test]
async fn close_commits_everything_and_nothing_is_applied_after_it() {
    let mut store = Store::new();
    let mut author = Author::new(&store, "a");
    let entries = author.put("x", json!({})).await;
    store.tantivy().close().await.expect("closed");
    assert!(is_whole(&store));
    let error = author.documents.apply(&author.app, &entries).await.expect_err("an error");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(author.get("x").await.is_some(), "reading goes on");
    assert!(timeout(Duration::from_millis(20), store.tantivy().failed()).await.is_err(), "ended, and was asked to");
    store.tantivy().close().await.expect("closed twice");
    drop(author);
    store.crash().await;
    assert_eq!(store.tantivy().shared.overlay.read().documents(), 0, "nothing is left to be applied again");
    assert!(Author::new(&store, "a").get("x").await.is_some());
}

#[tokio::test]
async fn closing_on_a_full_disk_says_that_the_index_is_behind() {
    let mut store = Store::new();
    Author::new(&store, "a").put("x", json!({})).await;
    store.disk.limit(0);
    let error = store.tantivy().close().await.expect_err("an error");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    store.crash().await;
    assert!(Author::new(&store, "a").get("x").await.is_some());
}

#[tokio::test]
async fn deletes_are_forgotten_when_the_log_forgets_them() {
    let store = Store::new();
    let mut author = Author::new(&store, "a");
    for name in ["x", "y", "z"] {
        author.put(name, json!({})).await;
    }
    author.delete("x").await;
    let kept = author.delete("y").await[0].place;
    store.tantivy().commit().await.expect("committed");
    store.tantivy().forget_deletes_below(kept);
    store.tantivy().commit().await.expect("committed");
    assert_eq!(author.get("x").await, None);
    assert_eq!(author.get("y").await, Some(Stored::Deleted { version: 2 }));
    assert!(matches!(author.get("z").await, Some(Stored::Live(_))));
    assert_eq!(count_in_index(&store).await, 2);
}

#[tokio::test]
async fn full_text_is_refused_clearly() {
    let store = Store::new();
    let author = Author::new(&store, "a");
    let query = Query { text: Some("words".to_owned()), ..author.query(json!({})) };
    let error = author.documents.search(query).await.expect_err("an error");
    assert_eq!(error.kind, ErrorKind::Unsupported);
}

#[tokio::test]
async fn an_index_of_a_newer_format_or_without_a_place_is_refused() {
    for (payload, says) in [(Some(r#"{"format":2,"sequence":1}"#), "newer version"), (None, "does not say")] {
        let mut store = Store::new();
        Author::new(&store, "a").put("x", json!({})).await;
        store.tantivy().commit().await.expect("committed");
        store.kill();
        let index = Index::open_in_dir(store.dir.path().join("documents/index")).expect("an index");
        let mut writer: tantivy::IndexWriter = index.writer_with_num_threads(1, 15_000_000).expect("a writer");
        let mut commit = writer.prepare_commit().expect("prepared");
        payload.into_iter().for_each(|payload| commit.set_payload(payload));
        commit.commit().expect("committed");
        drop((writer, index));
        let error = store.open(|indexer| indexer).expect_err("an error");
        let kind = if payload.is_some() { ErrorKind::Unsupported } else { ErrorKind::Corrupt };
        assert!(error.kind == kind && error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_field_is_indexed_piece_by_piece_while_documents_come() {
    let store = Store::restless();
    let mut author = Author::new(&store, "a");
    let mut events = Vec::new();
    for n in 0..12_000 {
        let document = author.document(&format!("x{n:05}"), json!({ "priority": n % 100 }));
        events.push(author.put_event(document));
    }
    let entries = author.log(events).await;
    author.documents.apply(&author.app, &entries).await.expect("applied");
    store.tantivy().commit().await.expect("committed");
    let priority: Field = crate::conformance::documents::field("priority");
    author.documents.define(&author.app, &task(), std::slice::from_ref(&priority)).await.expect("defined");
    let mut shares = Vec::new();
    let mut n_more = 0;
    while let [(path, share)] = &author.documents.indexing(&author.app, &task()).await.expect("progress")[..] {
        assert_eq!(path, "priority");
        shares.push(*share);
        author.put(&format!("y{n_more:05}"), json!({ "priority": 7 })).await;
        n_more += 1;
    }
    assert!(shares.is_sorted_by(|left, right| left <= &(right + 0.05)), "{shares:?}");
    let all = Query { limit: usize::MAX, ..author.query(json!({ "priority": 7 })) };
    assert_eq!(author.documents.search(all).await.expect("found").documents.len(), 120 + n_more);
    assert_eq!(author.get("x00000").await, Some(Stored::Live(author.live[&id("x00000")].clone())));
}
