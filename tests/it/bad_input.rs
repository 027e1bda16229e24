//! Bad input on every route: the status, the problem's type, and the place of the fault.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Answer, App, Server, User, http_client};

fn schema() -> Value {
    json!({
        "task": {
            "title": { "type": "string", "required": true, "maxLength": 20 },
            "priority": { "type": "number", "filterable": true },
            "due": { "type": "date", "filterable": true },
            "tags": { "type": "array", "arrayType": "string", "filterable": true },
            "meta": { "type": "object", "properties": { "color": { "type": "string", "enum": ["red", "blue"] } } },
            "secret": { "type": "string", "hidden": true, "filterable": true },
            "score": { "type": "number", "readOnly": true },
        },
        "note": { "text": { "type": "string" } },
    })
}

/// A request body: JSON, or something that is not.
enum Body {
    None,
    Json(Value),
    Text(&'static str, &'static str),
}

struct Case {
    method: Method,
    path: String,
    body: Body,
    status: u16,
    slug: &'static str,
    /// Of the first fault; none where no fault has a place.
    place: Option<&'static str>,
}

fn case(method: Method, path: &str, body: Body, status: u16, slug: &'static str, place: Option<&'static str>) -> Case {
    Case { method, path: path.to_owned(), body, status, slug, place }
}

async fn check(user: &User, case: Case) {
    let Case { method, path, body, status, slug, place } = case;
    let request = user.request(method.clone(), &path);
    let (request, said) = match body {
        Body::None => (request, String::new()),
        Body::Json(body) => (request.json(&body), body.to_string()),
        Body::Text(media_type, text) => (request.header("content-type", media_type).body(text), text.to_owned()),
    };
    let Answer { status: got, headers, body } = user.send(request).await;
    let told = format!("{method} {path} {said:.200}\n→ {got} {body}");
    assert_eq!(got.as_u16(), status, "{told}");
    assert_eq!(headers["content-type"], "application/problem+json", "{told}");
    assert_eq!((&body["type"], &body["status"]), (&json!(slug), &json!(status)), "{told}");
    assert!(body["title"].as_str().is_some_and(|title| !title.is_empty()), "{told}");
    assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{told}");
    let first = body["errors"][0]["path"].as_str();
    assert_eq!(first, place, "{told}");
}

async fn prepared(server: &Server) -> (App, User, String) {
    let app = server.app("tasks", schema(), json!({ "note": { "read": "public" } })).await;
    let anna = app.user("anna").await;
    let (id, _) = anna.create("task", json!({ "title": "one", "priority": 1 })).await;
    (app, anna, id)
}

