//! Applications: made, shown, changed under stored documents, deleted and made again.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::Server;

fn schema(fields: Value) -> Value {
    json!({ "task": fields })
}

#[tokio::test]
async fn an_application_is_made_shown_changed_and_deleted() {
    let server = Server::start().await;
    let definition = json!({
        "id": "tasks", "name": "Tasks", "description": "what is to be done",
        "schema": schema(json!({ "title": { "type": "string" } })), "rules": { "task": { "read": "public" } },
        "userTypes": ["editor"], "userDetailSchema": { "default": { "team": { "type": "string" } } },
        "allowMultipleLogin": false,
    });
    let answer = server.admin(Method::POST, "/application", definition.clone()).await;
    assert_eq!(answer.headers["location"], "/application/tasks");
    assert!(answer.headers.contains_key("nxx-change-id"));
    let made = answer.expect(StatusCode::CREATED);
    for (name, value) in definition.as_object().expect("an object") {
        assert_eq!(&made[name], value, "{name}");
    }
    assert_eq!(made["authEnabled"], true);

    let shown = server.admin(Method::GET, "/application/tasks", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(shown, made);
    let list = server.admin(Method::GET, "/application", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(list["items"], json!([made]));

    // What is shown can be changed and sent back.
    let mut next = shown.clone();
    next["name"] = json!("To do");
    next["schema"]["task"]["priority"] = json!({ "type": "number", "filterable": true });
    let changed = server.admin(Method::PUT, "/application/tasks", next).await.expect(StatusCode::OK);
    assert_eq!(changed["name"], "To do");
    assert_eq!(changed["createdAt"], made["createdAt"]);
    assert!(changed["updatedAt"].as_str() >= made["updatedAt"].as_str());

    let gone = server.admin(Method::DELETE, "/application/tasks", Value::Null).await;
    gone.expect(StatusCode::ACCEPTED);
    let answer = server.admin(Method::GET, "/application/tasks", Value::Null).await;
    assert_eq!(answer.problem(404), "not-found");
    let list = server.admin(Method::GET, "/application", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn ids_are_made_where_none_is_given() {
    let server = Server::start().await;
    let made = server.admin(Method::POST, "/application", json!({ "schema": {} })).await.expect(StatusCode::CREATED);
    assert_eq!(made["name"], made["id"]);
    let path = format!("/application/{}", made["id"].as_str().expect("an id"));
    server.admin(Method::GET, &path, Value::Null).await.expect(StatusCode::OK);
}

#[tokio::test]
async fn a_schema_changes_at_once_and_not_against_what_is_stored() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(json!({ "title": { "type": "string" } })), json!({})).await;
    let anna = app.user("anna").await;
    anna.create("task", json!({ "title": "one" })).await;
    let put = |query: &str, fields: Value| {
        let path = format!("/application/tasks{query}");
        let server = &server;
        async move { server.admin(Method::PUT, &path, json!({ "schema": schema(fields) })).await }
    };
    let refused = put("", json!({ "title": { "type": "number" } })).await;
    assert_eq!(refused.body["errors"][0]["path"], "/schema/task/title/type");
    assert_eq!(refused.problem(409), "conflict");
    let refused = put("", json!({ "title": { "type": "string" }, "due": { "type": "date", "required": true } })).await;
    assert_eq!(refused.problem(409), "conflict");
    anna.create("task", json!({ "title": "still the former schema" })).await;

    put("", json!({ "title": { "type": "string" }, "priority": { "type": "number", "filterable": true } }))
        .await
        .expect(StatusCode::OK);
    let (id, change) = anna.create("task", json!({ "title": "two", "priority": 2 })).await;
    let found = anna.request(Method::GET, "/model/task?filter={\"priority\":2}").header("nxx-after", &change);
    let found = anna.send(found).await;
    // The field may still be indexed for what was stored before.
    if found.status != StatusCode::SERVICE_UNAVAILABLE {
        assert_eq!(found.expect(StatusCode::OK)["items"][0]["id"], json!(id));
    }

    put("?force=true", json!({ "name": { "type": "string" } })).await.expect(StatusCode::OK);
    let answer = anna.call(Method::POST, "/model/task", json!({ "title": "three" })).await;
    assert_eq!(answer.problem(422), "invalid-document");
}

#[tokio::test]
async fn an_application_that_is_made_again_begins_anew() {
    let server = Server::start().await;
    let fields = json!({ "title": { "type": "string" } });
    let app = server.app("tasks", schema(fields.clone()), json!({})).await;
    let anna = app.user("anna").await;
    let (id, change) = anna.create("task", json!({ "title": "old" })).await;
    let before = anna.call(Method::GET, &format!("/changes/{change}"), Value::Null).await.expect(StatusCode::OK);
    server.admin(Method::DELETE, "/application/tasks", Value::Null).await.expect(StatusCode::ACCEPTED);
    let answer = anna.call(Method::GET, "/model/task", Value::Null).await;
    assert_eq!(answer.problem(404), "not-found");

    let app = server.app("tasks", schema(fields), json!({})).await;
    let answer = anna.call(Method::GET, "/model/task", Value::Null).await;
    assert_eq!(answer.problem(401), "unauthorized", "its users and their tokens are gone");
    let anna = app.user("anna").await;
    let answer = anna.call(Method::GET, &format!("/model/task/{id}"), Value::Null).await;
    assert_eq!(answer.problem(404), "not-found");
    let (_, change) = anna.create("task", json!({ "title": "new" })).await;
    let after = anna.call(Method::GET, &format!("/changes/{change}"), Value::Null).await.expect(StatusCode::OK);
    assert!(after["offset"].as_str() > before["offset"].as_str(), "a later epoch is greater");
}

#[tokio::test]
async fn without_users_everybody_may() {
    let server = Server::start().await;
    let definition = json!({
        "id": "open", "schema": schema(json!({ "title": { "type": "string" } })), "authEnabled": false,
        "rules": { "task": { "read": "none", "update": "admin" } },
    });
    let app = server.app_as(definition).await;
    let somebody = app.anonymous();
    let (id, _) = somebody.create("task", json!({ "title": "x" })).await;
    let change = somebody.replace("task", &id, "title", json!("y")).await;
    let document = somebody.get_after("task", &id, &change).await.expect(StatusCode::OK);
    assert_eq!((&document["title"], document.get("userId")), (&json!("y"), None));
    let login = json!({ "username": "anna", "password": "anna-password" });
    let answer = somebody.call(Method::POST, "/user/register", login).await;
    assert_eq!(answer.problem(403), "forbidden");
    let mut device = somebody.connect("phone", None).await;
    device.subscribe(json!({ "model": "task" })).await;
    somebody.delete("task", &id).await;
    assert_eq!(device.next().await["event"], "model_deleted");
}
