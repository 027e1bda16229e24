//! Coming back to the change log: from where, from nowhere, from too long ago, and with a token that ends meanwhile.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Heard, PATIENCE, Server, User};

fn schema() -> Value {
    json!({ "note": { "text": { "type": "string" } } })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// What the request that would open a socket is answered with.
async fn opening(user: &User, since: &str) -> crate::harness::Answer {
    let request = user.request(Method::GET, &format!("/ws?app={}&device=phone&since={since}", user.app.id));
    let request = request.header("connection", "upgrade").header("upgrade", "websocket");
    let request = request.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    user.send(request).await
}

#[tokio::test]
async fn from_nowhere_is_refused_and_from_a_change_goes_on_after_it() {
    let server = Server::start().await;
    let anna = server.app("notes", schema(), json!({})).await.user("anna").await;
    let ben = server.app("others", schema(), json!({})).await.user("ben").await;
    anna.register_device("phone", json!(600)).await;
    let mut phone = anna.connect("phone", None).await;
    phone.subscribe(json!({ "model": "note" })).await;
    let (first, change) = anna.create("note", json!({ "text": "1" })).await;
    let offset = text(&phone.next().await["offset"]);
    let (second, _) = anna.create("note", json!({ "text": "2" })).await;
    let (third, of_ben) = ben.create("note", json!({})).await;
    ben.get_after("note", &third, &of_ben).await.expect(StatusCode::OK);
    let unknown = of_ben.chars().rev().collect::<String>();
    let (epoch, position) = offset.split_once('-').expect("an epoch and a position");
    let future = [format!("{epoch}-{}", "f".repeat(position.len())), format!("{}-{position}", "e".repeat(epoch.len()))];
    for since in ["", "nonsense", "12", &offset[..offset.len() - 1], &of_ben, &unknown, &future[0], &future[1]] {
        let answer = opening(&anna, since).await;
        assert_eq!(answer.problem(400), "invalid-offset", "since={since}");
    }
    // Both name the place of the first.
    for since in [&change, &offset] {
        let mut phone = anna.connect("phone", Some(since)).await;
        let resumed = phone.next().await;
        assert_eq!((&resumed["event"], &resumed["data"]["from"]), (&json!("resumed"), &json!(offset)));
        assert_eq!(phone.next().await["data"]["id"], json!(second), "{first} is not told again");
    }
}

#[tokio::test]
async fn from_another_application_is_never_taken_for_a_place_in_this_one() {
    let server = Server::start().await;
    let mut seen = Vec::new();
    for (app, user) in [("notes", "anna"), ("others", "ben")] {
        let user = server.app(app, schema(), json!({})).await.user(user).await;
        user.register_device("phone", json!(600)).await;
        let mut phone = user.connect("phone", None).await;
        phone.subscribe(json!({ "model": "note" })).await;
        user.create("note", json!({ "text": "1" })).await;
        seen.push((text(&phone.next().await["offset"]), user));
        seen.last().expect("one").1.create("note", json!({ "text": "2" })).await;
        phone.next().await;
    }
    seen.sort_by(|one, other| one.0.cmp(&other.0));
    let [(earlier, of_earlier), (later, of_later)] = &seen[..] else { panic!("two") };
    assert_eq!(opening(of_earlier, later).await.problem(400), "invalid-offset");
    let mut phone = of_later.connect("phone", Some(earlier)).await;
    assert_eq!(phone.next().await["event"], "resync_required");
}

#[tokio::test]
async fn who_was_away_longer_than_the_history_reaches_is_told_to_ask_anew() {
    let settings = [
        ("DATA__SEGMENT_BYTES", "1MiB"),
        ("LIMITS__BODY_BYTES", "64KiB"),
        ("LIMITS__DOCUMENT_BYTES", "64KiB"),
        ("HISTORY__MAX_BYTES", "1MiB"),
        ("DATA__COMMIT_EVERY", "100ms"),
    ];
    let server = Server::start_with(&settings).await;
    let anna = server.app("notes", schema(), json!({})).await.user("anna").await;
    anna.register_device("phone", json!(600)).await;
    let mut phone = anna.connect("phone", None).await;
    phone.subscribe(json!({ "model": "note" })).await;
    let (id, _) = anna.create("note", json!({ "text": "seen" })).await;
    let seen = text(&phone.next().await["offset"]);
    drop(phone);
    let deadline = Instant::now() + PATIENCE;
    loop {
        for _ in 0..20 {
            anna.replace("note", &id, "text", json!("x".repeat(50_000))).await;
        }
        // The journal is kept until the registry beside it is exported beyond it; a backup does that at once.
        if std::env::var_os("NEXXUS_TEST_REGISTRY").is_none() {
            server.admin(Method::POST, "/admin/backup", Value::Null).await.expect(StatusCode::OK);
        }
        let mut phone = anna.connect("phone", Some(&seen)).await;
        let told = phone.next().await;
        if told["event"] == "resumed" {
            assert!(Instant::now() < deadline, "the history is never cut");
            continue;
        }
        assert_eq!(told["event"], "resync_required", "{told}");
        assert_eq!(told["data"]["channels"], json!(["app:notes:model:note"]));
        // From there on it hears everything.
        let (new, _) = anna.create("note", json!({})).await;
        loop {
            let frame = phone.next().await;
            if frame["metadata"]["id"] == json!(new) {
                assert_eq!(frame["event"], "model_created");
                return;
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_sent_after_the_end_of_a_token_unless_a_fresh_one_comes() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let token = async |device: &str, ttl: u64| {
        let body = json!({ "device": device, "ttl": ttl });
        let issued = app.admin().call(Method::POST, &format!("/admin/users/{}/token", anna.id), body).await;
        text(&issued.expect(StatusCode::OK)["token"])
    };
    let mut devices = Vec::new();
    for device in ["ending", "renewed"] {
        anna.register_device(device, json!(600)).await;
        let bound = User { token: token(device, 2).await, ..anna.clone() };
        let mut device = bound.connect(device, None).await;
        device.subscribe(json!({ "model": "note" })).await;
        devices.push(device);
    }
    let (mut renewed, mut ending) = (devices.pop().expect("a device"), devices.pop().expect("a device"));
    let fresh = token("renewed", 600).await;
    assert_eq!(renewed.ask("authenticate", json!({ "token": fresh })).await["event"], "reply");
    let of_another = token("ending", 600).await;
    assert_eq!(renewed.ask("authenticate", json!({ "token": of_another })).await["event"], "error");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (id, _) = anna.create("note", json!({})).await;
    assert_eq!(renewed.next().await["data"]["id"], json!(id));
    // The close comes up to 10 s after the end.
    assert_eq!(ending.hear().await, Heard::Closed(4001));
}
