//! What the tests on a real Redis share, and the tests of the connections.
//!
//! Most tests use the servers that `tests/cluster/up redis redis-cluster` starts, each with a prefix of its own. Those that kill a server
//! or set it up differently start their own ([`Server`]).

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::LazyLock,
};

use super::*;

/// Settings for the server, or the cluster, of the tests. Where none runs the tests fail.
pub(crate) fn settings(cluster: bool) -> RedisSettings {
    let (variable, usual) = match cluster {
        false => ("NEXXUS_TEST_REDIS", "redis://127.0.0.1:26001"),
        true => ("NEXXUS_TEST_REDIS_CLUSTER", "redis://127.0.0.1:26011"),
    };
    at(std::env::var(variable).unwrap_or_else(|_| usual.to_owned()), cluster)
}

fn at(node: String, cluster: bool) -> RedisSettings {
    let prefix = format!("test-{}", ulid::Ulid::generate());
    RedisSettings { cluster, nodes: vec![node], ca_file: None, prefix, may_lose: false }
}

pub(crate) async fn connect(settings: &RedisSettings) -> Redis {
    Redis::connect(settings).await.expect("Redis: start it with tests/cluster/up redis redis-cluster")
}

/// A server of one test, killed with it.
pub(crate) struct Server {
    port: u16,
    process: Child,
    dir: tempfile::TempDir,
    arguments: Vec<String>,
}

const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

impl Server {
    /// Starts one that keeps what it confirmed.
    pub(crate) async fn start() -> Self {
        Self::with(&DURABLE).await
    }

    pub(crate) async fn with(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        loop {
            // Another test may take the port in between: then this server ends, and the next gets another one.
            let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
            let mut process = launch(port, dir.path(), &arguments);
            if is_ready(port, &mut process).await {
                return Self { port, process, dir, arguments };
            }
        }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn settings(&self) -> RedisSettings {
        at(self.url(), false)
    }

    /// As `kill -9` does it.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("kill");
        self.process.wait().expect("its end");
    }

