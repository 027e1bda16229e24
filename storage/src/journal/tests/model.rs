//! The journal against a plain model, on a machine that loses power, kills, fills up, fails syncs and flips bits.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{
    super::{segments::segment_path, *},
    Sequences,
    memory::{Dice, Machine},
};
use crate::{ErrorKind, Result};

#[derive(Debug, Clone)]
enum Action {
    /// Appends payloads of these lengths at once.
    Append(Vec<usize>),
    /// Waits until everything is durable.
    Settle,
    /// Gives back what is below this share (%) of what is held.
    Release(u64),
    /// The disk has so much room from now on.
    Room(Option<usize>),
    /// The sync after so many fails.
    FailSync(usize),
    /// The power goes after so many operations.
    CutPower(usize),
    /// The process ends and another one starts.
    Restart(End),
}

#[derive(Debug, Clone)]
enum End {
    Close,
    Kill,
    LosePower,
    /// Also flips one bit of the record at this share (%) of what is held.
    Flip {
        by: Box<End>,
        share: u64,
        bit: usize,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let length = prop_oneof![8 => 0_usize..400, 2 => 400_usize..4000, 1 => Just(12_000_usize)];
    prop_oneof![
        12 => proptest::collection::vec(length, 1..6).prop_map(Action::Append),
        6 => Just(Action::Settle),
        2 => (0..=100_u64).prop_map(Action::Release),
        1 => prop_oneof![Just(None), Just(None), (0..20_000_usize).prop_map(Some)].prop_map(Action::Room),
        1 => (0..6_usize).prop_map(Action::FailSync),
        2 => (0..60_usize).prop_map(Action::CutPower),
        3 => end().prop_map(Action::Restart),
    ]
}

fn end() -> impl Strategy<Value = End> {
    let plain = || prop_oneof![1 => Just(End::Close), 2 => Just(End::Kill), 3 => Just(End::LosePower)];
    let flipped =
        (plain(), 0..=100_u64, 0..4096_usize).prop_map(|(by, share, bit)| End::Flip { by: Box::new(by), share, bit });
    prop_oneof![8 => plain(), 1 => flipped]
}

/// A record as the model knows it.
struct Known {
    payload: Vec<u8>,
    place: Place,
    /// What was durable when it was appended: once it is durable itself, it attests that.
    attests: u64,
}

struct World {
    machine: Machine,
    dice: Dice,
    segment_bytes: u32,
    journal: Option<Journal>,
    known: BTreeMap<u64, Known>,
    /// Everything up to it was confirmed.
    confirmed: u64,
    /// Everything from it on has to be there.
    kept_from: u64,
    has_room: bool,
}

/// Whether the world goes on: after damage was reported it does not.
#[derive(PartialEq, Eq)]
enum Goes {
    On,
    No,
}

fn dir() -> PathBuf {
    PathBuf::from("/data/journal")
}

impl World {
    fn new(seed: u64, segment_bytes: u32) -> Self {
        Self {
            machine: Machine::default(),
            dice: Dice(seed),
            segment_bytes,
            journal: None,
            known: BTreeMap::new(),
            confirmed: 0,
            kept_from: 1,
            has_room: true,
        }
    }

    fn head(&self) -> u64 {
        self.known.last_key_value().map_or(self.confirmed, |(sequence, _)| *sequence)
    }

    fn try_open(&self) -> Result<Journal> {
        let (segment_bytes, backlog_bytes) = (self.segment_bytes, 64 * 1024);
        let options = Options { dir: dir(), indexer: Arc::new(Sequences), segment_bytes, backlog_bytes };
        Journal::open_on(self.machine.files(), options)
    }

