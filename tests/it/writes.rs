//! Writes: patches in three notations, preconditions, judged on what was accepted, read by who wrote.

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{App, Server, User, http_client};

fn schema() -> Value {
    let mut schema = crate::queries::schema();
    schema["task"]["status"] = json!({ "type": "string", "filterable": true, "default": "todo" });
    schema
}

async fn prepared(server: &Server) -> (App, User) {
    let app = server.app("tasks", schema(), json!({ "task": { "read": "user" } })).await;
    let anna = app.user("anna").await;
    (app, anna)
}

/// Patches a document; gives it as it is then.
async fn patched(user: &User, id: &str, media_type: &str, patch: Value) -> Value {
    let request = user
        .request(Method::PATCH, &format!("/model/task/{id}"))
        .header("content-type", media_type)
        .body(patch.to_string());
    let answer = user.send(request).await;
    assert_eq!(answer.headers["location"], *format!("/model/task/{id}"), "{}", answer.body);
    let change = answer.headers["nxx-change-id"].to_str().expect("a text").to_owned();
    let body = answer.expect(StatusCode::ACCEPTED);
    assert_eq!(body, json!({ "id": id, "changeId": change }));
    user.get_after("task", id, &change).await.expect(StatusCode::OK)
}

#[tokio::test]
async fn a_document_has_its_fields_and_what_every_document_has() {
    let server = Server::start().await;
    let (_, anna) = prepared(&server).await;
    let body = json!({ "id": "t-1", "title": "one", "due": 0, "priority": 2.0, "meta": { "color": null, "size": 1 } });
    let answer = anna.call(Method::POST, "/model/task", body).await;
    assert_eq!(answer.headers["location"], "/model/task/t-1");
    let change = answer.headers["nxx-change-id"].to_str().expect("a text").to_owned();
    assert_eq!(answer.expect(StatusCode::ACCEPTED), json!({ "id": "t-1", "changeId": change }));
    let answer = anna.get_after("task", "t-1", &change).await;
    let etag = answer.headers["etag"].clone();
    let mut document = answer.expect(StatusCode::OK);
    let times = document.as_object_mut().expect("an object");
    assert_eq!(times.remove("createdAt"), times.remove("updatedAt"));
    assert_eq!(
        document,
        json!({
            "id": "t-1", "type": "task", "appId": "tasks", "userId": anna.id, "version": 1, "title": "one", "priority": 2,
            "due": "1970-01-01T00:00:00.000Z", "meta": { "size": 1 }, "status": "todo",
        })
    );
    let known = anna.request(Method::GET, "/model/task/t-1").header("if-none-match", etag);
    assert_eq!(anna.send(known).await.status, StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn patches_in_three_notations() {
    let server = Server::start().await;
    let (_, anna) = prepared(&server).await;
    let (id, _) = anna.create("task", json!({ "title": "one", "priority": 1, "tags": ["b"] })).await;
    let nexxus = json!([
        { "op": "incr", "path": ["priority", "meta.size"], "value": [2, 5] },
        { "op": "append", "path": ["title", "tags"], "value": ["!", "c"] },
        { "op": "prepend", "path": ["tags"], "value": [["x", "a"]] },
        { "op": "replace", "path": ["meta.color"], "value": ["red"] },
    ]);
    let document = patched(&anna, &id, "application/json", nexxus).await;
    assert_eq!(document["title"], "one!");
    assert_eq!(document["priority"], 3);
    assert_eq!(document["tags"], json!(["x", "a", "b", "c"]));
    assert_eq!(document["meta"], json!({ "color": "red", "size": 5 }));
    assert_eq!(document["version"], 2);

    let json_patch = json!([
        { "op": "test", "path": "/priority", "value": 3 },
        { "op": "replace", "path": "/title", "value": "two" },
        { "op": "remove", "path": "/tags/0" },
        { "op": "copy", "from": "/meta/color", "path": "/status" },
        { "op": "add", "path": "/tags/-", "value": "d" },
    ]);
    let document = patched(&anna, &id, "application/json-patch+json", json_patch).await;
    assert_eq!((&document["title"], &document["status"]), (&json!("two"), &json!("red")));
    assert_eq!(document["tags"], json!(["a", "b", "c", "d"]));

    let merge = json!({ "meta": { "color": null }, "due": "2026-01-31T12:00:00+01:00", "tags": ["e"] });
    let document = patched(&anna, &id, "application/merge-patch+json; charset=utf-8", merge).await;
    assert_eq!(document["meta"], json!({ "size": 5 }));
    assert_eq!(document["due"], "2026-01-31T11:00:00.000Z");
    assert_eq!((&document["tags"], &document["version"]), (&json!(["e"]), &json!(4)));

    // What changes nothing makes no version, and its change counts as applied.
    let same = json!([{ "op": "replace", "path": ["due"], "value": ["2026-01-31T11:00:00Z"] }]);
    let document = patched(&anna, &id, "application/json", same).await;
    assert_eq!(document["version"], 4);
    let empty = patched(&anna, &id, "application/json-patch+json", json!([])).await;
    assert_eq!(empty["version"], 4);
}

#[tokio::test]
async fn preconditions_hold_or_nothing_changes() {
    let server = Server::start().await;
    let (_, anna) = prepared(&server).await;
    let (id, change) = anna.create("task", json!({ "id": "t", "title": "one" })).await;
    let answer = anna.get_after("task", &id, &change).await;
    let etag = answer.headers["etag"].to_str().expect("a text").to_owned();
    let write = |method: Method, condition: String| {
        let request = anna.request(method.clone(), "/model/task/t").header("if-match", condition);
        let body = json!([{ "op": "append", "path": ["title"], "value": ["+"] }]);
        anna.send(if method == Method::PATCH { request.json(&body) } else { request })
    };
    write(Method::PATCH, etag.clone()).await.expect(StatusCode::ACCEPTED);
    for condition in [etag.as_str(), "1", "\"1\"", "\"other\"", "7"] {
        assert_eq!(write(Method::PATCH, condition.to_owned()).await.problem(412), "precondition-failed", "{condition}");
        assert_eq!(
            write(Method::DELETE, condition.to_owned()).await.problem(412),
            "precondition-failed",
            "{condition}"
        );
    }
    write(Method::PATCH, "2".to_owned()).await.expect(StatusCode::ACCEPTED);
    write(Method::PATCH, "*".to_owned()).await.expect(StatusCode::ACCEPTED);
    let deleted = write(Method::DELETE, "\"4\"".to_owned()).await.expect(StatusCode::ACCEPTED);
    assert_eq!(deleted["id"], "t");
    assert_eq!(write(Method::DELETE, "*".to_owned()).await.problem(404), "not-found");

    // The id again: the version goes on, and an ETag of its former life names nothing.
    let (_, change) = anna.create("task", json!({ "id": "t", "title": "again" })).await;
    let document = anna.get_after("task", "t", &change).await.expect(StatusCode::OK);
    assert_eq!(document["version"], 6);
}

#[tokio::test]
async fn a_write_is_judged_on_what_was_accepted() {
    let server = Server::start().await;
    let (app, anna) = prepared(&server).await;
    let ben = app.user("ben").await;
    // Each write follows its 202 at once, many side by side, so that some meet the writer still at work.
    let stories = (0..40).map(|number| {
        let (anna, ben) = (&anna, &ben);
        async move {
            let id = format!("t{number}");
            anna.create("task", json!({ "id": id, "title": "one", "priority": number })).await;
            let taken = anna.call(Method::POST, "/model/task", json!({ "id": id })).await;
            assert_eq!(taken.problem(409), "exists");
            anna.replace("task", &id, "priority", json!(100)).await;
            let test = anna
                .request(Method::PATCH, &format!("/model/task/{id}"))
                .header("content-type", "application/json-patch+json")
                .body(
                    r#"[{"op":"test","path":"/priority","value":100},{"op":"replace","path":"/title","value":"two"}]"#,
                );
            anna.send(test).await.expect(StatusCode::ACCEPTED);
            let second = anna.request(Method::DELETE, &format!("/model/task/{id}")).header("if-match", "3");
            let refused = ben.call(Method::DELETE, &format!("/model/task/{id}"), Value::Null).await;
            assert_eq!(refused.problem(403), "forbidden");
            anna.send(second).await.expect(StatusCode::ACCEPTED);
            let patch = json!([{ "op": "remove", "path": ["title"] }]);
            let gone = anna.call(Method::PATCH, &format!("/model/task/{id}"), patch).await;
            assert_eq!(gone.problem(404), "not-found");
            anna.create("task", json!({ "id": id, "title": "again" })).await;
        }
    });
    join_all(stories).await;
}

#[tokio::test]
async fn who_wrote_reads_what_was_written() {
    let server = Server::start().await;
    let (_, anna) = prepared(&server).await;
    let writes = (0..50).map(|number| {
        let anna = &anna;
        async move {
            let (id, change) = anna.create("task", json!({ "title": "x", "priority": number })).await;
            let path = format!("/model/task?filter={{\"priority\":{number}}}&count=true");
            let found = anna.send(anna.request(Method::GET, &path).header("nxx-after", &change)).await;
            let found = found.expect(StatusCode::OK);
            assert_eq!((&found["total"], &found["items"][0]["id"]), (&json!(1), &json!(id)));
            let body = json!({ "filter": { "priority": number }, "fields": ["priority"] });
            let search = anna.request(Method::POST, "/model/task/search").header("nxx-after", &change).json(&body);
            let found = anna.send(search).await.expect(StatusCode::OK);
            assert_eq!(found["items"][0]["priority"], number);
            assert_eq!(found["items"][0].get("title"), None);
        }
    });
    join_all(writes).await;
}

#[tokio::test]
async fn a_change_says_what_became_of_it() {
    let server = Server::start().await;
    let (app, anna) = prepared(&server).await;
    let (id, change) = anna.create("task", json!({ "title": "x" })).await;
    anna.get_after("task", &id, &change).await.expect(StatusCode::OK);
    let shown = anna.call(Method::GET, &format!("/changes/{change}"), Value::Null).await.expect(StatusCode::OK);
    assert_eq!((&shown["state"], &shown["changeId"]), (&json!("applied"), &json!(change)));
    let second = anna.replace("task", &id, "title", json!("y")).await;
    anna.get_after("task", &id, &second).await.expect(StatusCode::OK);
    let later = anna.call(Method::GET, &format!("/changes/{second}"), Value::Null).await.expect(StatusCode::OK);
    assert!(later["offset"].as_str() > shown["offset"].as_str());
    // An offset is taken where a change id is.
    let offset = later["offset"].as_str().expect("an offset");
    let read = anna.get_after("task", &id, offset).await.expect(StatusCode::OK);
    assert_eq!(read["title"], "y");
    let other = server.app("other", schema(), json!({})).await;
    let answer = other.admin().call(Method::GET, &format!("/changes/{change}"), Value::Null).await;
    assert_eq!(answer.problem(404), "not-found", "nothing crosses applications");
    drop(app);
}

#[tokio::test]
async fn admins_write_for_others_and_past_the_rules() {
    let server = Server::start().await;
    let rules = json!({ "task": { "create": "none", "update": "none", "delete": "none", "read": "owner" } });
    let app = server.app("tasks", schema(), rules).await;
    let (anna, admin) = (app.user("anna").await, app.admin());
    let refused = anna.call(Method::POST, "/model/task", json!({ "title": "x" })).await;
    assert_eq!(refused.problem(403), "forbidden");
    let (of_anna, _) = admin.create("task", json!({ "title": "x", "userId": anna.id })).await;
    let (of_nobody, change) = admin.create("task", json!({ "title": "x" })).await;
    let nobodys = admin.get_after("task", &of_nobody, &change).await.expect(StatusCode::OK);
    assert_eq!(nobodys.get("userId"), None);
    let annas = anna.get_after("task", &of_anna, &change).await.expect(StatusCode::OK);
    assert_eq!(annas["userId"], json!(anna.id));
    let hidden = format!("/model/task/{of_nobody}");
    assert_eq!(anna.call(Method::GET, &hidden, Value::Null).await.problem(404), "not-found");
    let patch = json!([{ "op": "remove", "path": ["title"] }]);
    assert_eq!(anna.call(Method::PATCH, &hidden, patch.clone()).await.problem(404), "not-found");
    assert_eq!(anna.call(Method::DELETE, &hidden, Value::Null).await.problem(404), "not-found");
    let visible = format!("/model/task/{of_anna}");
    assert_eq!(anna.call(Method::PATCH, &visible, patch).await.problem(403), "forbidden");
    admin.replace("task", &of_anna, "title", json!("y")).await;
    admin.delete("task", &of_nobody).await;
    // The admin hands a document over.
    let given = json!([{ "op": "remove", "path": ["userId"] }]);
    admin.call(Method::PATCH, &visible, given).await.expect(StatusCode::ACCEPTED);
    assert_eq!(
        anna.call(Method::PATCH, &visible, json!([{ "op": "remove", "path": ["title"] }])).await.problem(404),
        "not-found"
    );
}

#[tokio::test]
async fn operators_see_how_it_is() {
    let server = Server::start().await;
    let (_, anna) = prepared(&server).await;
    anna.create("task", json!({ "title": "x" })).await;
    let anonymous = http_client();
    let get = |path: &str| anna.send(anonymous.get(format!("{}{path}", server.url)));
    assert_eq!(get("/healthz").await.expect(StatusCode::OK), json!({ "status": "ok" }));
    assert_eq!(get("/readyz").await.expect(StatusCode::OK), json!({ "status": "ready", "disk": "ample" }));
    assert_eq!(get("/version").await.expect(StatusCode::OK)["name"], "nexxus");
    let metrics = get("/metrics").await.expect(StatusCode::OK);
    let counted = r#"nexxus_http_requests_total{route="/model/{type}",status="202"} 1"#;
    assert!(metrics.as_str().is_some_and(|text| text.contains(counted)), "{metrics}");
    for path in ["/", "/console", "/console/", "/console/console.js", "/console/console.css"] {
        let answer = get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        let policy = answer.headers["content-security-policy"].to_str().expect("a text");
        assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
    }
    let queues = server.admin(Method::GET, "/admin/queues", Value::Null).await.expect(StatusCode::OK);
    let names: Vec<_> = queues["items"].as_array().expect("a list").iter().map(|queue| &queue["name"]).collect();
    assert!(names.contains(&&json!("writer")) && names.contains(&&json!("transport-manager")), "{names:?}");
    assert!(queues["items"].as_array().expect("a list").iter().all(|queue| queue["dead"] == 0));
    let dead = server.admin(Method::GET, "/admin/queues/writer/dead", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(dead, json!({ "items": [] }));
    for action in ["retry", "drop"] {
        let path = format!("/admin/queues/writer/dead/{action}");
        let answer = server.admin(Method::POST, &path, json!({ "all": true })).await;
        answer.expect(StatusCode::OK);
    }
}
