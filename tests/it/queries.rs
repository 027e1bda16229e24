//! Reading: by query in both spellings, page by page, and what was just written.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Answer, Server, User};

/// The tasks that reading and writing are tested on.
pub(crate) fn schema() -> Value {
    json!({ "task": {
        "title": { "type": "string" },
        "priority": { "type": "number", "filterable": true },
        "due": { "type": "date", "filterable": true },
        "tags": { "type": "array", "arrayType": "string", "filterable": true },
        "meta": { "type": "object", "properties": {
            "note": { "type": "string" }, "color": { "type": "string" }, "size": { "type": "number" },
        } },
    }})
}

async fn query(user: &User, pairs: &[(&str, &str)]) -> Answer {
    user.send(user.request(Method::GET, "/model/task").query(pairs)).await
}

fn titles(body: &Value) -> Vec<String> {
    let items = body["items"].as_array().expect("items");
    items.iter().map(|item| item["title"].as_str().expect("a title").to_owned()).collect()
}

/// Ten tasks; the tenth has neither priority nor date.
async fn ten_tasks(user: &User) -> String {
    let mut change = String::new();
    for number in 0..10 {
        let mut task = json!({ "title": format!("t{number}"), "tags": [format!("g{}", number % 2)] });
        task["meta"] = json!({ "note": "n", "size": number });
        if number < 9 {
            task["priority"] = json!(number % 3);
            task["due"] = json!(format!("2026-01-0{}T00:00:00Z", number + 1));
        }
        change = user.create("task", task).await.1;
    }
    change
}

