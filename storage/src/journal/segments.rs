//! The segments that are held: what each holds, reading them, sealing them, giving them back.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Indexer, Place, Record, Segment, SegmentCopy,
    clock::Clock,
    failure::Failure,
    files::{File, Files},
    format::{self, HEAD_BYTES, Head, Look},
    pins::Pins,
    reader::Reader,
    sidecar::{self, Sealed},
    spares::{MOST_SPARES, Spare, Spares},
};
use crate::{Error, ErrorKind, Result, model::Timestamp};

/// Most files of sealed segments that are kept open.
const MOST_OPEN: usize = 32;
/// What is read of a record at first; most are smaller.
const FIRST_READ: usize = 4096;

pub(super) struct Segments {
    pub(super) files: Arc<dyn Files>,
    pub(super) dir: PathBuf,
    pub(super) indexer: Arc<dyn Indexer>,
    pub(super) segment_bytes: u32,
    pub(super) held: Mutex<BTreeMap<u64, Held>>,
    pub(super) spares: Spares,
    /// The last sequence that was held when the journal was opened.
    pub(super) recovered_upto: u64,
    pub(super) failure: Arc<Failure>,
    pub(super) clock: Clock,
    /// The files that were used last, the latest at the end.
    pub(super) open_files: Mutex<Vec<(u64, Arc<dyn File>)>>,
    /// Held while sidecars are written and segments given back, so that no sidecar outlives its segment.
    pub(super) housekeeping: Mutex<()>,
    pub(super) pins: Pins,
    pub(super) _lock: Box<dyn Send + Sync>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) salt: u32,
    pub(super) last: u64,
    /// Bytes up to the end of its last durable record.
    pub(super) length: u32,
    pub(super) sealed: bool,
    pub(super) indexed: bool,
    pub(super) newest: Timestamp,
}

/// The segment that is appended to.
#[derive(Clone)]
pub(super) struct Active {
    pub(super) head: Head,
    pub(super) file: Arc<dyn File>,
}

pub(super) fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.journal"))
}

pub(super) fn sidecar_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.index"))
}

/// Stored data that cannot be read, with what to do about it.
pub(super) fn corrupt(path: &Path, what: &str) -> Error {
    let message = format!("{} {what}; `nexxus doctor` explains what can be done", path.display());
    Error::new(ErrorKind::Corrupt, "read journal", message)
}

impl Segments {
    pub(super) fn list(&self) -> Vec<Segment> {
        let held = self.held.lock();
        held.iter()
            .map(|(first, held)| Segment {
                first: *first,
                last: held.last,
                bytes: u64::from(held.length),
                sealed: held.sealed,
                indexed: held.indexed,
                newest: held.newest,
            })
            .collect()
    }

    fn get(&self, first: u64) -> Option<Held> {
        self.held.lock().get(&first).copied()
    }

    /// Begins a segment in a prepared file. Its head is durable before it has its name, and everything before it is durable: so
    /// each segment that has a name has a head, and none before the last one has a torn end.
    pub(super) fn begin(&self, spare: &Spare, head: Head) -> io::Result<()> {
        spare.file.write_at(&head.encode(), 0)?;
        spare.file.sync()?;
        self.files.rename(&spare.path, &segment_path(&self.dir, head.first))?;
        self.files.sync_dir(&self.dir)?;
        self.hold(&Active { head, file: spare.file.clone() });
        Ok(())
    }

    /// Lists a segment without records.
    pub(super) fn hold(&self, active: &Active) {
        let head = active.head;
        let newest = self.clock.now();
        let (salt, last, length) = (head.salt, head.first - 1, HEAD_BYTES);
        self.held.lock().insert(head.first, Held { salt, last, length, sealed: false, indexed: false, newest });
        self.remember(head.first, &active.file);
    }