    /// On the same port and directory.
    pub(crate) fn start_again(&mut self) {
        self.process = launch(self.port, self.dir.path(), &self.arguments);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn launch(port: u16, dir: &Path, arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"]).arg(dir);
    command.args(arguments.iter().map(|argument| argument.replace("{port}", &port.to_string())));
    command.stdout(Stdio::null()).spawn().expect("redis-server: install it with tests/cluster/up redis")
}

/// Until it listens; false when it has ended.
async fn is_ready(port: u16, process: &mut Child) -> bool {
    loop {
        if process.try_wait().expect("its state").is_some() {
            return false;
        }
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A command without a key, at the one server.
pub(crate) async fn tell(redis: &Redis, command: &str) {
    let mut words = command.split(' ');
    let mut arguments = Arguments::default();
    let (name, first) = (words.next().expect("a name"), words.next().expect("a word"));
    for word in words {
        arguments.text(word);
    }
    redis.command("test", Effect::Once, name, first, &arguments).await.expect(command);
}

async fn refusal(settings: &RedisSettings) -> Error {
    match Redis::connect_within(settings, Duration::ZERO).await {
        Err(error) => error,
        Ok(_) => panic!("{settings:?} is taken"),
    }
}

#[tokio::test]
async fn servers_that_would_lose_something_are_refused() {
    let server = Server::start().await;
    let settings = server.settings();
    let lossy = RedisSettings { may_lose: true, ..settings.clone() };
    let redis = connect(&settings).await;
    for (set, back, names, also_lossy) in [
        ("maxmemory-policy allkeys-lru", "maxmemory-policy noeviction", "`maxmemory-policy` is allkeys-lru", true),
        ("appendfsync everysec", "appendfsync always", "`appendfsync` is everysec", false),
        ("appendonly no", "appendonly yes", "`appendonly` is off", false),
    ] {
        tell(&redis, &format!("CONFIG SET {set}")).await;
        let error = refusal(&settings).await;
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(error.message.contains(names) && error.message.contains(&server.port.to_string()), "{error}");
        let taken = Redis::connect_within(&lossy, Duration::ZERO).await;
        assert_eq!(taken.is_err(), also_lossy, "{set}");
        tell(&redis, &format!("CONFIG SET {back}")).await;
    }
    connect(&settings).await;
}

#[tokio::test]
async fn what_cannot_be_used_is_named() {
    let server = Server::with(&[&DURABLE[..], &["--requirepass", "right"]].concat()).await;
    let with = |credentials: &str| at(format!("redis://{credentials}127.0.0.1:{}", server.port), false);
    connect(&with(":right@")).await;
    connect(&with("default:right@")).await;
    let two = RedisSettings { nodes: vec!["h:1".into(), "h:2".into()], ..with("") };
    for (settings, names) in [
        (with(":wrong@"), "password of `redis.nodes`"),
        (with("nobody:right@"), "password of `redis.nodes`"),
        (with(""), "password of `redis.nodes`"),
        (RedisSettings { cluster: true, ..with(":right@") }, "set `redis.mode` to \"single\""),
        (RedisSettings { prefix: "a{b}".into(), ..with(":right@") }, "`redis.prefix`"),
        (RedisSettings { nodes: vec![], ..with("") }, "`redis.nodes` is empty"),
        (two, "`redis.mode` is \"single\""),
    ] {
        let error = refusal(&settings).await;
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(error.message.contains(names), "{error}");
    }
    let of_cluster = RedisSettings { cluster: false, ..settings(true) };
    assert!(refusal(&of_cluster).await.message.contains("set `redis.mode` to \"cluster\""));
}

/// The keys in `certificates/` are for this test, and protect nothing.
#[tokio::test]
async fn connections_may_be_encrypted() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let ca_file = file("ca.pem", include_str!("certificates/ca.pem"));
    let certificate = file("server.pem", include_str!("certificates/server.pem"));
    let key = file("server.key", include_str!("certificates/server.key"));
    let encrypted =
        ["--port", "0", "--tls-port", "{port}", "--tls-auth-clients", "no", "--tls-cert-file", &certificate];
    let more = ["--tls-key-file", &key, "--tls-ca-cert-file", &ca_file];
    let server = Server::with(&[&DURABLE[..], &encrypted, &more].concat()).await;
    let with_tls = |host: &str| at(format!("rediss://{host}:{}", server.port), false);
    for host in ["127.0.0.1", "localhost"] {
        let settings = RedisSettings { ca_file: Some(ca_file.clone().into()), ..with_tls(host) };
        let redis = connect(&settings).await;
        assert!(count(&redis, "n", 1).await.expect("count") > 0);
    }
    let error = refusal(&with_tls("127.0.0.1")).await;
    assert!(error.to_string().to_lowercase().contains("certificate"), "an unknown signer: {error}");
    let missing = RedisSettings { ca_file: Some(dir.path().join("none.pem")), ..with_tls("127.0.0.1") };
    assert!(refusal(&missing).await.message.contains("`redis.ca_file`"));
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for() {
    let mut server = Server::start().await;
    server.kill();
    let settings = server.settings();
    let error = refusal(&settings).await;
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message.contains(&server.port.to_string()), "{error}");
    let waiting = tokio::spawn(async move { connect(&settings).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.start_again();
    waiting.await.expect("it is there now");
}

static COUNT: LazyLock<Script> =
    LazyLock::new(|| Script::new(Effect::Once, "#!lua\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])"));

async fn count(redis: &Redis, key: &str, by: u64) -> Result<u64> {
    let mut arguments = Arguments::default();
    arguments.number(by);
    redis.run("count", &COUNT, &[key], &arguments).await?.number()
}

#[tokio::test]
async fn scripts_that_a_server_forgot_are_taught_again() {
    let server = Server::start().await;
    let redis = connect(&server.settings()).await;
    for round in 1..=3 {
        assert_eq!(count(&redis, "n", 1).await.expect("taught"), round * 2 - 1);
        let before = redis.calls();
        assert_eq!(count(&redis, "n", 1).await.expect("known"), round * 2);
        assert_eq!(redis.calls() - before, 1, "a script that is known takes one round trip");
        tell(&redis, "SCRIPT FLUSH").await;
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_made_again() {
    let server = Server::start().await;
    let (redis, other) = (connect(&server.settings()).await, connect(&server.settings()).await);
    let mut counted = 0;
    for _ in 0..20 {
        tell(&other, "CLIENT KILL TYPE normal SKIPME yes").await;
        // What was under way is not sent twice; what comes after is.
        counted += u64::from(count(&redis, "n", 1).await.is_ok());
    }
    assert!(counted > 0);
    assert!(count(&redis, "n", 0).await.expect("counted") >= counted);
}

#[tokio::test]
async fn a_full_memory_is_told() {
    let server = Server::start().await;
    let redis = connect(&server.settings()).await;
    count(&redis, "n", 1).await.expect("there is room");
    tell(&redis, "CONFIG SET maxmemory 1").await;
    let error = count(&redis, "n", 1).await.expect_err("no room");
    assert_eq!(error.kind, ErrorKind::DiskFull, "{error}");
    assert!(error.message.contains("maxmemory"), "{error}");
    tell(&redis, "CONFIG SET maxmemory 0").await;
    assert_eq!(count(&redis, "n", 1).await.expect("there is room again"), 2);
}

#[tokio::test]
async fn a_closed_connection_says_so_at_once() {
    let server = Server::start().await;
    let redis = connect(&server.settings()).await;
    redis.close();
    let begun = Instant::now();
    assert_eq!(count(&redis, "n", 1).await.expect_err("closed").kind, ErrorKind::Unavailable);
    assert!(begun.elapsed() < PATIENCE / 2);
}

async fn raw(server: &Server) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(server.url()).expect("a client");
    client.get_multiplexed_async_connection().await.expect("a connection")
}

async fn ask(server: &mut redis::aio::MultiplexedConnection, command: &str) -> String {
    let mut words = command.split(' ');
    let mut built = redis::cmd(words.next().expect("a name"));
    for word in words {
        built.arg(word);
    }
    match server.send_packed_command(&built).await.and_then(redis::Value::extract_error).expect(command) {
        redis::Value::BulkString(text) => String::from_utf8(text).expect("a text"),
        redis::Value::VerbatimString { text, .. } => text,
        other => format!("{other:?}"),
    }
}

#[derive(Default)]
struct Heard(parking_lot::Mutex<Vec<Vec<u8>>>);

impl Listener for Heard {
    fn heard(&self, message: &[u8]) {
        self.0.lock().push(message.to_vec());
    }

    fn missed(&self) {}
}

async fn publish_until_heard(redis: &Redis, heard: &Heard, message: &str) {
    let mut arguments = Arguments::default();
    arguments.text(message);
    let hearing = async {
        while !heard.0.lock().iter().any(|heard| heard == message.as_bytes()) {
            redis.command("publish", Effect::Once, "SPUBLISH", "{foo}news", &arguments).await.expect("publish");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), hearing).await.expect("it is heard");
}

/// Two servers that share the slots, and a slot that moves from one to the other while it is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_is_followed() {
    let port = || TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let (bus, other_bus) = (port().to_string(), port().to_string());
    // A machine that is busy is no reason to call the other one down.
    let patient = ["--cluster-enabled", "yes", "--cluster-node-timeout", "60000"];
    let clustered = |bus| [&DURABLE[..], &patient, &["--cluster-port", bus]].concat();
    let (from, to) = (Server::with(&clustered(&bus)).await, Server::with(&clustered(&other_bus)).await);
    let (mut from_raw, mut to_raw) = (raw(&from).await, raw(&to).await);
    ask(&mut from_raw, "CLUSTER SET-CONFIG-EPOCH 1").await;
    ask(&mut to_raw, "CLUSTER SET-CONFIG-EPOCH 2").await;
    ask(&mut from_raw, "CLUSTER ADDSLOTSRANGE 8192 16383").await;
    ask(&mut to_raw, "CLUSTER ADDSLOTSRANGE 0 8191").await;
    ask(&mut from_raw, &format!("CLUSTER MEET 127.0.0.1 {} {other_bus}", to.port)).await;
    // Each on its own: the one may know of the other later.
    for server in [&mut from_raw, &mut to_raw] {
        while !ask(server, "CLUSTER INFO").await.starts_with("cluster_state:ok") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let redis = connect(&at(to.url(), true)).await;

    let slot = slots::slot_of(b"foo");
    let heard = Arc::new(Heard::default());
    redis.listen("{foo}news".to_owned(), heard.clone());
    assert_eq!(count(&redis, "foo", 1).await.expect("where it was"), 1);
    publish_until_heard(&redis, &heard, "before").await;

    let (from_id, to_id) = (ask(&mut from_raw, "CLUSTER MYID").await, ask(&mut to_raw, "CLUSTER MYID").await);
    ask(&mut to_raw, &format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}")).await;
    ask(&mut from_raw, &format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}")).await;
    ask(&mut from_raw, &format!("MIGRATE 127.0.0.1 {} foo 0 5000", to.port)).await;
    assert_eq!(count(&redis, "foo", 1).await.expect("on its way"), 2);
    for server in [&mut to_raw, &mut from_raw] {
        ask(server, &format!("CLUSTER SETSLOT {slot} NODE {to_id}")).await;
    }
    assert_eq!(count(&redis, "foo", 1).await.expect("where it is"), 3);
    let before = redis.calls();
    assert_eq!(count(&redis, "foo", 1).await.expect("known"), 4);
    assert!(redis.calls() - before <= 2, "the cluster is asked once, if at all");
    publish_until_heard(&redis, &heard, "after").await;
}
