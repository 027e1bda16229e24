//! The journal: one append-only, segmented, checksummed log under the whole embedded engine.
//!
//! Writer queue, change log and registry are streams in it, told apart by [`Kind`]; it is also the write-ahead log of the
//! documents.
//!
//! # Rules
//! - One process owns the directory. Records have dense sequences from 1, and never span two segments.
//! - One committer thread writes and syncs: while one sync runs, the next batch collects by itself. `append` only queues.
//! - A failed write or sync is never tried again: the journal is poisoned, whoever waits gets the error, the process has to stop.
//! - A file is prepared before it becomes a segment (zero-filled, later recycled), so a full disk shows when the next one is
//!   prepared, never in the middle of a record.
//! - A segment is begun when everything before it is durable, and it has its name when its head is durable. So only the last
//!   segment can have a torn end, and every gap is damage.
//! - A checksum covers the record's sequence and a salt that is drawn when the file becomes a segment: neither what the file held
//!   in an earlier life nor what was cut from it can ever pass for a record.
//! - After a restart no record is appended to an old segment: it is sealed, a new one begins.
//! - Segments are given back oldest first, each durably before the next; the last one stays, it says how far the journal has come.
//!
//! # Files
//! All numbers are little-endian.
//! - `SEQUENCE.journal`: a segment, named after its first sequence in 20 digits. Its head of 4 KiB holds magic (8 bytes), format u32,
//!   first sequence u64, salt u32, checksum of these u32; the rest is zero. Then records: payload length u32, checksum u32,
//!   sequence u64, *unsynced* u32, kind u8, payload. The checksum is CRC-32 over all of the record but itself, begun with the salt.
//!   *Unsynced* is how many records up to and including this one were not durable yet when it was written. Behind the last record
//!   there may be anything.
//! - `SEQUENCE.index`: the sidecar of a sealed segment (`sidecar.rs`): what the segment holds, and the index that the
//!   [`Indexer`] made of its records. A segment with a sidecar is not read at open; a missing or damaged sidecar is made anew.
//! - `spare.N`: a file that is prepared for a coming segment. `*.tmp`: a draft, removed at open. `lock`: holds the owner's process id.
//!
//! # Recovery
//! The last segment, when it was not closed, is read to its last valid record. What follows may be a torn write that nobody was told of:
//! it is cut. It is not, when a later valid record was written after the bad one had been durable (*unsynced* says so): then data
//! that was confirmed is damaged, and the journal refuses to open, naming the place. One case cannot be told: damage to the very
//! last batch before a crash looks like a torn write.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{Result, model::Timestamp};

mod clock;
mod committer;
pub mod doctor;
mod failure;
pub mod files;
mod format;
mod fsyncs;
mod keeper;
mod pins;
mod reader;
mod recovery;
mod segments;
mod sidecar;
mod spares;
mod survey;
mod waiters;

pub use fsyncs::{FSYNC_BOUNDS, FsyncStatistics};
pub use pins::Pin;

use self::{
    committer::Committer,
    files::{Disk, Files},
    pins::Pins,
    segments::Segments,
};

/// What a record belongs to. The numbers are part of the file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A message published to a durable queue.
    QueueMessage = 1,
    /// Messages that were settled, and other news of queues.
    QueueState = 2,
    /// An entry of an application's change log.
    LogEntry = 3,
    /// Marks of change logs.
    LogState = 4,
    /// A batch of registry writes.
    Registry = 5,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        [Self::QueueMessage, Self::QueueState, Self::LogEntry, Self::LogState, Self::Registry]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

#[derive(Clone)]
pub struct Options {
    pub dir: PathBuf,
    /// Makes the index of each sealed segment.
    pub indexer: Arc<dyn Indexer>,
    /// Size of a segment in bytes, 16 KiB to 1 GiB. May differ from one start to the next.
    pub segment_bytes: u32,
    /// Most bytes that wait for the committer; past it `append` is `Full`.
    pub backlog_bytes: usize,
}

/// Derives what is worth knowing of a sealed segment without reading it again: a pure function of its records. The journal keeps
/// the bytes beside the segment, checksummed, and makes them anew when they are missing or damaged.
pub trait Indexer: Send + Sync {
    fn index(&self, records: &mut dyn Iterator<Item = Record>) -> Vec<u8>;
}

/// Where a record stands: the first sequence of its segment, and the byte offset in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub segment: u64,
    pub offset: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Dense, from 1.
    pub sequence: u64,
    pub place: Place,
    pub kind: Kind,
    pub payload: Bytes,
}

/// A record that was appended; it is durable once [`Journal::durable`] says so for its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub sequence: u64,
    pub place: Place,
}

/// A segment, for retention and for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub first: u64,
    /// The last sequence in it; below `first` when it is empty.
    pub last: u64,
    pub bytes: u64,
    pub sealed: bool,
    /// Whether [`Journal::index`] has its index.
    pub indexed: bool,
    /// When its newest record was written, as far as is known (for retention by age).
    pub newest: Timestamp,
}

/// The first bytes of a segment: as a file of this name in a journal's directory they are a segment.
pub struct SegmentCopy {
    pub name: String,
    pub bytes: u64,
    pub file: Arc<dyn files::File>,
}

/// The journal of one data directory. Cheap to clone; closed when the last clone is gone.
#[derive(Clone)]
pub struct Journal {
    opened: Arc<Opened>,
}

