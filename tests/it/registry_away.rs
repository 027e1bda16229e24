//! The registry in Redis: what a server does while Redis is away, killed and back.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::harness::{PATIENCE, Server, log_of};

fn start_redis(dir: &Path, port: u16) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--port"]);
    command.arg(port.to_string()).arg("--dir").arg(dir).stdout(Stdio::null());
    command.spawn().expect("redis-server: tests/cluster/up redis installs it")
}

async fn until_readyz(server: &Server, status: StatusCode) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = reqwest::get(format!("{}/readyz", server.url)).await.expect("an answer");
        let found = answer.status();
        let text = answer.text().await.expect("a text");
        if found == status {
            return text;
        }
        assert!(Instant::now() < deadline, "{found} {text}: {}", log_of(server.dir()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_is_accepted_while_the_registry_is_away_arrives_when_it_is_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let mut redis = start_redis(dir.path(), port);
    let node = format!("redis://127.0.0.1:{port}");
    let settings = [("REGISTRY__ADAPTER", "redis"), ("REDIS__MODE", "single"), ("REDIS__NODES", &*node)];
    let mut server = Server::start_with(&settings).await;
    let app = server.app("notes", json!({ "note": { "text": { "type": "string" } } }), json!({})).await;
    let anna = app.user("anna").await;
    let mut device = anna.device("phone").await;
    device.subscribe(json!({ "model": "note" })).await;
    let mut created = vec![app.admin().create("note", json!({ "text": "before" })).await.0];
    assert_eq!(device.next().await["data"]["id"], created[0]);

    redis.kill().expect("killed");
    redis.wait().expect("its end");
    let why = until_readyz(&server, StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(why.contains("redis"), "{why}");
    for n in 0..5 {
        created.push(app.admin().create("note", json!({ "text": format!("while away {n}") })).await.0);
    }
    // Longer than any call waits: what needs the registry fails, and is tried again.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(server.ended(), None, "it goes on: {}", log_of(server.dir()));

    redis = start_redis(dir.path(), port);
    for id in &created[1..] {
        assert_eq!(device.next().await["data"]["id"], **id);
    }
    until_readyz(&server, StatusCode::OK).await;
    created.push(anna.create("note", json!({ "text": "after" })).await.0);
    assert_eq!(device.next().await["data"]["id"], created[6]);

    // The same with a crash of the server: who there is comes from Redis, what there is from the data directory.
    server.kill();
    server.restart().await;
    let anna = crate::harness::User { app: server.again(&app), ..anna };
    anna.call(Method::GET, &format!("/model/note/{}", created[3]), json!(null)).await.expect(StatusCode::OK);
    redis.kill().expect("killed");
    redis.wait().expect("its end");
}