    /// Opens after an end; the power may go while it recovers.
    fn open(&mut self) -> Journal {
        loop {
            match self.try_open() {
                Ok(journal) => return journal,
                Err(error) if self.machine.is_dark() => {
                    assert_eq!(error.kind, ErrorKind::Internal, "{error}");
                    self.machine.lose_power(&mut self.dice);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn do_one(&mut self, action: Action) -> Goes {
        match action {
            Action::Append(lengths) => self.append(&lengths),
            Action::Settle => self.settle(),
            Action::Release(share) => self.release(share),
            Action::Room(room) => {
                self.has_room = room.is_none();
                self.machine.leave_room(room);
            }
            Action::FailSync(n) => self.machine.fail_sync_after(n),
            Action::CutPower(n) => self.machine.cut_power_after(n),
            Action::Restart(End::Flip { by, share, bit }) => return self.restart_damaged(&by, share, bit),
            Action::Restart(end) => self.restart(&end),
        }
        Goes::On
    }

    fn append(&mut self, lengths: &[usize]) {
        let journal = self.journal.clone().expect("open");
        let payloads: Vec<Vec<u8>> = lengths.iter().map(|length| self.payload(*length)).collect();
        let records: Vec<_> = payloads.iter().map(|payload| (Kind::LogEntry, payload.clone())).collect();
        let since = Instant::now();
        loop {
            let attests = journal.durable_upto();
            match journal.append(records.clone()) {
                Ok(appended) => {
                    for (appended, payload) in appended.into_iter().zip(payloads) {
                        assert_eq!(appended.sequence, self.head() + 1);
                        self.known.insert(appended.sequence, Known { payload, place: appended.place, attests });
                    }
                    return;
                }
                Err(error) if error.kind == ErrorKind::Invalid => return,
                Err(error) if error.kind == ErrorKind::DiskFull && !self.has_room => return,
                Err(error) if matches!(error.kind, ErrorKind::Full | ErrorKind::DiskFull) => {
                    assert!(since.elapsed() < Duration::from_secs(60), "{error}");
                    std::thread::yield_now();
                }
                Err(_) => return self.restart_somehow(),
            }
            if self.machine.is_dark() {
                return self.restart_somehow();
            }
        }
    }

    /// After a failure: the process ends, and perhaps the machine.
    fn restart_somehow(&mut self) {
        let ends = [End::Kill, End::LosePower];
        let which = self.dice.below(2);
        self.restart(&ends[which]);
    }

    fn payload(&mut self, length: usize) -> Vec<u8> {
        let byte = self.dice.below(256) as u8;
        (0..length).map(|place| byte.wrapping_add(place as u8)).collect()
    }

    fn settle(&mut self) {
        let journal = self.journal.clone().expect("open");
        match futures_util::FutureExt::now_or_never(journal.failed()) {
            Some(_) => return self.restart_somehow(),
            None => match block_on(journal.durable(self.head())) {
                Ok(()) => self.confirmed = self.head(),
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::Unavailable);
                    return self.restart_somehow();
                }
            },
        }
        let first = self.oldest();
        if let Some((_, known)) = self.known.range(first..).nth(self.dice.below(self.known.len().max(1))) {
            assert_eq!(journal.read(known.place).expect("reads").payload, known.payload);
        }
    }

    fn oldest(&self) -> u64 {
        self.journal.as_ref().expect("open").segments().first().map_or(1, |segment| segment.first)
    }

    fn release(&mut self, share: u64) {
        let oldest = self.oldest();
        let below = oldest + (self.head().saturating_sub(oldest)) * share / 100;
        self.kept_from = self.kept_from.max(below);
        // The power may be cut in the midst of it.
        let _released = self.journal.as_ref().expect("open").release(below);
    }

    fn end(&mut self, end: &End) {
        let journal = self.journal.take();
        if let Some(journal) = &journal {
            self.confirmed = self.confirmed.max(journal.durable_upto());
        }
        match end {
            End::Close => {
                if journal.expect("open").close().is_ok() {
                    self.confirmed = self.head();
                }
                self.machine.kill();
            }
            End::Kill => self.machine.kill(),
            End::LosePower => self.machine.lose_power(&mut self.dice),
            End::Flip { .. } => unreachable!("flipped by whoever calls"),
        }
    }

    fn restart(&mut self, end: &End) {
        self.end(end);
        if self.dice.below(4) == 0 {
            self.machine.cut_power_after(self.dice.below(30));
        }
        let journal = self.open();
        let found = replayed(&journal).expect("nothing is damaged");
        self.compare(&journal, &found, self.confirmed);
        self.journal = Some(journal);
    }

    /// What was confirmed is there, nothing else is but what was appended; whatever is there is durable from now on.
    fn compare(&mut self, journal: &Journal, found: &[Record], at_least: u64) {
        let last = journal.head();
        assert!(last >= at_least, "confirmed up to {at_least}, found up to {last}");
        assert!(last <= self.head(), "appended up to {}, found up to {last}", self.head());
        assert_eq!(journal.durable_upto(), last);
        let first = found.first().map_or(last + 1, |record| record.sequence);
        assert!(first <= self.kept_from.min(last + 1), "kept from {}, found from {first}", self.kept_from);
        assert_eq!(found.len() as u64, last + 1 - first);
        for (record, sequence) in found.iter().zip(first..) {
            let known = &self.known[&sequence];
            assert_eq!((record.sequence, record.place), (sequence, known.place));
            assert_eq!(record.payload, known.payload);
        }
        for segment in journal.segments().iter().filter(|segment| segment.indexed) {
            let sequences: Vec<u8> = (segment.first..=segment.last).flat_map(u64::to_le_bytes).collect();
            assert_eq!(journal.index(segment.first).expect("reads"), Some(sequences.into()));
        }
        self.known.split_off(&(last + 1));
        self.confirmed = last;
    }

    fn restart_damaged(&mut self, by: &End, share: u64, bit: usize) -> Goes {
        let oldest = self.oldest();
        self.end(by);
        let record = oldest + (self.confirmed.saturating_sub(oldest)) * share / 100;
        let place = match self.known.get(&record) {
            Some(known) if record <= self.confirmed => known.place,
            _ => {
                let journal = self.open();
                let found = replayed(&journal).expect("nothing is damaged");
                self.compare(&journal, &found, self.confirmed);
                self.journal = Some(journal);
                return Goes::On;
            }
        };
        let n_bits = 8 * (format::RECORD_HEAD_BYTES + self.known[&record].payload.len());
        let path = segment_path(Path::new(&dir()), place.segment);
        self.machine.flip(&path, place.offset as usize * 8 + bit % n_bits);
        let has_sidecar = self.machine.names().contains(&format!("{:020}.index", place.segment));
        let opened = self.try_open().and_then(|journal| replayed(&journal).map(|found| (journal, found)));
        match opened {
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
                assert!(error.message.contains(path.to_str().expect("a path")), "{error}");
                Goes::No
            }
            Ok((journal, found)) => {
                // Only what nothing later attests may look as if it had been torn.
                let is_last = self.known[&self.confirmed].place.segment == place.segment;
                let is_attested = self.known.range(record..=self.confirmed).any(|(_, known)| known.attests >= record);
                assert!(is_last && !is_attested && !has_sidecar, "the damage of record {record} went unnoticed");
                self.compare(&journal, &found, record - 1);
                self.journal = Some(journal);
                Goes::On
            }
        }
    }
}

fn replayed(journal: &Journal) -> Result<Vec<Record>> {
    let mut found = Vec::new();
    journal.replay(1, &mut |record| {
        found.push(record);
        Ok(())
    })?;
    Ok(found)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_confirmed_is_there_whatever_happens(
        seed: u64,
        segment_bytes in prop_oneof![Just(16 * 1024_u32), Just(20_000), Just(32 * 1024)],
        actions in proptest::collection::vec(action(), 1..60),
    ) {
        let mut world = World::new(seed, segment_bytes);
        world.journal = Some(world.open());
        for action in actions {
            if world.do_one(action) == Goes::No {
                return Ok(());
            }
        }
        world.machine.leave_room(None);
        world.has_room = true;
        world.restart(&End::LosePower);
        world.append(&[10, 20]);
        world.settle();
        world.restart(&End::Close);
    }
}