#[tokio::test]
async fn a_query_means_the_same_in_the_address_and_in_a_body() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let change = ten_tasks(&anna).await;
    anna.send(anna.request(Method::GET, "/model/task").header("nxx-after", &change)).await.expect(StatusCode::OK);
    for (pairs, body, expected) in [
        (vec![("sort", "-priority,due")], json!({ "sort": ["-priority", "due"] }), "t2 t5 t8 t1 t4 t7 t0 t3 t6 t9"),
        (vec![("sort", "due"), ("limit", "3")], json!({ "sort": "due", "limit": 3 }), "t0 t1 t2"),
        (
            vec![("sort", "-due"), ("limit", "10")],
            json!({ "sort": "-due", "limit": 10 }),
            "t8 t7 t6 t5 t4 t3 t2 t1 t0 t9",
        ),
        (
            vec![("filter", r#"{"priority":{"$gte":1},"tags":"g0"}"#), ("sort", "due")],
            json!({ "filter": { "priority": { "$gte": 1 }, "tags": "g0" }, "sort": "due" }),
            "t2 t4 t8",
        ),
        (vec![("filter", r#"{"priority":null}"#)], json!({ "filter": { "priority": { "$exists": false } } }), "t9"),
        (
            vec![("filter", r#"{"due":{"$lt":"2026-01-02T01:00:00+01:00"}}"#)],
            json!({ "filter": { "due": { "lt": 1767312000 } } }),
            "t0",
        ),
        (vec![("filter", r#"{"$or":[]}"#)], json!({ "filter": { "or": [] } }), ""),
    ] {
        let in_address = query(&anna, &pairs).await.expect(StatusCode::OK);
        assert_eq!(titles(&in_address).join(" "), expected, "{pairs:?}");
        let in_body = anna.call(Method::POST, "/model/task/search", body.clone()).await.expect(StatusCode::OK);
        assert_eq!(in_body["items"], in_address["items"], "{body}");
    }
}

#[tokio::test]
async fn pages_follow_one_another_without_a_gap() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let change = ten_tasks(&anna).await;
    anna.send(anna.request(Method::GET, "/model/task").header("nxx-after", &change)).await.expect(StatusCode::OK);
    for sort in ["priority", "-priority,due", "-due", "id", "createdAt"] {
        let all = titles(&query(&anna, &[("sort", sort)]).await.expect(StatusCode::OK));
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let mut pairs = vec![("sort", sort), ("limit", "3"), ("count", "true")];
            if !cursor.is_empty() {
                pairs.push(("cursor", cursor.as_str()));
            }
            let page = query(&anna, &pairs).await.expect(StatusCode::OK);
            assert_eq!(page["total"], 10, "{sort}");
            seen.extend(titles(&page));
            match page["cursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(seen, all, "{sort}");
    }
    let page = query(&anna, &[("limit", "3")]).await.expect(StatusCode::OK);
    let cursor = page["cursor"].as_str().expect("a cursor");
    for pairs in [[("sort", "due"), ("cursor", cursor)], [("limit", "3"), ("cursor", "nonsense")]] {
        let refused = query(&anna, &pairs).await;
        assert_eq!(refused.body["errors"][0]["path"], "/cursor", "{}", refused.body);
        assert_eq!(refused.problem(400), "malformed");
    }
}

#[tokio::test]
async fn fields_and_counts_are_as_asked() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let change = ten_tasks(&anna).await;
    anna.send(anna.request(Method::GET, "/model/task").header("nxx-after", &change)).await.expect(StatusCode::OK);
    let some =
        query(&anna, &[("fields", "title,meta.size"), ("sort", "due"), ("limit", "1")]).await.expect(StatusCode::OK);
    let item = some["items"][0].as_object().expect("an object");
    assert_eq!((&item["title"], &item["meta"]), (&json!("t0"), &json!({ "size": 0 })));
    assert!(!item.contains_key("priority") && item["version"] == 1, "{item:?}");
    let none = query(&anna, &[("limit", "0"), ("count", "true")]).await.expect(StatusCode::OK);
    assert_eq!((&none["items"], &none["total"]), (&json!([]), &json!(10)));
    let uncounted = query(&anna, &[]).await.expect(StatusCode::OK);
    assert!(uncounted.get("total").is_none() && uncounted.get("cursor").is_none());
    for (name, value, kind, path) in [
        ("filter", "{", "malformed", "/filter"),
        ("filter", r#"{"title":"x"}"#, "invalid-filter", "/filter/title"),
        ("filter", r#"{"nothing":"x"}"#, "invalid-filter", "/filter/nothing"),
        ("filter", r#"{"priority":{"$in":[1,null]}}"#, "invalid-filter", "/filter/priority/$in/1"),
        ("sort", "title", "malformed", "/sort"),
        ("sort", "tags", "malformed", "/sort"),
        ("limit", "1001", "malformed", "/limit"),
        ("limit", "x", "malformed", "/limit"),
        ("fields", "nothing", "malformed", "/fields"),
        ("count", "maybe", "malformed", "/count"),
        ("q", "words", "malformed", "/q"),
        ("order", "x", "malformed", "/order"),
    ] {
        let refused = query(&anna, &[(name, value)]).await;
        assert_eq!(refused.body["errors"][0]["path"], path, "{name}={value}: {}", refused.body);
        assert_eq!(refused.problem(400), kind, "{name}={value}");
    }
    assert_eq!(anna.call(Method::GET, "/model/nothing", Value::Null).await.problem(404), "not-found");
    assert_eq!(anna.call(Method::GET, "/model/a.b", Value::Null).await.problem(400), "malformed");
}

/// Each write is followed by a read that names it; the read shows it, by id and by query, whichever way.
#[tokio::test]
async fn who_wrote_reads_what_was_written() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    for number in 0..20 {
        let title = format!("round{number}");
        let (id, change) = anna.create("task", json!({ "title": title, "priority": number })).await;
        let after = |method: Method, path: String| anna.request(method, &path).header("nxx-after", &change);
        let read = anna.send(after(Method::GET, format!("/model/task/{id}"))).await.expect(StatusCode::OK);
        assert_eq!((&read["title"], &read["version"]), (&json!(title), &json!(1)));
        let filter = json!({ "filter": { "priority": number } });
        let found =
            anna.send(after(Method::POST, "/model/task/search".into()).json(&filter)).await.expect(StatusCode::OK);
        assert_eq!(titles(&found), std::slice::from_ref(&title));
        let body = json!({ "model": "task", "getOnly": true, "filter": { "priority": number } });
        let got = anna.send(after(Method::POST, "/subscription".into()).json(&body)).await.expect(StatusCode::OK);
        assert_eq!(titles(&got), [title]);
        let change = anna.delete("task", &id).await;
        assert_eq!(anna.get_after("task", &id, &change).await.problem(404), "not-found");
        let request = anna.request(Method::POST, "/model/task/search").header("nxx-after", &change).json(&filter);
        assert_eq!(titles(&anna.send(request).await.expect(StatusCode::OK)), [""; 0]);
    }
    for bad in ["nonsense", "", "ffffffff-0000000000000001"] {
        assert_eq!(anna.get_after("task", "x", bad).await.problem(400), "invalid-offset", "{bad}");
    }
}

#[tokio::test]
async fn a_read_after_a_write_holds_across_a_crash() {
    let mut server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let (id, change) = anna.create("task", json!({ "title": "kept" })).await;
    server.kill();
    server.restart().await;
    let anna = User { app: server.again(&app), ..anna };
    assert_eq!(anna.get_after("task", &id, &change).await.expect(StatusCode::OK)["title"], "kept");
    // A change that nobody wrote never comes.
    let unknown = anna.get_after("task", &id, "01ARZ3NDEKTSV4RRFFQ69G5FAV").await;
    assert_eq!(unknown.problem(504), "timeout");
}
