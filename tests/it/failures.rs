//! A disk that fails, and a stage that does not come to its end: how the process stops, and what the next start finds.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{PATIENCE, Server, User, log_of, signal};

async fn with_anna(settings: &[(&str, &str)]) -> (Server, User) {
    let server = Server::start_with(settings).await;
    let anna = server.app("notes", json!({ "note": { "text": { "type": "string" } } }), json!({})).await;
    let anna = anna.user("anna").await;
    (server, anna)
}

/// The same on the next start, where these places fail.
async fn failing(server: &mut Server, user: &User, places: &str) -> User {
    server.failpoints(places);
    server.restart().await;
    User { app: server.again(&user.app), ..user.clone() }
}

/// Waits for the end; gives its code.
async fn end_of(server: &mut Server) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = server.ended() {
            return status.code();
        }
        assert!(Instant::now() < deadline, "it does not end: {}", log_of(server.dir()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Writes, one after the other, until one is not accepted: what was, and what was said of the last one, if anything was.
async fn write_until_it_fails(user: &User) -> (Vec<(String, String)>, Option<(StatusCode, Option<String>, Value)>) {
    let mut accepted = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "nothing fails");
        let request = user.request(Method::POST, "/model/note").json(&json!({ "text": "x" }));
        let Ok(response) = request.send().await else { return (accepted, None) };
        let status = response.status();
        let change = response.headers().get("nxx-change-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let Ok(body) = response.json::<Value>().await else { return (accepted, None) };
        if status != StatusCode::ACCEPTED {
            return (accepted, Some((status, change, body)));
        }
        let text = |name: &str| body[name].as_str().expect("a text").to_owned();
        accepted.push((text("id"), text("changeId")));
    }
}

#[tokio::test]
async fn a_failed_fsync_stops_it_and_loses_nothing_that_was_accepted() {
    let (mut server, anna) = with_anna(&[]).await;
    assert_eq!(server.stop(), Some(0));
    let anna = failing(&mut server, &anna, "journal.sync=60*off->return(invalid)").await;
    let written = futures_util::future::join_all((0..8).map(|_| write_until_it_fails(&anna))).await;
    assert_eq!(end_of(&mut server).await, Some(1));
    let log = log_of(server.dir());
    assert!(log.contains("the journal has failed: nothing more is accepted, the process has to stop"), "{log}");
    let last = log.lines().rfind(|line| line.contains("nexxus:")).unwrap_or_default();
    assert!(last.contains("sync journal") && last.contains("segment"), "{log}");

    let (mut accepted, mut unknown) = (Vec::new(), Vec::new());
    for (of_one, refused) in written {
        accepted.extend(of_one);
        let Some((status, change, body)) = refused else { continue };
        assert_eq!((status.as_u16(), &body["type"]), (503, &json!("outcome-unknown")), "{body}");
        assert_eq!(body["changeId"].as_str(), change.as_deref(), "{body}");
        unknown.push(change.expect("the change is named"));
    }
    assert!(!accepted.is_empty() && !unknown.is_empty(), "{} {}", accepted.len(), unknown.len());
    let anna = failing(&mut server, &anna, "").await;
    for (id, change) in &accepted {
        anna.get_after("note", id, change).await.expect(StatusCode::OK);
    }
    // Whoever asks is told what became of the others: they are there, or they are not.
    let mut n_applied = accepted.len();
    for change in unknown {
        let answer = anna.call(Method::GET, &format!("/changes/{change}"), Value::Null).await;
        match answer.status.as_u16() {
            200 => {
                assert_eq!(answer.body["state"], "applied", "{}", answer.body);
                n_applied += 1;
            }
            status => assert_eq!(status, 404, "{}", answer.body),
        }
    }
    let found = anna.call(Method::GET, "/model/note?limit=0&count=true", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(found["total"], n_applied, "{found}");
}

#[tokio::test]
async fn a_backend_that_is_away_costs_no_tries() {
    let (mut server, anna) = with_anna(&[]).await;
    assert_eq!(server.stop(), Some(0));
    // More often than a message is tried.
    let anna = failing(&mut server, &anna, "writer.decided=7*return(unavailable)").await;
    let (id, change) = anna.create("note", json!({})).await;
    anna.get_after("note", &id, &change).await.expect(StatusCode::OK);
    let log = log_of(server.dir());
    assert_eq!(log.matches("a backend is away, waiting").count(), 7, "{log}");
    assert!(!log.contains("dead letters") && !log.contains("a message failed"), "{log}");
    let queues = server.admin(Method::GET, "/admin/queues", Value::Null).await.expect(StatusCode::OK);
    let items = queues["items"].as_array().expect("items");
    let dead = items.iter().find(|queue| queue["queue"] == "writer.dead" || queue["name"] == "writer.dead");
    assert!(dead.is_none_or(|queue| queue["ready"] == 0), "{queues}");
}

#[tokio::test]
async fn a_stage_that_hangs_is_given_up_at_the_deadline_and_what_it_had_comes_again() {
    let (mut server, anna) = with_anna(&[("SERVER__SHUTDOWN_TIMEOUT", "3s")]).await;
    anna.register_device("phone", json!(600)).await;
    let mut phone = anna.connect("phone", None).await;
    phone.subscribe(json!({ "model": "note" })).await;
    assert_eq!(server.stop(), Some(0));
    assert_eq!(phone.closed().await, 1001);

    let anna = failing(&mut server, &anna, "runner.handling=return(stall:writer)").await;
    let mut phone = anna.connect("phone", Some("last")).await;
    assert_eq!(phone.next().await["event"], "resumed");
    let mut accepted = Vec::new();
    for _ in 0..20 {
        accepted.push(anna.create("note", json!({})).await);
    }
    let began = Instant::now();
    signal(server.pid(), "TERM");
    // The stage hangs, but whoever is connected is still told to come back.
    assert_eq!(phone.closed().await, 1001);
    assert_eq!(end_of(&mut server).await, Some(1));
    let took = began.elapsed();
    assert!(took > Duration::from_secs(2) && took < Duration::from_secs(8), "{took:?}");
    let log = log_of(server.dir());
    assert!(log.contains("not everything had ended at the deadline of server.shutdown_timeout"), "{log}");
    assert!(log.contains("still running at the deadline, dropped") && log.contains("phase=\"writer\""), "{log}");

    let anna = failing(&mut server, &anna, "").await;
    let mut phone = anna.connect("phone", Some("last")).await;
    assert_eq!(phone.next().await["event"], "resumed");
    let mut told = Vec::new();
    for _ in &accepted {
        told.push(phone.next().await["data"]["id"].as_str().expect("an id").to_owned());
    }
    assert_eq!(told, accepted.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>());
}

#[tokio::test]
async fn it_is_not_ready_until_the_matcher_is_loaded() {
    let (mut server, anna) = with_anna(&[]).await;
    anna.device("phone").await.subscribe(json!({ "model": "note" })).await;
    assert_eq!(server.stop(), Some(0));
    server.failpoints("transport-manager.load=return(stall:notes)");
    server.restart_unready().await;
    let readyz = async |server: &Server| {
        let answer = reqwest::get(format!("{}/readyz", server.url)).await.expect("an answer");
        (answer.status(), answer.text().await.expect("a text"))
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, text) = readyz(&server).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
        if text.contains("matcher") {
            break;
        }
        assert!(Instant::now() < deadline, "{text}: {}", log_of(server.dir()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(log_of(server.dir()).matches("the matcher is loaded").count(), 1, "only before");
    // What is written meanwhile is accepted, and reaches who listens when somebody matches.
    let anna = User { app: server.again(&anna.app), ..anna };
    let (id, _) = anna.create("note", json!({ "text": "early" })).await;
    assert_eq!(readyz(&server).await.0, StatusCode::SERVICE_UNAVAILABLE);
    server.kill();
    server.failpoints("");
    server.restart().await;
    let log = log_of(server.dir());
    let loaded = log.lines().rfind(|line| line.contains("the matcher is loaded")).unwrap_or_default();
    assert!(loaded.contains("subscriptions=1"), "{log}");
    let anna = User { app: server.again(&anna.app), ..anna };
    let found = anna.request(Method::GET, &format!("/model/note/{id}")).send().await.expect("an answer");
    assert_eq!(found.status(), StatusCode::OK);
}
