//! Devices: registering, whose they are, what ends with them, how long they stay, and where they go on.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{PATIENCE, Server, User};

fn schema() -> Value {
    json!({ "note": { "text": { "type": "string" } } })
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn a_device_belongs_to_one_user() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let (anna, ben) = (app.user("anna").await, app.user("ben").await);
    let body = json!({ "id": "phone", "name": "Anna's phone", "keepFor": 3600 });
    let registered = anna.call(Method::POST, "/device/register", body.clone()).await.expect(StatusCode::CREATED);
    assert_eq!((&registered["id"], &registered["name"]), (&json!("phone"), &json!("Anna's phone")));
    assert_eq!(registered["keepFor"], 3600);
    for member in ["token", "refreshToken", "expiresAt"] {
        assert!(registered[member].is_string(), "no {member} in {registered}");
    }
    anna.call(Method::POST, "/device/register", body.clone()).await.expect(StatusCode::OK);
    assert_eq!(ben.call(Method::POST, "/device/register", body).await.problem(409), "exists");
    let refused = ben.try_connect("phone", None).await.err().expect("refused");
    assert!(refused.to_string().contains("403"), "{refused}");

    let listed = anna.call(Method::GET, "/device", Value::Null).await.expect(StatusCode::OK);
    let ids: Vec<_> = listed["items"].as_array().expect("items").iter().map(|device| text(&device["id"])).collect();
    assert!(ids.contains(&"phone".to_owned()), "{ids:?}");
    let found = anna.call(Method::GET, "/device/phone", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(found["keepFor"], 3600);
    // Who asks for more than the configured maximum gets that, and is told.
    let forever = json!({ "id": "phone", "keepFor": 1_000_000_000_u64 });
    let registered = anna.call(Method::POST, "/device/register", forever).await.expect(StatusCode::OK);
    assert_eq!(registered["keepFor"], 90 * 24 * 3600);
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(ben.call(method, "/device/phone", Value::Null).await.problem(404), "not-found");
    }
    for (body, path) in [
        (json!({ "id": "a b" }), "/id"),
        (json!({ "id": ".." }), "/id"),
        (json!({ "keepFor": "2m" }), "/keepFor"),
        (json!({ "keepFor": -1 }), "/keepFor"),
        (json!({ "name": 5 }), "/name"),
        (json!({ "nme": "x" }), "/nme"),
    ] {
        let answer = anna.call(Method::POST, "/device/register", body.clone()).await;
        assert_eq!(answer.body["errors"][0]["path"], path, "{body}: {}", answer.body);
        assert_eq!(answer.problem(422), "invalid-document", "{body}");
    }
    assert_eq!(anna.call(Method::GET, "/device/a%20b", Value::Null).await.problem(400), "malformed");
    assert_eq!(app.anonymous().call(Method::GET, "/device", Value::Null).await.problem(401), "unauthorized");
}

#[tokio::test]
async fn a_bound_token_works_for_its_device_only() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let login = json!({ "username": "anna", "password": "anna-password" });
    let request = app.anonymous().request(Method::POST, "/user/login").header("nxx-device-id", "phone").json(&login);
    let login = anna.send(request).await.expect(StatusCode::OK);
    assert_eq!(login["deviceId"], "phone");
    let bound = User { token: text(&login["token"]), ..anna.clone() };
    bound.connect("phone", None).await;
    assert!(bound.try_connect("tablet", None).await.is_err());
    let request = bound.request(Method::GET, "/model/note").header("nxx-device-id", "tablet");
    assert_eq!(bound.send(request).await.problem(401), "unauthorized");
    // A login without a device gives a token for any device of the user.
    anna.connect("tablet", None).await;
    anna.connect("phone", None).await;
    let request = bound.request(Method::GET, "/model/note").header("nxx-device-id", "a b");
    assert_eq!(bound.send(request).await.problem(400), "malformed");
}

#[tokio::test]
async fn removing_a_device_ends_its_tokens_and_connections() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let registered = anna.register_device("phone", json!(3600)).await;
    let bound = User { token: text(&registered["token"]), ..anna.clone() };
    let mut phone = bound.connect("phone", None).await;
    phone.subscribe(json!({ "model": "note" })).await;
    let removed = anna.call(Method::DELETE, "/device/phone", Value::Null).await;
    assert!(removed.status.is_success(), "{}", removed.body);
    assert_eq!(phone.closed().await, 4003);
    assert_eq!(bound.call(Method::GET, "/user/me", Value::Null).await.problem(401), "unauthorized");
    assert_eq!(anna.call(Method::GET, "/device/phone", Value::Null).await.problem(404), "not-found");
    assert_eq!(anna.call(Method::DELETE, "/device/phone", Value::Null).await.problem(404), "not-found");
    // It can come again, as a new one.
    let phone = anna.device("phone").await;
    assert_eq!(phone.hello["data"]["subscriptions"], 0);
}

