//! Promises of what lasts: fields that become filterable, applications that go, crashes.

use super::*;

pub async fn fields_of_an_empty_model_are_ready_at_once(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    let fields = model().filterable();
    author.documents.define(&author.app, &task(), &fields).await.expect("defined");
    assert!(author.found(json!({ "title": "x" })).await.is_empty());
    author.put("x", json!({ "title": "x" })).await;
    assert_eq!(author.found(json!({ "title": "x" })).await, ["x"]);
    assert_eq!(author.documents.indexing(&author.app, &task()).await.expect("progress"), []);
    // Saying it again changes nothing.
    subject.stir(0).await;
    author.documents.define(&author.app, &task(), &fields).await.expect("defined");
    assert_eq!(author.found(json!({ "title": "x" })).await, ["x"]);
}

pub async fn a_field_that_nobody_defined_is_unavailable(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.put("x", json!({ "title": "x" })).await;
    subject.stir(0).await;
    let by_filter = author.query(json!({ "$or": [{ "id": "x" }, { "$not": { "title": "x" } }] }));
    let by_sort = Query { sort: vec![Sort { field: field("title"), descending: false }], ..author.query(json!({})) };
    for query in [by_filter, by_sort] {
        let error = author.documents.search(query).await.expect_err("an error");
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.to_string().contains("title"), "{error}");
    }
}

/// Waits until all fields of a model are indexed; nothing else than `Unavailable` may come before.
async fn until_indexed<S: Subject>(author: &Author<'_, S>, filter: Value) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let indexing = author.documents.indexing(&author.app, &task()).await.expect("progress");
        assert!(indexing.iter().all(|(_, share)| (0.0..=1.0).contains(share)), "{indexing:?}");
        match author.documents.search(author.query(filter.clone())).await {
            Ok(found) => return names(&found),
            Err(error) => assert_eq!(error.kind, ErrorKind::Unavailable, "{error}"),
        }
        assert!(begun.elapsed() < PATIENCE, "{indexing:?} is not done");
        author.subject.stir(0).await;
        sleep(Duration::from_millis(5)).await;
    }
}

pub async fn a_new_field_is_indexed_for_stored_documents(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.documents.define(&author.app, &task(), &[field("title")]).await.expect("defined");
    for n in 0..50 {
        author.put(&format!("x{n:02}"), json!({ "title": "t", "priority": n % 10, "tags": ["a"] })).await;
    }
    subject.stir(0).await;
    author.documents.define(&author.app, &task(), &model().filterable()).await.expect("defined");
    // What was filterable stays so.
    assert_eq!(author.found(json!({ "title": "t" })).await.len(), 50);
    let found = until_indexed(&author, json!({ "priority": 3, "tags": "a" })).await;
    assert_eq!(found, ["x03", "x13", "x23", "x33", "x43"]);
    assert_eq!(author.documents.indexing(&author.app, &task()).await.expect("progress"), []);
    assert_eq!(author.get("x03").await, Some(Stored::Live(author.live[&id("x03")].clone())));
}

pub async fn documents_applied_meanwhile_have_the_new_field(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for n in 0..20 {
        author.put(&format!("x{n:02}"), json!({ "priority": 1 })).await;
        subject.stir(n).await;
    }
    author.documents.define(&author.app, &task(), &model().filterable()).await.expect("defined");
    for n in 0..5 {
        author.put(&format!("y{n:02}"), json!({ "priority": 1 })).await;
        author.put(&format!("x{n:02}"), json!({ "priority": 2 })).await;
        author.delete(&format!("x{:02}", n + 10)).await;
        subject.stir(n).await;
    }
    let found = until_indexed(&author, json!({ "priority": 1 })).await;
    let expected = ["x05", "x06", "x07", "x08", "x09", "x15", "x16", "x17", "x18", "x19"];
    assert_eq!(found, [&expected[..], &["y00", "y01", "y02", "y03", "y04"]].concat());
    assert_eq!(author.found(json!({ "priority": 2 })).await, ["x00", "x01", "x02", "x03", "x04"]);
    assert_eq!(author.documents.count(&author.app, &task()).await.expect("counted"), 20);
}

pub async fn a_field_of_another_type_is_a_new_field(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.documents.define(&author.app, &task(), &[field("priority")]).await.expect("defined");
    author.put("number", json!({ "priority": 5 })).await;
    author.put("text", json!({ "priority": "5" })).await;
    subject.stir(0).await;
    let model = Model::parse(&json!({ "priority": { "type": "string", "filterable": true } })).expect("a model");
    author.documents.define(&author.app, &task(), &model.filterable()).await.expect("defined");
    let error = author.documents.search(author.query(json!({ "priority": 5 }))).await.expect_err("an error");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    let condition = Filter::parse(&json!({ "priority": "5" }), &model, true).expect("a filter").condition().clone();
    let begun = Instant::now();
    while let Err(error) = author.documents.search(query(&author.app, condition.clone())).await {
        assert!(error.kind == ErrorKind::Unavailable && begun.elapsed() < PATIENCE, "{error}");
        subject.stir(0).await;
        sleep(Duration::from_millis(5)).await;
    }
    // What is not of the field's type is as good as missing.
    let found = author.documents.search(query(&author.app, condition)).await.expect("found");
    assert_eq!(names(&found), ["text"]);
}

