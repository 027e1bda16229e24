//! Who hears of what: by model, by id, by user, by filter; entering, leaving, deletes.

use serde_json::{Value, json};

use crate::harness::Server;

fn schema() -> Value {
    json!({ "task": {
        "title": { "type": "string" },
        "priority": { "type": "number", "filterable": true },
        "status": { "type": "string", "filterable": true },
    }})
}

#[tokio::test]
async fn a_created_document_reaches_its_subscribers_by_every_channel() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let mut device = anna.device("phone").await;
    let by_model = device.subscribe(json!({ "model": "task" })).await;
    let by_user = device.subscribe(json!({ "model": "task", "userId": anna.id })).await;
    let by_filter = device.subscribe(json!({ "model": "task", "filter": { "priority": { "$gte": 3 } } })).await;

    let (id, _) = anna.create("task", json!({ "title": "write", "priority": 5 })).await;
    let frame = device.next().await;
    assert_eq!(frame["event"], "model_created");
    assert_eq!(frame["data"]["id"], json!(id));
    assert_eq!(frame["data"]["title"], "write");
    assert_eq!(frame["metadata"]["version"], 1);
    let mut channels = vec![by_model["channel"].clone(), by_user["channel"].clone(), by_filter["channel"].clone()];
    channels.sort_by_key(Value::to_string);
    assert_eq!(frame["metadata"]["channels"], json!(channels));
    assert!(frame["offset"].as_str() > by_filter["offset"].as_str());
}

#[tokio::test]
async fn a_document_that_leaves_a_filter_is_told_to_its_subscribers() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let (id, _) = anna.create("task", json!({ "priority": 5, "status": "todo" })).await;
    let mut device = anna.device("phone").await;
    let subscribed = device.subscribe(json!({ "model": "task", "filter": { "priority": { "$gte": 3 } } })).await;
    assert_eq!(subscribed["items"][0]["id"], json!(id));
    let channel = json!([subscribed["channel"]]);

    anna.replace("task", &id, "status", json!("done")).await;
    let stayed = device.next().await;
    assert_eq!(stayed["metadata"]["channels"], channel);
    assert_eq!(stayed["metadata"]["entered"], json!([]));
    assert_eq!(stayed["data"][0]["path"], json!(["status"]));
    assert_eq!(stayed["data"][0]["value"], json!(["done"]));

    anna.replace("task", &id, "priority", json!(1)).await;
    let left = device.next().await;
    assert_eq!((&left["event"], &left["metadata"]["left"]), (&json!("model_updated"), &channel));
    assert_eq!(left["metadata"]["channels"], json!([]));
    assert_eq!(left["metadata"]["version"], 3);

    anna.replace("task", &id, "status", json!("unheard")).await;
    anna.replace("task", &id, "priority", json!(9)).await;
    let entered = device.next().await;
    assert_eq!(entered["metadata"]["entered"], channel);
    assert_eq!(entered["document"]["status"], "unheard");
    assert_eq!(entered["document"]["version"], 5);

    anna.delete("task", &id).await;
    let deleted = device.next().await;
    assert_eq!(deleted["event"], "model_deleted");
    assert_eq!(deleted["data"], json!({ "appId": "tasks", "userId": anna.id, "type": "task", "id": id }));
    assert_eq!(deleted["metadata"]["channels"], channel);
}

#[tokio::test]
async fn nobody_hears_of_what_the_rules_hide() {
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({ "task": { "read": "owner" } })).await;
    let (anna, ben) = (app.user("anna").await, app.user("ben").await);
    let mut of_anna = anna.device("anna-phone").await;
    let mut of_ben = ben.device("ben-phone").await;
    of_anna.subscribe(json!({ "model": "task" })).await;
    of_ben.subscribe(json!({ "model": "task" })).await;
    let (secret, _) = anna.create("task", json!({ "title": "secret" })).await;
    let (own, _) = ben.create("task", json!({ "title": "own" })).await;
    assert_eq!(of_anna.next().await["data"]["id"], json!(secret));
    assert_eq!(of_ben.next().await["data"]["id"], json!(own));
    assert_eq!(ben.get_after("task", &secret, "").await.problem(400), "invalid-offset");
}
