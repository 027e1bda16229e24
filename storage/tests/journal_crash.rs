//! `kill -9` to a process that writes to the journal: what it said was durable is there again, in order.
//!
//! The test starts its own binary again as the child. Each of the child's producers appends numbered records, waits until one is
//! durable, and only then says so on standard output; the parent kills the child after some of these lines.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use nexxus_storage::{
    embedded::indexer::StreamIndexer,
    journal::{self, Journal, Kind},
};

const ROUNDS: u64 = 15;
const PRODUCERS: u64 = 8;
/// Tells the binary that it is the child, and which journal it writes to in which round.
const CHILD: &str = "NEXXUS_CRASHING_CHILD";

fn open(dir: &Path) -> Journal {
    let (dir, indexer) = (dir.to_owned(), Arc::new(StreamIndexer));
    // Small segments: a life begins and releases a few of them.
    let options = journal::Options { dir, indexer, segment_bytes: 64 << 10, backlog_bytes: 1 << 20 };
    Journal::open(options).expect("the journal opens")
}

/// Its length differs, so that records end anywhere in a page.
fn payload(round: u64, producer: u64, number: u64) -> String {
    format!("{round} {producer} {number} {}", "x".repeat((number * 37 % 400) as usize))
}

/// What a record says of itself.
fn name(payload: &[u8]) -> [u64; 3] {
    let text = std::str::from_utf8(payload).expect("a text");
    let mut numbers = text.split(' ').map(|number| number.parse().unwrap_or_default());
    std::array::from_fn(|_| numbers.next().expect("a number"))
}

#[test]
fn what_was_said_to_be_durable_survives_kill_9() {
    if let Ok(orders) = std::env::var(CHILD) {
        let (round, dir) = orders.split_once(' ').expect("a round and a directory");
        return append_until_killed(&PathBuf::from(dir), round.parse().expect("a number"));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path().join("journal");
    let mut said = BTreeMap::new();
    for round in 0..ROUNDS {
        said.extend(life_and_death(&dir, round));
        check(&dir, &mut said);
    }
    assert!(said.len() > ROUNDS as usize, "hardly anything was said to be durable");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn append_until_killed(dir: &Path, round: u64) {
    let journal = open(dir);
    let producers: Vec<_> =
        (0..PRODUCERS).map(|producer| tokio::spawn(produce(journal.clone(), round, producer))).collect();
    for producer in producers {
        producer.await.expect("a producer");
    }
}

async fn produce(journal: Journal, round: u64, producer: u64) {
    for number in 0.. {
        let record = vec![(Kind::Registry, payload(round, producer, number).into_bytes())];
        let appended = loop {
            match journal.append(record.clone()) {
                Ok(appended) => break appended[0],
                Err(error) if error.is_transient() => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        journal.durable(appended.sequence).await.expect("durable");
        // Whole lines, and only what is durable.
        writeln!(std::io::stdout().lock(), "\ndurable {} {round} {producer} {number}", appended.sequence)
            .expect("the parent listens");
        if producer == 0 && number % 200 == 199 {
            journal.release(appended.sequence.saturating_sub(2_000)).expect("released");
        }
    }
}

/// Starts a child and kills it; gives what it said to be durable.
fn life_and_death(dir: &Path, round: u64) -> BTreeMap<u64, [u64; 3]> {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "what_was_said_to_be_durable_survives_kill_9", "--nocapture"])
        .env(CHILD, format!("{round} {}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child");
    let mut lines = BufReader::new(child.stdout.take().expect("its output"));
    let mut left = rand::random_range(1..1_500);
    let mut said = BTreeMap::new();
    let mut line = String::new();
    while lines.read_line(&mut line).expect("a line") > 0 {
        // The last one may be cut off.
        if let Some(words) = line.strip_prefix("durable ").and_then(|rest| rest.strip_suffix('\n')) {
            let numbers: Vec<u64> = words.split(' ').map(|word| word.parse().expect("a number")).collect();
            said.insert(numbers[0], [numbers[1], numbers[2], numbers[3]]);
            left -= 1;
            if left == 0 {
                // SIGKILL. What it wrote to the pipe before that is still read.
                child.kill().expect("killed");
            }
        }
        line.clear();
    }
    assert!(left <= 0, "the child ended by itself, {left} lines too early: {:?}", child.wait());
    child.wait().expect("it has ended");
    said
}

/// Everything that was said is there, unless it was released; each producer's records are there without a hole, in order.
fn check(dir: &Path, said: &mut BTreeMap<u64, [u64; 3]>) {
    let journal = open(dir);
    let oldest = journal.segments()[0].first;
    assert!(oldest <= said.keys().last().map_or(1, |last| last.saturating_sub(1_000)).max(1), "too much was released");
    *said = said.split_off(&oldest);
    let mut missing = said.clone();
    let mut expected = oldest;
    let mut next: BTreeMap<[u64; 2], u64> = BTreeMap::new();
    let mut visit = |record: journal::Record| {
        assert_eq!(record.sequence, expected, "sequences are dense");
        expected += 1;
        let name = name(&record.payload);
        let [round, producer, number] = name;
        assert_eq!(record.payload, payload(round, producer, number).as_bytes(), "record {}", record.sequence);
        let next = next.entry([round, producer]).or_insert(number);
        assert_eq!(*next, number, "round {round}, producer {producer}");
        *next += 1;
        if let Some(said) = missing.remove(&record.sequence) {
            assert_eq!(said, name, "record {}", record.sequence);
        }
        Ok(())
    };
    journal.replay(1, &mut visit).expect("it can be read");
    assert!(
        missing.is_empty(),
        "{} records that were durable are gone, e.g. {:?}",
        missing.len(),
        missing.first_key_value()
    );
}
