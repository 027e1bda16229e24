//! The journal: one append-only, segmented, checksummed file format under the whole embedded engine.
//!
//! Writer queue, change log and registry are streams in it, told apart by [`Kind`]; it is also the write-ahead log of the
//! documents. One committer thread groups fsyncs. (The file format is described here once it is written.)

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;

use crate::Result;

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

#[derive(Clone)]
pub struct Options {
    pub dir: PathBuf,
    /// Makes the index of each sealed segment.
    pub indexer: Arc<dyn Indexer>,
    /// Size of a segment in bytes.
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

#[derive(Debug, Clone)]
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
    pub newest: crate::model::Timestamp,
}

/// The journal of one data directory. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    _inner: Arc<()>,
}

impl Journal {
    /// Opens or makes the journal: checks it, cuts a torn tail, seals and indexes what there is, begins a new, empty segment.
    /// Nobody else may have the directory open (a locked file says so). Blocking.
    pub fn open(_options: Options) -> Result<Self> {
        todo!()
    }

    /// Appends records in order, next to each other. They have their sequences and places at once, and are durable later.
    pub fn append(&self, _records: Vec<(Kind, Vec<u8>)>) -> Result<Vec<Appended>> {
        todo!()
    }

    /// Waits until everything up to the sequence is durable. An error means that it may never be: the journal has failed and
    /// the process has to stop.
    pub async fn durable(&self, _sequence: u64) -> Result<()> {
        todo!()
    }

    /// The last sequence that is durable.
    pub fn durable_upto(&self) -> u64 {
        todo!()
    }

    /// The last sequence that was given.
    pub fn head(&self) -> u64 {
        todo!()
    }

    /// Reads one durable record. Blocking. `Gone` when its segment is no longer there.
    pub fn read(&self, _place: Place) -> Result<Record> {
        todo!()
    }

    /// Visits every durable record from a sequence on (or from the oldest held), in order. Blocking.
    pub fn replay(&self, _from: u64, _visit: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
        todo!()
    }

    /// Every segment, oldest first.
    pub fn segments(&self) -> Vec<Segment> {
        todo!()
    }

    /// The index of a sealed segment, by the segment's first sequence; none while it is still being made (soon after the
    /// sealing; at open every segment has one). Blocking.
    pub fn index(&self, _first: u64) -> Result<Option<Bytes>> {
        todo!()
    }

    /// Gives back sealed segments that end below the sequence; gives how many. Blocking.
    pub fn release(&self, _below: u64) -> Result<usize> {
        todo!()
    }

    /// Waits until the journal has failed (a write or fsync error). The process has to stop then.
    pub async fn failed(&self) -> crate::Error {
        todo!()
    }

    /// Syncs what is appended and ends the committer. Blocking.
    pub fn close(&self) -> Result<()> {
        todo!()
    }
}
