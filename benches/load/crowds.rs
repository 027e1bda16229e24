//! Many subscribers: what they cost a write, how fast one change reaches all of them, and what they cost when nothing happens.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use nexxus::config::{Config, Sources};
use nexxus_storage::{
    model::{Offset, Timestamp},
    registry::{Expect, Key, Write, records},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_tungstenite::{
    connect_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

use super::{
    scenarios::{APP, Ground, percentile},
    server::Server,
};

/// Subscribers that connect at the same time.
const AT_ONCE: usize = 64;

struct Crowd {
    n_frames: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Connects devices, each with one subscription.
    async fn gather(ground: &Ground, n: usize, subscription: impl Fn(usize) -> Value) -> Self {
        let (n_frames, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(AT_ONCE)));
        let ready = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::with_capacity(n);
        for number in 0..n {
            let url =
                format!("ws://{}/ws?app={APP}&device=device-{number}&token={}", ground.server.address, ground.token);
            let subscribe = json!({ "event": "subscribe", "id": 1, "data": subscription(number) }).to_string();
            let (n_frames, gate, ready) = (n_frames.clone(), gate.clone(), ready.clone());
            tasks.push(tokio::spawn(async move {
                let place = gate.acquire().await.expect("a place");
                let config = WebSocketConfig::default().read_buffer_size(1024).write_buffer_size(0);
                let (mut socket, _) = connect_async_with_config(url, Some(config), true).await.expect("a connection");
                socket.send(Message::text(subscribe)).await.expect("sent");
                let mut place = Some(place);
                while let Some(Ok(message)) = socket.next().await {
                    let Message::Text(text) = message else { continue };
                    if text.as_str().contains("\"model_created\"") {
                        n_frames.fetch_add(1, Ordering::Relaxed);
                    } else if text.as_str().contains("\"reply\"") && place.take().is_some() {
                        ready.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }));
        }
        while ready.load(Ordering::Relaxed) < n as u64 {
            assert!(tasks.iter().all(|task| !task.is_finished()), "a subscriber was turned away");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Until all of them are live.
        tokio::time::sleep(Duration::from_secs(3)).await;
        Self { n_frames, tasks }
    }

    fn heard(&self) -> u64 {
        self.n_frames.load(Ordering::Relaxed)
    }

    async fn has_heard(&self, wanted: u64) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.heard() < wanted && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        self.heard() == wanted
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn document(owner: u64) -> String {
    format!(r#"{{"title":"x","body":"{}","sent":1,"status":"o{owner}","priority":50}}"#, "x".repeat(150))
}

/// Writes as fast as they are accepted, from several clients. Gives how many were.
async fn write(ground: &Ground, clients: u64, seconds: u64, n_owners: u64) -> u64 {
    let running = Arc::new(AtomicBool::new(true));
    let mut tasks = Vec::new();
    for number in 0..clients {
        let (mut client, running) = (ground.client().await, running.clone());
        tasks.push(tokio::spawn(async move {
            let mut n_accepted = 0;
            while running.load(Ordering::Relaxed) {
                let owner = (number + n_accepted * clients) % n_owners;
                match client.call("POST", "/model/item", &document(owner)).await {
                    (202, _) => n_accepted += 1,
                    (503, _) => tokio::time::sleep(Duration::from_millis(50)).await,
                    (status, body) => panic!("{status} {body}"),
                }
            }
            n_accepted
        }));
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    running.store(false, Ordering::Relaxed);
    let mut n_accepted = 0;
    for task in tasks {
        n_accepted += task.await.expect("a client");
    }
    n_accepted
}

/// Durable writes a second that each concern one of many filtered subscribers, against the same with one subscriber.
pub(crate) async fn filtered(n_subscribers: usize, seconds: u64) {
    let mut rates = Vec::new();
    for n in [1, n_subscribers] {
        let ground = Ground::prepare().await;
        let filter = |n: usize| json!({ "status": format!("o{n}"), "priority": { "$gt": 7 } });
        let crowd = Crowd::gather(&ground, n, |n| json!({ "model": "item", "limit": 0, "filter": filter(n) })).await;
        let (started, cpu_before) = (Instant::now(), ground.server.usage().1);
        let n_accepted = write(&ground, 64, seconds, n as u64).await;
        let rate = n_accepted as f64 / started.elapsed().as_secs_f64();
        let complete = crowd.has_heard(n_accepted).await;
        let (kib, cpu) = ground.server.usage();
        println!(
            "filtered, {n} subscribers: {rate:.0} writes/s, server CPU {:.0} us each, complete: {complete}, {} MiB resident",
            (cpu - cpu_before) * 1e6 / n_accepted as f64,
            kib / 1024
        );
        rates.push(rate);
        drop(crowd);
        ground.end();
    }
    if let [one, many] = rates.as_slice() {
        println!("filtered: {:.0} % of the writes with one subscriber", many / one * 100.0);
    }
}

/// One change to many subscribers of one channel, then as many as go to fewer.
pub(crate) async fn fan_out(n_subscribers: usize, n_saturated: usize, seconds: u64) {
    let ground = Ground::prepare().await;
    let crowd = Crowd::gather(&ground, n_subscribers, |_| json!({ "model": "item", "limit": 0 })).await;
    let mut client = ground.client().await;
    let mut took = Vec::new();
    for change in 1..=20 {
        let started = Instant::now();
        assert_eq!(client.call("POST", "/model/item", &document(0)).await.0, 202);
        assert!(crowd.has_heard(change * n_subscribers as u64).await, "somebody heard nothing");
        took.push(started.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!(
        "fan-out to {n_subscribers}: the last frame is received {:.0} ms after the write was sent (p50; p90 {:.0} ms)",
        percentile(&mut took, 0.5),
        percentile(&mut took, 0.9)
    );
    drop(crowd);
    ground.end();
    let ground = Ground::prepare().await;
    let crowd = Crowd::gather(&ground, n_saturated, |_| json!({ "model": "item", "limit": 0 })).await;
    let (started, cpu_before) = (Instant::now(), ground.server.usage().1);
    let n_accepted = write(&ground, 8, seconds, 1).await;
    let complete = crowd.has_heard(n_accepted * n_saturated as u64).await;
    let (took, cpu) = (started.elapsed().as_secs_f64(), ground.server.usage().1);
    let n_heard = crowd.heard() as f64;
    println!(
        "saturation with {n_saturated}: {:.0} deliveries/s, server CPU {:.1} us each ({n_accepted} writes), complete: {complete}",
        n_heard / took,
        (cpu - cpu_before) * 1e6 / n_heard
    );
    drop(crowd);
    ground.end();
}

/// What subscribed connections cost in memory when nothing happens.
pub(crate) async fn idle(n_subscribers: usize) {
    let ground = Ground::prepare().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = ground.server.usage().0;
    let crowd = Crowd::gather(
        &ground,
        n_subscribers,
        |n| json!({ "model": "item", "limit": 0, "filter": { "status": format!("o{n}") } }),
    )
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (after, _) = ground.server.usage();
    println!(
        "idle: {:.1} KiB for each of {n_subscribers} subscribed connections ({} MiB resident, {} before)",
        (after - before) as f64 / n_subscribers as f64,
        after / 1024,
        before / 1024
    );
    drop(crowd);
    ground.end();
}

/// Start to ready with many subscriptions in the registry, each filtered by itself, of devices and users of their own.
pub(crate) async fn subscriptions(n: usize, per_device: usize) {
    let ground = Ground::prepare().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let empty = ground.server.usage().0;
    let dir = ground.server.stop();
    let started = Instant::now();
    fill(&dir, n, per_device).await;
    println!("{n} subscriptions written in {:.0} s", started.elapsed().as_secs_f64());
    let server = Server::start(dir).await;
    let (at_once, _) = server.usage();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (kib, cpu) = server.usage();
    let each = |kib: u64| (kib - empty) as f64 * 1024.0 / n as f64;
    println!(
        "start with {n} subscriptions, {per_device} of each device: ready after {:.2} s ({cpu:.1} s of CPU), {} MiB resident: {:.0} \
         bytes for each ({:.0} when ready)",
        server.ready_after.as_secs_f64(),
        kib / 1024,
        each(kib),
        each(at_once),
    );
    let dir = server.stop();
    let _gone = std::fs::remove_dir_all(dir);
}

/// Ids of twenty characters.
fn id(what: &str, number: usize) -> String {
    // Scattered, as real ones are.
    format!("{what}{:016x}", (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

async fn fill(dir: &std::path::Path, n: usize, per_device: usize) {
    let flags = vec![("--data".to_owned(), "data.dir".to_owned(), dir.to_string_lossy().into_owned())];
    let (config, _) = Config::load(&Sources { file: None, environment: Vec::new(), flags }).expect("a configuration");
    let backends = nexxus_storage::open(config.storage()).await.expect("the backends");
    let app = APP.parse().expect("an id");
    let (application, _) =
        backends.registry.load::<records::Application>(&Key::application(&app)).await.expect("read").expect("there");
    let schema = nexxus_storage::model::Schema::parse(&application.schema).expect("a schema");
    let model = schema.model("item").expect("a model");
    let numbers: Vec<usize> = (0..n).collect();
    for part in numbers.chunks(1_000) {
        let mut writes = Vec::with_capacity(3 * part.len());
        for number in part {
            let (device, user) = (id("dev-", number / per_device), id("usr-", number / per_device));
            if number % per_device == 0 {
                writes.extend(owner(&device, &user));
            }
            let filter = json!({ "status": id("own-", *number), "priority": { "$gt": number % 7 } });
            let filter = nexxus_storage::model::Filter::parse(&filter, model, false).expect("a filter");
            let scattered = (*number as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
            let subscription: records::Subscription = serde_json::from_value(json!({
                "app": APP, "id": format!("{scattered:032x}"), "device": device, "user": user, "model": "item",
                "filter": serde_json::from_str::<Value>(filter.canonical()).expect("JSON"),
                "channel": format!("app:{APP}:model:item:filter:{}", filter.hash()), "since": Offset::new(1, 1),
            }))
            .expect("a subscription");
            writes.push(Write::put(&subscription, Expect::Anything).expect("a record"));
        }
        while backends.registry.write(writes.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    backends.close().await.expect("closed");
}

fn owner(device: &str, user: &str) -> [Write; 2] {
    let now = Timestamp::now();
    let device: records::Device = serde_json::from_value(json!({
        "app": APP, "id": device, "user": user, "keepFor": 86_400, "createdAt": now, "registeredAt": Offset::new(1, 1),
        "lastSeen": now, "generation": 1,
    }))
    .expect("a device");
    let user: records::User = serde_json::from_value(json!({
        "app": APP, "id": user, "username": user, "userType": "editor", "details": {}, "createdAt": now, "updatedAt": now,
    }))
    .expect("a user");
    [Write::put(&device, Expect::Anything), Write::put(&user, Expect::Anything)].map(|write| write.expect("a record"))
}
