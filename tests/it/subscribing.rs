//! Subscribing by HTTP and by socket: what is answered, what is the same, what is refused, and that nothing falls between the
//! items and the first frame.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Answer, Server, User};

fn schema() -> Value {
    json!({ "task": {
        "title": { "type": "string" },
        "priority": { "type": "number", "filterable": true },
    }})
}

async fn subscribe(user: &User, device: &str, body: Value) -> Answer {
    user.send(user.request(Method::POST, "/subscription").header("nxx-device-id", device).json(&body)).await
}

#[tokio::test]
async fn the_same_channel_is_the_same_subscription() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let first = subscribe(&anna, "phone", json!({ "model": "task" })).await.expect(StatusCode::CREATED);
    assert_eq!(first["channel"], "app:tasks:model:task");
    assert_eq!(first["items"], json!([]));
    let again = subscribe(&anna, "phone", json!({ "model": "task", "limit": 3 })).await.expect(StatusCode::OK);
    assert_eq!(again["subscriptionId"], first["subscriptionId"]);
    let elsewhere = subscribe(&anna, "tablet", json!({ "model": "task" })).await.expect(StatusCode::CREATED);
    assert_ne!(elsewhere["subscriptionId"], first["subscriptionId"]);

    // Two spellings of a filter are one channel.
    let spelled = [
        json!({ "priority": { "$gte": 3, "$lt": 7 } }),
        json!({ "and": [{ "priority": { "lt": 7.0 } }, { "priority": { "gte": 3 } }] }),
    ];
    let one =
        subscribe(&anna, "phone", json!({ "model": "task", "filter": spelled[0] })).await.expect(StatusCode::CREATED);
    let other =
        subscribe(&anna, "phone", json!({ "model": "task", "filter": spelled[1] })).await.expect(StatusCode::OK);
    assert_eq!(one["channel"], other["channel"]);

    let mut phone = anna.connect("phone", None).await;
    assert_eq!(phone.hello["data"]["subscriptions"], 2);
    let by_socket = phone.subscribe(json!({ "model": "task" })).await;
    assert_eq!(by_socket["subscriptionId"], first["subscriptionId"]);

    let path = "/subscription/device/phone";
    let listed = anna.call(Method::GET, path, Value::Null).await.expect(StatusCode::OK);
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(2));
    let path = format!("/subscription/{}", first["subscriptionId"].as_str().expect("an id"));
    let delete = || anna.request(Method::DELETE, &path).header("nxx-device-id", "phone");
    assert!(anna.send(delete()).await.status.is_success());
    assert_eq!(anna.send(delete()).await.problem(404), "not-found");
    let ben = app.user("ben").await;
    assert_eq!(ben.call(Method::GET, "/subscription/device/phone", Value::Null).await.problem(404), "not-found");
}

#[tokio::test]
async fn channel_keys_say_what_is_subscribed_to() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let (id, _) = anna.create("task", json!({ "title": "x", "priority": 1 })).await;
    // SHA-256 of {"priority":{"$gte":3}}, the first 16 bytes.
    let hash = "797e6cd0c56b9ea16459cb970a5d8571";
    for (body, key) in [
        (json!({}), "app:tasks:model:task".to_owned()),
        (json!({ "modelId": id }), format!("app:tasks:model:task:id:{id}")),
        (json!({ "userId": anna.id }), format!("app:tasks:user:{}:model:task", anna.id)),
        (json!({ "userId": anna.id, "modelId": id }), format!("app:tasks:user:{}:model:task:id:{id}", anna.id)),
        (json!({ "filter": { "priority": { "$gte": 3 } } }), format!("app:tasks:model:task:filter:{hash}")),
    ] {
        let mut request = body.clone();
        request["model"] = json!("task");
        let subscribed = subscribe(&anna, "phone", request).await.expect(StatusCode::CREATED);
        assert_eq!(subscribed["channel"], key, "{body}");
    }
}