struct Opened {
    segments: Arc<Segments>,
    committer: Arc<Committer>,
    fsync_at_open: Duration,
}

impl Drop for Opened {
    fn drop(&mut self) {
        // A failure was logged when it happened.
        let _failed = self.committer.close();
    }
}

impl Journal {
    /// Opens or makes the journal: checks it, cuts a torn tail, seals and indexes what there is, begins a new, empty segment.
    /// `Unavailable` when another process has it open, `Corrupt` when confirmed records cannot be read, `Unsupported` when a newer
    /// version wrote it. A full disk does not keep it from being opened. Blocking.
    pub fn open(options: Options) -> Result<Self> {
        Self::open_on(Arc::new(Disk), options)
    }

    /// The same on another file system.
    pub fn open_on(files: Arc<dyn Files>, options: Options) -> Result<Self> {
        let (segments, active) = recovery::open(files, options.clone())?;
        let fsync_at_open = active
            .as_ref()
            .map(committer::time_a_sync)
            .transpose()
            .map_err(|error| crate::Error::io("sync journal", options.dir.display().to_string(), error))?
            .unwrap_or_default();
        let committer = Committer::start(segments.clone(), active, &options)?;
        Ok(Self { opened: Arc::new(Opened { segments, committer, fsync_at_open }) })
    }

    /// Appends records in order, next to each other. They have their sequences and places at once, and are durable later. `Full`
    /// when too much waits for the disk or the next segment is not prepared yet, `DiskFull` when it cannot be; `Invalid`
    /// when a record is larger than a segment, or all of them than two. Never blocks on the disk.
    pub fn append(&self, records: Vec<(Kind, Vec<u8>)>) -> Result<Vec<Appended>> {
        self.opened.committer.append(&records)
    }

    /// Waits until everything up to the sequence is durable. An error means that it may never be: the journal has failed and
    /// the process has to stop.
    pub async fn durable(&self, sequence: u64) -> Result<()> {
        self.opened.committer.durable(sequence).await
    }

    /// The last sequence that is durable.
    pub fn durable_upto(&self) -> u64 {
        self.opened.committer.durable_upto()
    }

    /// The last sequence that was given.
    pub fn head(&self) -> u64 {
        self.opened.committer.head()
    }

    /// Reads one durable record. Blocking. `Gone` when its segment is no longer there.
    pub fn read(&self, place: Place) -> Result<Record> {
        self.opened.segments.read(place)
    }

    /// Visits every durable record from a sequence on (or from the oldest held), in order. Blocking.
    pub fn replay(&self, from: u64, visit: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
        self.opened.segments.replay(None, from, visit)
    }

    /// Visits every durable record after the one of this sequence and place: as `replay`, without reading what comes before in
    /// its segment. For who follows the journal. Blocking.
    pub fn replay_after(&self, sequence: u64, place: Place, visit: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
        self.opened.segments.replay(Some(place), sequence + 1, visit)
    }

    /// The time by which segments age: it never goes back, whatever the machine's clock does.
    pub fn now(&self) -> Timestamp {
        self.opened.segments.clock.now()
    }

    /// Every segment, oldest first.
    pub fn segments(&self) -> Vec<Segment> {
        self.opened.segments.list()
    }

    /// The index of a sealed segment, by the segment's first sequence; none while it is still being made (soon after the
    /// sealing; at open every segment has one). Blocking.
    pub fn index(&self, first: u64) -> Result<Option<Bytes>> {
        self.opened.segments.index(first)
    }

    /// Keeps every record from a sequence on from being given back, until the pin is dropped. `Gone` when it is no longer held.
    pub fn pin(&self, from: u64) -> Result<Pin> {
        let segments = &self.opened.segments;
        let pin = Pins::pin(segments, from);
        match segments.list().first() {
            Some(oldest) if oldest.first > from => {
                let message = format!("record {from}: the oldest one held is {}", oldest.first);
                Err(crate::Error::new(crate::ErrorKind::Gone, "pin journal", message))
            }
            _ => Ok(pin),
        }
    }

    /// The lowest sequence that is pinned; `u64::MAX` for none.
    pub fn pinned(&self) -> u64 {
        self.opened.segments.pins.lowest()
    }

    /// The segments from the one that begins with this sequence on, up to a durable record, for copying while the journal goes on:
    /// they have to be pinned until they are copied. Blocking.
    pub fn copies(&self, first: u64, upto: u64) -> Result<Vec<SegmentCopy>> {
        self.opened.segments.copies(first, upto)
    }

    /// Gives back sealed segments that end below the sequence and are not pinned, but never the last segment; gives how many. Blocking.
    pub fn release(&self, below: u64) -> Result<usize> {
        self.opened.segments.release(below)
    }

    /// Waits until the journal has failed (a write or fsync error). The process has to stop then.
    pub async fn failed(&self) -> crate::Error {
        self.opened.segments.failure.wait().await
    }

    /// How long the syncs took so far.
    pub fn fsync_statistics(&self) -> FsyncStatistics {
        self.opened.committer.statistics()
    }

    /// How long a sync took when the journal was opened; zero when the disk was too full to try.
    pub fn fsync_at_open(&self) -> Duration {
        self.opened.fsync_at_open
    }

    /// Syncs what is appended, indexes the last segment, and ends the threads. Blocking.
    pub fn close(&self) -> Result<()> {
        self.opened.committer.close()
    }
}

#[cfg(test)]
mod tests;
