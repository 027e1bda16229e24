//! What the journal does when all is well, and when the machine lets it down.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

mod memory;
mod model;
mod trouble;

use super::*;
use crate::ErrorKind;

/// Keeps the sequences of a segment: enough to see that indexes are made of the right records.
struct Sequences;

impl Indexer for Sequences {
    fn index(&self, records: &mut dyn Iterator<Item = Record>) -> Vec<u8> {
        records.flat_map(|record| record.sequence.to_le_bytes()).collect()
    }
}

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.join("journal"),
        indexer: Arc::new(Sequences),
        segment_bytes: 16 * 1024,
        backlog_bytes: 1024 * 1024,
    }
}

fn open(dir: &Path) -> Journal {
    Journal::open(options(dir)).expect("the journal opens")
}

/// Appends one record, however often the next segment has to be waited for.
fn append(journal: &Journal, payload: Vec<u8>) -> Appended {
    loop {
        match journal.append(vec![(Kind::LogEntry, payload.clone())]) {
            Ok(appended) => return appended[0],
            Err(error) if error.is_transient() => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn payload(number: u64) -> Vec<u8> {
    format!("record {number} {}", "x".repeat((number % 700) as usize)).into_bytes()
}

async fn fill(journal: &Journal, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        assert_eq!(append(journal, payload(number)).sequence, number);
    }
    journal.durable(journal.head()).await.expect("durable");
}

fn all(journal: &Journal, from: u64) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    journal
        .replay(from, &mut |record| {
            assert_eq!(journal.read(record.place).expect("reads"), record);
            found.push((record.sequence, record.payload.to_vec()));
            Ok(())
        })
        .expect("replays");
    found
}

fn expected(numbers: std::ops::RangeInclusive<u64>) -> Vec<(u64, Vec<u8>)> {
    numbers.map(|number| (number, payload(number))).collect()
}

#[tokio::test]
async fn following_from_a_place_shows_what_a_replay_shows() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = open(dir.path());
    fill(&journal, 1..=150).await;
    let mut places = Vec::new();
    let mut note = |record: Record| {
        places.push((record.sequence, record.place));
        Ok(())
    };
    journal.replay(1, &mut note).expect("replays");
    let after = |(sequence, place)| {
        let mut found = Vec::new();
        let mut visit = |record: Record| {
            found.push((record.sequence, record.payload.to_vec()));
            Ok(())
        };
        journal.replay_after(sequence, place, &mut visit).expect("replays");
        found
    };
    for (sequence, place) in places.clone() {
        assert_eq!(after((sequence, place)), all(&journal, sequence + 1));
    }
    journal.release(100).expect("released");
    assert_eq!(after(places[0]), all(&journal, 2), "from the oldest held");
}

/// The newest segment file that holds records.
fn newest_segment(dir: &Path) -> PathBuf {
    let mut paths: Vec<_> =
        fs::read_dir(dir.join("journal")).expect("lists").map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "journal"));
    paths.sort();
    paths.pop().expect("a segment")
}

fn remove_sidecars(dir: &Path) {
    for entry in fs::read_dir(dir.join("journal")).expect("lists") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "index") {
            fs::remove_file(path).expect("removed");
        }
    }
}

#[tokio::test]
async fn what_was_appended_is_there_again_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = open(dir.path());
    fill(&journal, 1..=300).await;
    assert_eq!(all(&journal, 1), expected(1..=300));
    assert_eq!(all(&journal, 250), expected(250..=300));
    journal.close().expect("closes");
    drop(journal);
    let journal = open(dir.path());
    assert_eq!(all(&journal, 1), expected(1..=300));
    fill(&journal, 301..=400).await;
    assert_eq!(all(&journal, 1), expected(1..=400));
}

#[tokio::test]
async fn every_sealed_segment_has_an_index_of_its_records() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = open(dir.path());
    fill(&journal, 1..=300).await;
    journal.close().expect("closes");
    drop(journal);
    remove_sidecars(dir.path());
    let journal = open(dir.path());
    let segments = journal.segments();
    assert!(segments.len() > 3);
    for segment in segments.into_iter().filter(|segment| segment.sealed) {
        let index = journal.index(segment.first).expect("reads").expect("is there");
        let sequences: Vec<u8> = (segment.first..=segment.last).flat_map(u64::to_le_bytes).collect();
        assert_eq!(index, sequences);
    }
}

#[tokio::test]
async fn what_is_pinned_is_not_given_back_and_can_be_copied_up_to_a_record() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = open(dir.path());
    fill(&journal, 1..=700).await;
    let segments = journal.segments();
    let (second, third) = (segments[1].clone(), segments[2].clone());
    let pin = journal.pin(second.first + 1).expect("pinned");
    let _later = journal.pin(third.first).expect("pinned");
    assert_eq!(journal.pinned(), second.first + 1);
    while !journal.segments().iter().take(3).all(|segment| segment.sealed && segment.indexed) {
        std::thread::yield_now();
    }
    assert_eq!(journal.release(third.last + 1).expect("releases"), 1, "what is pinned stays");
    assert_eq!(journal.pin(segments[0].first).err().expect("it is gone").kind, ErrorKind::Gone);

    let upto = third.first + 3;
    let copies = journal.copies(second.first, upto).expect("copies");
    fill(&journal, 701..=710).await;
    let copied = tempfile::tempdir().expect("a directory");
    fs::create_dir(copied.path().join("journal")).expect("a directory");
    for copy in copies {
        let mut bytes = vec![0; copy.bytes as usize];
        assert_eq!(copy.file.read_at(&mut bytes, 0).expect("read"), bytes.len());
        fs::write(copied.path().join("journal").join(copy.name), bytes).expect("written");
    }
    let copy = open(copied.path());
    assert_eq!(all(&copy, 1), expected(second.first..=upto));
    assert_eq!(copy.head(), upto);

    drop(pin);
    assert_eq!(journal.release(third.last + 1).expect("releases"), 1, "the other pin holds the third");
}

