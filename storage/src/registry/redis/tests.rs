//! The contract on a server and on a cluster, and what is particular to Redis.

use async_trait::async_trait;

use super::*;
use crate::{
    conformance::registry::Subject,
    redis_servers::tests::{Server, connect, settings, tell},
    registry::News,
    registry_conformance,
};

struct OnRedis {
    settings: RedisSettings,
    registry: Arc<RedisRegistry>,
}

impl OnRedis {
    async fn new(cluster: bool) -> Self {
        let settings = settings(cluster);
        let registry = Arc::new(RedisRegistry::open(connect(&settings).await).await.expect("a registry"));
        Self { settings, registry }
    }
}

#[async_trait]
impl Subject for OnRedis {
    fn registry(&self) -> Arc<dyn Registry> {
        self.registry.clone()
    }

    /// Another process on the same servers.
    async fn crash(&mut self) {
        self.registry = Arc::new(RedisRegistry::open(connect(&self.settings).await).await.expect("a registry"));
    }
}

registry_conformance!(on_one_server, || OnRedis::new(false));
registry_conformance!(on_a_cluster, || OnRedis::new(true));

/// Short, so that tests need not wait for long; long enough for a busy machine.
const SHORT: Duration = Duration::from_secs(1);

async fn process(settings: &RedisSettings) -> RedisRegistry {
    RedisRegistry::open_with(connect(settings).await, SHORT).await.expect("a registry")
}

fn tasks() -> AppId {
    AppId::parse("tasks").expect("an id")
}

fn put(kind: Kind, id: &str, value: impl Into<Bytes>) -> Write {
    Write { key: Key::new(kind, Some(&tasks()), id), value: Some(value.into()), expect: Expect::Anything }
}