    /// The records up to one are durable and may be read.
    pub(super) fn extend(&self, first: u64, last: u64, length: u32) {
        if let Some(held) = self.held.lock().get_mut(&first) {
            held.last = last;
            held.length = length;
            held.newest = self.clock.now();
        }
    }

    /// Nothing will be appended to a segment any more; says whether it is there and holds something.
    pub(super) fn complete(&self, first: u64) -> bool {
        let mut held = self.held.lock();
        let Some(held) = held.get_mut(&first).filter(|held| held.last >= first) else { return false };
        held.sealed = true;
        true
    }

    pub(super) fn read(&self, place: Place) -> Result<Record> {
        let gone =
            || Error::new(ErrorKind::Gone, "read record", format!("segment {} is no longer held", place.segment));
        let Some(held) = self.get(place.segment) else { return Err(gone()) };
        let what = || format!("segment {}, offset {}", place.segment, place.offset);
        if place.offset >= held.length || place.offset < HEAD_BYTES {
            return Err(Error::new(ErrorKind::Invalid, "read record", format!("{}: nothing durable there", what())));
        }
        match self.look_at(place, held) {
            Ok(Some(record)) => Ok(record),
            // Its file may be another segment's by now.
            _ if self.get(place.segment).is_none() => Err(gone()),
            Ok(None) => {
                let path = segment_path(&self.dir, place.segment);
                Err(corrupt(&path, &format!("is damaged: the record at byte {} cannot be read", place.offset)))
            }
            Err(error) => Err(Error::io("read record", what(), error)),
        }
    }

    fn look_at(&self, place: Place, held: Held) -> io::Result<Option<Record>> {
        let file = self.file(place.segment)?;
        let left = (held.length - place.offset) as usize;
        let mut buffer = vec![0; FIRST_READ.min(left)];
        let n_read = file.read_at(&mut buffer, u64::from(place.offset))?;
        buffer.truncate(n_read);
        let mut look = format::look(&buffer, held.salt);
        if let Look::More(needed) = look
            && needed <= left
        {
            buffer.resize(needed, 0);
            let n_read = file.read_at(&mut buffer, u64::from(place.offset))?;
            buffer.truncate(n_read);
            look = format::look(&buffer, held.salt);
        }
        let Look::Record(found) = look else { return Ok(None) };
        let is_here = (place.segment..=held.last).contains(&found.sequence);
        let kind = found.kind.filter(|_| is_here);
        Ok(kind.map(|kind| Record { sequence: found.sequence, place, kind, payload: found.payload }))
    }

    /// The open file of a segment.
    fn file(&self, first: u64) -> io::Result<Arc<dyn File>> {
        {
            let mut open = self.open_files.lock();
            if let Some(at) = open.iter().rposition(|(segment, _)| *segment == first) {
                let used = open.remove(at);
                let file = used.1.clone();
                open.push(used);
                return Ok(file);
            }
        }
        let file = self.files.open(&segment_path(&self.dir, first))?;
        self.remember(first, &file);
        Ok(file)
    }

    fn remember(&self, first: u64, file: &Arc<dyn File>) {
        let mut open = self.open_files.lock();
        open.retain(|(segment, _)| *segment != first);
        if open.len() >= MOST_OPEN {
            open.remove(0);
        }
        open.push((first, file.clone()));
    }

    /// The files of the segments from this one on, and where in them the record of the last sequence ends.
    pub(super) fn copies(&self, first: u64, upto: u64) -> Result<Vec<SegmentCopy>> {
        let held: Vec<(u64, Held)> =
            self.held.lock().range(first..=upto).map(|(first, held)| (*first, *held)).collect();
        held.into_iter()
            .map(|(first, held)| {
                let path = segment_path(&self.dir, first);
                let file =
                    self.file(first).map_err(|error| Error::io("copy journal", path.display().to_string(), error))?;
                let mut bytes = held.length;
                if held.last > upto {
                    let mut reader = Reader::new(&*file, Head { first, salt: held.salt }, held.length);
                    while reader.last() < upto && reader.next()?.is_some() {}
                    bytes = reader.offset();
                }
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Ok(SegmentCopy { name, bytes: u64::from(bytes), file })
            })
            .collect()
    }

