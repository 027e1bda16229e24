//! Reading back what memory no longer holds: entries by their places, places and changes by the segments' indexes.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::{Mutex, RwLock};

use super::{
    PAGE_BYTES, codec,
    index::SegmentIndex,
    log::{Log, gone},
    places::Stretch,
};
use crate::{
    Error, ErrorKind, Result,
    changelog::LogEntry,
    embedded::indexer::Sections,
    journal::{Journal, Place},
    model::{AppId, ChangeId, Offset},
};

/// Bytes of segment indexes that are kept in memory, least recently used ones first to go; the newest one always stays.
const INDEX_BYTES: usize = 32 << 20;

pub(super) struct History {
    journal: Journal,
    /// Most recently used last. The lock is held while one is loaded, so that it is loaded once.
    indexes: Mutex<Vec<Arc<SegmentIndex>>>,
    /// Lowest and highest change of each indexed segment: most changes that are asked for are newer than all of them.
    changes: RwLock<BTreeMap<u64, (ChangeId, ChangeId)>>,
}

impl History {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, indexes: Mutex::default(), changes: RwLock::default() }
    }

    /// Reads the index of a segment without keeping it, for the look at everything at open. Blocking.
    pub(super) fn read_index(&self, segment: u64) -> Result<SegmentIndex> {
        let index = SegmentIndex::read(segment, Sections::of_segment(&self.journal, segment)?.change_logs)?;
        if index.unreadable > 0 {
            let message = format!("journal segment {segment} has {} records of a newer format", index.unreadable);
            return Err(Error::new(ErrorKind::Corrupt, "read index of change logs", message));
        }
        self.changes.write().insert(segment, index.changes);
        Ok(index)
    }

    /// Blocking.
    fn index(&self, segment: u64) -> Result<Arc<SegmentIndex>> {
        let mut indexes = self.indexes.lock();
        let index = match indexes.iter().position(|index| index.segment == segment) {
            Some(found) => indexes.remove(found),
            None => Arc::new(self.read_index(segment)?),
        };
        indexes.push(index.clone());
        let mut bytes: usize = indexes.iter().map(|index| index.bytes()).sum();
        while bytes > INDEX_BYTES && indexes.len() > 1 {
            bytes -= indexes.remove(0).bytes();
        }
        Ok(index)
    }

    /// Whether the index of a segment was read before.
    pub(super) fn knows(&self, segment: u64) -> bool {
        self.changes.read().contains_key(&segment)
    }

    /// Segments below this one are released.
    pub(super) fn trim(&self, first_kept: u64) {
        self.indexes.lock().retain(|index| index.segment >= first_kept);
        let mut changes = self.changes.write();
        *changes = changes.split_off(&first_kept);
    }

    /// Reads entries from a position on, up to and with `upto`, at most `limit` and about a page. `Gone` when they are released
    /// meanwhile. Blocking.
    pub(super) fn read(&self, log: &Log, from: Offset, upto: u64, limit: usize) -> Result<Vec<LogEntry>> {
        let outcome = self.read_held(log, from, upto, limit);
        // What was read while its segment went may be anything; a log is trimmed before.
        if outcome.is_err() && log.is_trimmed(from) {
            return Err(gone(&log.app, format!("{from:?} is not held any more")));
        }
        outcome
    }

    fn read_held(&self, log: &Log, from: Offset, upto: u64, limit: usize) -> Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        let (mut next, mut bytes) = (from, 0);
        while next.position <= upto && entries.len() < limit && bytes < PAGE_BYTES {
            let wanted = (limit - entries.len()).min((upto - next.position + 1) as usize);
            let places = match log.stretch(next, wanted) {
                Stretch::Places(places) => places,
                Stretch::Sealed(segment) => self.index(segment)?.places(&log.app, next.epoch, next.position, wanted),
                Stretch::Gone => return Err(gone(&log.app, format!("{next:?} is not held any more"))),
            };
            if places.is_empty() {
                return Err(misplaced(&log.app, next));
            }
            for place in places {
                if bytes >= PAGE_BYTES {
                    break;
                }
                let (entry, size) = self.read_one(&log.app, next, place)?;
                bytes += size;
                next = next.next();
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    fn read_one(&self, app: &AppId, offset: Offset, place: Place) -> Result<(LogEntry, usize)> {
        let record = self.journal.read(place)?;
        let (found, entry) = codec::decode(&record.payload, record.sequence)?;
        if found != *app || entry.entry.offset != offset {
            return Err(misplaced(app, offset));
        }
        Ok((entry, record.payload.len()))
    }

    /// Whether a change may be in one of these segments: only then is it worth asking the disk.
    pub(super) fn may_hold(&self, segments: &[u64], change: ChangeId) -> bool {
        let changes = self.changes.read();
        segments.iter().any(|segment| in_range(changes.get(segment), change))
    }

    /// The position of a change in one of these segments. Blocking.
    pub(super) fn find(&self, log: &Log, epoch: u32, segments: &[u64], change: ChangeId) -> Result<Option<Offset>> {
        for segment in segments {
            if !in_range(self.changes.read().get(segment), change) {
                continue;
            }
            let index = match self.index(*segment) {
                Ok(index) => index,
                Err(error) if error.kind == ErrorKind::Gone => continue,
                Err(error) => return Err(error),
            };
            if let Some(position) = index.position(&log.app, epoch, change) {
                return Ok(Some(Offset::new(epoch, position)));
            }
        }
        Ok(None)
    }
}

/// A segment whose range is not known may hold anything.
fn in_range(range: Option<&(ChangeId, ChangeId)>, change: ChangeId) -> bool {
    range.is_none_or(|(lowest, highest)| (*lowest..=*highest).contains(&change))
}

fn misplaced(app: &AppId, offset: Offset) -> Error {
    let message = format!("entry {offset:?} of {app} is not where the index says");
    Error::new(ErrorKind::Corrupt, "read change log", message)
}