#[tokio::test]
async fn released_segments_are_gone_whole_and_their_files_show_no_old_records() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = open(dir.path());
    fill(&journal, 1..=300).await;
    let place = append(&journal, b"later".to_vec()).place;
    journal.durable(301).await.expect("durable");
    let second = journal.segments()[1].clone();
    // Sealing happens beside the appends.
    while !journal.segments()[1].indexed {
        std::thread::yield_now();
    }
    assert_eq!(journal.release(second.last).expect("releases"), 1);
    assert_eq!(journal.segments()[0].first, second.first);
    assert_eq!(journal.release(second.last + 1).expect("releases"), 1);
    assert_eq!(journal.read(Place { segment: 1, offset: 4096 }).expect_err("gone").kind, ErrorKind::Gone);
    assert_eq!(journal.read(place).expect("reads").payload, &b"later"[..]);
    for number in 302..=600 {
        append(&journal, payload(number));
    }
    journal.durable(600).await.expect("durable");
    drop(journal);
    remove_sidecars(dir.path());
    let found = all(&open(dir.path()), 1);
    assert_eq!(found.first().map(|(sequence, _)| *sequence), Some(second.last + 1));
    assert_eq!(found.last().map(|(sequence, _)| *sequence), Some(600));
}

async fn closed_with(dir: &Path, upto: u64) -> PathBuf {
    let journal = open(dir);
    fill(&journal, 1..=upto).await;
    journal.close().expect("closes");
    drop(journal);
    remove_sidecars(dir);
    newest_segment(dir)
}

/// Where the records of a segment end.
fn end_of(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("reads");
    let last = bytes.iter().rposition(|byte| *byte != 0).expect("not empty");
    last as u64 + 1
}

#[tokio::test]
async fn a_torn_tail_is_cut_at_the_last_whole_record() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = closed_with(dir.path(), 10).await;
    let file = fs::File::options().read(true).write(true).open(&path).expect("opens");
    let end = end_of(&path);
    file.write_all_at(&[0; 3], end - 3).expect("written");
    let journal = open(dir.path());
    assert_eq!(all(&journal, 1), expected(1..=9));
    assert_eq!(append(&journal, payload(10)).sequence, 10);
    journal.durable(10).await.expect("durable");
    assert_eq!(all(&journal, 1), expected(1..=10));
}

#[tokio::test]
async fn damage_to_confirmed_records_refuses_to_open_and_names_the_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = open(dir.path());
    // One commit each: the later ones attest that the earlier ones were durable.
    for number in 1..=10 {
        append(&journal, payload(number));
        journal.durable(number).await.expect("durable");
    }
    journal.close().expect("closes");
    drop(journal);
    remove_sidecars(dir.path());
    let path = newest_segment(dir.path());
    let file = fs::File::options().read(true).write(true).open(&path).expect("opens");
    file.write_all_at(b"?", 4096 + 40).expect("written");
    let error = Journal::open(options(dir.path())).err().expect("refused");
    assert_eq!(error.kind, ErrorKind::Corrupt);
    for word in ["00000000000000000001.journal", "record 2", "nexxus doctor"] {
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn a_missing_segment_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = open(dir.path());
    fill(&journal, 1..=300).await;
    journal.close().expect("closes");
    let second = journal.segments()[1].first;
    drop(journal);
    fs::remove_file(segments::segment_path(&dir.path().join("journal"), second)).expect("removed");
    fs::remove_file(segments::sidecar_path(&dir.path().join("journal"), second)).expect("removed");
    let error = Journal::open(options(dir.path())).err().expect("refused");
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.to_string().contains("missing"), "{error}");
}

#[tokio::test]
async fn a_newer_format_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = closed_with(dir.path(), 3).await;
    let mut head = format::Head { first: 1, salt: 7 }.encode();
    head[8] = 2;
    let sum = crc32fast::hash(&head[..24]);
    head[24..28].copy_from_slice(&sum.to_le_bytes());
    fs::File::options().write(true).open(path).expect("opens").write_all_at(&head, 0).expect("written");
    let error = Journal::open(options(dir.path())).err().expect("refused");
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.to_string().contains("has format 2"), "{error}");
}

#[test]
fn a_second_process_is_told_who_has_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let _journal = open(dir.path());
    let error = Journal::open(options(dir.path())).err().expect("refused");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
}

#[test]
fn a_record_larger_than_a_segment_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = open(dir.path());
    let error = journal.append(vec![(Kind::LogEntry, vec![0; 20_000])]).expect_err("refused");
    assert_eq!(error.kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn restarts_leave_no_empty_segments_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    for _ in 0..5 {
        open(dir.path()).close().expect("closes");
    }
    let n_files = fs::read_dir(dir.path().join("journal")).expect("lists").count();
    assert!(n_files <= 3, "{n_files} files");
}
