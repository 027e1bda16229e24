//! Promises of order and pages.

use super::*;

pub async fn sorting_goes_by_value_then_id(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    let documents = [("a", 2, "y"), ("b", 1, "z"), ("c", 2, "x"), ("d", 10, "x"), ("e", -3, "y"), ("f", 2, "x")];
    for (n, (name, priority, title)) in documents.into_iter().enumerate() {
        author.put(name, json!({ "priority": priority, "title": title })).await;
        if n % 2 == 1 {
            subject.stir(n / 2).await;
        }
    }
    for step in 0..3 {
        for (sort, order) in [
            (&[][..], "abcdef"),
            (&[("priority", false)], "ebacfd"),
            (&[("priority", true)], "dacfbe"),
            (&[("title", false), ("priority", true)], "dcfaeb"),
            (&[("title", true), ("priority", false), ("id", true)], "beafcd"),
            (&[("createdAt", false)], "abcdef"),
            (&[("updatedAt", true)], "fedcba"),
            (&[("type", true), ("userId", true), ("version", true)], "abcdef"),
        ] {
            assert_eq!(author.sorted(sort).await.concat(), order, "{sort:?}");
        }
        subject.stir(step).await;
    }
    let sort = vec![Sort { field: field("id"), descending: false }; 100];
    let error = author.documents.search(Query { sort, ..author.query(json!({})) }).await;
    assert!(error.is_ok() || error.is_err_and(|error| error.kind == ErrorKind::Invalid));
}

pub async fn documents_without_the_sort_field_come_last(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for (n, name) in ["e", "d", "c", "b", "a"].into_iter().enumerate() {
        let of = if n % 2 == 0 {
            json!({ "priority": n, "title": "t", "due": format!("2026-01-0{}T00:00:00.000Z", n + 1) })
        } else {
            json!({})
        };
        author.put(name, of).await;
        subject.stir(n).await;
    }
    for step in 0..3 {
        for path in ["priority", "due"] {
            assert_eq!(author.sorted(&[(path, false)]).await.concat(), "ecabd", "{path}");
            assert_eq!(author.sorted(&[(path, true)]).await.concat(), "acebd", "{path}");
        }
        assert_eq!(author.sorted(&[("title", true)]).await.concat(), "acebd");
        assert_eq!(author.sorted(&[("done", true)]).await.concat(), "abcde");
        subject.stir(step).await;
    }
}

pub async fn strings_sort_by_code_point(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    let titles = ["", "\u{0}", "10", "9", "A", "a", "a\u{0}", "aa", "z", "ä", "\u{ffff}", "\u{10000}"];
    for n in [7, 3, 11, 0, 5, 9, 1, 2, 10, 4, 8, 6] {
        author.put(&format!("x{n:02}"), json!({ "title": titles[n] })).await;
        if n % 3 == 0 {
            subject.stir(n / 3).await;
        }
    }
    let ascending: Vec<_> = (0..titles.len()).map(|n| format!("x{n:02}")).collect();
    for step in 0..3 {
        assert_eq!(author.sorted(&[("title", false)]).await, ascending);
        let descending: Vec<_> = ascending.iter().rev().cloned().collect();
        assert_eq!(author.sorted(&[("title", true)]).await, descending);
        subject.stir(step).await;
    }
}

pub async fn arrays_sort_by_their_first_element_in_the_direction(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for (n, (name, marks)) in
        [("a", json!([5, 1])), ("b", json!([3])), ("c", json!([2, 9])), ("d", json!([]))].into_iter().enumerate()
    {
        author.put(name, json!({ "marks": marks })).await;
        subject.stir(n).await;
    }
    for step in 0..3 {
        assert_eq!(author.sorted(&[("marks", false)]).await.concat(), "acbd");
        assert_eq!(author.sorted(&[("marks", true)]).await.concat(), "cabd");
        subject.stir(step).await;
    }
}