#[tokio::test]
async fn the_items_are_what_the_channel_holds() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let (anna, ben) = (app.user("anna").await, app.user("ben").await);
    let mut ids = Vec::new();
    for priority in 0..6 {
        let owner = if priority % 2 == 0 { &anna } else { &ben };
        ids.push(owner.create("task", json!({ "priority": priority })).await.0);
    }
    let priorities = |answer: &Value| -> Vec<i64> {
        let items = answer["items"].as_array().expect("items");
        items.iter().map(|item| item["priority"].as_i64().expect("a number")).collect()
    };
    for (body, expected) in [
        (json!({ "sort": "priority" }), vec![0, 1, 2, 3, 4, 5]),
        (json!({ "sort": "-priority", "limit": 2 }), vec![5, 4]),
        (json!({ "sort": ["priority"], "userId": anna.id }), vec![0, 2, 4]),
        (json!({ "sort": "priority", "filter": { "priority": { "$gt": 3 } } }), vec![4, 5]),
        (json!({ "modelId": ids[3] }), vec![3]),
        (json!({ "modelId": ids[3], "userId": anna.id }), vec![]),
        (json!({ "modelId": "nothing" }), vec![]),
        (json!({ "limit": 0 }), vec![]),
        (json!({ "getOnly": true, "sort": "priority", "limit": 1 }), vec![0]),
    ] {
        let mut request = body.clone();
        request["model"] = json!("task");
        let answer = subscribe(&anna, "phone", request).await;
        assert!(answer.status.is_success(), "{body}: {}", answer.body);
        assert_eq!(priorities(&answer.body), expected, "{body}");
        assert!(answer.body["offset"].is_string());
        assert_eq!(answer.body.get("subscriptionId").is_some(), body.get("getOnly").is_none(), "{body}");
    }
    // The rest of a long list comes by its cursor.
    let first = subscribe(&anna, "phone", json!({ "model": "task", "sort": "priority", "limit": 4 })).await.body;
    let search = json!({ "sort": "priority", "limit": 4, "cursor": first["cursor"] });
    let rest = anna.call(Method::POST, "/model/task/search", search).await.expect(StatusCode::OK);
    assert_eq!(priorities(&rest), [4, 5]);
}

#[tokio::test]
async fn an_array_subscribes_to_many() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let many: Vec<Value> =
        (0..3).map(|priority| json!({ "model": "task", "filter": { "priority": priority } })).collect();
    let answer = subscribe(&anna, "phone", json!(many)).await;
    assert!(answer.status.is_success(), "{}", answer.body);
    let items = answer.body["items"].as_array().expect("items");
    assert_eq!(items.len(), 3);
    assert!(items.iter().all(|item| item["subscriptionId"].is_string() && item["offset"].is_string()));
    let too_many = vec![json!({ "model": "task" }); 101];
    let refused = subscribe(&anna, "phone", json!(too_many)).await;
    assert!(matches!(refused.status.as_u16(), 400 | 422), "{}", refused.body);
    // The fault says in which of them it stands.
    let refused =
        subscribe(&anna, "phone", json!([{ "model": "task" }, { "model": "task", "filter": { "x": 1 } }])).await;
    assert_eq!(refused.body["errors"][0]["path"], "/1/filter/x", "{}", refused.body);
}

