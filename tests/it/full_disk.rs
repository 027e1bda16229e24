//! A disk that runs full: what is refused with 507, what goes on, and that everything goes on when there is room again.
//!
//! The reserve is set around what is free on the disk of the test, so that no disk has to be filled.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{App, Server, User, log_of};

fn schema() -> Value {
    json!({ "task": { "title": { "type": "string" }, "done": { "type": "boolean", "filterable": true } } })
}

async fn free_bytes(server: &Server) -> u64 {
    let metrics = server.admin(Method::GET, "/metrics", Value::Null).await.expect(StatusCode::OK);
    let figure =
        metrics.as_str().expect("a text").lines().find_map(|line| line.strip_prefix("nexxus_disk_free_bytes "));
    figure.expect("the free space").parse::<f64>().expect("a number") as u64
}

/// The server with another reserve; the caller as it is then.
async fn with_reserve(server: &mut Server, app: &App, user: &User, reserve: u64) -> User {
    assert_eq!(server.stop(), Some(0));
    server.restart_with(&[("DATA__RESERVE", &reserve.to_string())]).await;
    User { app: server.again(app), ..user.clone() }
}

async fn patch(user: &User, id: &str, field: &str, value: Value) -> u16 {
    let patches = json!([{ "op": "replace", "path": [field], "value": [value] }]);
    let answer = user.call(Method::PATCH, &format!("/model/task/{id}"), patches).await;
    if answer.status != StatusCode::ACCEPTED {
        assert_eq!(answer.body["type"], "disk-full", "{}", answer.body);
    }
    answer.status.as_u16()
}

#[tokio::test]
async fn the_reserve_stops_what_grows_then_everything_new_and_lets_it_go_on_again() {
    let mut server = Server::start().await;
    let app = server.app("tasks", schema(), json!({ "task": { "read": "public" } })).await;
    let anna = app.user("anna").await;
    for id in ["t-1", "t-2", "t-3"] {
        anna.create("task", json!({ "id": id, "title": "some words", "done": false })).await;
    }
    let free = free_bytes(&server).await;

    let anna = with_reserve(&mut server, &app, &anna, free / 2 * 3).await;
    assert!(log_of(server.dir()).contains("the disk is nearly full (data.reserve)"));
    let ready = server.admin(Method::GET, "/readyz", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(ready, json!({ "status": "ready", "disk": "low" }));
    let task = json!({ "title": "one more", "done": false });
    assert_eq!(anna.call(Method::POST, "/model/task", task.clone()).await.problem(507), "disk-full");
    // What cannot be accepted anyway is told so.
    assert_eq!(anna.call(Method::POST, "/model/task", json!({ "no": 1 })).await.problem(422), "invalid-document");
    let carla = json!({ "username": "carla", "password": "carla-password" });
    assert_eq!(anna.call(Method::POST, "/user/register", carla.clone()).await.problem(507), "disk-full");
    assert_eq!(patch(&anna, "t-1", "title", json!("some words and more of them")).await, 507);
    assert_eq!(patch(&anna, "t-1", "title", json!("words")).await, 202);
    assert_eq!(patch(&anna, "t-1", "done", json!(true)).await, 202);
    let mut phone = anna.device("phone").await;
    phone.subscribe(json!({ "model": "task", "limit": 0 })).await;
    anna.delete("task", "t-2").await;
    let deleted = phone.next().await;
    assert_eq!((&deleted["event"], &deleted["metadata"]["id"]), (&json!("model_deleted"), &json!("t-2")));
    let acked = phone.ask("ack", json!({ "offset": deleted["offset"] })).await;
    assert_eq!(acked["event"], "reply", "{acked}");
    server.app("more", schema(), Value::Null).await;

    let anna = with_reserve(&mut server, &app, &anna, free * 4).await;
    let ready = server.admin(Method::GET, "/readyz", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(ready, json!({ "status": "ready", "disk": "spent" }));
    let refused = anna.call(Method::DELETE, "/model/task/t-3", Value::Null).await;
    assert_eq!(refused.problem(507), "disk-full");
    assert_eq!(patch(&anna, "t-1", "title", json!("w")).await, 507);
    let mut phone = anna.connect("phone", Some("last")).await;
    let refused = phone.ask("subscribe", json!({ "model": "task", "modelId": "t-3" })).await;
    assert_eq!((&refused["event"], &refused["data"]["type"]), (&json!("error"), &json!("disk-full")));
    let refused = phone.ask("ack", json!({ "offset": deleted["offset"] })).await;
    assert_eq!((&refused["event"], &refused["data"]["status"]), (&json!("error"), &json!(507)));
    let left = anna.call(Method::GET, "/model/task?sort=id", Value::Null).await.expect(StatusCode::OK);
    let titles: Vec<_> = left["items"].as_array().expect("items").iter().map(|item| item["title"].clone()).collect();
    assert_eq!(titles, ["words", "some words"]);

    let anna = with_reserve(&mut server, &app, &anna, 0).await;
    anna.create("task", task).await;
    assert_eq!(patch(&anna, "t-1", "title", json!("some words and more of them")).await, 202);
    anna.call(Method::POST, "/user/register", carla).await.expect(StatusCode::CREATED);
}
