//! Stopping, and reading the configuration again: what the signals do.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{PATIENCE, Server, User, log_of, signal};

fn schema() -> Value {
    json!({ "note": { "text": { "type": "string" } } })
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what} never comes");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_and_loses_nothing() {
    for second in ["TERM", "INT"] {
        let mut server = Server::start().await;
        let app = server.app("notes", schema(), json!({})).await;
        let anna = app.user("anna").await;
        let mut changes = Vec::new();
        for _ in 0..20 {
            changes.push(anna.create("note", json!({})).await);
        }
        // A request that does not come to its end holds up the stop.
        let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).expect("a connection");
        let head = "POST /user/login HTTP/1.1\r\nhost: x\r\nnxx-app-id: notes\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
        stream.write_all(head.as_bytes()).expect("written");
        until("the request", async || {
            stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            stream.read(&mut [0]).is_err()
        })
        .await;
        signal(server.pid(), "TERM");
        until("the stop", async || log_of(server.dir()).contains("stopping")).await;
        assert!(server.ended().is_none(), "it waits for the request");
        signal(server.pid(), second);
        until("the end", async || server.ended().is_some()).await;
        assert_eq!(server.ended().and_then(|status| status.code()), Some(130));
        server.restart().await;
        let anna = User { app: server.again(&app), ..anna };
        for (id, change) in changes {
            anna.get_after("note", &id, &change).await.expect(StatusCode::OK);
        }
    }
}

#[tokio::test]
async fn a_hangup_reads_the_configuration_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("nexxus.toml");
    let configure = |text: &str| std::fs::write(&file, text).expect("written");
    configure("[limits]\nbody_bytes = \"2KiB\"\n");
    let server = Server::start_in(dir.path(), &[]).await;
    let anna = server.app("notes", schema(), json!({})).await.user("anna").await;
    let create = async |bytes: usize| {
        anna.call(Method::POST, "/model/note", json!({ "text": "x".repeat(bytes) })).await.status.as_u16()
    };
    assert_eq!((create(1_000).await, create(3_000).await), (202, 413));

    configure("[limits]\nbody_bytes = \"8KiB\"\n[log]\nlevel = \"debug\"\n[data]\ncommit_every = \"2s\"\n");
    signal(server.pid(), "HUP");
    until("the new limit", async || create(3_000).await == 202).await;
    until("what is postponed", async || {
        let log = log_of(dir.path());
        log.contains("limits.body_bytes, log.level") && log.contains("data.commit_every")
    })
    .await;

    // What is not valid changes nothing, and is said.
    for (text, says) in [
        ("[limits]\nbody_byts = \"1KiB\"\n", "unknown setting `limits.body_byts`"),
        ("[limits]\nbody_bytes = \"1B\"\n", "limits.body_bytes"),
        ("[limits\n", "nexxus.toml"),
    ] {
        configure(text);
        signal(server.pid(), "HUP");
        until(says, async || {
            log_of(dir.path()).lines().any(|line| line.contains("one in force stays") && line.contains(says))
        })
        .await;
        assert_eq!((create(3_000).await, create(9_000).await), (202, 413));
    }
}