#[tokio::test]
async fn bad_requests_say_where() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let mut phone = anna.device("phone").await;
    for (body, status, kind, path) in [
        (json!({}), 422, "invalid-document", "/model"),
        (json!({ "model": "nothing" }), 404, "not-found", ""),
        (json!({ "model": "no name" }), 422, "invalid-document", "/model"),
        (json!({ "model": "task", "modelId": "a/b" }), 422, "invalid-document", "/modelId"),
        (json!({ "model": "task", "filter": { "title": "x" } }), 400, "invalid-filter", "/filter/title"),
        (
            json!({ "model": "task", "filter": { "priority": { "$like": 1 } } }),
            400,
            "invalid-filter",
            "/filter/priority/$like",
        ),
        (json!({ "model": "task", "filter": [] }), 400, "invalid-filter", "/filter"),
        (json!({ "model": "task", "sort": "title" }), 400, "malformed", "/sort"),
        (json!({ "model": "task", "limit": 1001 }), 422, "invalid-document", "/limit"),
        (json!({ "model": "task", "unknown": 1 }), 422, "invalid-document", "/unknown"),
    ] {
        let answer = subscribe(&anna, "phone", body.clone()).await;
        let at = answer.body["errors"][0]["path"].as_str().unwrap_or_default().to_owned();
        assert_eq!(at, path, "{body}: {}", answer.body);
        assert_eq!(answer.clone().problem(status), kind, "{body}");
        // The same on the socket, to the letter.
        let refused = phone.ask("subscribe", body.clone()).await;
        assert_eq!(refused["event"], "error", "{body}");
        assert_eq!(refused["data"], answer.body, "{body}");
    }
    assert_eq!(subscribe(&app.anonymous(), "x", json!({ "model": "task" })).await.problem(401), "unauthorized");
    assert_eq!(phone.ask("unsubscribe", json!({ "subscriptionId": "nothing" })).await["data"]["status"], 404);
}

#[tokio::test]
async fn a_device_has_so_many_subscriptions() {
    let server = Server::start_with(&[("LIMITS__SUBSCRIPTIONS_PER_DEVICE", "3")]).await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let body = |priority: u64| json!({ "model": "task", "filter": { "priority": priority } });
    for priority in 0..3 {
        subscribe(&anna, "phone", body(priority)).await.expect(StatusCode::CREATED);
    }
    let refused = subscribe(&anna, "phone", body(3)).await;
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(refused.problem(429), "too-many-requests");
    subscribe(&anna, "phone", body(2)).await.expect(StatusCode::OK);
    subscribe(&anna, "tablet", body(3)).await.expect(StatusCode::CREATED);
}

/// While documents are created as fast as they are accepted, devices subscribe: items and frames together are everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_falls_between_the_items_and_the_frames() {
    const DOCUMENTS: usize = 400;
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let writers = (0..4).map(|writer| {
        let anna = anna.clone();
        tokio::spawn(async move {
            let mut ids = Vec::new();
            for number in 0..DOCUMENTS / 4 {
                ids.push(anna.create("task", json!({ "priority": writer * 1000 + number })).await.0);
            }
            ids
        })
    });
    let listeners = (0..6).map(|number| {
        let anna = anna.clone();
        tokio::spawn(async move {
            let mut device = anna.device(&format!("device{number}")).await;
            let subscribed = device.subscribe(json!({ "model": "task", "limit": 1000 })).await;
            let mut seen: BTreeSet<String> = BTreeSet::new();
            for item in subscribed["items"].as_array().expect("items") {
                seen.insert(item["id"].as_str().expect("an id").to_owned());
            }
            let n_items = seen.len();
            while seen.len() < DOCUMENTS {
                let frame = device.next().await;
                seen.insert(frame["data"]["id"].as_str().expect("an id").to_owned());
            }
            (n_items, seen)
        })
    });
    let (writers, listeners): (Vec<_>, Vec<_>) = (writers.collect(), listeners.collect());
    let mut created = BTreeSet::new();
    for writer in writers {
        created.extend(writer.await.expect("a writer"));
    }
    for listener in listeners {
        let (_, seen) = listener.await.expect("a listener");
        assert_eq!(seen, created);
    }
}

#[tokio::test]
async fn a_client_that_closes_is_answered() {
    let server = Server::start().await;
    let app = server.app("tasks", json!({ "task": { "title": { "type": "string" } } }), json!({})).await;
    let device = app.user("anna").await.device("phone").await;
    // 1005: closed without a code, as it asked. 1006 would be a connection that was lost.
    assert_eq!(device.hang_up().await, 1005);
}
