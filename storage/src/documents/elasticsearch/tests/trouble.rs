//! What goes wrong on the way: engines that are of another kind, away, slow, or let nobody in; and a real one that is killed.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use parking_lot::Mutex;
use serde_json::json;

use super::{super::Client, *};
use crate::{
    Error, ErrorKind,
    conformance::documents::{Author, id, task},
    documents::{Query, Stored},
};

/// Something that speaks HTTP: gives each answer to one request, the last one to all that follow.
struct Fake {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn new(answers: Vec<(u16, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, heads) = (listener.local_addr().expect("an address"), Arc::<Mutex<Vec<String>>>::default());
        let (seen, next) = (heads.clone(), AtomicUsize::new(0));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let answer = &answers[next.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
                // Who asks may go away meanwhile.
                drop(Self::serve(stream, answer, &seen));
            }
        });
        Self { address, heads }
    }

    fn serve(mut stream: TcpStream, (status, body): &(u16, String), seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        seen.lock().push(String::from_utf8_lossy(&head).to_lowercase());
        if *status == 0 {
            return Ok(()); // Breaks off.
        }
        let length = body.len();
        write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
    }

    fn options(&self) -> Options {
        Options {
            nodes: vec![format!("http://{}", self.address)],
            timeout: Duration::from_millis(500),
            patience: Duration::from_millis(300),
            ..options()
        }
    }
}

/// An address where nobody listens.
fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

fn about(number: &str, distribution: Option<&str>) -> (u16, String) {
    (200, json!({ "version": { "number": number, "distribution": distribution } }).to_string())
}

async fn refusal(options: Options) -> Error {
    ElasticsearchDocuments::open(options).await.err().expect("refused")
}

#[tokio::test]
async fn other_engines_versions_and_credentials_are_refused_by_the_setting() {
    let denied = json!({ "error": { "type": "security_exception", "reason": "missing credentials" } }).to_string();
    for (answer, setting) in [
        (
            about("7.17.29", None),
            "`database.nodes`: elasticsearch 7.17.29 answers there; Elasticsearch 8 or 9 is needed",
        ),
        (about("10.0.0", None), "elasticsearch 10.0.0"),
        (about("2.19.6", Some("opensearch")), "opensearch 2.19.6"),
        ((200, "<html>".into()), "`database.nodes`: what answers there is not Elasticsearch"),
        ((401, denied.clone()), "`database.username`"),
        ((403, denied), "`database.api_key`"),
    ] {
        let error = refusal(Fake::new(vec![answer.clone()]).options()).await;
        assert_eq!(error.kind, ErrorKind::Invalid, "{answer:?}");
        assert!(error.to_string().contains(setting), "{error}");
    }
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_refused_by_name_and_without_secrets() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    for (options, says) in [
        (Options { nodes: Vec::new(), ..options() }, "`database.nodes`"),
        (Options { nodes: vec!["ftp://u:hidden@x".into()], ..options() }, "`database.nodes`: \"x\""),
        (Options { nodes: vec!["http://u:hidden@".into()], ..options() }, "`database.nodes`"),
        (Options { nodes: vec!["http://x?hidden=1".into()], ..options() }, "`database.nodes`"),
        (Options { prefix: "Nexxus".into(), ..options() }, "`database.prefix`"),
        (Options { api_key: Some("k".into()), username: Some("u".into()), ..options() }, "`database.api_key`"),
        (Options { api_key: Some("\n".into()), ..options() }, "`database.api_key`"),
        (Options { ca_file: Some("/nowhere/hidden.pem".into()), ..options() }, "`database.ca_file`"),
        (Options { ca_file: Some(file.path().to_owned()), ..options() }, "it holds no certificate"),
    ] {
        let error = refusal(options).await;
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(!error.to_string().contains("u:hidden"), "{error}");
    }
}

async fn ask(options: &Options) -> Result<u16, Error> {
    let client = Client::new(options).expect("a client");
    client.send("test", Method::GET, "/", Body::None).await.map(|answer| answer.status)
}

#[tokio::test]
async fn what_may_succeed_is_asked_again_and_nothing_else() {
    let busy =
        || (429, json!({ "error": { "type": "es_rejected_execution_exception", "reason": "busy" } }).to_string());
    let flood = "index [x] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark];";
    let flood = (429, json!({ "error": { "type": "cluster_block_exception", "reason": flood } }).to_string());
    let nothing = |status: u16| (status, String::new());
    for (answers, status, n_asked) in [
        (vec![nothing(503), nothing(502), nothing(504), nothing(200)], 200, 4),
        (vec![busy(), nothing(200)], 200, 2),
        (vec![nothing(0), nothing(200)], 200, 2),
        (vec![flood], 429, 1),
        (vec![nothing(500)], 500, 1),
        (vec![nothing(404)], 404, 1),
        (vec![nothing(400)], 400, 1),
    ] {
        let fake = Fake::new(answers.clone());
        let patient = Options { patience: Duration::from_secs(30), ..fake.options() };
        assert_eq!(ask(&patient).await.expect("an answer"), status, "{answers:?}");
        assert_eq!(fake.heads.lock().len(), n_asked, "{answers:?}");
    }
    for (answer, kind) in
        [(nothing(503), ErrorKind::Unavailable), (busy(), ErrorKind::Full), (nothing(0), ErrorKind::Unavailable)]
    {
        let error = ask(&Fake::new(vec![answer]).options()).await.expect_err("given up");
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.is_transient());
    }
}

