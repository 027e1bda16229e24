//! Moving applications from one server to another: `export` and `import`.

use std::{path::Path, process::Output};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    command::{Place, done, run, said},
    harness::{App, Server, User},
};

/// Runs a command on what a server keeps.
async fn at(server: &Server, arguments: &[&str]) -> Output {
    run(&[arguments, &["--data", &server.dir().display().to_string()]].concat()).await
}

/// The same with a command that has to succeed; gives what it says as JSON.
async fn done_at(server: &Server, arguments: &[&str]) -> Value {
    done(&[arguments, &["--data", &server.dir().display().to_string()]].concat()).await
}

fn schema() -> Value {
    json!({
        "task": {
            "title": { "type": "string", "required": true, "filterable": true },
            "n": { "type": "number", "filterable": true },
            "due": { "type": "date", "filterable": true },
            "secret": { "type": "string", "hidden": true },
        },
        "note": { "text": { "type": "string" } },
    })
}

/// Documents of two owners and of nobody, some changed and some deleted, more than fit one page.
async fn fill(app: &App) -> (User, User) {
    let (anna, ben) = (app.user("anna").await, app.user("ben").await);
    for n in 0..620 {
        let user = if n % 2 == 0 { &anna } else { &ben };
        user.create("task", json!({ "id": format!("t{n:03}"), "title": format!("task {n}"), "n": n })).await;
    }
    app.admin()
        .create("task", json!({ "id": "hidden", "title": "x", "secret": "s", "due": "2026-01-01T00:00:00Z" }))
        .await;
    anna.replace("task", "t000", "title", json!("changed")).await;
    anna.replace("task", "t000", "n", json!(1000)).await;
    let last = anna.delete("task", "t002").await;
    app.admin().create("note", json!({ "text": "ä\n\"quoted\"" })).await;
    anna.get_after("task", "t002", &last).await.expect(StatusCode::NOT_FOUND);
    let mut phone = anna.device("phone").await;
    phone.subscribe(json!({ "model": "task", "filter": { "n": { "$gte": 600 } } })).await;
    (anna, ben)
}

