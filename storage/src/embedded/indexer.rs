//! The index of a sealed segment: one section for the change logs, one for the queues.
//!
//! `format: u8 = 1 | change logs: block | queues: block`

use bytes::Bytes;

use super::wire::{Reader, Writer};
use crate::{
    Error, ErrorKind, Result,
    changelog::embedded::index as changelog,
    journal::{Indexer, Journal, Record},
    queue::embedded::index as queue,
};

const FORMAT: u8 = 1;

/// Indexes what the embedded change log and queues keep in the journal.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamIndexer;

#[derive(Default)]
struct Builders {
    change_logs: changelog::Builder,
    queues: queue::Builder,
}

impl Builders {
    fn add(&mut self, record: &Record) {
        self.change_logs.add(record);
        self.queues.add(record);
    }

    fn finish(self) -> Result<Vec<u8>> {
        let (change_logs, queues) = (self.change_logs.finish()?, self.queues.finish()?);
        let mut out = Writer::with_capacity(change_logs.len() + queues.len() + 16);
        out.u8(FORMAT);
        for section in [change_logs, queues] {
            out.block(|out| {
                out.bytes.extend(section);
                Ok(())
            })?;
        }
        Ok(out.bytes)
    }
}

impl Indexer for StreamIndexer {
    fn index(&self, records: &mut dyn Iterator<Item = Record>) -> Vec<u8> {
        let mut builders = Builders::default();
        records.for_each(|record| builders.add(&record));
        // An index over 4 GiB cannot be written; an empty one is made anew by whoever reads it.
        builders.finish().unwrap_or_default()
    }
}

/// The sections of one segment's index.
pub(crate) struct Sections {
    pub(crate) change_logs: Bytes,
    pub(crate) queues: Bytes,
}

impl Sections {
    /// Reads the index of a segment; makes it from the records where there is none, or one of another format. `Gone` when the
    /// segment was released. Blocking.
    pub(crate) fn of_segment(journal: &Journal, first: u64) -> Result<Self> {
        let outcome = Self::read_or_derive(journal, first);
        // What was read while the segment went may be anything.
        if journal.segments().iter().all(|segment| segment.first != first) {
            return Err(Error::new(ErrorKind::Gone, "read index", format!("segment {first} was released")));
        }
        outcome
    }

    fn read_or_derive(journal: &Journal, first: u64) -> Result<Self> {
        let kept = journal.index(first)?;
        match kept.map(Self::split) {
            Some(Ok(sections)) => Ok(sections),
            Some(Err(_)) | None => Self::split(derive(journal, first)?.into()),
        }
    }

    fn split(bytes: Bytes) -> Result<Self> {
        let mut input = Reader::new(&bytes, "index of a segment");
        input.format(FORMAT)?;
        let (change_logs, queues) = (bytes.slice_ref(input.block()?), bytes.slice_ref(input.block()?));
        input.end()?;
        Ok(Self { change_logs, queues })
    }
}

/// Makes an index from the records of a segment.
fn derive(journal: &Journal, first: u64) -> Result<Vec<u8>> {
    let mut builders = Builders::default();
    visit_segment(journal, first, &mut |record| {
        builders.add(&record);
        Ok(())
    })?;
    builders.finish()
}

/// Visits the records of one segment.
pub(crate) fn visit_segment(journal: &Journal, first: u64, visit: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
    let mut passed = false;
    let outcome = journal.replay(first, &mut |record| {
        if record.place.segment != first {
            passed = true;
            return Err(Error::new(ErrorKind::Internal, "visit segment", "the segment is over"));
        }
        visit(record)
    });
    if passed { Ok(()) } else { outcome }
}
