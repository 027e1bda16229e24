//! Users: registering, signing in, renewing, changing, ending; and what the admin does with them.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{App, Server, User};

fn schema() -> Value {
    json!({ "note": { "text": { "type": "string" } } })
}

async fn register(app: &App, body: Value) -> crate::harness::Answer {
    app.anonymous().call(Method::POST, "/user/register", body).await
}

async fn login(app: &App, name: &str, password: &str) -> crate::harness::Answer {
    let body = json!({ "username": name, "password": password });
    app.anonymous().call(Method::POST, "/user/login", body).await
}

async fn refresh(app: &App, token: &Value) -> crate::harness::Answer {
    app.anonymous().call(Method::POST, "/auth/refresh", json!({ "refreshToken": token })).await
}

fn with_token(app: &App, login: &Value) -> User {
    User {
        app: app.clone(),
        id: login["user"]["id"].as_str().expect("an id").to_owned(),
        token: login["token"].as_str().expect("a token").to_owned(),
    }
}

/// Whether a caller is let in.
async fn is_known(user: &User) -> bool {
    let answer = user.call(Method::GET, "/user/me", Value::Null).await;
    match answer.status.as_u16() {
        200 => true,
        401 => false,
        other => panic!("{other} {}", answer.body),
    }
}

#[tokio::test]
async fn a_user_registers_signs_in_and_is_itself() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let registered = register(&app, json!({ "username": "anna", "password": "long enough" })).await;
    assert_eq!(registered.status, StatusCode::CREATED, "{}", registered.body);
    for member in ["token", "expiresAt", "refreshToken", "user", "deviceId"] {
        assert!(!registered.body[member].is_null(), "no {member} in {}", registered.body);
    }
    assert_eq!(registered.body["user"]["username"], "anna");
    assert!(!registered.body.to_string().contains("argon2"), "the hash is shown");

    for path in ["/user/login", "/auth/local"] {
        let body = json!({ "username": "anna", "password": "long enough" });
        let login = app.anonymous().call(Method::POST, path, body).await.expect(StatusCode::OK);
        let anna = with_token(&app, &login);
        assert_eq!(anna.id, registered.body["user"]["id"]);
        for path in ["/user/me", "/user/profile"] {
            let profile = anna.call(Method::GET, path, Value::Null).await.expect(StatusCode::OK);
            assert_eq!((&profile["id"], &profile["username"]), (&json!(anna.id), &json!("anna")));
            assert_eq!(profile["details"], json!({}));
        }
    }
    for (name, password) in [("anna", "wrong password"), ("nobody", "long enough"), ("anna", ""), ("", "x")] {
        let problem = login(&app, name, password).await.problem(401);
        assert_eq!(problem, "unauthorized", "{name} {password}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_registration_is_said_with_its_place() {
    let server = Server::start().await;
    let app = server
        .app_as(json!({
            "id": "ward", "name": "ward", "schema": schema(), "userTypes": ["nurse"],
            "userDetailSchema": {
                "default": { "name": { "type": "string" }, "grade": { "type": "number", "readOnly": true } },
                "nurse": { "ward": { "type": "number", "required": true } },
            },
        }))
        .await;
    register(&app, json!({ "username": "taken", "password": "long enough" })).await.expect(StatusCode::CREATED);
    let bad = [
        (json!([]), 400, "malformed", ""),
        (json!({ "password": "long enough" }), 422, "invalid-document", "/username"),
        (json!({ "username": "anna" }), 422, "invalid-document", "/password"),
        (json!({ "username": "anna", "password": "short" }), 422, "invalid-document", "/password"),
        (json!({ "username": "anna", "password": "long enough", "x": 1 }), 422, "invalid-document", "/x"),
        (
            json!({ "username": "anna", "password": "long enough", "userType": "doctor" }),
            422,
            "invalid-document",
            "/userType",
        ),
        (
            json!({ "username": "anna", "password": "long enough", "userType": "admin" }),
            422,
            "invalid-document",
            "/userType",
        ),
        (
            json!({ "username": "anna", "password": "long enough", "userType": "nurse" }),
            422,
            "invalid-document",
            "/details/ward",
        ),
        (
            json!({ "username": "anna", "password": "long enough", "details": { "grade": 1 } }),
            422,
            "invalid-document",
            "/details/grade",
        ),
        (
            json!({ "username": "anna", "password": "long enough", "details": { "x": 1 } }),
            422,
            "invalid-document",
            "/details/x",
        ),
        (json!({ "username": "taken", "password": "long enough" }), 409, "exists", "/username"),
    ];
    for (body, status, kind, path) in bad {
        let answer = register(&app, body.clone()).await;
        assert_eq!(answer.body["errors"][0]["path"], path, "{body}: {}", answer.body);
        assert_eq!(answer.problem(status), kind, "{body}");
    }
    let nurse = json!({ "username": "anna", "password": "long enough", "userType": "nurse", "details": { "ward": 3 } });
    let registered = register(&app, nurse).await.expect(StatusCode::CREATED);
    assert_eq!(registered["user"]["userType"], "nurse");
    assert_eq!(registered["user"]["details"], json!({ "ward": 3 }));
}

#[tokio::test]
async fn one_of_many_who_want_a_name_gets_it() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let wishes = (0..6).map(|_| register(&app, json!({ "username": "anna", "password": "long enough" })));
    let mut statuses: Vec<u16> =
        futures_util::future::join_all(wishes).await.iter().map(|answer| answer.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409]);
}