/// Everything that queries of an admin give, and the offsets left out: those are a server's own.
async fn everything(app: &App) -> Vec<Value> {
    let mut found = Vec::new();
    for (model, query) in [
        ("task", json!({ "sort": ["id"], "limit": 1000 })),
        ("task", json!({ "filter": { "n": { "$gte": 600 } }, "sort": ["-n", "title"], "count": true })),
        ("task", json!({ "filter": { "due": { "$exists": true } } })),
        ("task", json!({ "filter": { "title": "changed" } })),
        ("note", json!({ "count": true })),
    ] {
        let request = app.admin().call(Method::POST, &format!("/model/{model}/search"), query).await;
        let mut answer = request.expect(StatusCode::OK);
        answer.as_object_mut().expect("an object").remove("cursor");
        found.push(answer);
    }
    let users = app.admin().call(Method::GET, "/admin/users", Value::Null).await.expect(StatusCode::OK);
    found.push(users);
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_exported_is_the_same_on_another_server_and_twice_is_once() {
    let place = Place::new();
    let (here, there) = (Server::start().await, Server::start().await);
    let app = here.app("tasks", schema(), json!({ "task": { "read": "public" } })).await;
    fill(&app).await;
    let before = everything(&app).await;
    for name in ["all.jsonl", "all.jsonl.zst"] {
        let file = place.at(name);
        let said = done_at(&here, &["export", &file.display().to_string()]).await;
        assert_eq!(said["applications"], 1);
        assert!(!place.at(&format!("{name}.part")).exists());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("a file").permissions());
        assert_eq!(mode & 0o777, 0o600, "it has the hashes of passwords");
    }
    let text = std::fs::read_to_string(place.at("all.jsonl")).expect("a file");
    // The application, two users, a device for each login and the phone, a subscription, 620 tasks and a note.
    let n_lines = text.lines().count() as u64 - 2;
    assert_eq!(n_lines, 1 + 2 + 3 + 1 + 620 + 1, "{}", &text[..400]);

    let file = place.at("all.jsonl.zst").display().to_string();
    let first = done_at(&there, &["import", &file]).await;
    assert_eq!(first, json!({ "written": n_lines, "unchanged": 0, "refused": 0, "whole": true }));
    let moved = there.known_app("tasks");
    assert_eq!(everything(&moved).await, before);
    let again = done_at(&there, &["import", &file]).await;
    assert_eq!(again, json!({ "written": 0, "unchanged": n_lines, "refused": 0, "whole": true }));
    assert_eq!(everything(&moved).await, before);

    // Who was signed up there is signed up here, with the device and its subscription.
    let login = json!({ "username": "anna", "password": "anna-password" });
    let request = moved.anonymous().request(Method::POST, "/user/login").header("nxx-device-id", "phone").json(&login);
    let login = moved.anonymous().send(request).await.expect(StatusCode::OK);
    let anna = User {
        app: moved.clone(),
        id: login["user"]["id"].as_str().expect("an id").to_owned(),
        token: login["token"].as_str().expect("a token").to_owned(),
    };
    let mut phone = anna.connect("phone", None).await;
    assert_eq!(phone.hello["data"]["subscriptions"], 1);
    // A change goes on from the version that was moved.
    anna.replace("task", "t000", "n", json!(2000)).await;
    let frame = phone.next().await;
    assert_eq!((&frame["metadata"]["id"], &frame["metadata"]["version"]), (&json!("t000"), &json!(4)));
    // What is newer here stays.
    done_at(&there, &["import", &file]).await;
    let kept = anna.call(Method::GET, "/model/task/t000", Value::Null).await.expect(StatusCode::OK);
    assert_eq!((&kept["n"], &kept["version"]), (&json!(2000), &json!(4)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_tells_nobody_unless_it_is_asked_to() {
    let place = Place::new();
    let server = Server::start().await;
    let app = server.app("tasks", schema(), json!({ "task": { "read": "public" } })).await;
    let anna = app.user("anna").await;
    let mut phone = anna.device("phone").await;
    let offset = phone.subscribe(json!({ "model": "task" })).await["offset"].as_str().expect("an offset").to_owned();
    let line = |id: &str, version: u64, title: &str| {
        json!({ "document": { "id": id, "type": "task", "appId": "tasks", "version": version, "title": title,
            "createdAt": "2020-01-01T00:00:00.000Z", "updatedAt": "2020-01-02T00:00:00.000Z" } })
    };
    let import = async |lines: &[Value], arguments: &[&str]| {
        let file = place.at("some.jsonl");
        let head = json!({ "nexxus": { "export": 1 } });
        let end = json!({ "end": { "lines": lines.len() } });
        let text: String = [&[head], lines, &[end]].concat().iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&file, text).expect("written");
        at(&server, &[&["import", &*file.display().to_string(), "--json"], arguments].concat()).await
    };
    assert!(import(&[line("quiet", 3, "a"), line("both", 1, "b")], &[]).await.status.success());
    assert!(import(&[line("loud", 5, "c"), line("both", 4, "d")], &["--notify"]).await.status.success());
    let quiet = anna.call(Method::GET, "/model/task/quiet", Value::Null).await.expect(StatusCode::OK);
    assert_eq!((&quiet["version"], &quiet["updatedAt"]), (&json!(3), &json!("2020-01-02T00:00:00.000Z")));
    // Live, and for who comes back and reads the log.
    let mut back = anna.connect("phone", Some(&offset)).await;
    assert_eq!(back.next().await["event"], "resumed");
    for device in [&mut phone, &mut back] {
        let created = device.next().await;
        assert_eq!((&created["event"], &created["data"]["id"]), (&json!("model_created"), &json!("loud")));
        assert_eq!(created["metadata"]["version"], 5);
        let updated = device.next().await;
        assert_eq!((&updated["event"], &updated["metadata"]["id"]), (&json!("model_updated"), &json!("both")));
        assert_eq!(updated["data"][0]["value"], json!(["d"]));
    }
    // What does not fit is refused by its line, and the rest is taken.
    let wrong = json!({ "document": { "id": "w", "type": "task", "appId": "tasks", "version": 1, "nonsense": 1,
        "createdAt": "2020-01-01T00:00:00.000Z", "updatedAt": "2020-01-01T00:00:00.000Z" } });
    let output = import(&[line("right", 1, "x"), wrong, json!({ "odd": 1 })], &[]).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("line 3: ") && said(&output).contains("line 4: "), "{}", said(&output));
    anna.call(Method::GET, "/model/task/right", Value::Null).await.expect(StatusCode::OK);
    // Only the admin may.
    anna.call(Method::GET, "/admin/export/users", Value::Null).await.problem(403);
    anna.call(Method::POST, "/admin/import", Value::Null).await.problem(403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_broke_off_goes_on_from_there() {
    let place = Place::new();
    let server = Server::start_with(&[("LIMITS__BODY_BYTES", "4KiB")]).await;
    let app = server.app("tasks", schema(), json!({ "task": { "read": "public" } })).await;
    fill(&app).await;
    let before = everything(&app).await;
    for name in ["all.jsonl", "all.jsonl.zst"] {
        let (file, part) = (place.at(name), place.at(&format!("{name}.part")));
        let export = ["export", &file.display().to_string()];
        done_at(&server, &export).await;
        let whole = std::fs::read(&file).expect("a file");
        let things = lines_of(&server, &place, &file).await;
        // In the middle of a line, of a frame, of the first line, and before anything.
        for share in [whole.len() * 2 / 3, whole.len() / 3, 20, 0] {
            std::fs::remove_file(&file).expect("removed");
            std::fs::write(&part, &whole[..share]).expect("written");
            done_at(&server, &export).await;
            assert_eq!(lines_of(&server, &place, &file).await, things, "{name} cut at {share}");
        }
        // A file that broke off says so when it is imported, and everything up to there is there.
        std::fs::write(&file, &whole[..whole.len() / 2]).expect("written");
        let output = at(&server, &["import", &file.display().to_string()]).await;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    }
    // A server that takes little at once is given little at once.
    assert_eq!(everything(&app).await, before);
}

/// How many lines an export has that this server knows all of.
async fn lines_of(server: &Server, _place: &Place, file: &Path) -> u64 {
    let said = done_at(server, &["import", &file.display().to_string()]).await;
    assert_eq!((&said["written"], &said["refused"], &said["whole"]), (&json!(0), &json!(0), &json!(true)));
    said["unchanged"].as_u64().expect("a number")
}
