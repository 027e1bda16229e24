//! What is measured.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{sync::Mutex, task::JoinHandle};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use super::{client::Client, server::Server};

pub(crate) const APP: &str = "load";

pub(crate) struct Ground {
    pub(crate) server: Server,
    pub(crate) token: String,
}

impl Ground {
    pub(crate) async fn prepare() -> Self {
        let dir = tempfile::tempdir().expect("a directory").keep();
        let server = Server::start(dir).await;
        let mut admin = Client::connect(&server.address, APP, &server.admin_token).await;
        let schema = json!({ "item": {
            "title": { "type": "string" }, "body": { "type": "string" }, "sent": { "type": "number" },
            "status": { "type": "string", "filterable": true }, "priority": { "type": "number", "filterable": true },
        }});
        let application = json!({ "id": APP, "name": APP, "schema": schema, "rules": { "item": { "read": "user" } } });
        let (status, body) = admin.call("POST", "/application", &application.to_string()).await;
        assert_eq!(status, 201, "{body}");
        let user = json!({ "username": "load", "password": "load-load-load" });
        let (status, body) = admin.call("POST", "/user/register", &user.to_string()).await;
        assert_eq!(status, 201, "{body}");
        let login: Value = serde_json::from_str(&body).expect("JSON");
        let token = login["token"].as_str().expect("a token").to_owned();
        Self { server, token }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.server.address, APP, &self.token).await
    }

    /// Creates so many documents, as fast as it goes.
    pub(crate) async fn fill(&self, n_documents: u64) {
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for _ in 0..128 {
            let (mut client, next) = (self.client().await, next.clone());
            tasks.push(tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= n_documents {
                        return;
                    }
                    while client.call("POST", "/model/item", &document(number)).await.0 == 503 {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }));
        }
        for task in tasks {
            task.await.expect("a client");
        }
    }

    pub(crate) fn end(self) {
        let dir = self.server.stop();
        let _gone = std::fs::remove_dir_all(dir);
    }

    /// A subscriber of the whole model: counts frames, and keeps the time from `sent` to each.
    async fn subscriber(&self) -> Subscriber {
        let url = format!("ws://{}/ws?app={APP}&device=listener&token={}", self.server.address, self.token);
        let (mut socket, _) = connect_async(url).await.expect("a connection");
        socket
            .send(Message::text(r#"{"event":"subscribe","id":1,"data":{"model":"item","limit":0}}"#))
            .await
            .expect("sent");
        loop {
            let Some(Ok(Message::Text(text))) = socket.next().await else { continue };
            if text.as_str().contains("\"reply\"") {
                break;
            }
        }
        let (count, latencies) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counted, kept) = (count.clone(), latencies.clone());
        let task = tokio::spawn(async move {
            while let Some(Ok(message)) = socket.next().await {
                let Message::Text(text) = message else { continue };
                let Some(sent) = number_after(text.as_str(), "\"sent\":") else { continue };
                counted.fetch_add(1, Ordering::Relaxed);
                kept.lock().await.push(now_micros().saturating_sub(sent) as f64 / 1000.0);
            }
        });
        Subscriber { count, latencies, task }
    }
}

struct Subscriber {
    count: Arc<AtomicU64>,
    latencies: Arc<Mutex<Vec<f64>>>,
    task: JoinHandle<()>,
}

impl Subscriber {
    async fn has(&self, wanted: u64) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.count.load(Ordering::Relaxed) < wanted {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn now_micros() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

pub(crate) fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = &text[text.find(name)? + name.len()..];
    rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

pub(crate) fn document(number: u64) -> String {
    format!(
        r#"{{"title":"item {number}","body":"{}","sent":{},"status":"{}","priority":{}}}"#,
        "x".repeat(150),
        now_micros(),
        ["todo", "doing", "done"][(number % 3) as usize],
        number % 100
    )
}

pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share) as usize]
}

