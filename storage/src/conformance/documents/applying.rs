//! Promises of `apply` and `get`: what is stored under a key.

use super::*;

pub async fn get_shows_what_was_applied(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    assert_eq!(author.get("x").await, None);
    for step in 0..4 {
        author.put("x", json!({ "title": step })).await;
        let stored = author.get("x").await;
        assert_eq!(stored, Some(Stored::Live(author.live[&id("x")].clone())));
        subject.stir(step).await;
        assert_eq!(author.get("x").await, stored);
    }
}

pub async fn get_answers_in_the_order_asked_for(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.put("old", json!({})).await;
    author.put("gone", json!({})).await;
    author.delete("gone").await;
    subject.stir(0).await;
    author.put("new", json!({})).await;
    let ids = ["new", "none", "old", "gone", "new"].map(id);
    let found = author.documents.get(&author.app, &task(), &ids).await.expect("looked up");
    let live = |name: &str| Some(Stored::Live(author.live[&id(name)].clone()));
    assert_eq!(found, [live("new"), None, live("old"), Some(Stored::Deleted { version: 2 }), live("new")]);
    assert_eq!(author.documents.get(&author.app, &task(), &[]).await.expect("looked up"), []);
}

pub async fn documents_come_back_as_they_were(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    let of = json!({
        "title": "ä\u{0}\u{10ffff}\"\\", "priority": 0.1, "notes": "x".repeat(100_000),
        "meta": { "place": { "name": "" } }, "tags": ["", "a"], "marks": [], "numbers": [5, 5.5, -0.30000000000000004,
        9_007_199_254_740_992_u64, -9_007_199_254_740_992_i64, 5e-324, 1.7976931348623157e308], "done": false,
    });
    let mut document = author.document("~a@+=-._", of);
    document.user = None;
    author.put_document(document.clone()).await;
    for step in 0..3 {
        assert_eq!(author.get("~a@+=-._").await, Some(Stored::Live(document.clone())));
        let found = author.documents.search(query(&author.app, Condition::All)).await.expect("found");
        assert_eq!(found.documents, [document.clone()]);
        subject.stir(step).await;
    }
}

pub async fn models_and_applications_are_kept_apart(subject: impl Subject) {
    let other = ModelName::parse("task-2").expect("a name");
    for app in ["a", "a.b", "A"] {
        let mut author = Author::new(&subject, app);
        author.put("x", json!({ "in": app })).await;
        let document = Document { model: other.clone(), ..author.document("y", json!({})) };
        author.put_document(document).await;
    }
    for step in 0..3 {
        for app in ["a", "a.b", "A"].map(app_id) {
            let found = subject.documents().search(query(&app, Condition::All)).await.expect("found");
            assert_eq!(names(&found), ["x"]);
            assert_eq!(found.documents[0].fields["in"], app.as_str());
            assert_eq!(subject.documents().get(&app, &other, &[id("x")]).await.expect("looked up"), [None]);
            assert_eq!(subject.documents().count(&app, &other).await.expect("counted"), 1);
        }
        subject.stir(step).await;
    }
}

pub async fn entries_of_one_call_are_applied_in_order(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    let mut events = Vec::new();
    for n in 0..3 {
        let document = author.document("x", json!({ "title": n }));
        events.push(author.put_event(document));
    }
    events.push(author.delete_event("x"));
    let document = author.document("x", json!({ "title": "again" }));
    events.push(author.put_event(document));
    let document = author.document("y", json!({}));
    events.push(author.put_event(document));
    events.push(author.delete_event("y"));
    author.apply(events).await;
    assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
    assert_eq!(author.live[&id("x")].version, 5);
    assert_eq!(author.get("y").await, Some(Stored::Deleted { version: 2 }));
}

