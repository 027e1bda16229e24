//! Devices that come back, and devices that are slow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use super::{
    scenarios::{APP, Ground, document, now_micros, number_after, percentile},
    server::Server,
};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Connections that are opened at once.
const DIALLING: usize = 128;

async fn connect(address: &str, token: &str, device: &str, since: Option<&str>) -> Socket {
    let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
    let url = format!("ws://{address}/ws?app={APP}&device={device}&token={token}{since}");
    connect_async(url).await.expect("a connection").0
}

/// Subscribes, and gives the offset that the items are of.
async fn subscribe(socket: &mut Socket, filter: Value) -> String {
    let data = json!({ "model": "item", "filter": filter, "limit": 0 });
    let request = json!({ "event": "subscribe", "id": 1, "data": data });
    socket.send(Message::text(request.to_string())).await.expect("sent");
    loop {
        let Some(Ok(Message::Text(text))) = socket.next().await else { panic!("closed") };
        let frame: Value = serde_json::from_str(text.as_str()).expect("JSON");
        if frame["event"] == "reply" {
            return frame["data"]["offset"].as_str().expect("an offset").to_owned();
        }
        assert_ne!(frame["event"], "error", "{frame}");
    }
}

/// Takes changes until there are so many.
async fn hear(socket: &mut Socket, wanted: u64) {
    let mut heard = 0;
    while heard < wanted {
        match socket.next().await {
            Some(Ok(Message::Text(text))) if text.as_str().starts_with(r#"{"event":"model_"#) => heard += 1,
            Some(Ok(Message::Text(text))) => {
                assert!(!text.as_str().contains("resync_required"), "{text}");
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?} after {heard} of {wanted}"),
        }
    }
}

pub(crate) async fn resume(n_missed: u64, own_each: u64) {
    let ground = Ground::prepare().await;
    let filter = json!({ "priority": 1 });
    let mut socket = connect(&ground.server.address, &ground.token, "away", None).await;
    let since = subscribe(&mut socket, filter).await;
    drop(socket);
    write(&ground, n_missed, move |number| if number % own_each == 0 { 1 } else { 2 + number % 90 }).await;
    let n_own = n_missed.div_ceil(own_each);
    let come_back = async |ground: &Ground, when: &str| {
        let asked = Instant::now();
        let mut socket = connect(&ground.server.address, &ground.token, "away", Some(&since)).await;
        hear(&mut socket, n_own).await;
        println!(
            "resume over {n_missed} missed changes, {n_own} its own, {when}: {:.3} s",
            asked.elapsed().as_secs_f64()
        );
    };
    for _ in 0..3 {
        come_back(&ground, "server warm").await;
    }
    let token = ground.token.clone();
    let ground = Ground { server: Server::start(ground.server.stop()).await, token };
    come_back(&ground, "after a restart").await;
    let _gone = std::fs::remove_dir_all(ground.server.stop());
}

/// Creates documents whose priority is a function of their number.
async fn write(ground: &Ground, n_documents: u64, priority: impl Fn(u64) -> u64 + Clone + Send + 'static) {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..64 {
        let (mut client, next, priority) = (ground.client().await, next.clone(), priority.clone());
        tasks.push(tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= n_documents {
                    return;
                }
                let mut fields: Value = serde_json::from_str(&document(number)).expect("JSON");
                fields["priority"] = json!(priority(number));
                let body = fields.to_string();
                while client.call("POST", "/model/item", &body).await.0 == 503 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("a client");
    }
}

pub(crate) async fn storm(n_devices: u64, n_missed: u64) {
    // Each change concerns one device in fifty, so each gets one change in fifty.
    const GROUPS: u64 = 50;
    let ground = Ground::prepare().await;
    let dialling = Arc::new(Semaphore::new(DIALLING));
    let mut joined = Vec::new();
    for number in 0..n_devices {
        let (address, token) = (ground.server.address.clone(), ground.token.clone());
        let turn = dialling.clone().acquire_owned().await.expect("open");
        joined.push(tokio::spawn(async move {
            let _turn = turn;
            let mut socket = connect(&address, &token, &format!("device-{number}"), None).await;
            subscribe(&mut socket, json!({ "priority": number % GROUPS })).await
        }));
    }
    let mut since = Vec::new();
    for task in joined {
        since.push(task.await.expect("a device"));
    }
    write(&ground, n_missed, |number| number % GROUPS).await;
    let token = ground.token.clone();
    let ground = Ground { server: Server::start(ground.server.stop()).await, token };
    let before = ground.server.usage().0;
    println!("storm: {n_devices} devices are away, {} MiB resident after the restart", before / 1024);
    let asked = Instant::now();
    let mut resumed = Vec::new();
    for (number, since) in since.into_iter().enumerate() {
        let (address, token) = (ground.server.address.clone(), ground.token.clone());
        let turn = dialling.clone().acquire_owned().await.expect("open");
        resumed.push(tokio::spawn(async move {
            let mut socket = connect(&address, &token, &format!("device-{number}"), Some(&since)).await;
            drop(turn);
            hear(&mut socket, n_missed / GROUPS).await;
            socket
        }));
    }
    let mut sockets = Vec::new();
    for task in resumed {
        sockets.push(task.await.expect("a device"));
    }
    let (kib, cpu) = ground.server.usage();
    println!(
        "storm: {n_devices} devices, {n_missed} changes missed, {} for each: all caught up after {:.2} s, {} MiB resident, {} at most, server CPU {cpu:.1} s",
        n_missed / GROUPS,
        asked.elapsed().as_secs_f64(),
        kib / 1024,
        ground.server.peak() / 1024
    );
    drop(sockets);
    let _gone = std::fs::remove_dir_all(ground.server.stop());
}

pub(crate) async fn slow(n_subscribers: u64, rate: u64) {
    for n_slow in [0, 10] {
        slow_once(n_subscribers, n_slow, rate).await;
    }
}

async fn slow_once(n_subscribers: u64, n_slow: u64, rate: u64) {
    const GROUPS: u64 = 100;
    const SECONDS: u64 = 30;
    const STOPPED: Duration = Duration::from_secs(20);
    let ground = Ground::prepare().await;
    let n_changes = rate * SECONDS;
    let mut listening = Vec::new();
    for number in 0..n_subscribers - n_slow {
        let mut socket = connect(&ground.server.address, &ground.token, &format!("device-{number}"), None).await;
        subscribe(&mut socket, json!({ "priority": number % GROUPS })).await;
        listening.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            while (latencies.len() as u64) < n_changes / GROUPS {
                let Some(Ok(message)) = socket.next().await else { panic!("closed") };
                let Message::Text(text) = message else { continue };
                let Some(sent) = number_after(text.as_str(), "\"sent\":") else { continue };
                latencies.push(now_micros().saturating_sub(sent) as f64 / 1000.0);
            }
            latencies
        }));
    }
    let mut stopped = Vec::new();
    for number in 0..n_slow {
        let mut socket = connect(&ground.server.address, &ground.token, &format!("slow-{number}"), None).await;
        subscribe(&mut socket, json!({})).await;
        stopped.push(tokio::spawn(async move {
            tokio::time::sleep(STOPPED).await;
            hear(&mut socket, n_changes).await;
        }));
    }
    let before = ground.server.usage().0;
    let started = Instant::now();
    let mut writers = Vec::new();
    for number in 0..16 {
        let mut client = ground.client().await;
        writers.push(tokio::spawn(async move {
            for turn in (number..n_changes).step_by(16) {
                let due = started + Duration::from_secs_f64(turn as f64 / rate as f64);
                tokio::time::sleep_until(due.into()).await;
                // Numbers are dense, so each group gets its share.
                while client.call("POST", "/model/item", &document(turn)).await.0 == 503 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }));
    }
    for writer in writers {
        writer.await.expect("a writer");
    }
    let after = ground.server.usage().0;
    let mut latencies = Vec::new();
    for task in listening {
        latencies.append(&mut task.await.expect("a subscriber"));
    }
    for task in stopped {
        task.await.expect("a slow subscriber misses nothing");
    }
    println!(
        "slow: {n_subscribers} subscribers, {n_slow} stop for 20 s, {rate} changes/s: write → frame of the others p50 {:.2} ms p99 {:.2} ms; resident {} MiB before, {} after, {} at most; all caught up after {:.1} s, nothing missing",
        percentile(&mut latencies, 0.5),
        percentile(&mut latencies, 0.99),
        before / 1024,
        after / 1024,
        ground.server.peak() / 1024,
        started.elapsed().as_secs_f64()
    );
    let _gone = std::fs::remove_dir_all(ground.server.stop());
}
