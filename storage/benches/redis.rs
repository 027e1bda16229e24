//! What the change log and the registry cost in Redis: on the servers that `tests/cluster/up redis redis-cluster` starts, beside which
//! this and everything else on the machine runs.
//!
//! `cargo bench -p nexxus-storage --features redis --bench redis`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use nexxus_storage::{
    ChangeLog, Registry,
    changelog::redis::{History, RedisChangeLog},
    model::{AppId, ChangeId, Document, Entry, Event, Offset, Timestamp},
    open::RedisSettings,
    registry::{Expect, Key, Kind, Write, redis::RedisRegistry},
};

const RUN: Duration = Duration::from_secs(3);

fn settings(cluster: bool) -> RedisSettings {
    let (variable, usual) = match cluster {
        false => ("NEXXUS_TEST_REDIS", "redis://127.0.0.1:26001"),
        true => ("NEXXUS_TEST_REDIS_CLUSTER", "redis://127.0.0.1:26011"),
    };
    RedisSettings {
        cluster,
        nodes: vec![std::env::var(variable).unwrap_or_else(|_| usual.to_owned())],
        ca_file: None,
        prefix: format!("bench-{}", ChangeId::generate()),
        may_lose: false,
    }
}

fn app(name: &str) -> AppId {
    AppId::parse(name).expect("an id")
}

/// A create of about 400 bytes.
fn entry(app: &AppId, position: u64) -> Entry {
    let now = Timestamp::now();
    let text = serde_json::json!("x".repeat(300));
    let document = Document {
        app: app.clone(),
        model: "task".parse().expect("a name"),
        id: format!("document-{position}").parse().expect("an id"),
        user: None,
        created_at: now,
        updated_at: now,
        version: 1,
        fields: serde_json::Map::from_iter([("text".to_owned(), text)]),
    };
    let event = Event::Created { document };
    Entry { offset: Offset::new(1, position), change_id: ChangeId::generate(), time: now, event }
}

/// As a writer does it: find what is known, append, apply, tell.
async fn write_batches(log: &RedisChangeLog, name: &str, size: u64) -> (u64, Duration) {
    let app = app(name);
    let (mut tail, mut batches) = (Offset::default(), 0);
    let begun = Instant::now();
    while begun.elapsed() < RUN {
        let entries: Vec<_> = (1..=size).map(|n| entry(&app, tail.position + n)).collect();
        let changes: Vec<_> = entries.iter().map(|entry| entry.change_id).collect();
        log.find(&app, &changes).await.expect("find");
        let logged = log.append(&app, tail, entries).await.expect("append");
        tail = logged.last().expect("entries").entry.offset;
        log.mark_applied(&app, tail).await.expect("mark applied");
        log.mark_told(&app, tail).await.expect("mark told");
        batches += 1;
    }
    (batches, begun.elapsed())
}

async fn bench_log(kind: &str, cluster: bool) {
    let history = History { age: Duration::from_secs(3_600), bytes: 1 << 30 };
    let log = RedisChangeLog::connect(&settings(cluster), history).await.expect("Redis");
    for size in [1, 50, 500] {
        let (batches, took) = write_batches(&log, &format!("batches-of-{size}"), size).await;
        let each = took / batches as u32;
        let rate = (batches * size) as f64 / took.as_secs_f64();
        println!("{kind}: find + append + both marks, batches of {size}: {each:.2?} each, {rate:.0} entries/s");
    }
    let apps: Vec<_> = (0..8).map(|n| format!("one-of-eight-{n}")).collect();
    let begun = Instant::now();
    let all =
        stream::iter(&apps).map(|name| write_batches(&log, name, 50)).buffer_unordered(8).collect::<Vec<_>>().await;
    let entries: u64 = all.iter().map(|(batches, _)| batches * 50).sum();
    println!(
        "{kind}: the same of 8 applications side by side, of 50: {:.0} entries/s",
        entries as f64 / begun.elapsed().as_secs_f64()
    );
    let (mut since, mut read, begun) = (Offset::new(1, 0), 0, Instant::now());
    loop {
        let page = log.read(&app("batches-of-500"), since, 1_000).await.expect("read");
        (since, read) = (page.next, read + page.entries.len());
        if page.end {
            break;
        }
    }
    println!("{kind}: read a log in pages of 1000: {:.0} entries/s", read as f64 / begun.elapsed().as_secs_f64());
}

async fn rate<F: Future<Output = ()>>(what: &str, at_a_time: usize, call: impl Fn(u64) -> F) {
    let begun = Instant::now();
    let calls = stream::iter(0..u64::MAX).take_while(|_| std::future::ready(begun.elapsed() < RUN));
    let done = calls.map(call).buffer_unordered(at_a_time).count().await;
    println!("{what}, {at_a_time} at a time: {:.0}/s", done as f64 / begun.elapsed().as_secs_f64());
}

async fn bench_registry(kind: &str, cluster: bool) {
    let registry = Arc::new(RedisRegistry::connect(&settings(cluster)).await.expect("Redis"));
    let apps: Vec<AppId> = (0..32).map(|n| app(&format!("app-{n}"))).collect();
    let key = |n: u64| Key::new(Kind::User, Some(&apps[n as usize % apps.len()]), format!("user-{}", n % 10_000));
    for at_a_time in [1, 64, 256] {
        rate(&format!("{kind}: durable puts of 200 bytes"), at_a_time, |n| {
            let write = Write { key: key(n), value: Some(vec![b'x'; 200].into()), expect: Expect::Anything };
            let registry = registry.clone();
            async move { registry.write(vec![write]).await.expect("write") }
        })
        .await;
    }
    for at_a_time in [1, 64] {
        rate(&format!("{kind}: gets"), at_a_time, |n| {
            let (registry, key) = (registry.clone(), key(n));
            async move { drop(registry.get(&key).await.expect("get")) }
        })
        .await;
    }
    let mut feed = registry.feed(&[Kind::Subscription, Kind::Connection]).await.expect("a feed");
    let (mut reads, mut about, begun) = (0_u32, 0_u32, Instant::now());
    while begun.elapsed() < RUN / 2 {
        feed.read().await.expect("read");
        reads += 1;
    }
    let each = begun.elapsed() / reads;
    let begun = Instant::now();
    while begun.elapsed() < RUN / 2 {
        feed.read_about(&[&apps[0]]).await.expect("read");
        about += 1;
    }
    println!(
        "{kind}: a read of a feed without news: {each:.2?}; about one application: {:.2?}",
        begun.elapsed() / about
    );
    registry.close().await.expect("close");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    for (kind, cluster) in [("one server", false), ("cluster of 3", true)] {
        bench_log(kind, cluster).await;
        bench_registry(kind, cluster).await;
    }
}