#[tokio::test]
async fn nodes_stand_in_for_one_another() {
    let fake = Fake::new(vec![(200, String::new())]);
    let nodes = vec![nowhere(), nowhere(), format!("http://{}", fake.address)];
    let client = Client::new(&Options { nodes, patience: Duration::ZERO, ..fake.options() }).expect("a client");
    for _ in 0..3 {
        client.send("test", Method::GET, "/", Body::None).await.expect("an answer");
    }
    // The one that answered is asked first from then on.
    assert_eq!(client.figures.requests.load(Ordering::Relaxed), 5);
    let error = ask(&Options { nodes: vec![nowhere()], ..fake.options() }).await.expect_err("nobody");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

#[tokio::test]
async fn a_node_that_does_not_answer_in_time_is_not_asked_again() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("http://u:hidden@{}/path/", listener.local_addr().expect("an address"));
    let options = Options { nodes: vec![silent], timeout: Duration::from_millis(200), ..options() };
    let error = ask(&options).await.expect_err("no answer");
    assert_eq!(error.kind, ErrorKind::Timeout);
    let shown = error.to_string();
    assert!(!shown.contains("hidden") && shown.contains("/path did not answer in time"), "{shown}");
}

#[tokio::test]
async fn credentials_are_sent_as_they_were_given() {
    // "u:p" in base64.
    let basic = "authorization: basic dtpw";
    for (user, options, sent) in [
        ("", Options { username: Some("u".into()), password: Some("p".into()), ..options() }, basic),
        ("u:p@", options(), basic),
        ("", Options { api_key: Some("a2V5".into()), ..options() }, "authorization: apikey a2v5"),
    ] {
        let fake = Fake::new(vec![(200, String::new())]);
        ask(&Options { nodes: vec![format!("http://{user}{}", fake.address)], ..options }).await.expect("an answer");
        let head = fake.heads.lock().concat();
        assert!(head.contains(sent), "{head}");
    }
}

/// An Elasticsearch of this test alone, by the script of the clustered tests.
struct Own {
    port: u16,
    dir: tempfile::TempDir,
}

impl Own {
    fn new() -> Self {
        // It takes two ports, 41 and 42 above the number that it is given.
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        let mut ports =
            (0..).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("one").port());
        let port = ports.find(|port| *port < u16::MAX && free(*port) && free(*port + 1)).expect("two ports");
        Self { port: port - 41, dir: tempfile::tempdir().expect("a directory") }
    }

    fn run(&self, what: &str) {
        let cluster = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cluster");
        let output = Command::new("bash")
            .arg("-euc")
            .arg(format!("cd {} && source common.sh && source engines/elasticsearch.sh && {what}", cluster.display()))
            .env("NEXXUS_CLUSTER_PORT", self.port.to_string())
            .env("NEXXUS_CLUSTER_DIR", self.dir.path())
            .output()
            .expect("bash");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn kill(&self) {
        self.run(
            "kill -9 $(cat $ELASTICSEARCH_DATA/pid); wait_for 30 bash -c \"! kill -0 $(cat $ELASTICSEARCH_DATA/pid)\"",
        );
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.run("stop");
        } else {
            drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run("stop"))));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_kill_loses_nothing_that_was_applied() {
    let own = Arc::new(Own::new());
    let run = async |own: &Arc<Own>, what: fn(&Own)| {
        let own = own.clone();
        tokio::task::spawn_blocking(move || what(&own)).await.expect("it runs");
    };
    run(&own, |own| own.run("install && start")).await;
    let nodes = vec![format!("http://127.0.0.1:{}", own.port + 41)];
    let options = Options { nodes, patience: Duration::from_millis(200), ..options() };
    let mut engine = Engine { documents: open(&options).await, options };
    let mut author = Author::defined(&engine, "a").await;
    for n in 0..50 {
        author.put(&format!("x{n:02}"), json!({ "priority": n })).await;
    }
    author.delete("x07").await;
    run(&own, Own::kill).await;
    let document = author.document("late", json!({ "priority": 100 }));
    let event = author.put_event(document);
    let late = author.log(vec![event]).await;
    let away = engine.documents.apply(&author.app, &late).await.expect_err("away");
    assert_eq!(away.kind, ErrorKind::Unavailable, "{away}");
    let away = engine.documents.search(author.query(json!({}))).await.expect_err("away");
    assert_eq!(away.kind, ErrorKind::Unavailable, "{away}");
    let away = engine.documents.get(&author.app, &task(), &[id("x01")]).await.expect_err("away");
    assert_eq!(away.kind, ErrorKind::Unavailable, "{away}");
    run(&own, |own| own.run("start")).await;
    engine.documents.apply(&author.app, &late).await.expect("applied");
    for (name, document) in &author.live {
        assert_eq!(author.get(name.as_str()).await, Some(Stored::Live(document.clone())));
    }
    assert_eq!(author.get("x07").await, Some(Stored::Deleted { version: 2 }));
    let query = Query { count: true, limit: 2, ..author.query(json!({ "priority": { "$gte": 49 } })) };
    assert_eq!(engine.documents.search(query).await.expect("found").total, Some(2));
    let (written, app) = (author.written(), author.app.clone());
    drop(author);
    engine.documents = open(&engine.options).await;
    assert_eq!(engine.documents.count(&app, &task()).await.expect("counted"), written.1.len() as u64);
}