#[tokio::test]
async fn the_admin_ends_the_connections_of_a_device() {
    let server = Server::start().await;
    let definition = json!({ "id": "open", "name": "open", "schema": schema(), "authEnabled": false });
    let (app, open) = (server.app("notes", schema(), json!({})).await, server.app_as(definition).await);
    for user in [app.user("anna").await, open.anonymous()] {
        let mut device = user.connect("phone", None).await;
        device.subscribe(json!({ "model": "note" })).await;
        let admin = user.app.admin();
        let shown = admin.call(Method::GET, "/admin/devices/phone", Value::Null).await.expect(StatusCode::OK);
        assert_eq!(shown["id"], "phone");
        let answer = admin.call(Method::POST, "/admin/devices/phone/disconnect", Value::Null).await;
        assert!(answer.status.is_success(), "{}", answer.body);
        assert_eq!(device.closed().await, 4003);
        // It stays, with its subscriptions.
        let mut device = user.connect("phone", None).await;
        assert_eq!(device.hello["data"]["subscriptions"], 1);
        let answer = admin.call(Method::DELETE, "/admin/devices/phone", Value::Null).await;
        assert!(answer.status.is_success(), "{}", answer.body);
        assert_eq!(device.closed().await, 4003);
        assert_eq!(admin.call(Method::GET, "/admin/devices/phone", Value::Null).await.problem(404), "not-found");
    }
}

#[tokio::test]
async fn a_device_goes_on_where_it_was() {
    let mut server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let anna = app.user("anna").await;
    anna.register_device("phone", json!(3600)).await;
    let mut phone = anna.connect("phone", None).await;
    phone.subscribe(json!({ "model": "note" })).await;
    let (first, _) = anna.create("note", json!({ "text": "1" })).await;
    let frame = phone.next().await;
    assert_eq!(frame["data"]["id"], json!(first));
    assert_eq!(phone.ask("ack", json!({ "offset": frame["offset"] })).await["event"], "reply");
    drop(phone);
    let (second, _) = anna.create("note", json!({ "text": "2" })).await;
    server.kill();
    server.restart().await;
    let anna = User { app: server.again(&app), ..anna };
    let (third, _) = anna.create("note", json!({ "text": "3" })).await;
    let mut phone = anna.connect("phone", Some("last")).await;
    let resumed = phone.next().await;
    assert_eq!((&resumed["event"], &resumed["data"]["from"]), (&json!("resumed"), &frame["offset"]));
    let heard = [phone.next().await["data"]["id"].clone(), phone.next().await["data"]["id"].clone()];
    assert_eq!(heard, [json!(second), json!(third)]);
    // An older ack does not turn the cursor back, one of the future is refused.
    let stands = phone.ask("ack", json!({ "offset": frame["offset"] })).await;
    assert_eq!(stands["event"], "reply");
    for bad in [json!("ffffffff-0000000000000001"), json!("nonsense"), json!(5), Value::Null] {
        let refused = phone.ask("ack", json!({ "offset": bad })).await;
        assert_eq!((&refused["event"], &refused["data"]["status"]), (&json!("error"), &json!(400)), "{bad}: {refused}");
    }
}

#[tokio::test]
async fn a_device_that_stays_away_too_long_is_forgotten() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let anna = app.user("anna").await;
    for (keep_for, id) in [(0, "guest"), (1, "visitor")] {
        let registered = anna.register_device(id, json!(keep_for)).await;
        let mut device = anna.connect(id, None).await;
        device.subscribe(json!({ "model": "note" })).await;
        let offset = text(&device.hello["data"]["offset"]);
        drop(device);
        let deadline = std::time::Instant::now() + PATIENCE;
        while anna.call(Method::GET, &format!("/device/{id}"), Value::Null).await.status == StatusCode::OK {
            assert!(std::time::Instant::now() < deadline, "{id} is still there");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        // Its login outlives it, and it hears that it was forgotten.
        let bound = User { token: text(&registered["token"]), ..anna.clone() };
        let mut device = bound.connect(id, Some(&offset)).await;
        assert_eq!(device.hello["data"]["subscriptions"], 0);
        let resync = device.next().await;
        assert_eq!(resync["event"], "resync_required");
        assert_eq!(resync["data"]["reason"], "device_expired");
    }
}

#[tokio::test]
async fn every_connection_of_a_device_hears_everything() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let mut tabs = vec![anna.device("laptop").await, anna.connect("laptop", None).await];
    tabs[0].subscribe(json!({ "model": "note" })).await;
    let (note, _) = anna.create("note", json!({})).await;
    for tab in &mut tabs {
        assert_eq!(tab.next().await["data"]["id"], json!(note));
    }
    drop(tabs.remove(0));
    let (note, _) = anna.create("note", json!({})).await;
    assert_eq!(tabs[0].next().await["data"]["id"], json!(note));
}
