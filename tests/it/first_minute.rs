//! What a person meets first: a start on nothing, a restart, a stop.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::Server;

#[tokio::test]
async fn what_was_accepted_survives_a_kill() {
    let mut server = Server::start().await;
    let app = server.app("notes", json!({ "note": { "text": { "type": "string" } } }), json!({})).await;
    let anna = app.user("anna").await;
    let (id, _) = anna.create("note", json!({ "text": "kept" })).await;
    server.kill();
    server.restart().await;
    let anna = crate::harness::User { app: server.again(&app), ..anna };
    let note = anna.call(Method::GET, &format!("/model/note/{id}"), Value::Null).await.expect(StatusCode::OK);
    assert_eq!(note["text"], "kept");
    assert_eq!(note["version"], 1);
}

#[tokio::test]
async fn it_stops_when_asked_and_starts_again() {
    let mut server = Server::start().await;
    let app = server.app("notes", json!({ "note": { "text": { "type": "string" } } }), json!({})).await;
    let anna = app.user("anna").await;
    let mut device = anna.device("phone").await;
    device.subscribe(json!({ "model": "note" })).await;
    assert_eq!(server.stop(), Some(0));
    assert_eq!(device.closed().await, 1001);
    server.restart().await;
    let anna = crate::harness::User { app: server.again(&app), ..anna };
    let mut device = anna.connect("phone", None).await;
    assert_eq!(device.hello["data"]["subscriptions"], 1);
    let (id, _) = anna.create("note", json!({ "text": "again" })).await;
    assert_eq!(device.next().await["data"]["id"], json!(id));
}