    /// Visits the durable records from a sequence on. Where the segment of the place is still held, the reading begins there: it is
    /// that of the record before.
    pub(super) fn replay(
        &self,
        after: Option<Place>,
        from: u64,
        visit: &mut dyn FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        let held: Vec<(u64, Held)> = self.held.lock().iter().map(|(first, held)| (*first, *held)).collect();
        for (first, held) in held {
            if held.last >= from.max(first) {
                let after = after.filter(|place| place.segment == first);
                self.replay_segment(first, held, after, from, visit)?;
            }
        }
        Ok(())
    }

    fn replay_segment(
        &self,
        first: u64,
        held: Held,
        after: Option<Place>,
        from: u64,
        visit: &mut dyn FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        let gone = || Error::new(ErrorKind::Gone, "replay journal", format!("segment {first} was released meanwhile"));
        let path = segment_path(&self.dir, first);
        let file = match self.file(first) {
            Ok(file) => file,
            Err(_) if self.get(first).is_none() => return Err(gone()),
            Err(error) => return Err(Error::io("replay journal", path.display().to_string(), error)),
        };
        let mut reader = Reader::new(&*file, Head { first, salt: held.salt }, held.length);
        if let Some(place) = after {
            reader = reader.beginning_with(from - 1, place.offset);
        }
        while let Some(record) = reader.next()? {
            if record.sequence >= from {
                visit(record)?;
            }
        }
        if reader.last() == held.last {
            return Ok(());
        }
        if self.get(first).is_none() {
            return Err(gone());
        }
        let (missing, at) = (reader.last() + 1, reader.offset());
        Err(corrupt(&path, &format!("is damaged from byte {at} on: record {missing} cannot be read")))
    }

    pub(super) fn index(&self, first: u64) -> Result<Option<Bytes>> {
        if !self.get(first).is_some_and(|held| held.indexed) {
            return Ok(None);
        }
        let path = sidecar_path(&self.dir, first);
        match sidecar::index(&*self.files, &path) {
            Ok(Some(index)) => Ok(Some(index)),
            Ok(None) => {
                let Some(held) = self.get(first) else { return Ok(None) };
                tracing::warn!(segment = first, "the index of a segment is missing or damaged, making it anew");
                let index = self.make_index(first, held)?;
                // It serves even where it cannot be kept.
                let _kept = self.keep_index(first, held, &index).inspect_err(
                    |error| tracing::warn!(segment = first, %error, "the index of a segment could not be kept"),
                );
                Ok(Some(index))
            }
            Err(error) => Err(Error::io("read index", path.display().to_string(), error)),
        }
    }

    /// Makes and keeps the index of a complete segment; nothing is done when it is no longer held.
    pub(super) fn seal(&self, first: u64) -> Result<()> {
        let Some(held) = self.get(first) else { return Ok(()) };
        let made = self.make_index(first, held).and_then(|index| self.keep_index(first, held, &index));
        match made {
            Err(error) if error.kind == ErrorKind::Gone => Ok(()),
            made => made,
        }
    }

    fn make_index(&self, first: u64, held: Held) -> Result<Bytes> {
        let failed = |error| Error::io("index segment", segment_path(&self.dir, first).display().to_string(), error);
        let file = self.file(first).map_err(failed)?;
        let mut reader = Reader::new(&*file, Head { first, salt: held.salt }, held.length);
        let mut failure = None;
        let index = self.indexer.index(&mut std::iter::from_fn(|| match reader.next() {
            Ok(record) => record,
            Err(error) => {
                failure = Some(error);
                None
            }
        }));
        // The indexer may have stopped early: whether all can be read is judged here.
        while failure.is_none() && reader.next()?.is_some() {}
        if let Some(error) = failure {
            return Err(error);
        }
        if reader.last() == held.last {
            return Ok(Bytes::from(index));
        }
        if self.get(first).is_none() {
            return Err(Error::new(ErrorKind::Gone, "index segment", format!("segment {first} was released")));
        }
        let what = format!("is damaged from byte {} on: record {} cannot be read", reader.offset(), reader.last() + 1);
        Err(corrupt(&segment_path(&self.dir, first), &what))
    }