#[tokio::test]
async fn bad_tokens_open_nothing() {
    let server = Server::start().await;
    let (app, other) = (server.app("one", schema(), json!({})).await, server.app("two", schema(), json!({})).await);
    let anna = app.user("anna").await;
    let (head, signature) = anna.token.rsplit_once('.').expect("a token");
    let none = "eyJhbGciOiJub25lIn0";
    let payload = anna.token.split('.').nth(1).expect("a payload");
    let tokens = [
        "nonsense".to_owned(),
        "a.b.c".to_owned(),
        format!("{head}."),
        format!("{head}.{}", signature.chars().rev().collect::<String>()),
        format!("{none}.{payload}."),
        "x".repeat(10_000),
    ];
    for token in tokens {
        let caller = User { token: token.clone(), ..anna.clone() };
        assert_eq!(caller.call(Method::GET, "/model/note", Value::Null).await.problem(401), "unauthorized", "{token}");
        let refused = caller.try_connect("phone", None).await.err().expect("refused");
        assert!(refused.to_string().contains("401"), "{refused}");
    }
    let elsewhere = User { app: other, ..anna.clone() };
    assert_eq!(elsewhere.call(Method::GET, "/model/note", Value::Null).await.problem(401), "unauthorized");
    assert_eq!(app.anonymous().call(Method::GET, "/user/me", Value::Null).await.problem(401), "unauthorized");
    assert!(is_known(&anna).await);
}

#[tokio::test]
async fn a_refresh_token_is_good_for_one_refresh() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let first = register(&app, json!({ "username": "anna", "password": "long enough" })).await.body;
    let second = refresh(&app, &first["refreshToken"]).await.expect(StatusCode::OK);
    assert_eq!(second["deviceId"], first["deviceId"]);
    assert_ne!(second["refreshToken"], first["refreshToken"]);
    assert!(is_known(&with_token(&app, &second)).await);
    // The answer may have been lost: it comes again.
    let again = refresh(&app, &first["refreshToken"]).await.expect(StatusCode::OK);
    assert_eq!(again["refreshToken"], second["refreshToken"]);
    let third = refresh(&app, &second["refreshToken"]).await.expect(StatusCode::OK);
    // By now it is nobody's.
    assert_eq!(refresh(&app, &first["refreshToken"]).await.problem(401), "unauthorized");
    assert!(is_known(&with_token(&app, &third)).await, "nonsense ends no session");
    for bad in [json!("x"), json!("a/b/c"), json!(""), json!("../../x")] {
        assert_eq!(refresh(&app, &bad).await.problem(401), "unauthorized", "{bad}");
    }
    assert_eq!(app.anonymous().call(Method::POST, "/auth/refresh", json!({})).await.problem(422), "invalid-document");
}

#[tokio::test]
async fn several_refreshes_at_once_get_the_same_answer() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let first = register(&app, json!({ "username": "anna", "password": "long enough" })).await.body;
    let tabs = (0..8).map(|_| refresh(&app, &first["refreshToken"]));
    let answers = futures_util::future::join_all(tabs).await;
    let next = answers[0].body["refreshToken"].clone();
    for answer in answers {
        assert_eq!(answer.clone().expect(StatusCode::OK)["refreshToken"], next);
    }
    refresh(&app, &next).await.expect(StatusCode::OK);
}