pub async fn entries_that_change_no_document_are_passed_over(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.put("x", json!({})).await;
    let concerned = Some(Concerned { model: task(), id: id("x") });
    author
        .apply(vec![
            Event::Unchanged { document: concerned.clone() },
            Event::Rejected { document: concerned, device: None, problem: Problem::new(ProblemKind::Conflict, "no") },
            Event::Defined { definition: json!({ "schema": {} }), before: None },
            Event::UserChanged { user: UserId::parse("u").expect("an id"), before: None, after: None },
        ])
        .await;
    subject.stir(0).await;
    assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
    assert_eq!(author.documents.count(&author.app, &task()).await.expect("counted"), 1);
    assert_eq!(author.documents.apply(&author.app, &[]).await.ok(), Some(()));
}

pub async fn applying_again_changes_nothing(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    let mut entries = author.put("x", json!({ "title": 1 })).await;
    entries.extend(author.put("y", json!({ "title": 1 })).await);
    entries.extend(author.put("x", json!({ "title": 2 })).await);
    entries.extend(author.delete("y").await);
    for step in 0..4 {
        author.documents.apply(&author.app, &entries).await.expect("applied");
        assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
        assert_eq!(author.get("y").await, Some(Stored::Deleted { version: 2 }));
        assert_eq!(author.documents.count(&author.app, &task()).await.expect("counted"), 1);
        subject.stir(step).await;
    }
}

pub async fn an_older_entry_changes_nothing(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for step in 0..3 {
        let name = format!("x{step}");
        let first = author.put(&name, json!({ "title": 1 })).await;
        subject.stir(step).await;
        author.put(&name, json!({ "title": 2 })).await;
        author.documents.apply(&author.app, &first).await.expect("applied");
        assert_eq!(author.get(&name).await, Some(Stored::Live(author.live[&id(&name)].clone())));
        subject.stir(step + 1).await;
        author.documents.apply(&author.app, &first).await.expect("applied");
        assert_eq!(author.get(&name).await, Some(Stored::Live(author.live[&id(&name)].clone())));
        author.delete(&name).await;
        subject.stir(step + 2).await;
        author.documents.apply(&author.app, &first).await.expect("applied");
        assert_eq!(author.get(&name).await, Some(Stored::Deleted { version: 3 }));
    }
    // An entry that comes late is not older than what is stored of its document.
    let document = author.document("late", json!({}));
    let event = author.put_event(document);
    let late = author.log(vec![event]).await;
    author.put("other", json!({})).await;
    subject.stir(0).await;
    author.documents.apply(&author.app, &late).await.expect("applied");
    assert_eq!(author.get("late").await, Some(Stored::Live(author.live[&id("late")].clone())));
}

pub async fn a_later_epoch_is_newer(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    author.tail = Offset::new(1, 40);
    let old = author.put("x", json!({ "title": 1 })).await;
    author.tail = Offset::new(2, 0);
    author.put("x", json!({ "title": 2 })).await;
    for step in 0..3 {
        author.documents.apply(&author.app, &old).await.expect("applied");
        assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
        subject.stir(step).await;
    }
}

pub async fn a_deleted_document_is_remembered_with_its_version(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for step in 0..3 {
        let name = format!("x{step}");
        author.put(&name, json!({})).await;
        author.put(&name, json!({ "title": "x" })).await;
        subject.stir(step).await;
        author.delete(&name).await;
        for step in 0..3 {
            assert_eq!(author.get(&name).await, Some(Stored::Deleted { version: 3 }));
            assert!(author.found(json!({})).await.is_empty());
            subject.stir(step).await;
        }
    }
}

pub async fn an_id_that_is_created_again_is_live(subject: impl Subject) {
    let mut author = Author::new(&subject, "a");
    for step in 0..6 {
        author.put("x", json!({ "title": step })).await;
        subject.stir(step).await;
        assert_eq!(author.get("x").await, Some(Stored::Live(author.live[&id("x")].clone())));
        assert_eq!(author.found(json!({})).await, ["x"]);
        author.delete("x").await;
        subject.stir(step / 2).await;
        assert!(author.found(json!({})).await.is_empty());
    }
    assert_eq!(author.get("x").await, Some(Stored::Deleted { version: 12 }));
}
