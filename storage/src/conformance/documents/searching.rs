//! Promises of `search` and `count`: what is found.

use super::*;

pub async fn search_sees_everything_that_was_applied(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..30 {
        author.put(&format!("x{n:02}"), json!({ "priority": n % 3 })).await;
        if n % 4 == 3 {
            author.delete(&format!("x{:02}", n - 2)).await;
        }
        if n % 5 == 4 {
            author.put(&format!("x{:02}", n - 4), json!({ "priority": 7 })).await;
        }
        let matching = |priority: i64| -> Vec<String> {
            let live = author.live.values().filter(|document| document.fields["priority"] == priority);
            live.map(|document| document.id.to_string()).collect()
        };
        for priority in [0, 1, 7] {
            assert_eq!(author.found(json!({ "priority": priority })).await, matching(priority));
        }
        if n % 3 == 0 {
            subject.stir(n / 3).await;
        }
    }
}

pub async fn search_sees_only_the_newest_version(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for step in 0..9 {
        author.put("x", json!({ "title": format!("t{step}") })).await;
        if step % 2 == 0 {
            subject.stir(step / 2).await;
        }
        for old in 0..=step {
            let found = author.found(json!({ "title": format!("t{old}") })).await;
            assert_eq!(found.len(), usize::from(old == step), "t{old} at step {step}");
        }
        let all = author.documents.search(Query { count: true, ..author.query(json!({})) }).await.expect("found");
        assert_eq!((all.documents.len(), all.total), (1, Some(1)));
    }
}

pub async fn filters_mean_the_same_as_on_documents(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    let documents = [
        json!({ "title": "", "priority": 5, "tags": [], "done": true, "due": "2026-01-01T00:00:00.000Z" }),
        json!({ "title": "todo", "priority": 5.5, "tags": ["a", "b"], "marks": [1, 2.5], "done": false }),
        json!({ "title": "todo list", "priority": -1, "meta": { "place": { "name": "Zürich" } } }),
        json!({ "title": "\u{ffff}", "priority": 1e-7, "due": "2026-06-01T12:30:00.500Z", "notes": "n" }),
        json!({ "title": "\u{10000}", "priority": 9_007_199_254_740_992_u64, "tags": ["2026-01-01T00:00:00Z", "5"] }),
        json!({ "title": "2026-01-01T00:00:00Z", "meta": {} }),
        json!({}),
    ];
    let filters = [
        json!({}),
        json!({ "title": "" }),
        json!({ "title": null }),
        json!({ "title": { "$prefix": "todo" } }),
        json!({ "title": { "$prefix": "" } }),
        json!({ "title": { "$gt": "todo", "$lte": "\u{ffff}" } }),
        json!({ "title": { "$gte": "\u{ffff}" } }),
        json!({ "title": "2026-01-01T00:00:00Z" }),
        json!({ "title": { "$ne": "todo" } }),
        json!({ "priority": 5.0 }),
        json!({ "priority": { "$gt": 5 } }),
        json!({ "priority": { "$lt": 0.5, "$gt": -1 } }),
        json!({ "priority": { "$in": [5.5, -1, 7] } }),
        json!({ "priority": { "$nin": [5.5, -1, 7] } }),
        json!({ "priority": 9_007_199_254_740_992_u64 }),
        json!({ "tags": { "$exists": true } }),
        json!({ "tags": { "$contains": "b" } }),
        json!({ "tags": "5" }),
        json!({ "tags": { "$ne": "a" } }),
        json!({ "marks": 2.5 }),
        json!({ "done": true }),
        json!({ "done": { "$ne": true } }),
        json!({ "due": { "$gte": "2026-01-01T01:00:00+01:00" } }),
        json!({ "due": 1_767_225_600 }),
        json!({ "meta.place.name": { "$prefix": "Zü" } }),
        json!({ "$not": { "meta.place.name": { "$exists": true } } }),
        json!({ "$or": [{ "title": "todo" }, { "done": true }, { "$not": { "priority": { "$exists": true } } }] }),
        json!({ "$and": [{ "$or": [] }] }),
        json!({ "$not": { "$or": [] } }),
        json!({ "$not": { "$not": { "title": "todo" } } }),
        json!({ "id": "x1" }),
        json!({ "id": { "$in": ["x1", "x2", "y"] } }),
        json!({ "id": { "$gt": "x2", "$lt": "x5" } }),
        json!({ "id": { "$prefix": "x" } }),
        json!({ "type": "task", "appId": { "$ne": "b" } }),
        json!({ "type": "tasks" }),
        json!({ "userId": "u1" }),
        json!({ "userId": null }),
        json!({ "userId": { "$prefix": "u" } }),
        json!({ "version": 1 }),
        json!({ "version": { "$gt": 1 } }),
        json!({ "createdAt": { "$lte": 100 } }),
        json!({ "updatedAt": { "$gt": 103 } }),
    ];
    for (n, of) in documents.into_iter().enumerate() {
        let mut document = author.document(&format!("x{n}"), of);
        document.user = document.user.filter(|_| n % 2 == 0);
        author.put_document(document).await;
        if n % 2 == 1 {
            subject.stir(n / 2).await;
        }
    }
    for step in 0..3 {
        for filter in &filters {
            let condition = author.query(filter.clone()).condition;
            let matching = author.live.values().filter(|document| condition.matches(document));
            let matching: Vec<_> = matching.map(|document| document.id.to_string()).collect();
            assert_eq!(author.found(filter.clone()).await, matching, "{filter}");
        }
        subject.stir(step).await;
    }
}

pub async fn count_is_of_live_documents(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for n in 0..12 {
        author.put(&format!("x{}", n % 9), json!({ "title": n })).await;
        if n % 4 == 3 && n < 9 {
            author.delete(&format!("x{}", n - 2)).await;
        }
        subject.stir(n).await;
        let count = author.documents.count(&author.app, &task()).await.expect("counted");
        assert_eq!(count, author.live.len() as u64);
    }
    assert_eq!(author.documents.count(&app_id("b"), &task()).await.expect("counted"), 0);
}

pub async fn statistics_are_an_object(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.put("x", json!({})).await;
    let statistics = author.documents.statistics().await.expect("statistics");
    assert!(statistics.is_object(), "{statistics}");
}

pub async fn a_limit_of_zero_gives_a_count_only(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..7 {
        author.put(&format!("x{n}"), json!({ "done": n % 2 == 0 })).await;
        subject.stir(n).await;
    }
    let nothing = Query { limit: 0, ..author.query(json!({ "done": true })) };
    assert_eq!(author.documents.search(nothing.clone()).await.expect("found"), Found::default());
    let counted = author.documents.search(Query { count: true, ..nothing }).await.expect("found");
    assert_eq!(counted, Found { total: Some(4), ..Found::default() });
}

pub async fn the_total_is_that_of_all_pages(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..9 {
        author.put(&format!("x{n}"), json!({ "priority": n })).await;
        subject.stir(n).await;
    }
    author.put("x8", json!({ "priority": 1 })).await;
    author.delete("x2").await;
    let sort = vec![Sort { field: field("priority"), descending: true }];
    let mut query = Query { limit: 2, count: true, sort, ..author.query(json!({ "priority": { "$lt": 8 } })) };
    let mut pages = Vec::new();
    loop {
        let found = author.documents.search(query.clone()).await.expect("found");
        assert_eq!(found.total, Some(8));
        pages.push(names(&found).concat());
        query.cursor = found.cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, ["x7x6", "x5x4", "x3x1", "x8x0"]);
}