#[tokio::test]
async fn where_one_login_is_allowed_the_next_ends_the_others() {
    let server = Server::start().await;
    let definition = json!({ "id": "strict", "name": "strict", "schema": schema(), "allowMultipleLogin": false });
    let app = server.app_as(definition).await;
    let anna = app.user("anna").await;
    let mut phone = anna.device("phone").await;
    let again = login(&app, "anna", "anna-password").await.expect(StatusCode::OK);
    assert_eq!(phone.closed().await, 4003);
    assert!(!is_known(&anna).await);
    assert!(is_known(&with_token(&app, &again)).await);

    let free = server.app("free", schema(), json!({})).await;
    let ben = free.user("ben").await;
    login(&free, "ben", "ben-password").await.expect(StatusCode::OK);
    assert!(is_known(&ben).await);
}

#[tokio::test]
async fn users_change_what_is_theirs() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let patch = |body: Value| anna.call(Method::PATCH, "/user/profile", body);
    let changed = patch(json!({ "details": { "name": "Anna", "colour": "red" } })).await.expect(StatusCode::OK);
    assert_eq!(changed["details"], json!({ "name": "Anna", "colour": "red" }));
    let changed = patch(json!({ "details": { "colour": null } })).await.expect(StatusCode::OK);
    assert_eq!(changed["details"], json!({ "name": "Anna" }));
    let profile = anna.call(Method::GET, "/user/me", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(profile["details"], json!({ "name": "Anna" }));

    for (body, status, path) in [
        (json!({ "userType": "admin" }), 422, "/userType"),
        (json!({ "username": "other" }), 422, "/username"),
        (json!({ "password": "another one" }), 422, "/currentPassword"),
        (json!({ "password": "short", "currentPassword": "anna-password" }), 422, "/password"),
        (json!({ "details": [] }), 422, "/details"),
    ] {
        let answer = patch(body.clone()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        assert_eq!(answer.body["errors"][0]["path"], path, "{body}");
    }
    let body = json!({ "password": "another one", "currentPassword": "wrong" });
    assert_eq!(patch(body).await.problem(403), "forbidden");

    let elsewhere = with_token(&app, &login(&app, "anna", "anna-password").await.expect(StatusCode::OK));
    patch(json!({ "password": "another one", "currentPassword": "anna-password" })).await.expect(StatusCode::OK);
    assert!(is_known(&anna).await, "who changed it stays");
    assert!(!is_known(&elsewhere).await, "everybody else has to sign in again");
    assert_eq!(login(&app, "anna", "anna-password").await.problem(401), "unauthorized");
    login(&app, "anna", "another one").await.expect(StatusCode::OK);
}

#[tokio::test]
async fn changes_of_a_profile_at_the_same_time_are_all_kept() {
    let server = Server::start().await;
    let anna = server.app("notes", schema(), json!({})).await.user("anna").await;
    let changes = (0..8).map(|number| {
        let details = json!({ "details": { format!("field{number}"): number } });
        anna.call(Method::PATCH, "/user/profile", details)
    });
    for answer in futures_util::future::join_all(changes).await {
        answer.expect(StatusCode::OK);
    }
    let profile = anna.call(Method::GET, "/user/profile", Value::Null).await.expect(StatusCode::OK);
    for number in 0..8 {
        assert_eq!(profile["details"][format!("field{number}")], number, "{profile}");
    }
}

#[tokio::test]
async fn an_account_ends_at_once_and_its_documents_stay() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let (anna, ben) = (app.user("anna").await, app.user("ben").await);
    let (note, _) = anna.create("note", json!({ "text": "stays" })).await;
    let mut phone = anna.device("phone").await;
    let answer = anna.call(Method::DELETE, "/user/account", Value::Null).await;
    assert!(answer.status.is_success(), "{} {}", answer.status, answer.body);
    assert_eq!(phone.closed().await, 4003);
    assert!(!is_known(&anna).await);
    assert_eq!(login(&app, "anna", "anna-password").await.problem(401), "unauthorized");
    let read = ben.call(Method::GET, &format!("/model/note/{note}"), Value::Null).await.expect(StatusCode::OK);
    assert_eq!(read["userId"], json!(anna.id));
    // The name is free again, and is another user's then.
    let again = app.user("anna").await;
    assert_ne!(again.id, anna.id);
}

