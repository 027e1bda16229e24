//! Who may do what: every kind of rule for every kind of caller, on stored and on resulting documents.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{App, Server, User};

fn schema() -> Value {
    json!({ "task": {
        "title": { "type": "string" },
        "team": { "type": "string", "filterable": true },
        "open": { "type": "boolean", "filterable": true },
        "secret": { "type": "string", "hidden": true, "filterable": true },
        "state": { "type": "string", "readOnly": true, "filterable": true },
    }})
}

/// The callers of a table: anna owns the document, ben is of her team, carl of none, dora's type is admin.
struct Callers {
    app: App,
    all: Vec<(&'static str, User)>,
}

impl Callers {
    async fn of(app: App) -> Self {
        let mut all = Vec::new();
        for (name, details) in
            [("anna", json!({ "team": "red" })), ("ben", json!({ "team": "red" })), ("carl", json!({}))]
        {
            let body = json!({ "username": name, "password": "long enough", "details": details });
            let login = app.anonymous().call(Method::POST, "/user/register", body).await.expect(StatusCode::CREATED);
            all.push((name, user_of(&app, &login)));
        }
        let body = json!({ "username": "dora", "password": "long enough", "userType": "admin" });
        let dora = app.admin().call(Method::POST, "/admin/users", body).await.expect(StatusCode::CREATED);
        let path = format!("/admin/users/{}/token", dora["id"].as_str().expect("an id"));
        let issued = app.admin().call(Method::POST, &path, json!({})).await.expect(StatusCode::OK);
        all.push(("dora", user_of(&app, &issued)));
        all.push(("admin", app.admin()));
        all.push(("nobody", app.anonymous()));
        Self { app, all }
    }