async fn connections(registry: &RedisRegistry) -> Vec<String> {
    let page = registry.list(Kind::Connection, Some(&tasks()), "", None, 10_000).await.expect("list");
    page.into_iter().map(|record| record.key.id).collect()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("{what} takes too long"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_process_loses_its_connections_and_feeds_tell_of_it() {
    for cluster in [false, true] {
        let settings = settings(cluster);
        let (dying, living) = (process(&settings).await, process(&settings).await);
        let mut feed = living.feed(&[Kind::Connection]).await.expect("a feed");
        let of_dying = (0..1_200).map(|n| put(Kind::Connection, &format!("dying/{n:04}"), "x")).collect();
        dying.write(of_dying).await.expect("write");
        dying.write(vec![put(Kind::Connection, "taken/1", "x")]).await.expect("write");
        living
            .write(vec![put(Kind::Connection, "living/1", "x"), put(Kind::Connection, "taken/1", "y")])
            .await
            .expect("write");
        dying.write(vec![put(Kind::User, "anna", "x")]).await.expect("write");
        assert_eq!(connections(&living).await.len(), 1_202);
        assert_eq!(feed.read().await.expect("read").len(), 1_203);
        drop(dying);
        let mut removed = 0;
        until("the end of the dead", async || {
            feed.changed().await.expect("news");
            removed += feed.read().await.expect("read").len();
            removed >= 1_200
        })
        .await;
        assert_eq!((removed, connections(&living).await), (1_200, vec!["living/1".to_owned(), "taken/1".to_owned()]));
        let anna = Key::new(Kind::User, Some(&tasks()), "anna");
        assert!(living.get(&anna).await.expect("get").is_some(), "what is durable stays");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_process_finds_out_and_tells_its_connections_again() {
    let settings = settings(false);
    let (paused, living) = (process(&settings).await, process(&settings).await);
    paused.write(vec![put(Kind::Connection, "a/1", "x"), put(Kind::Connection, "b/1", "x")]).await.expect("write");
    paused.write(vec![Write::remove(put(Kind::Connection, "b/1", "").key)]).await.expect("write");
    paused.life.pause();
    until("its burial", async || connections(&living).await.is_empty()).await;
    paused.write(vec![put(Kind::Connection, "c/1", "x")]).await.expect("it begins a new life");
    assert_eq!(connections(&living).await, ["a/1", "c/1"]);
    paused.close().await.expect("close");
    assert_eq!(connections(&living).await, [""; 0], "who ends in order takes its records along");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_declared_dead_because_the_server_was_away() {
    let mut server = Server::start().await;
    let settings = server.settings();
    let (first, second) = (process(&settings).await, process(&settings).await);
    first.write(vec![put(Kind::Connection, "a/1", "x")]).await.expect("write");
    second.write(vec![put(Kind::Connection, "b/1", "x")]).await.expect("write");
    let mut feed = first.feed(&[Kind::Connection]).await.expect("a feed");
    server.kill();
    tokio::time::sleep(SHORT * 2).await;
    server.start_again();
    for _ in 0..10 {
        tokio::time::sleep(SHORT / 4).await;
        assert_eq!(feed.read().await.expect("read"), [], "nothing was removed");
    }
    assert_eq!(connections(&second).await, ["a/1", "b/1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_confirmed_is_lost_when_the_server_is_killed() {
    let mut server = Server::start().await;
    let registry = Arc::new(process(&server.settings()).await);
    let writer = tokio::spawn({
        let registry = registry.clone();
        async move {
            let (mut confirmed, mut failures) = (Vec::new(), 0);
            for round in 0..2_000 {
                let ids = [format!("a{round}"), format!("b{round}")];
                match registry.write(ids.iter().map(|id| put(Kind::User, id, "x")).collect()).await {
                    Ok(()) => confirmed.extend(ids),
                    Err(error) => {
                        assert!(error.is_transient(), "{error}");
                        failures += 1;
                    }
                }
            }
            (confirmed, failures)
        }
    });
    while !writer.is_finished() {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.kill();
        server.start_again();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let (confirmed, failures) = writer.await.expect("the writer");
    assert!(failures > 0, "no call was cut off");
    for id in confirmed {
        assert!(registry.get(&Key::new(Kind::User, Some(&tasks()), &id)).await.expect("get").is_some(), "{id}");
    }
    let page = registry.list(Kind::User, Some(&tasks()), "", None, 10_000).await.expect("list");
    let halves = page.iter().filter(|record| record.key.id.starts_with('a')).count();
    assert_eq!(halves * 2, page.len(), "each call as a whole");
}

#[tokio::test]
async fn every_call_is_one_round_trip() {
    for cluster in [false, true] {
        let registry = process(&settings(cluster)).await;
        let calls = || registry.parts.redis.calls();
        let mut feed = registry.feed(&[Kind::User, Kind::Device]).await.expect("a feed");
        let writes = || vec![put(Kind::User, "a", "x"), put(Kind::Device, "b", "x")];
        // The first of each script may have to teach it; a sign of life may come in between.
        registry.write(writes()).await.expect("write");
        registry.list(Kind::User, Some(&tasks()), "", None, 10).await.expect("list");
        feed.read().await.expect("read");
        let mut trips = Vec::new();
        for _ in 0..3 {
            let start = calls();
            registry.write(writes()).await.expect("write");
            let written = calls();
            registry.get(&put(Kind::User, "a", "").key).await.expect("get");
            let got = calls();
            registry.list(Kind::User, Some(&tasks()), "", None, 10).await.expect("list");
            let listed = calls();
            assert_eq!(feed.read_about(&[&tasks()]).await.expect("read").len(), 2);
            let read = calls();
            trips.push([written - start, got - written, listed - got, read - listed]);
        }
        trips.sort_unstable();
        assert_eq!(trips[0], [1, 1, 1, 1], "{trips:?}");
    }
}

#[tokio::test]
async fn a_feed_tells_large_values_too() {
    let registry = process(&settings(false)).await;
    let mut feed = registry.feed(&[Kind::Application]).await.expect("a feed");
    let key = Key::new(Kind::Application, None, "large");
    let value = Bytes::from(vec![b'x'; 1 << 20]);
    let write = Write { key: key.clone(), value: Some(value.clone()), expect: Expect::Absent };
    registry.write(vec![write]).await.expect("write");
    assert_eq!(feed.read().await.expect("read"), [News::Written { key, value: Some(value) }]);
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let settings = settings(false);
    let redis = connect(&settings).await;
    tell(&redis, &format!("HSET {}:{{/}}:format registry 2 parts 1", settings.prefix)).await;
    let error = RedisRegistry::open(redis).await.err().expect("refused");
    assert!(error.message.contains("format 2"), "{error}");
}

#[tokio::test]
async fn records_stand_as_the_head_of_the_file_says() {
    let settings = settings(false);
    let registry = process(&settings).await;
    registry.write(vec![put(Kind::User, "anna", "a value")]).await.expect("write");
    let mut arguments = Arguments::default();
    arguments.text("anna");
    let key = format!("{}:{{/0}}:records:user:tasks", settings.prefix);
    let found = registry.parts.redis.command("test", Effect::Repeatable, "HGET", &key, &arguments).await.unwrap();
    assert_eq!(found.text().unwrap(), "1  a value");
}

/// A server that comes back without the last it confirmed, and is written to before the reader looks: revisions alone do not show it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_of_a_server_that_may_forget_reloads_after_the_connection_was_lost() {
    let server = Server::with(&["--appendonly", "no"]).await;
    let settings = RedisSettings { may_lose: true, ..server.settings() };
    let (registry, other) = (process(&settings).await, connect(&settings).await);
    let mut feed = registry.feed(&[Kind::User]).await.expect("a feed");
    registry.write(vec![put(Kind::User, "a", "1"), put(Kind::User, "b", "1")]).await.expect("write");
    assert_eq!(feed.read().await.expect("read").len(), 2);
    tell(&other, "FLUSHALL SYNC").await;
    for round in 0..5 {
        registry.write(vec![put(Kind::User, "b", round.to_string())]).await.expect("write");
    }
    let mut told = Vec::new();
    until("a reload", async || {
        tell(&other, "CLIENT KILL TYPE pubsub").await;
        told.extend(feed.read().await.expect("read"));
        told.contains(&News::Reload)
    })
    .await;
}