pub async fn a_dropped_application_is_gone_at_once(subject: impl Subject) {
    for step in 0..3 {
        let name = format!("a{step}");
        let mut author = Author::defined(&subject, &name).await;
        let mut other = Author::defined(&subject, &format!("a{step}.x")).await;
        let old = author.put("old", json!({ "title": "t" })).await;
        other.put("old", json!({ "title": "t" })).await;
        author.put("gone", json!({})).await;
        author.delete("gone").await;
        subject.stir(step).await;
        author.put("new", json!({ "title": "t" })).await;
        subject.stir(step + 1).await;
        author.documents.drop_application(&author.app).await.expect("dropped");
        for step in 0..3 {
            let found = author.documents.get(&author.app, &task(), &["old", "gone", "new"].map(id)).await;
            assert_eq!(found.expect("looked up"), [None, None, None]);
            assert_eq!(author.documents.count(&author.app, &task()).await.expect("counted"), 0);
            assert_eq!(other.found(json!({ "title": "t" })).await, ["old"]);
            // What comes late is void.
            author.documents.apply(&author.app, &old).await.expect("applied");
            subject.stir(step).await;
        }
    }
}

pub async fn a_dropped_application_can_be_made_again(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for step in 0..4 {
        author.put("x", json!({ "title": "t" })).await;
        author.put(&format!("y{step}"), json!({ "title": "t" })).await;
        subject.stir(step).await;
        author.documents.drop_application(&author.app).await.expect("dropped");
        author.tail = Offset::new(step as u32 + 2, 0);
        author.live.clear();
        author.versions.clear();
        author.documents.define(&author.app, &task(), &model().filterable()).await.expect("defined");
        author.put("x", json!({ "title": "again" })).await;
        for step in 0..3 {
            assert_eq!(until_indexed(&author, json!({ "title": "again" })).await, ["x"]);
            assert_eq!(author.found(json!({})).await, ["x"]);
            assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
            assert_eq!(author.get(&format!("y{step}")).await, None);
            subject.stir(step).await;
        }
    }
}

pub async fn what_was_applied_survives_a_crash(mut subject: impl Subject) {
    let mut written = (Offset::new(1, 0), BTreeMap::new(), BTreeMap::new());
    for round in 0..4 {
        let mut author = Author::defined(&subject, "a").await;
        author.resume(written);
        for n in 0..40 {
            let name = format!("x{:02}", (n * 7 + round) % 30);
            if n % 5 == 4 && author.live.contains_key(&id(&name)) {
                author.delete(&name).await;
            } else {
                author.put(&name, json!({ "priority": n, "title": format!("round {round}") })).await;
            }
            if n % 10 == round {
                subject.stir(n / 10).await;
            }
        }
        written = author.written();
        drop(author);
        subject.crash().await;
        let author = Author::new(&subject, "a");
        for (id, version) in &written.2 {
            let live = written.1.get(id).cloned().map(Stored::Live);
            let expected = live.unwrap_or(Stored::Deleted { version: *version });
            assert_eq!(author.get(id.as_str()).await, Some(expected), "{id} after round {round}");
        }
        let live: Vec<_> = written.1.keys().map(DocumentId::to_string).collect();
        assert_eq!(author.found(json!({ "priority": { "$gte": 0 } })).await, live);
    }
}

pub async fn fields_survive_a_crash(mut subject: impl Subject) {
    drop(Author::defined(&subject, "a").await.put("x", json!({ "title": "t" })).await);
    for _ in 0..2 {
        subject.crash().await;
        let author = Author::new(&subject, "a");
        assert_eq!(author.found(json!({ "title": "t" })).await, ["x"]);
    }
}

pub async fn indexing_goes_on_after_a_crash(mut subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for n in 0..50 {
        author.put(&format!("x{n:02}"), json!({ "priority": n })).await;
    }
    subject.stir(0).await;
    author.documents.define(&author.app, &task(), &[field("priority")]).await.expect("defined");
    drop(author);
    subject.crash().await;
    let author = Author::new(&subject, "a");
    assert_eq!(until_indexed(&author, json!({ "priority": { "$lt": 3 } })).await, ["x00", "x01", "x02"]);
}

pub async fn a_drop_survives_a_crash(mut subject: impl Subject) {
    for step in 0..3 {
        let name = format!("a{step}");
        let mut author = Author::new(&subject, &name);
        author.put("old", json!({})).await;
        subject.stir(step).await;
        author.put("new", json!({})).await;
        author.documents.drop_application(&author.app).await.expect("dropped");
        author.tail = Offset::new(2, 0);
        author.live.clear();
        author.versions.clear();
        author.put("again", json!({})).await;
        drop(author);
        subject.crash().await;
        let author = Author::new(&subject, &name);
        assert_eq!(author.found(json!({})).await, ["again"]);
        assert_eq!(author.get("old").await, None);
        assert_eq!(author.get("new").await, None);
    }
}