    fn named(&self, name: &str) -> &User {
        &self.all.iter().find(|(other, _)| *other == name).expect("a caller").1
    }
}

fn user_of(app: &App, login: &Value) -> User {
    User {
        app: app.clone(),
        id: login["user"]["id"].as_str().expect("an id").to_owned(),
        token: login["token"].as_str().expect("a token").to_owned(),
    }
}

#[tokio::test]
async fn every_rule_lets_in_whom_it_names() {
    let server = Server::start().await;
    let of_team = json!({ "team": "$user.details.team" });
    // For reading, in the order of the callers: anna (owner), ben (her team), carl, dora (admin), the admin token, nobody.
    for (number, (rule, statuses)) in [
        (json!("public"), [200, 200, 200, 200, 200, 200]),
        (json!("user"), [200, 200, 200, 200, 200, 401]),
        (json!("owner"), [200, 404, 404, 200, 200, 401]),
        (json!("admin"), [404, 404, 404, 200, 200, 401]),
        (json!("none"), [404, 404, 404, 200, 200, 401]),
        (of_team.clone(), [200, 200, 404, 200, 200, 401]),
        (json!({ "$or": [of_team, { "open": true }] }), [200, 200, 404, 200, 200, 404]),
        (json!({ "team": { "$ne": "$user.details.team" } }), [404, 404, 404, 200, 200, 401]),
        (json!({ "userId": "$user.id" }), [200, 404, 404, 200, 200, 401]),
    ]
    .into_iter()
    .enumerate()
    {
        let rules = json!({ "task": { "read": rule, "create": "public", "update": "public", "delete": "public" } });
        let callers = Callers::of(server.app(&format!("app{number}"), schema(), rules).await).await;
        let anna = callers.named("anna");
        let (id, change) = anna.create("task", json!({ "title": "x", "team": "red", "open": false })).await;
        for ((name, caller), status) in callers.all.iter().zip(statuses) {
            let read = caller.get_after("task", &id, &change).await;
            assert_eq!(read.status, status, "{name} reads under {rule}: {}", read.body);
            let found = caller.call(Method::GET, "/model/task", Value::Null).await;
            let n_found = found.body["items"].as_array().map(Vec::len);
            let expected = if status == 401 { None } else { Some(usize::from(status == 200)) };
            assert_eq!(n_found, expected, "{name} searches under {rule}: {}", found.body);
            // Who may not read a document gets 404 for every write to it.
            if status == 404 {
                let path = format!("/model/task/{id}");
                let patch = json!([{ "op": "replace", "path": ["title"], "value": ["y"] }]);
                assert_eq!(caller.call(Method::PATCH, &path, patch).await.problem(404), "not-found", "{name} {rule}");
                assert_eq!(caller.call(Method::DELETE, &path, Value::Null).await.problem(404), "not-found");
            }
        }
        assert_eq!(callers.app.id, format!("app{number}"));
    }
}

#[tokio::test]
async fn creating_is_tested_on_the_new_document_and_updating_on_both() {
    let server = Server::start().await;
    let own_team = json!({ "team": "$user.details.team" });
    let rules = json!({ "task": { "read": "public", "create": own_team, "update": own_team, "delete": own_team } });
    let callers = Callers::of(server.app("teams", schema(), rules).await).await;
    let create = |name: &str, team: &str| {
        let caller = callers.named(name).clone();
        let body = json!({ "team": team });
        async move { caller.call(Method::POST, "/model/task", body).await.status.as_u16() }
    };
    for (name, team, status) in [
        ("anna", "red", 202),
        ("anna", "blue", 403),
        ("carl", "red", 403),
        ("nobody", "red", 401),
        ("dora", "blue", 202),
        ("admin", "blue", 202),
    ] {
        assert_eq!(create(name, team).await, status, "{name} {team}");
    }
    let ids = [
        callers.named("admin").create("task", json!({ "team": "red" })).await.0,
        callers.named("admin").create("task", json!({ "team": "blue" })).await.0,
    ];
    let replace = |name: &str, id: &str, field: &str, value: &str| {
        let (caller, path) = (callers.named(name).clone(), format!("/model/task/{id}"));
        let patch = json!([{ "op": "replace", "path": [field], "value": [value] }]);
        async move { caller.call(Method::PATCH, &path, patch).await.status.as_u16() }
    };
    assert_eq!(replace("anna", &ids[0], "title", "x").await, 202);
    assert_eq!(replace("anna", &ids[1], "title", "x").await, 403, "the stored one is not of her team");
    assert_eq!(replace("anna", &ids[0], "team", "blue").await, 403, "the resulting one would not be");
    assert_eq!(replace("carl", &ids[0], "title", "x").await, 403);
    assert_eq!(replace("nobody", &ids[0], "title", "x").await, 401);
    assert_eq!(replace("dora", &ids[0], "team", "blue").await, 202);
    assert_eq!(replace("anna", &ids[0], "title", "y").await, 403, "not any more, from the moment of the change on");
    let path = format!("/model/task/{}", ids[0]);
    assert_eq!(callers.named("ben").call(Method::DELETE, &path, Value::Null).await.problem(403), "forbidden");
    callers.named("admin").call(Method::DELETE, &path, Value::Null).await.expect(StatusCode::ACCEPTED);
}

#[tokio::test]
async fn hidden_fields_are_nobodys_business() {
    let server = Server::start().await;
    let callers = Callers::of(server.app("secrets", schema(), json!({ "task": { "update": "user" } })).await).await;
    let (anna, admin) = (callers.named("anna"), callers.named("admin"));
    let (id, change) = admin.create("task", json!({ "title": "x", "secret": "s", "state": "new" })).await;
    for (name, shown) in [("anna", false), ("dora", true), ("admin", true)] {
        let caller = callers.named(name);
        let read = caller.get_after("task", &id, &change).await.expect(StatusCode::OK);
        assert_eq!(read.get("secret").is_some(), shown, "{name}");
        assert_eq!(read["state"], "new");
        let found = caller.call(Method::GET, "/model/task", Value::Null).await.expect(StatusCode::OK);
        assert_eq!(found["items"][0].get("secret").is_some(), shown, "{name}");
        for query in [r#"filter={"secret":"s"}"#, "sort=secret", "fields=secret"] {
            let answer = caller.call(Method::GET, &format!("/model/task?{query}"), Value::Null).await;
            assert_eq!(answer.status.as_u16(), if shown { 200 } else { 400 }, "{name} {query}: {}", answer.body);
        }
    }
    for field in ["secret", "state"] {
        let created = anna.call(Method::POST, "/model/task", json!({ field: "mine" })).await;
        assert_eq!(created.body["errors"][0]["path"], format!("/{field}"));
        assert_eq!(created.problem(422), "invalid-document");
        let patch = json!([{ "op": "replace", "path": [field], "value": ["mine"] }]);
        let patched = anna.call(Method::PATCH, &format!("/model/task/{id}"), patch).await;
        assert_eq!(patched.problem(422), "invalid-document", "{field}");
    }
    // What is changed beside it stays.
    let change = anna.replace("task", &id, "title", json!("y")).await;
    assert_eq!(admin.get_after("task", &id, &change).await.body["secret"], "s");
}

#[tokio::test]
async fn documents_belong_to_whom_they_should() {
    let server = Server::start().await;
    let callers = Callers::of(server.app("owners", schema(), json!({})).await).await;
    let (anna, admin) = (callers.named("anna"), callers.named("admin"));
    let owner =
        |id: String, change: String| async move { admin.get_after("task", &id, &change).await.body["userId"].clone() };
    let (id, change) = anna.create("task", json!({})).await;
    assert_eq!(owner(id, change).await, json!(anna.id));
    let (id, change) = admin.create("task", json!({})).await;
    assert_eq!(owner(id, change).await, Value::Null);
    let (id, change) = admin.create("task", json!({ "userId": anna.id })).await;
    assert_eq!(owner(id.clone(), change).await, json!(anna.id));
    let refused = anna.call(Method::POST, "/model/task", json!({ "userId": "somebody" })).await;
    assert_eq!(refused.body["errors"][0]["path"], "/userId");
    assert_eq!(refused.problem(422), "invalid-document");
    let ben = callers.named("ben").id.clone();
    let change = admin.replace("task", &id, "userId", json!(ben)).await;
    assert_eq!(owner(id.clone(), change).await, json!(ben));
    let patch = json!([{ "op": "replace", "path": ["userId"], "value": [anna.id] }]);
    let refused = callers.named("ben").call(Method::PATCH, &format!("/model/task/{id}"), patch).await;
    assert_eq!(refused.problem(422), "invalid-document");
}

#[tokio::test]
async fn without_users_everything_is_public() {
    let server = Server::start().await;
    let definition = json!({ "id": "open", "name": "open", "schema": schema(), "authEnabled": false, "rules": { "task": { "read": "none" } } });
    let app = server.app_as(definition).await;
    let nobody = app.anonymous();
    let (id, change) = nobody.create("task", json!({ "title": "x" })).await;
    let read = nobody.get_after("task", &id, &change).await.expect(StatusCode::OK);
    assert_eq!((&read["title"], &read["userId"]), (&json!("x"), &Value::Null));
    let mut device = nobody.connect("kiosk", None).await;
    device.subscribe(json!({ "model": "task" })).await;
    let change = nobody.replace("task", &id, "title", json!("y")).await;
    assert_eq!(device.next().await["event"], "model_updated");
    nobody.get_after("task", &id, &change).await.expect(StatusCode::OK);
    nobody.delete("task", &id).await;
    assert_eq!(device.next().await["event"], "model_deleted");
}

#[tokio::test]
async fn new_rules_and_new_details_hold_from_their_answer_on() {
    let server = Server::start().await;
    let of_team = json!({ "team": "$user.details.team" });
    let callers = Callers::of(server.app("fresh", schema(), json!({ "task": { "read": of_team } })).await).await;
    let (anna, carl) = (callers.named("anna"), callers.named("carl"));
    let (id, change) = anna.create("task", json!({ "team": "red" })).await;
    assert_eq!(carl.get_after("task", &id, &change).await.problem(404), "not-found");
    let joins = json!({ "details": { "team": "red" } });
    carl.call(Method::PATCH, "/user/profile", joins).await.expect(StatusCode::OK);
    carl.get_after("task", &id, &change).await.expect(StatusCode::OK);
    let definition = json!({ "name": "fresh", "schema": schema(), "rules": { "task": { "read": "owner" } } });
    callers.app.admin().call(Method::PUT, "/application/fresh", definition).await.expect(StatusCode::OK);
    assert_eq!(carl.get_after("task", &id, &change).await.problem(404), "not-found");
    anna.get_after("task", &id, &change).await.expect(StatusCode::OK);
}
