//! Backups of a running server, and servers on what was restored.

use std::{
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    command::{Place, done, run, said},
    harness::{PATIENCE, Server, User},
};

/// How many documents are counted up.
const COUNTERS: usize = 8;

async fn back_up(server: &Server, file: &Path) -> Value {
    let (file, data) = (file.display().to_string(), server.dir().display().to_string());
    done(&["backup", &file, "--data", &data]).await
}

async fn restore(file: &Path, data: &Path) -> Output {
    run(&["restore", &file.display().to_string(), "--data", &data.display().to_string()]).await
}

/// Counts one document up until told to stop; says how often it was accepted, and how often it may have been.
struct Counting {
    accepted: Arc<AtomicU64>,
    tried: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Counting {
    fn begin(user: &User, id: String, goes_on: Arc<AtomicBool>) -> Self {
        let (accepted, tried) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (user, accepting, trying) = (user.clone(), accepted.clone(), tried.clone());
        let task = tokio::spawn(async move {
            let patch = json!([{ "op": "incr", "path": ["n"], "value": [1] }]);
            while goes_on.load(Ordering::SeqCst) {
                trying.fetch_add(1, Ordering::SeqCst);
                let answer = user.call(Method::PATCH, &format!("/model/counter/{id}"), patch.clone()).await;
                answer.expect(StatusCode::ACCEPTED);
                accepting.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { accepted, tried, task }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_writes_has_everything_accepted_before_it() {
    let place = Place::new();
    let (file, data) = (place.at("nexxus.backup"), place.at("restored"));
    let mut server = Server::start_with(&[("DATA__SEGMENT_BYTES", "4MiB")]).await;
    let schema = json!({ "counter": { "n": { "type": "number", "filterable": true }, "pad": { "type": "string" } } });
    let app = server.app("counts", schema, json!({})).await;
    let anna = app.user("anna").await;
    let mut phone = anna.device("phone").await;
    let offset = phone.subscribe(json!({ "model": "counter" })).await["offset"].as_str().expect("an offset").to_owned();
    for index in 0..COUNTERS {
        anna.create("counter", json!({ "id": format!("c{index}"), "n": 0, "pad": "x".repeat(500) })).await;
    }
    let goes_on = Arc::new(AtomicBool::new(true));
    let counting: Vec<_> =
        (0..COUNTERS).map(|index| Counting::begin(&anna, format!("c{index}"), goes_on.clone())).collect();
    let deadline = Instant::now() + PATIENCE;
    while counting.iter().any(|counting| counting.accepted.load(Ordering::SeqCst) < 5) && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    let before: Vec<_> = counting.iter().map(|counting| counting.accepted.load(Ordering::SeqCst)).collect();
    let said_of_it = back_up(&server, &file).await;
    let after: Vec<_> = counting.iter().map(|counting| counting.tried.load(Ordering::SeqCst)).collect();
    goes_on.store(false, Ordering::SeqCst);
    for counting in counting {
        counting.task.await.expect("no panic");
    }
    assert_eq!(said_of_it["applications"][0]["id"], "counts");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("a file").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let admin_token = server.admin_token.clone();
    assert_eq!(server.stop(), Some(0));

    let output = restore(&file, &data).await;
    assert!(output.status.success(), "{}", said(&output));
    let restored = Server::start_in(&data, &[]).await;
    assert_eq!(restored.admin_token, admin_token, "the secrets are in it");
    let app = restored.again(&app);
    let anna = User { app: app.clone(), ..anna };
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        let counter =
            anna.call(Method::GET, &format!("/model/counter/c{index}"), Value::Null).await.expect(StatusCode::OK);
        let n = counter["n"].as_u64().expect("a number");
        assert!((*before..=*after).contains(&n), "c{index}: {n} of {before} to {after}");
        assert_eq!(counter["version"], json!(n + 1), "each was counted once");
        let found = anna
            .call(Method::GET, &format!("/model/counter?filter={{\"n\":{n}}}&count=true"), Value::Null)
            .await
            .expect(StatusCode::OK);
        assert!(found["items"].as_array().expect("items").iter().any(|item| item["id"] == counter["id"]), "{found}");
    }
    // What was seen after the backup is gone: who knows old offsets is told so, and goes on anew.
    let mut phone = anna.connect("phone", Some(&offset)).await;
    assert_eq!(phone.hello["data"]["subscriptions"], 1);
    let resync = phone.next().await;
    assert_eq!(resync["event"], "resync_required", "never `resumed`: {resync}");
    assert_eq!(resync["data"]["channels"], json!(["app:counts:model:counter"]));
    assert!(phone.hello["data"]["offset"].as_str().expect("an offset") > &*offset, "a later epoch is greater");
    let (id, _) = anna.create("counter", json!({ "n": 100 })).await;
    let frame = phone.next().await;
    assert_eq!(frame["data"]["id"], json!(id));
    assert!(frame["offset"].as_str().expect("an offset") > &*offset, "a later epoch is greater");
    let login = json!({ "username": "anna", "password": "anna-password" });
    app.anonymous().call(Method::POST, "/user/login", login).await.expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_restored_is_refused_and_nothing_is_written() {
    let place = Place::new();
    let (file, data) = (place.at("nexxus.backup"), place.at("restored"));
    let server = Server::start().await;
    server.app("notes", json!({ "note": { "text": { "type": "string" } } }), json!({})).await;
    back_up(&server, &file).await;
    let whole = std::fs::read(&file).expect("a file");
    let altered = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        bytes
    };
    for (bytes, says) in [
        (altered(&|bytes| bytes.truncate(bytes.len() - 1)), "cut off"),
        (altered(&|bytes| bytes.truncate(40)), "cut off"),
        (altered(&|bytes| bytes[200] ^= 4), "altered"),
        (altered(&|bytes| bytes.push(0)), "after its end"),
        (b"something else that is long enough".to_vec(), "no backup"),
    ] {
        std::fs::write(&file, bytes).expect("written");
        let output = restore(&file, &data).await;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(says), "{says}: {}", said(&output));
        assert_eq!(place.n_files(), 1, "{says}");
    }
    std::fs::write(&file, &whole).expect("written");
    let output = restore(&file, server.dir()).await;
    assert!(output.status.code() == Some(1) && said(&output).contains("not empty"), "{}", said(&output));

    // Only the admin gets one, and a file that is there stays when there is none.
    let user = server.known_app("notes").user("anna").await;
    user.call(Method::POST, "/admin/backup", Value::Null).await.problem(403);
    let output = run(&["backup", &file.display().to_string(), "--url", &server.url, "--token", "wrong"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(std::fs::read(&file).expect("a file"), whole);
    assert_eq!(place.n_files(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_backs_itself_up_and_keeps_the_newest() {
    let place = Place::new();
    let dir = place.at("kept");
    let settings = [("BACKUP__EVERY", "1s"), ("BACKUP__KEEP", "2"), ("BACKUP__DIR", dir.to_str().expect("a path"))];
    let mut server = Server::start_with(&settings).await;
    server.app("notes", json!({ "note": { "text": { "type": "string" } } }), json!({})).await;
    let metric = async |line: &str| {
        let metrics = server.admin(Method::GET, "/metrics", Value::Null).await.body;
        metrics.as_str().unwrap_or_default().lines().any(|found| found.starts_with(line))
    };
    let deadline = Instant::now() + PATIENCE;
    while !metric("nexxus_backups_total{result=\"taken\"} 3").await {
        assert!(Instant::now() < deadline, "{}", crate::harness::log_of(server.dir()));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // A directory that cannot be written to is told of, and the server goes on.
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&dir).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
        let mut names: Vec<_> = names.filter(|name| name.ends_with(".backup")).collect();
        names.sort();
        names
    };
    assert!(names().len() <= 3, "{:?}", names());
    assert_eq!(server.stop(), Some(0));
    let newest = dir.join(names().last().expect("a backup"));
    let output = restore(&newest, &place.at("restored")).await;
    assert!(output.status.success(), "{}", said(&output));
    let restored = Server::start_in(&place.at("restored"), &[]).await;
    restored.admin(Method::GET, "/application/notes", Value::Null).await.expect(StatusCode::OK);
}
