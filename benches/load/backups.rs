//! What a backup costs those who write meanwhile, how large it is, and how long it takes to be restored.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use super::{
    scenarios::{Ground, document, percentile},
    server::Server,
};

/// Enough clients that a slow answer does not slow the pace.
const WRITERS: u64 = 32;
/// The shortest time that is compared.
const SHORTEST: Duration = Duration::from_secs(10);

/// Writes at a pace until it is told to stop; gives milliseconds to the 202 of each, and how many were answered 503.
struct Paced {
    running: Arc<AtomicBool>,
    writers: Vec<JoinHandle<(Vec<f64>, u64)>>,
    started: Instant,
}

impl Paced {
    async fn begin(ground: &Ground, rate: u64) -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let mut writers = Vec::new();
        let started = Instant::now();
        for number in 0..WRITERS {
            let (mut client, running) = (ground.client().await, running.clone());
            writers.push(tokio::spawn(async move {
                let (mut latencies, mut n_busy) = (Vec::new(), 0);
                for turn in 0.. {
                    let due = started + Duration::from_secs_f64((turn * WRITERS + number) as f64 / rate as f64);
                    tokio::time::sleep_until(due.into()).await;
                    if !running.load(Ordering::Relaxed) {
                        break;
                    }
                    // From when it was due: who waits for a slow answer waits, too.
                    let (status, body) = client.call("POST", "/model/item", &document(turn)).await;
                    match status {
                        202 => latencies.push(due.elapsed().as_secs_f64() * 1000.0),
                        503 => n_busy += 1,
                        _ => panic!("{status} {body}"),
                    }
                }
                (latencies, n_busy)
            }));
        }
        Self { running, writers, started }
    }

    /// Prints what there was, and gives the p99.
    async fn end(self, what: &str) -> f64 {
        self.running.store(false, Ordering::Relaxed);
        let took = self.started.elapsed().as_secs_f64();
        let (mut latencies, mut n_busy) = (Vec::new(), 0);
        for writer in self.writers {
            let (mut of_writer, busy) = writer.await.expect("a writer");
            latencies.append(&mut of_writer);
            n_busy += busy;
        }
        let p99 = percentile(&mut latencies, 0.99);
        println!(
            "{what}: {:.0} writes/s, {n_busy} answered 503, due → 202 p50 {:.2} ms p99 {p99:.2} ms longest {:.0} ms",
            latencies.len() as f64 / took,
            percentile(&mut latencies, 0.5),
            percentile(&mut latencies, 1.0),
        );
        p99
    }
}

/// Runs the binary as an operator does; gives how long it took.
async fn nexxus(arguments: Vec<String>) -> Duration {
    let started = Instant::now();
    let run = move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nexxus"));
        command.args(arguments).stdout(Stdio::null()).status().expect("it runs")
    };
    let status = tokio::task::spawn_blocking(run).await.expect("no panic");
    assert!(status.success(), "{status}");
    started.elapsed()
}

pub(crate) async fn backup(n_documents: u64, rate: u64) {
    let ground = Ground::prepare().await;
    let filling = Instant::now();
    ground.fill(n_documents).await;
    println!("{n_documents} documents are in after {:.0} s", filling.elapsed().as_secs_f64());
    tokio::time::sleep(Duration::from_secs(5)).await;

    let paced = Paced::begin(&ground, rate).await;
    tokio::time::sleep(2 * SHORTEST).await;
    let without = paced.end("without a backup").await;

    let place = tempfile::tempdir().expect("a directory");
    let at = |name: &str| place.path().join(name).display().to_string();
    let (before, paced) = (ground.server.usage(), Paced::begin(&ground, rate).await);
    let (mut n_backups, mut took) = (0, Duration::ZERO);
    while n_backups == 0 || took < SHORTEST {
        let data = ground.server.dir.display().to_string();
        took += nexxus(vec!["backup".into(), at("load.backup"), "--data".into(), data]).await;
        n_backups += 1;
    }
    let with = paced.end(&format!("beside {n_backups} backups")).await;
    let after = ground.server.usage();
    let bytes = std::fs::metadata(at("load.backup")).map_or(0, |metadata| metadata.len());
    println!(
        "backup: {:.1} s each, {} MiB, write p99 {:.2}x of without, server {} MiB resident before and {} MiB after",
        took.as_secs_f64() / f64::from(n_backups),
        bytes >> 20,
        with / without,
        before.0 / 1024,
        after.0 / 1024,
    );
    let dir = ground.server.stop();
    let took = nexxus(vec!["restore".into(), at("load.backup"), "--data".into(), at("restored")]).await;
    let restored = Server::start(place.path().join("restored")).await;
    println!("restore: {:.1} s, then ready after {:.2} s", took.as_secs_f64(), restored.ready_after.as_secs_f64());
    restored.stop();
    let _gone = std::fs::remove_dir_all(dir);
}