    fn keep_index(&self, first: u64, held: Held, index: &[u8]) -> Result<()> {
        let sealed = Sealed { first, last: held.last, length: held.length, newest: held.newest.as_ms() };
        let path = sidecar_path(&self.dir, first);
        let _housekeeping = self.housekeeping.lock();
        if self.get(first).is_none() {
            return Ok(());
        }
        sidecar::keep(&*self.files, &path, sealed, index)
            .map_err(|error| Error::io("write index", path.display().to_string(), error))?;
        if let Some(held) = self.held.lock().get_mut(&first) {
            held.sealed = true;
            held.indexed = true;
        }
        Ok(())
    }

    /// Gives back complete segments that end below a sequence and below every pin, oldest first, but never the last one: it says how
    /// far the journal has come.
    pub(super) fn release(&self, below: u64) -> Result<usize> {
        let mut n_released = 0;
        while self.release_oldest(below)? {
            n_released += 1;
        }
        Ok(n_released)
    }

    fn release_oldest(&self, below: u64) -> Result<bool> {
        let _housekeeping = self.housekeeping.lock();
        let (first, oldest) = {
            let mut held = self.held.lock();
            let Some((first, oldest)) = held.first_key_value().map(|(first, held)| (*first, *held)) else {
                return Ok(false);
            };
            if !oldest.sealed || oldest.last >= below.min(self.pins.lowest()) || held.len() < 2 {
                return Ok(false);
            }
            held.remove(&first);
            (first, oldest)
        };
        let file = self.file(first);
        self.open_files.lock().retain(|(segment, _)| *segment != first);
        match file.and_then(|file| self.give_back(first, file)) {
            Ok(spare) => {
                // Until this is durable, the segment may come back after a crash: neither may its file be written to, nor may a
                // later one go before it. A sync that failed once tells nothing when it is tried again.
                if let Err(error) = self.files.sync_dir(&self.dir) {
                    let error = || io::Error::new(error.kind(), error.to_string());
                    self.failure.note(Error::io("release segment", self.dir.display().to_string(), error()));
                    return Err(Error::io("release segment", self.dir.display().to_string(), error()));
                }
                if let Some(spare) = spare {
                    self.spares.put(spare);
                }
                Ok(true)
            }
            Err(error) => {
                self.held.lock().insert(first, Held { indexed: false, ..oldest });
                Err(Error::io("release segment", segment_path(&self.dir, first).display().to_string(), error))
            }
        }
    }

    /// The sidecar goes first: a segment without one is read again, one with a sidecar and no segment would be a riddle.
    fn give_back(&self, first: u64, file: Arc<dyn File>) -> io::Result<Option<Spare>> {
        let path = segment_path(&self.dir, first);
        match self.files.remove(&sidecar_path(&self.dir, first)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if self.spares.n_ready() < MOST_SPARES && file.length()? == u64::from(self.segment_bytes) {
            let spare = Spare { path: self.spares.new_path(&self.dir), file };
            self.files.rename(&path, &spare.path)?;
            return Ok(Some(spare));
        }
        self.files.remove(&path)?;
        Ok(None)
    }

    /// Prepares files for the next segments, until there are so many.
    pub(super) fn prepare(&self, n_spares: usize) -> io::Result<()> {
        self.spares.prepare(n_spares, &*self.files, &self.dir, self.segment_bytes)
    }
}