#[tokio::test]
async fn the_admin_looks_after_users() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({ "note": { "read": "admin" } })).await;
    let admin = app.admin();
    let body = json!({ "username": "chief", "password": "long enough", "userType": "admin", "details": { "x": 1 } });
    let chief = admin.call(Method::POST, "/admin/users", body.clone()).await.expect(StatusCode::CREATED);
    assert_eq!(chief["userType"], "admin");
    assert_eq!(admin.call(Method::POST, "/admin/users", body).await.problem(409), "exists");
    let path = format!("/admin/users/{}", chief["id"].as_str().expect("an id"));

    // A user of that type is past the rules.
    let issued = admin.call(Method::POST, &format!("{path}/token"), json!({ "device": "desk" })).await;
    let issued = issued.expect(StatusCode::OK);
    assert_eq!(issued["deviceId"], "desk");
    let acting = with_token(&app, &issued);
    let (note, change) = acting.create("note", json!({ "text": "x" })).await;
    acting.get_after("note", &note, &change).await.expect(StatusCode::OK);
    // Not any more, from the moment on in which the admin takes it away.
    let changed = admin.call(Method::PATCH, &path, json!({ "userType": null })).await.expect(StatusCode::OK);
    assert!(changed["userType"].is_null());
    assert_eq!(acting.get_after("note", &note, &change).await.problem(404), "not-found");

    let found = admin.call(Method::GET, "/admin/users?username=chief", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(found["items"][0]["id"], chief["id"]);
    let none = admin.call(Method::GET, "/admin/users?username=nobody", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(none["items"], json!([]));

    let mut desk = acting.connect("desk", None).await;
    let answer = admin.call(Method::POST, &format!("{path}/disconnect"), Value::Null).await;
    assert!(answer.status.is_success(), "{}", answer.body);
    assert_eq!(desk.closed().await, 4003);
    assert!(!is_known(&acting).await);
    login(&app, "chief", "long enough").await.expect(StatusCode::OK);

    let answer = admin.call(Method::DELETE, &path, Value::Null).await;
    assert!(answer.status.is_success(), "{}", answer.body);
    assert_eq!(admin.call(Method::GET, &path, Value::Null).await.problem(404), "not-found");
    assert_eq!(login(&app, "chief", "long enough").await.problem(401), "unauthorized");
}

#[tokio::test]
async fn admin_routes_are_for_the_admin() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let anna = app.user("anna").await;
    for (method, path) in [
        (Method::GET, "/application"),
        (Method::GET, "/application/notes"),
        (Method::POST, "/application"),
        (Method::DELETE, "/application/notes"),
        (Method::GET, "/admin/users"),
        (Method::POST, "/admin/users"),
        (Method::GET, "/admin/queues"),
    ] {
        let body = if method == Method::POST { json!({}) } else { Value::Null };
        assert_eq!(anna.call(method.clone(), path, body.clone()).await.problem(403), "forbidden", "{method} {path}");
        let nobody = app.anonymous().call(method.clone(), path, body).await;
        assert_eq!(nobody.problem(401), "unauthorized", "{method} {path}");
    }
}

#[tokio::test]
async fn a_token_ends_with_its_time() {
    let server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let anna = app.user("anna").await;
    let path = format!("/admin/users/{}/token", anna.id);
    let issued = app.admin().call(Method::POST, &path, json!({ "ttl": 2 })).await.expect(StatusCode::OK);
    let short = with_token(&app, &issued);
    assert!(is_known(&short).await);
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    while is_known(&short).await {
        assert!(std::time::Instant::now() < deadline, "the token never ends");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(is_known(&anna).await);
    // The login that it stands for goes on.
    refresh(&app, &issued["refreshToken"]).await.expect(StatusCode::OK);
}

#[tokio::test]
async fn logins_survive_a_restart_and_revocations_too() {
    let mut server = Server::start().await;
    let app = server.app("notes", schema(), json!({})).await;
    let (anna, ben) = (app.user("anna").await, app.user("ben").await);
    let path = format!("/admin/users/{}/disconnect", ben.id);
    assert!(app.admin().call(Method::POST, &path, Value::Null).await.status.is_success());
    server.kill();
    server.restart().await;
    let app = server.again(&app);
    assert!(is_known(&User { app: app.clone(), ..anna }).await);
    assert!(!is_known(&User { app: app.clone(), ..ben }).await);
    login(&app, "ben", "ben-password").await.expect(StatusCode::OK);
}
