//! The journal: one append-only, segmented, checksummed log under the whole embedded engine.
//!
//! Writer queue, change log and registry are streams in it, told apart by [`Kind`]; it is also the write-ahead log of the
//! documents. One process owns the directory.
//!
//! # Rules
//! - Records have dense sequences from 1. A record never spans two segments. Every record has a checksum that covers its
//!   sequence, so that what a recycled file held before can never pass for a record.
//! - One committer thread writes and syncs: while one sync runs, the next batch collects by itself. `append` only queues.
//! - A failed write or sync is never tried again: the journal is poisoned, whoever waits gets the error, the process has to stop.
//! - Segments are zero-filled before use, so a full disk shows when the next one is prepared, never in the middle of a record.
//! - After a restart no old segment is appended to: what there is is sealed, a new segment begins.
//!
//! # Files
//! `SEQUENCE.journal`, named after the first sequence in 20 digits: a head of 4 KiB (magic, format, first sequence, checksum), then
//! records: length u32, checksum u32, sequence u64, unsynced u32, kind u8, payload; all little-endian. *Unsynced* is how many
//! records up to and including this one were not durable yet when it was written. `SEQUENCE.index`: the sidecar of a sealed segment, made from its
//! records by the [`Indexer`], with a checksum; it is made anew when it is missing. `spare.N`: a zero-filled or recycled file for
//! a coming segment. `lock`.
//!
//! # Recovery
//! The newest segment is read to its last valid record. What follows may be a torn write that nobody was told of: it is cut.
//! It is not, when a later record was written after the bad one had been durable (*unsynced* says so): then data that was
//! confirmed is damaged, and the journal refuses to open, naming the place.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{Result, model::Timestamp};

mod committer;
pub mod files;
mod format;
mod keeper;
mod recovery;
mod segments;

pub use committer::FsyncStatistics;

use self::{
    committer::Committer,
    files::{Disk, Files},
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
    /// Size of a segment in bytes, at least 16 KiB.
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

/// The journal of one data directory. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    segments: Arc<Segments>,
    committer: Arc<Running>,
}

/// The committer, ended when the last handle on the journal is gone.
struct Running(Arc<Committer>);

impl std::ops::Deref for Running {
    type Target = Committer;

    fn deref(&self) -> &Committer {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A failure was logged when it happened.
        let _failed = self.0.close();
    }
}

impl Journal {
    /// Opens or makes the journal: checks it, cuts a torn tail, seals and indexes what there is, begins a new, empty segment.
    /// Nobody else may have the directory open (a locked file says so). Blocking.
    pub fn open(options: Options) -> Result<Self> {
        Self::open_on(Arc::new(Disk), options)
    }

    /// The same on another file system.
    pub fn open_on(files: Arc<dyn Files>, options: Options) -> Result<Self> {
        let segments = Arc::new(recovery::open(files, options.clone())?);
        let committer = Committer::start(segments.clone(), &options)?;
        Ok(Self { segments, committer: Arc::new(Running(committer)) })
    }

    /// Appends records in order, next to each other. They have their sequences and places at once, and are durable later. `Full`
    /// when too much waits for the disk or the next segment is not prepared yet, `DiskFull` when it cannot be; `Invalid`
    /// when a record is larger than a segment.
    pub fn append(&self, records: Vec<(Kind, Vec<u8>)>) -> Result<Vec<Appended>> {
        self.committer.append(&records)
    }

    /// Waits until everything up to the sequence is durable. An error means that it may never be: the journal has failed and
    /// the process has to stop.
    pub async fn durable(&self, sequence: u64) -> Result<()> {
        self.committer.durable(sequence).await
    }

    /// The last sequence that is durable.
    pub fn durable_upto(&self) -> u64 {
        self.committer.durable_upto()
    }

    /// The last sequence that was given.
    pub fn head(&self) -> u64 {
        self.committer.head()
    }

    /// Reads one durable record. Blocking. `Gone` when its segment is no longer there.
    pub fn read(&self, place: Place) -> Result<Record> {
        self.segments.read(place)
    }

    /// Visits every durable record from a sequence on (or from the oldest held), in order. Blocking.
    pub fn replay(&self, from: u64, visit: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
        self.segments.replay(from, self.durable_upto(), visit)
    }

    /// Visits every durable record after the one of this sequence and place: as `replay`, without reading what comes before in
    /// its segment. For who follows the journal. Blocking.
    pub fn replay_after(&self, sequence: u64, place: Place, visit: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
        self.segments.replay_at(Some(place), sequence + 1, self.durable_upto(), visit)
    }

    /// Every segment, oldest first.
    pub fn segments(&self) -> Vec<Segment> {
        self.segments.list()
    }

    /// The index of a sealed segment, by the segment's first sequence; none while it is still being made (soon after the
    /// sealing; at open every segment has one). Blocking.
    pub fn index(&self, first: u64) -> Result<Option<Bytes>> {
        self.segments.index(first)
    }

    /// Gives back sealed segments that end below the sequence; gives how many. Blocking.
    pub fn release(&self, below: u64) -> Result<usize> {
        self.segments.release(below)
    }

    /// Waits until the journal has failed (a write or fsync error). The process has to stop then.
    pub async fn failed(&self) -> crate::Error {
        self.committer.failed().await
    }

    /// How long the syncs took so far.
    pub fn fsync_statistics(&self) -> FsyncStatistics {
        self.committer.statistics()
    }

    /// How long one sync took when the journal was opened.
    pub fn fsync_at_open(&self) -> Duration {
        self.committer.first_sync()
    }

    /// Syncs what is appended and ends the threads. Blocking.
    pub fn close(&self) -> Result<()> {
        self.committer.close()
    }
}

#[cfg(test)]
mod tests;