pub async fn pages_end_without_a_cursor(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..4 {
        author.put(&format!("x{n}"), json!({})).await;
        subject.stir(n).await;
    }
    for (limit, has_more) in [(1, true), (3, true), (4, false), (5, false), (usize::MAX, false)] {
        let found = author.documents.search(Query { limit, ..author.query(json!({})) }).await.expect("found");
        assert_eq!((found.documents.len(), found.cursor.is_some()), (limit.min(4), has_more), "{limit}");
    }
}

pub async fn a_cursor_is_of_one_query(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..4 {
        author.put(&format!("x{n}"), json!({ "priority": n, "title": "t" })).await;
    }
    let sort = |path| vec![Sort { field: field(path), descending: false }];
    let first = Query { limit: 1, sort: sort("priority"), ..author.query(json!({ "title": "t" })) };
    let cursor = author.documents.search(first.clone()).await.expect("found").cursor;
    let following = Query { limit: 2, cursor: cursor.clone(), ..first.clone() };
    assert_eq!(names(&author.documents.search(following).await.expect("found")), ["x1", "x2"]);
    let other_filter = author.query(json!({ "title": { "$ne": "u" } })).condition;
    let condition = first.condition.clone();
    let model = ModelName::parse("other").expect("a name");
    for (what, other) in [
        ("filter", Query { condition: other_filter, ..first.clone() }),
        ("sort", Query { sort: sort("title"), ..first.clone() }),
        ("direction", Query { sort: vec![Sort { descending: true, ..first.sort[0].clone() }], ..first.clone() }),
        ("application", Query { app: app_id("b"), sort: Vec::new(), condition: Condition::All, ..first.clone() }),
        ("model", Query { model, sort: Vec::new(), condition: Condition::All, ..first.clone() }),
    ] {
        let error = author.documents.search(Query { cursor: cursor.clone(), ..other }).await.expect_err(what);
        assert_eq!(error.kind, ErrorKind::Invalid, "{what}");
    }
    for garbage in ["", "x", "AAAA", "*", &cursor.unwrap_or_default()[2..]] {
        let query = Query { condition: condition.clone(), cursor: Some(garbage.to_owned()), ..first.clone() };
        let error = author.documents.search(query).await.expect_err("an error");
        assert_eq!(error.kind, ErrorKind::Invalid, "{garbage}");
    }
}

pub async fn pages_show_each_unchanged_document_once(subject: impl Subject) {
    let mut author = Author::defined(&subject, "a").await;
    for n in 0..60 {
        author.put(&format!("x{n:02}"), json!({ "priority": n % 7, "title": format!("t{}", n % 3) })).await;
    }
    for descending in [false, true] {
        let sort =
            vec![Sort { field: field("priority"), descending }, Sort { field: field("title"), descending: true }];
        let mut query = Query { limit: 4, sort, ..author.query(json!({})) };
        let mut seen = BTreeMap::<String, usize>::new();
        for step in 0.. {
            let found = author.documents.search(query.clone()).await.expect("found");
            names(&found).into_iter().for_each(|name| *seen.entry(name).or_default() += 1);
            query.cursor = found.cursor;
            if query.cursor.is_none() {
                break;
            }
            // The document that the cursor stands at goes, another moves, and the store goes on as well.
            if let Some(last) = found.documents.last().filter(|last| last.id.as_str() > "x30") {
                author.delete(last.id.as_str()).await;
            }
            author.put(&format!("y{step}"), json!({ "priority": step % 7, "title": "t1" })).await;
            author.put("x00", json!({ "priority": step % 7, "title": "t1" })).await;
            let same = author.live[&id("x01")].fields.clone();
            author.put("x01", Value::Object(same)).await;
            subject.stir(step).await;
        }
        for name in author.live.keys().filter(|id| id.as_str().starts_with('x') && id.as_str() != "x00") {
            assert_eq!(seen.get(name.as_str()), Some(&1), "{name}");
        }
    }
}
