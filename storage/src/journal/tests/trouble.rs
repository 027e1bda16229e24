//! What the journal does when the disk lets it down.

use std::path::PathBuf;

use super::{
    super::*,
    Sequences, append, expected,
    memory::{Dice, Machine},
    payload,
};
use crate::{
    ErrorKind, Queues,
    model::{ChangeId, Problem},
    queue::{
        Durability, Message, Payload,
        embedded::{EmbeddedQueues, Limits},
    },
};

fn options() -> Options {
    let (dir, indexer) = (PathBuf::from("/data/journal"), Arc::new(Sequences));
    Options { dir, indexer, segment_bytes: 16 * 1024, backlog_bytes: 1024 * 1024 }
}

fn open(machine: &Machine) -> Result<Journal> {
    Journal::open_on(machine.files(), options())
}

async fn filled(machine: &Machine, numbers: std::ops::RangeInclusive<u64>) -> Journal {
    let journal = open(machine).expect("opens");
    super::fill(&journal, numbers).await;
    journal
}

#[tokio::test]
async fn a_failed_sync_poisons_the_journal() {
    let machine = Machine::default();
    let journal = filled(&machine, 1..=3).await;
    // The keeper syncs the files that it prepares: where it met the failure, the next record meets one.
    let mut number = 4;
    let error = loop {
        machine.fail_sync_after(0);
        let appended = append(&journal, payload(number));
        match journal.durable(appended.sequence).await {
            Ok(()) => number += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.to_string().contains("the disk did not take it"), "{error}");
    assert_eq!(journal.failed().await.kind, ErrorKind::Internal);
    let refused = journal.append(vec![(Kind::LogEntry, vec![1])]).expect_err("refused");
    assert_eq!(refused.kind, ErrorKind::Unavailable);
    assert_eq!((journal.durable_upto(), super::all(&journal, 1)), (number - 1, expected(1..=number - 1)));
    journal.close().expect_err("it has failed");
}

#[tokio::test]
async fn a_failed_sync_refuses_the_batch_and_the_next_start_goes_on() {
    let machine = Machine::default();
    let options = || Options { segment_bytes: 8 << 20, ..options() };
    let queues = |journal: &Journal| EmbeddedQueues::open(journal.clone(), Limits::default()).expect("queues");
    let message = |text: &'static str| Message::new(ChangeId::generate(), None, Payload::from(Bytes::from(text)));
    let journal = Journal::open_on(machine.files(), options()).expect("opens");
    let before = queues(&journal);
    before.declare("q", Durability::Durable).await.expect("declared");
    before.publish("q", vec![message("confirmed")]).await.expect("published");
    machine.fail_sync_after(0);
    let refused = before.publish("q", vec![message("lost"), message("too")]).await.expect_err("refused");
    assert_eq!(Problem::from(refused).status, 503);
    let error = journal.failed().await;
    assert!(error.to_string().contains("sync journal"), "the process stops with it: {error}");
    drop((before, journal));
    machine.lose_power(&mut Dice(7));
    let journal = Journal::open_on(machine.files(), options()).expect("opens");
    let waiting = queues(&journal).browse("q", None, 10).await.expect("browsed");
    let texts: Vec<_> = waiting.iter().map(|message| message.payload.bytes().clone()).collect();
    // What was not confirmed may be there or not, in its order.
    assert_eq!(texts, ["confirmed", "lost", "too"][..texts.len()]);
    assert!(!texts.is_empty());
}

#[tokio::test]
async fn segments_age_from_the_newest_on_where_the_clock_was_set_back() {
    let machine = Machine::default();
    let journal = filled(&machine, 1..=60).await;
    journal.close().expect("closes");
    let last = journal.segments().into_iter().map(|segment| segment.newest).max().expect("a segment");
    assert!(journal.now() >= last);
    drop(journal);
    let journal = open(&machine).expect("opens");
    assert!(journal.now() >= last);
    super::fill(&journal, 61..=61).await;
    let newest: Vec<_> = journal.segments().iter().map(|segment| segment.newest).collect();
    assert!(newest.is_sorted(), "{newest:?}");
}

#[tokio::test]
async fn a_full_disk_refuses_appends_only_and_they_go_on_when_there_is_room() {
    let machine = Machine::default();
    let journal = filled(&machine, 1..=3).await;
    machine.leave_room(Some(0));
    let error = loop {
        match journal.append(vec![(Kind::LogEntry, payload(600))]) {
            Ok(_) => {}
            Err(error) if error.kind == ErrorKind::Full => std::thread::yield_now(),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, ErrorKind::DiskFull, "{error}");
    journal.durable(journal.head()).await.expect("what was accepted is durable");
    assert_eq!(super::all(&journal, 1)[..3], expected(1..=3));
    let head = journal.head();
    machine.kill();
    let journal = open(&machine).expect("opens on a full disk");
    assert_eq!(journal.head(), head);
    assert_eq!(super::all(&journal, 1).len() as u64, head);
    machine.leave_room(None);
    assert_eq!(append(&journal, payload(1)).sequence, head + 1);
    journal.durable(head + 1).await.expect("durable");
}

#[test]
fn a_read_only_directory_is_named() {
    let machine = Machine::default();
    machine.make_read_only();
    let error = open(&machine).err().expect("refused");
    assert!(error.to_string().contains("/data/journal"), "{error}");
}

#[tokio::test]
async fn sequences_go_on_after_everything_was_released() {
    let machine = Machine::default();
    drop(filled(&machine, 1..=100).await);
    for _ in 0..2 {
        machine.kill();
        let journal = open(&machine).expect("opens");
        journal.release(101).expect("released");
        assert_eq!((journal.head(), super::all(&journal, 1).len()), (100, 0));
    }
    machine.kill();
    assert_eq!(append(&open(&machine).expect("opens"), payload(1)).sequence, 101);
}

#[tokio::test]
async fn sealed_segments_are_not_read_at_open() {
    let machine = Machine::default();
    let journal = filled(&machine, 1..=300).await;
    let n_segments = journal.segments().len();
    journal.close().expect("closes");
    machine.kill();
    machine.n_bytes_read();
    open(&machine).expect("opens").close().expect("closes");
    let n_read = machine.n_bytes_read();
    assert!(n_read < n_segments * 512, "{n_read} bytes for {n_segments} segments");
}

#[tokio::test]
async fn a_recycled_segment_without_a_sidecar_is_read_to_its_end() {
    let machine = Machine::default();
    let journal = filled(&machine, 1..=200).await;
    journal.release(150).expect("released");
    super::fill(&journal, 201..=400).await;
    let files = machine.files();
    drop(journal);
    for name in machine.names().iter().filter(|name| name.ends_with(".index")) {
        files.remove(&PathBuf::from("/data/journal").join(name)).expect("removed");
    }
    let found = super::all(&open(&machine).expect("opens"), 200);
    assert_eq!(found, expected(200..=400));
}
