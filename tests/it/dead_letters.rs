//! Messages that cannot be handled, or not even read: given up after some tries, kept with the reason, listed, shown, retried and
//! dropped from the command line, and never silent.

use std::time::Instant;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{App, PATIENCE, Server, User, nexxus};

/// A trace that makes a command unreadable where the failpoint says so.
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn failing(places: &str) -> (Server, App) {
    let mut server = Server::start().await;
    let text = json!({ "text": { "type": "string" } });
    let app = server.app("notes", json!({ "note": text, "other": text }), json!({})).await;
    assert_eq!(server.stop(), Some(0));
    server.failpoints(places);
    server.restart().await;
    let app = server.again(&app);
    (server, app)
}

/// The same without anything that fails.
async fn mended(mut server: Server, user: &User) -> (Server, User) {
    assert_eq!(server.stop(), Some(0));
    server.failpoints("");
    server.restart().await;
    let user = User { app: server.again(&user.app), ..user.clone() };
    (server, user)
}

/// What `nexxus queue dead …` prints as JSON.
async fn dead(server: &Server, arguments: &[&str]) -> Value {
    let mut command = nexxus();
    command.args(["queue", "dead"]).args(arguments).arg("--json");
    command.args(["--url", &server.url, "--token", &server.admin_token]).current_dir(server.dir());
    let output = tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("no panic");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What became of a change, when it is known.
async fn outcome(user: &User, change: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = user.call(Method::GET, &format!("/changes/{change}"), Value::Null).await;
        match answer.status {
            StatusCode::OK if answer.body["state"] != "accepted" => return answer.body,
            _ => assert!(Instant::now() < deadline, "{change}: {}", answer.body),
        }
    }
}

fn is_rejected(outcome: &Value) {
    assert_eq!((&outcome["state"], &outcome["problem"]["type"]), (&json!("rejected"), &json!("internal")), "{outcome}");
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

#[tokio::test]
async fn a_command_whose_handler_fails_or_panics_is_isolated_and_can_be_retried() {
    for what in ["panic", "invalid"] {
        let (server, app) = failing(&format!("writer.decide=return({what}:poison)")).await;
        let anna = app.user("anna").await;
        let mut phone = anna.device("phone").await;
        phone.subscribe(json!({ "model": "note" })).await;
        let create = |id: &str| {
            let request = anna.request(Method::POST, "/model/note").header("nxx-device-id", "phone");
            let (anna, request) = (anna.clone(), request.json(&json!({ "id": id })));
            async move { text(&anna.send(request).await.expect(StatusCode::ACCEPTED)["changeId"]) }
        };
        let names = ["a", "poison", "b", "c"];
        let changes = futures_util::future::join_all(names.map(create)).await;
        // The others are carried out; whoever sent the bad one is told.
        let mut told = Vec::new();
        for _ in names {
            let frame = phone.next().await;
            told.push((text(&frame["event"]), text(&frame["metadata"]["id"])));
        }
        told.sort();
        let created = |id: &str| ("model_created".to_owned(), id.to_owned());
        assert_eq!(
            told,
            [("change_rejected".to_owned(), "poison".to_owned()), created("a"), created("b"), created("c")]
        );
        is_rejected(&outcome(&anna, &changes[1]).await);

        let list = dead(&server, &["list", "writer"]).await;
        let items = list["items"].as_array().expect("items");
        assert_eq!(items.len(), 1, "{list}");
        assert_eq!((&items[0]["id"], &items[0]["dead"]["tries"]), (&json!(changes[1]), &json!(5)));
        assert!(text(&items[0]["dead"]["reason"]).contains("writer.decide"), "{list}");
        let shown = dead(&server, &["show", "writer", &changes[1]]).await;
        assert_eq!(shown["payload"]["data"]["id"], "poison", "{shown}");

        // While the reason lasts it comes back, as a new change; then it is done.
        let retried = dead(&server, &["retry", "writer", &changes[1]]).await;
        let again = text(&retried["items"][0]["newId"]);
        assert_ne!(again, changes[1]);
        is_rejected(&outcome(&anna, &again).await);
        let (server, anna) = mended(server, &anna).await;
        let retried = dead(&server, &["retry", "writer", "--all"]).await;
        assert_eq!(retried["retried"], 1, "{retried}");
        let last = text(&retried["items"][0]["newId"]);
        let found = anna.get_after("note", "poison", &last).await.expect(StatusCode::OK);
        assert_eq!(found["version"], 1);
        assert_eq!(outcome(&anna, &last).await["state"], "applied");
        is_rejected(&outcome(&anna, &changes[1]).await);
        assert_eq!(dead(&server, &["list", "writer"]).await["items"], json!([]));
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_read_is_refused_and_can_be_dropped() {
    let (server, app) = failing(&format!("runner.decode=return(invalid:{TRACE})")).await;
    let anna = app.user("anna").await;
    let mut changes = Vec::new();
    for id in ["first", "second"] {
        let request = anna.request(Method::POST, "/model/note").header("traceparent", TRACE);
        let accepted = anna.send(request.json(&json!({ "id": id }))).await.expect(StatusCode::ACCEPTED);
        changes.push(text(&accepted["changeId"]));
    }
    let (fine, change) = anna.create("note", json!({})).await;
    anna.get_after("note", &fine, &change).await.expect(StatusCode::OK);
    for change in &changes {
        is_rejected(&outcome(&anna, change).await);
    }
    let list = dead(&server, &["list", "writer"]).await;
    let tries: Vec<_> = list["items"].as_array().expect("items").iter().map(|item| &item["dead"]["tries"]).collect();
    assert_eq!(tries, [&json!(1), &json!(1)], "it is not tried again: {list}");
    let dropped = dead(&server, &["drop", "writer", &changes[0]]).await;
    assert_eq!(dropped["dropped"], 1, "{dropped}");
    let (server, anna) = mended(server, &anna).await;
    let retried = dead(&server, &["retry", "writer", "--all"]).await;
    assert_eq!(retried["retried"], 1, "{retried}");
    let last = text(&retried["items"][0]["newId"]);
    anna.get_after("note", "second", &last).await.expect(StatusCode::OK);
    anna.get_after("note", "first", &last).await.expect(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_change_that_cannot_be_matched_is_not_lost_to_its_listeners() {
    let (server, app) = failing("transport-manager.match=return(panic:poison)").await;
    let anna = app.user("anna").await;
    let (mut phone, mut tablet) = (anna.device("phone").await, anna.device("tablet").await);
    phone.subscribe(json!({ "model": "note" })).await;
    tablet.subscribe(json!({ "model": "other" })).await;
    anna.create("note", json!({ "id": "poison" })).await;
    // The transport worker sees that something is missing, and reads it from the log. Others are not bothered.
    assert_eq!(phone.next().await["data"]["id"], "poison");
    anna.create("other", json!({ "id": "fine" })).await;
    anna.create("note", json!({ "id": "fine" })).await;
    assert_eq!(phone.next().await["data"]["id"], "fine");
    assert_eq!(tablet.next().await["data"]["id"], "fine");
    // That needs no waiting for the last try.
    let deadline = Instant::now() + PATIENCE;
    while dead(&server, &["list", "transport-manager"]).await["items"] == json!([]) {
        assert!(Instant::now() < deadline, "it is never given up");
    }
    assert_eq!(dead(&server, &["drop", "transport-manager", "--all"]).await["dropped"], 1);
}