#[tokio::test]
async fn documents() {
    use Body::{Json, None as Nothing, Text};
    let server = Server::start().await;
    let (_, anna, id) = prepared(&server).await;
    let (get, post, patch, delete) = (Method::GET, Method::POST, Method::PATCH, Method::DELETE);
    let one = format!("/model/task/{id}");
    let with_title = |more: Value| {
        let mut body = json!({ "title": "x" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        Json(body)
    };
    let json_patch = "application/json-patch+json";
    let merge_patch = "application/merge-patch+json";
    for case in [
        // Creating
        case(post.clone(), "/model/nothing", Json(json!({})), 404, "not-found", None),
        case(post.clone(), "/model/9x", Json(json!({})), 400, "malformed", None),
        case(post.clone(), "/model/task", Nothing, 400, "malformed", Some("")),
        case(post.clone(), "/model/task", Text("application/json", "{"), 400, "malformed", Some("")),
        case(post.clone(), "/model/task", Json(json!([])), 400, "malformed", Some("")),
        case(post.clone(), "/model/task", Json(json!("x")), 400, "malformed", Some("")),
        case(post.clone(), "/model/task", Text("text/plain", "{}"), 415, "unsupported-media-type", None),
        case(post.clone(), "/model/task", Json(json!({})), 422, "invalid-document", Some("/title")),
        case(post.clone(), "/model/task", Json(json!({ "title": 5 })), 422, "invalid-document", Some("/title")),
        case(post.clone(), "/model/task", Json(json!({ "title": null })), 422, "invalid-document", Some("/title")),
        case(
            post.clone(),
            "/model/task",
            Json(json!({ "title": "x".repeat(21) })),
            422,
            "invalid-document",
            Some("/title"),
        ),
        case(post.clone(), "/model/task", with_title(json!({ "nope": 1 })), 422, "invalid-document", Some("/nope")),
        case(post.clone(), "/model/task", with_title(json!({ "id": "a b" })), 422, "invalid-document", Some("/id")),
        case(post.clone(), "/model/task", with_title(json!({ "id": 7 })), 422, "invalid-document", Some("/id")),
        case(post.clone(), "/model/task", with_title(json!({ "id": ".." })), 422, "invalid-document", Some("/id")),
        case(
            post.clone(),
            "/model/task",
            with_title(json!({ "userId": "ben" })),
            422,
            "invalid-document",
            Some("/userId"),
        ),
        case(
            post.clone(),
            "/model/task",
            with_title(json!({ "version": 3 })),
            422,
            "invalid-document",
            Some("/version"),
        ),
        case(
            post.clone(),
            "/model/task",
            with_title(json!({ "secret": "x" })),
            422,
            "invalid-document",
            Some("/secret"),
        ),
        case(post.clone(), "/model/task", with_title(json!({ "score": 1 })), 422, "invalid-document", Some("/score")),
        case(post.clone(), "/model/task", with_title(json!({ "due": "soon" })), 422, "invalid-document", Some("/due")),
        case(
            post.clone(),
            "/model/task",
            with_title(json!({ "priority": 9_007_199_254_740_993_u64 })),
            422,
            "invalid-document",
            Some("/priority"),
        ),
        case(
            post.clone(),
            "/model/task",
            with_title(json!({ "tags": ["a", null] })),
            422,
            "invalid-document",
            Some("/tags/1"),
        ),
        case(
            post.clone(),
            "/model/task",
            with_title(json!({ "meta": { "color": "green" } })),
            422,
            "invalid-document",
            Some("/meta/color"),
        ),
        case(post.clone(), "/model/task", with_title(json!({ "id": id })), 409, "exists", None),
        // Reading
        case(get.clone(), "/model/task/none", Nothing, 404, "not-found", None),
        case(get.clone(), "/model/task/a%20b", Nothing, 400, "malformed", None),
        case(get.clone(), "/model/task/%ff", Nothing, 400, "malformed", None),
        case(get.clone(), "/model/task?filter={", Nothing, 400, "malformed", Some("/filter")),
        case(
            get.clone(),
            "/model/task?filter={\"title\":\"x\"}",
            Nothing,
            400,
            "invalid-filter",
            Some("/filter/title"),
        ),
        case(
            get.clone(),
            "/model/task?filter={\"priority\":{\"$near\":1}}",
            Nothing,
            400,
            "invalid-filter",
            Some("/filter/priority/$near"),
        ),
        case(
            get.clone(),
            "/model/task?filter={\"secret\":\"x\"}",
            Nothing,
            400,
            "invalid-filter",
            Some("/filter/secret"),
        ),
        case(get.clone(), "/model/task?fliter={}", Nothing, 400, "malformed", Some("/fliter")),
        case(get.clone(), "/model/task?limit=many", Nothing, 400, "malformed", Some("/limit")),
        case(get.clone(), "/model/task?limit=1001", Nothing, 400, "malformed", Some("/limit")),
        case(get.clone(), "/model/task?cursor=nonsense", Nothing, 400, "malformed", Some("/cursor")),
        case(post.clone(), "/model/task/search", Text("application/json", "nope"), 400, "malformed", Some("")),
        case(post.clone(), "/model/task/search", Json(json!([])), 400, "malformed", Some("")),
        case(
            post.clone(),
            "/model/task/search",
            Json(json!({ "filter": { "$nor": [] } })),
            400,
            "invalid-filter",
            Some("/filter/$nor"),
        ),
        // Patching
        case(
            patch.clone(),
            "/model/task/none",
            Json(json!([{ "op": "remove", "path": ["due"] }])),
            404,
            "not-found",
            None,
        ),
        case(patch.clone(), &one, Json(json!([])), 400, "invalid-patch", Some("")),
        case(patch.clone(), &one, Json(json!({ "title": "x" })), 400, "invalid-patch", Some("")),
        case(
            patch.clone(),
            &one,
            Json(json!([{ "op": "rename", "path": ["a"] }])),
            400,
            "invalid-patch",
            Some("/0/op"),
        ),
        case(
            patch.clone(),
            &one,
            Json(json!([{ "op": "replace", "path": ["title"], "value": [] }])),
            400,
            "invalid-patch",
            Some("/0/value"),
        ),
        case(
            patch.clone(),
            &one,
            Json(json!([{ "op": "replace", "path": ["title"], "value": [5] }])),
            422,
            "invalid-document",
            Some("/0/value/0"),
        ),
        case(
            patch.clone(),
            &one,
            Json(json!([{ "op": "replace", "path": ["version"], "value": [5] }])),
            422,
            "invalid-document",
            Some("/0/path/0"),
        ),
        case(patch.clone(), &one, Text("application/json", "nope"), 400, "malformed", Some("")),
        case(patch.clone(), &one, Text("text/plain", "nope"), 415, "unsupported-media-type", None),
        case(patch.clone(), &one, Text(json_patch, "{}"), 400, "invalid-patch", Some("")),
        case(
            patch.clone(),
            &one,
            Text(json_patch, r#"[{"op":"add","path":"x"}]"#),
            400,
            "invalid-patch",
            Some("/0/path"),
        ),
        case(
            patch.clone(),
            &one,
            Text(json_patch, r#"[{"op":"test","path":"/title","value":"two"}]"#),
            412,
            "precondition-failed",
            Some("/0"),
        ),
        case(
            patch.clone(),
            &one,
            Text(json_patch, r#"[{"op":"remove","path":"/due"}]"#),
            409,
            "patch-conflict",
            Some("/0/path"),
        ),
        case(patch.clone(), &one, Text(merge_patch, "[]"), 400, "invalid-patch", Some("")),
        case(patch.clone(), &one, Text(merge_patch, r#"{"title":null}"#), 422, "invalid-document", Some("/title")),
        case(patch.clone(), &one, Text(merge_patch, r#"{"nope":1}"#), 422, "invalid-document", Some("/nope")),
        // Deleting
        case(delete.clone(), "/model/task/none", Nothing, 404, "not-found", None),
        case(delete.clone(), "/model/task", Nothing, 405, "method-not-allowed", None),
        // Changes
        case(get.clone(), "/changes/nonsense", Nothing, 400, "invalid-offset", None),
        case(get.clone(), "/changes/01JDZZZZZZZZZZZZZZZZZZZZZZ", Nothing, 404, "not-found", None),
        // No such route
        case(get.clone(), "/nowhere", Nothing, 404, "not-found", None),
        case(post.clone(), "/healthz", Nothing, 405, "method-not-allowed", None),
        case(get, "/console/nothing.js", Nothing, 404, "not-found", None),
    ] {
        check(&anna, case).await;
    }
    let unchanged = anna.call(Method::GET, &one, Value::Null).await.expect(StatusCode::OK);
    assert_eq!((&unchanged["title"], &unchanged["version"]), (&json!("one"), &json!(1)));
}

#[tokio::test]
async fn users_devices_subscriptions() {
    use Body::{Json, None as Nothing};
    let server = Server::start().await;
    let (_, anna, _) = prepared(&server).await;
    let (get, post, patch, delete) = (Method::GET, Method::POST, Method::PATCH, Method::DELETE);
    let device = "/device/register";
    let nobody = "/subscription/device/nobody";
    for case in [
        case(post.clone(), "/user/register", Json(json!([])), 400, "malformed", Some("")),
        case(post.clone(), "/user/register", Json(json!({})), 422, "invalid-document", Some("/username")),
        case(
            post.clone(),
            "/user/register",
            Json(json!({ "username": "anna", "password": "long-enough" })),
            409,
            "exists",
            Some("/username"),
        ),
        case(post.clone(), "/user/login", Nothing, 422, "invalid-document", Some("/username")),
        case(
            post.clone(),
            "/user/login",
            Json(json!({ "username": "anna" })),
            422,
            "invalid-document",
            Some("/password"),
        ),
        case(
            post.clone(),
            "/auth/local",
            Json(json!({ "username": "anna", "password": "wrong", "extra": 1 })),
            422,
            "invalid-document",
            Some("/extra"),
        ),
        case(
            post.clone(),
            "/user/login",
            Json(json!({ "username": "anna", "password": "wrong-password" })),
            401,
            "unauthorized",
            None,
        ),
        case(post.clone(), "/auth/refresh", Json(json!({})), 422, "invalid-document", Some("/refreshToken")),
        case(post.clone(), "/auth/refresh", Json(json!({ "refreshToken": "x" })), 401, "unauthorized", None),
        case(
            patch.clone(),
            "/user/profile",
            Json(json!({ "userType": "admin" })),
            422,
            "invalid-document",
            Some("/userType"),
        ),
        case(patch, "/user/me", Json(json!({ "id": "x" })), 422, "invalid-document", Some("/id")),
        case(post.clone(), device, Json(json!({ "id": "a/b" })), 422, "invalid-document", Some("/id")),
        case(post.clone(), device, Json(json!({ "name": 5 })), 422, "invalid-document", Some("/name")),
        case(post.clone(), device, Json(json!({ "name": "x".repeat(201) })), 422, "invalid-document", Some("/name")),
        case(post.clone(), device, Json(json!({ "keepFor": "2m" })), 422, "invalid-document", Some("/keepFor")),
        case(get.clone(), "/device/nobody", Nothing, 404, "not-found", None),
        case(delete.clone(), "/device/nobody", Nothing, 404, "not-found", None),
        case(post.clone(), "/subscription", Json(json!({})), 422, "invalid-document", Some("/model")),
        case(post.clone(), "/subscription", Json(json!("task")), 400, "malformed", Some("")),
        case(post.clone(), "/subscription", Json(json!({ "model": "nothing" })), 404, "not-found", None),
        case(
            post.clone(),
            "/subscription",
            Json(json!({ "model": "task", "filter": { "title": "x" } })),
            400,
            "invalid-filter",
            Some("/filter/title"),
        ),
        case(post.clone(), "/subscription", Json(json!([])), 400, "malformed", None),
        case(
            post.clone(),
            "/subscription",
            Json(json!([{ "model": "task" }, { "modle": "task" }])),
            422,
            "invalid-document",
            Some("/1/model"),
        ),
        case(
            post,
            "/subscription",
            Json(json!([{ "model": "task" }, { "model": "note", "filter": { "x": 1 } }])),
            400,
            "invalid-filter",
            Some("/1/filter/x"),
        ),
        case(delete, "/subscription/nothing", Nothing, 404, "not-found", None),
        case(get, nobody, Nothing, 404, "not-found", None),
    ] {
        check(&anna, case).await;
    }
    // What was asked for together with something bad was not made.
    let devices = anna.call(Method::GET, "/device", Value::Null).await.expect(StatusCode::OK);
    for device in devices["items"].as_array().expect("a list") {
        let path = format!("/subscription/device/{}", device["id"].as_str().expect("an id"));
        let held = anna.call(Method::GET, &path, Value::Null).await.expect(StatusCode::OK);
        assert_eq!(held["items"], json!([]));
    }
}

#[tokio::test]
async fn administration() {
    use Body::{Json, None as Nothing};
    let server = Server::start().await;
    let (app, anna, _) = prepared(&server).await;
    let admin = app.admin();
    let (get, post, put, patch) = (Method::GET, Method::POST, Method::PUT, Method::PATCH);
    let user = format!("/admin/users/{}", anna.id);
    let token = format!("{user}/token");
    for case in [
        case(post.clone(), "/application", Json(json!({ "id": "a" })), 422, "invalid-definition", Some("/schema")),
        case(
            post.clone(),
            "/application",
            Json(json!({ "schema": { "task": { "id": { "type": "string" } } } })),
            422,
            "invalid-definition",
            Some("/schema/task/id"),
        ),
        case(
            post.clone(),
            "/application",
            Json(json!({ "schema": { "task": {} }, "rules": { "task": { "read": { "x": 1 } } } })),
            422,
            "invalid-definition",
            Some("/rules/task/read/x"),
        ),
        case(post.clone(), "/application", Json(json!({ "id": "tasks", "schema": {} })), 409, "exists", None),
        case(get.clone(), "/application/nothing", Nothing, 404, "not-found", None),
        case(get.clone(), "/application/a%20b", Nothing, 400, "malformed", None),
        case(put.clone(), "/application/nothing", Json(json!({ "schema": {} })), 404, "not-found", None),
        case(
            put.clone(),
            "/application/tasks",
            Json(json!({ "id": "other", "schema": schema() })),
            422,
            "invalid-definition",
            Some("/id"),
        ),
        case(put.clone(), "/application/tasks?force=maybe", Json(json!({ "schema": {} })), 400, "malformed", None),
        case(put, "/application/tasks", Json(json!({ "schema": {} })), 409, "conflict", Some("/schema/task")),
        case(get.clone(), "/admin/users?limit=0", Nothing, 400, "malformed", None),
        case(get.clone(), "/admin/users?name=x", Nothing, 400, "malformed", None),
        case(get.clone(), "/admin/users/nobody", Nothing, 404, "not-found", None),
        case(
            post.clone(),
            "/admin/users",
            Json(json!({ "username": "x" })),
            422,
            "invalid-document",
            Some("/password"),
        ),
        case(patch, &user, Json(json!({ "userType": 5 })), 422, "invalid-document", Some("/userType")),
        case(post.clone(), &token, Json(json!({ "ttl": 0 })), 422, "invalid-document", Some("/ttl")),
        case(post.clone(), &token, Json(json!({ "device": "a b" })), 422, "invalid-document", Some("/device")),
        case(post.clone(), "/admin/users/nobody/disconnect", Nothing, 404, "not-found", None),
        case(get.clone(), "/admin/devices/nobody", Nothing, 404, "not-found", None),
        case(post.clone(), "/admin/devices/nobody/disconnect", Nothing, 404, "not-found", None),
        case(get.clone(), "/admin/queues/nothing/dead", Nothing, 404, "not-found", None),
        case(get.clone(), "/admin/queues/writer/dead?after=x", Nothing, 400, "malformed", None),
        case(get, "/admin/queues/writer/dead/01JDZZZZZZZZZZZZZZZZZZZZZZ", Nothing, 404, "not-found", None),
        case(post.clone(), "/admin/queues/writer/dead/retry", Json(json!({})), 422, "invalid-document", Some("/ids")),
        case(
            post,
            "/admin/queues/writer/dead/drop",
            Json(json!({ "ids": ["x"] })),
            422,
            "invalid-document",
            Some("/ids"),
        ),
    ] {
        check(&admin, case).await;
    }
}

#[tokio::test]
async fn who_asks_and_where() {
    let server = Server::start().await;
    let (app, anna, _) = prepared(&server).await;
    let client = http_client();
    let get = |path: &str, headers: &[(&str, &str)]| {
        let mut request = client.get(format!("{}{path}", server.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        anna.send(request)
    };
    let bearer = format!("Bearer {}", anna.token);
    let other = server.app("other", schema(), json!({})).await;
    let ben = other.user("ben").await;
    let of_ben = format!("Bearer {}", ben.token);
    let admin = format!("Bearer {}", server.admin_token);
    for (path, headers, status, slug) in [
        ("/model/task", vec![], 400, "malformed"),
        ("/model/task", vec![("nxx-app-id", "a b")], 400, "malformed"),
        ("/model/task", vec![("nxx-app-id", "nothing")], 404, "not-found"),
        ("/model/task", vec![("nxx-app-id", "tasks")], 401, "unauthorized"),
        ("/model/task", vec![("nxx-app-id", "tasks"), ("authorization", "Bearer nonsense")], 401, "unauthorized"),
        ("/model/task", vec![("nxx-app-id", "tasks"), ("authorization", "Basic eDp5")], 401, "unauthorized"),
        ("/model/task", vec![("nxx-app-id", "tasks"), ("authorization", &of_ben)], 401, "unauthorized"),
        (
            "/model/task",
            vec![("nxx-app-id", "tasks"), ("authorization", &bearer), ("nxx-device-id", "a b")],
            400,
            "malformed",
        ),
        ("/user/profile", vec![("nxx-app-id", "tasks")], 401, "unauthorized"),
        ("/user/profile", vec![("nxx-app-id", "tasks"), ("authorization", &admin)], 403, "forbidden"),
        ("/device", vec![("nxx-app-id", "tasks")], 401, "unauthorized"),
        ("/application", vec![], 401, "unauthorized"),
        ("/application", vec![("authorization", "Bearer nonsense")], 401, "unauthorized"),
        ("/application", vec![("authorization", &bearer)], 403, "forbidden"),
        ("/admin/users", vec![("nxx-app-id", "tasks"), ("authorization", &bearer)], 403, "forbidden"),
        ("/admin/users", vec![("authorization", &admin)], 400, "malformed"),
        ("/admin/queues", vec![], 401, "unauthorized"),
        (
            "/model/task",
            vec![("nxx-app-id", "tasks"), ("authorization", &bearer), ("nxx-after", "x")],
            400,
            "invalid-offset",
        ),
    ] {
        let answer = get(path, &headers).await;
        let told = format!("{path} {headers:?} {}", answer.body);
        assert_eq!((answer.status.as_u16(), answer.body["type"].as_str()), (status, Some(slug)), "{told}");
        if status == 401 {
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
    }
    // What is public needs no token, and an old one on a login does no harm.
    let anonymous = app.anonymous();
    anonymous.call(Method::GET, "/model/note", Value::Null).await.expect(StatusCode::OK);
    let answer = anonymous.call(Method::POST, "/model/note", json!({})).await;
    assert_eq!(answer.problem(401), "unauthorized");
    let login = anonymous
        .request(Method::POST, "/user/login")
        .bearer_auth("expired")
        .json(&json!({ "username": "anna", "password": "anna-password" }));
    anonymous.send(login).await.expect(StatusCode::OK);
}

#[tokio::test]
async fn sizes() {
    let server = Server::start_with(&[("LIMITS__BODY_BYTES", "64KiB"), ("LIMITS__DOCUMENT_BYTES", "4KiB")]).await;
    let app = server.app("notes", json!({ "note": { "text": { "type": "string" } } }), json!({})).await;
    let anna = app.user("anna").await;
    let create = |n_bytes: usize| anna.call(Method::POST, "/model/note", json!({ "text": "x".repeat(n_bytes) }));
    create(3_000).await.expect(StatusCode::ACCEPTED);
    assert_eq!(create(5_000).await.problem(413), "too-large");
    assert_eq!(create(70_000).await.problem(413), "too-large");
    // Without a length that is said beforehand.
    let chunks = futures_util::stream::iter((0..70).map(|_| Ok::<_, std::io::Error>("x".repeat(1024))));
    let request = anna
        .request(Method::POST, "/model/note")
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(chunks));
    assert_eq!(anna.send(request).await.problem(413), "too-large");
    let (id, _) = anna.create("note", json!({ "text": "x".repeat(3_000) })).await;
    let growing = json!([{ "op": "append", "path": ["text"], "value": ["x".repeat(2_000)] }]);
    let answer = anna.call(Method::PATCH, &format!("/model/note/{id}"), growing).await;
    assert_eq!(answer.problem(413), "too-large");
}