pub(crate) async fn creates(clients: usize, seconds: u64) {
    let ground = Ground::prepare().await;
    let subscriber = ground.subscriber().await;
    let (running, busy) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let cpu_before = ground.server.usage().1;
    let started = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..clients as u64 {
        let (mut client, running, busy) = (ground.client().await, running.clone(), busy.clone());
        tasks.push(tokio::spawn(async move {
            let (mut n_accepted, mut latencies) = (0u64, Vec::new());
            while running.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let (status, body) = client.call("POST", "/model/item", &document(number + n_accepted)).await;
                match status {
                    202 => n_accepted += 1,
                    503 => {
                        busy.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    _ => panic!("{status} {body}"),
                }
                latencies.push(asked.elapsed().as_secs_f64() * 1000.0);
            }
            (n_accepted, latencies)
        }));
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    running.store(false, Ordering::Relaxed);
    let (mut n_accepted, mut latencies) = (0, Vec::new());
    for task in tasks {
        let (accepted, mut of_client) = task.await.expect("a client");
        n_accepted += accepted;
        latencies.append(&mut of_client);
    }
    let took = started.elapsed().as_secs_f64();
    let complete = subscriber.has(n_accepted).await;
    let (kib, cpu) = ground.server.usage();
    println!(
        "creates: {:.0}/s accepted ({n_accepted} in {took:.1} s, {} answered 503), 202 p50 {:.2} ms p99 {:.2} ms, server CPU {:.0} us each, {} MiB resident, subscriber {}",
        n_accepted as f64 / took,
        busy.load(Ordering::Relaxed),
        percentile(&mut latencies, 0.5),
        percentile(&mut latencies, 0.99),
        (cpu - cpu_before) * 1e6 / n_accepted as f64,
        kib / 1024,
        if complete {
            "missed nothing".to_owned()
        } else {
            format!("got only {}", subscriber.count.load(Ordering::Relaxed))
        },
    );
    let dir = ground.server.stop();
    let _gone = std::fs::remove_dir_all(dir);
}

pub(crate) async fn latency(rate: u64, seconds: u64) {
    let ground = Ground::prepare().await;
    let subscriber = ground.subscriber().await;
    let mut client = ground.client().await;
    let (_, body) = client.call("POST", "/model/item", &document(0)).await;
    let created: Value = serde_json::from_str(&body).expect("JSON");
    let path = format!("/model/item/{}", created["id"].as_str().expect("an id"));
    assert!(subscriber.has(1).await, "the first change is applied");
    let running = Arc::new(AtomicBool::new(true));
    let mut reader = ground.client().await;
    let reading = running.clone();
    let reads = tokio::spawn(async move {
        let mut latencies = Vec::new();
        while reading.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let (status, body) = reader.call("GET", &path, "").await;
            assert_eq!(status, 200, "{body}");
            latencies.push(asked.elapsed().as_secs_f64() * 1000.0);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        latencies
    });
    // Enough clients that a slow answer does not slow the pace.
    let (mut writers, n_writers) = (Vec::new(), 16u64);
    let started = Instant::now();
    for number in 0..n_writers {
        let mut client = ground.client().await;
        writers.push(tokio::spawn(async move {
            let mut n_accepted = 0u64;
            for turn in 0.. {
                let due = started + Duration::from_secs_f64((turn * n_writers + number) as f64 / rate as f64);
                if due > started + Duration::from_secs(seconds) {
                    return n_accepted;
                }
                tokio::time::sleep_until(due.into()).await;
                let (status, body) = client.call("POST", "/model/item", &document(turn)).await;
                assert_eq!(status, 202, "{body}");
                n_accepted += 1;
            }
            n_accepted
        }));
    }
    let mut n_accepted = 1;
    for writer in writers {
        n_accepted += writer.await.expect("a writer");
    }
    let complete = subscriber.has(n_accepted).await;
    running.store(false, Ordering::Relaxed);
    let mut reads = reads.await.expect("a reader");
    let mut latencies = subscriber.latencies.lock().await.clone();
    println!(
        "latency: {:.0} writes/s, write → frame p50 {:.2} ms p99 {:.2} ms, get-by-id p50 {:.3} ms p99 {:.2} ms, complete: {complete}",
        n_accepted as f64 / started.elapsed().as_secs_f64(),
        percentile(&mut latencies, 0.5),
        percentile(&mut latencies, 0.99),
        percentile(&mut reads, 0.5),
        percentile(&mut reads, 0.99),
    );
    let dir = ground.server.stop();
    let _gone = std::fs::remove_dir_all(dir);
}

pub(crate) async fn start(n_documents: u64) {
    let ground = Ground::prepare().await;
    println!("start on an empty directory: ready after {:.3} s", ground.server.ready_after.as_secs_f64());
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!("idle: {} MiB resident", ground.server.usage().0 / 1024);
    ground.fill(n_documents).await;
    println!("{n_documents} documents are in, {} MiB resident", ground.server.usage().0 / 1024);
    let dir = ground.server.stop();
    let again = Server::start(dir).await;
    println!(
        "start on {n_documents} documents: ready after {:.3} s, {} MiB resident",
        again.ready_after.as_secs_f64(),
        again.usage().0 / 1024
    );
    let ground = Ground { server: again, token: ground.token };
    ground.fill(5_000).await;
    let again = Server::start(ground.server.kill()).await;
    println!("start after a kill -9 with unsaved index: ready after {:.3} s", again.ready_after.as_secs_f64());
    let dir = again.stop();
    let _gone = std::fs::remove_dir_all(dir);
}
