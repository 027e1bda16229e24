//! What the journal costs alone: `cargo bench -p nexxus-storage --bench journal`.
//!
//! Producers that each append a record of 300 bytes and wait until it is durable before they append the next one: 1, 64 and 256 of
//! them, so that as many records share a sync. Beside them one sync of the same disk, which is what a single producer waits for.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nexxus_storage::{
    embedded::indexer::StreamIndexer,
    journal::{self, Appended, Journal, Kind},
};
use tokio::runtime::Runtime;

const RECORD_BYTES: usize = 300;
const IN_FLIGHT: [u64; 3] = [1, 64, 256];

fn open(dir: &Path) -> Journal {
    let options = journal::Options {
        dir: dir.join("journal"),
        indexer: Arc::new(StreamIndexer),
        segment_bytes: 64 << 20,
        backlog_bytes: 32 << 20,
    };
    Journal::open(options).expect("a journal")
}

/// Appends a record, and waits where the next segment is still being prepared: the clock runs on.
async fn append(journal: &Journal) -> Appended {
    loop {
        // Of no kind that the indexer reads: it is a record of the registry.
        match journal.append(vec![(Kind::Registry, vec![7; RECORD_BYTES])]) {
            Ok(appended) => return appended[0],
            Err(error) if error.is_transient() => tokio::time::sleep(Duration::from_micros(200)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// How long so many records take that so many producers append.
fn appends(runtime: &Runtime, journal: &Journal, n_producers: u64, n_records: u64) -> Duration {
    let begun = Instant::now();
    let producers: Vec<_> = (0..n_producers)
        .map(|producer| {
            let journal = journal.clone();
            let share = n_records / n_producers + u64::from(producer < n_records % n_producers);
            runtime.spawn(async move {
                for _ in 0..share {
                    let appended = append(&journal).await;
                    journal.durable(appended.sequence).await.expect("durable");
                }
            })
        })
        .collect();
    runtime.block_on(async {
        for producer in producers {
            producer.await.expect("a producer");
        }
    });
    begun.elapsed()
}

fn group_commit(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let journal = open(dir.path());
    println!("one sync of this disk: {:?}", journal.fsync_at_open());
    let mut group = criterion.benchmark_group("append and wait until it is durable");
    group.throughput(Throughput::Elements(1)).sample_size(20).measurement_time(Duration::from_secs(5));
    for n_producers in IN_FLIGHT {
        group.bench_function(format!("{n_producers} in flight"), |bencher| {
            bencher.iter_custom(|n_records| {
                let took = appends(&runtime, &journal, n_producers, n_records);
                journal.release(journal.durable_upto()).expect("released");
                took
            });
        });
    }
    group.finish();
    journal.close().expect("closes");
}

criterion_group!(benches, group_commit);
criterion_main!(benches);
