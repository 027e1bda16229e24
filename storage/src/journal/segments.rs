//! The segments that are held: what each holds, reading them, giving them back.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Indexer, Place, Record, Segment,
    files::{File, Files},
    format::{self, HEADER_BYTES, RECORD_HEADER_BYTES, Sealed},
};
use crate::{Error, ErrorKind, Result, model::Timestamp};

/// Files of recycled segments that are kept for coming ones.
const SPARES: usize = 2;
/// How much of a segment is read at once.
const CHUNK: usize = 1024 * 1024;

pub(super) struct Segments {
    pub(super) files: Arc<dyn Files>,
    pub(super) dir: PathBuf,
    pub(super) indexer: Arc<dyn Indexer>,
    pub(super) segment_bytes: u32,
    pub(super) held: Mutex<BTreeMap<u64, Held>>,
    pub(super) spares: Mutex<Spares>,
    /// The last sequence that was held when the journal was opened.
    pub(super) recovered_upto: u64,
    pub(super) _lock: Box<dyn Send + Sync>,
}

pub(super) struct Held {
    pub(super) last: u64,
    /// Bytes up to the end of its last durable record.
    pub(super) length: u32,
    pub(super) sealed: bool,
    pub(super) indexed: bool,
    pub(super) newest: Timestamp,
    pub(super) file: Arc<dyn File>,
}

/// Prepared files for coming segments.
#[derive(Default)]
pub(super) struct Spares {
    pub(super) ready: Vec<(PathBuf, Arc<dyn File>)>,
    pub(super) next_number: u64,
    /// Why no more could be prepared.
    pub(super) trouble: Option<io::ErrorKind>,
}

pub(super) fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.journal"))
}

pub(super) fn sidecar_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.index"))
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

    pub(super) fn read(&self, place: Place) -> Result<Record> {
        let file = {
            let held = self.held.lock();
            let Some(segment) = held.get(&place.segment) else {
                return Err(Error::new(ErrorKind::Gone, "read record", format!("segment {}", place.segment)));
            };
            if place.offset >= segment.length {
                let message = format!("segment {}, offset {}: not durable yet", place.segment, place.offset);
                return Err(Error::new(ErrorKind::Invalid, "read record", message));
            }
            segment.file.clone()
        };
        let failed = |error| Error::io("read record", format!("segment {}", place.segment), error);
        let mut buffer = vec![0; 4096];
        let n_read = file.read_at(&mut buffer, u64::from(place.offset)).map_err(failed)?;
        buffer.truncate(n_read);
        if let Some(length) = format::record_length(&buffer)
            && length > buffer.len()
            && length <= self.segment_bytes as usize
        {
            buffer.resize(length, 0);
            let n_read = file.read_at(&mut buffer, u64::from(place.offset)).map_err(failed)?;
            buffer.truncate(n_read);
        }
        match format::read_record(&buffer) {
            Some(found) => Ok(Record { sequence: found.sequence, place, kind: found.kind, payload: found.payload }),
            None => Err(self.damaged(place.segment, place.offset)),
        }
    }

    pub(super) fn damaged(&self, segment: u64, offset: u32) -> Error {
        let path = segment_path(&self.dir, segment);
        let message = format!("{} is damaged at byte {offset}: `nexxus doctor` explains", path.display());
        Error::new(ErrorKind::Corrupt, "read journal", message)
    }

    /// Visits the records from a sequence on, up to one that is durable.
    pub(super) fn replay(&self, from: u64, upto: u64, visit: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
        self.replay_at(None, from, upto, visit)
    }

    /// The same; where the segment is still there, the reading begins at the place, which is that of the record before `from`.
    pub(super) fn replay_at(
        &self,
        place: Option<Place>,
        from: u64,
        upto: u64,
        visit: &mut dyn FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        let wanted: Vec<(u64, u32, Arc<dyn File>)> = {
            let held = self.held.lock();
            let overlaps = |held: &Held| held.last >= from;
            held.iter()
                .filter(|(_, held)| overlaps(held))
                .map(|(first, held)| (*first, held.length, held.file.clone()))
                .collect()
        };
        for (first, length, file) in wanted {
            let mut reader = Reader::new(&*file, first, length);
            if let Some(place) = place.filter(|place| place.segment == first) {
                (reader.offset, reader.buffer_at) = (place.offset, place.offset);
                reader.next_sequence = from - 1;
            }
            while let Some(record) = reader.next()? {
                if record.sequence > upto {
                    return Ok(());
                }
                if record.sequence >= from {
                    visit(record)?;
                }
            }
            if reader.offset < length {
                return Err(self.damaged(first, reader.offset));
            }
        }
        Ok(())
    }

    pub(super) fn index(&self, first: u64) -> Result<Option<Bytes>> {
        if !self.held.lock().get(&first).is_some_and(|held| held.indexed) {
            return Ok(None);
        }
        let path = sidecar_path(&self.dir, first);
        let bytes = read_whole(&*self.files, &path)
            .map_err(|error| Error::io("read index", path.display().to_string(), error))?;
        match format::read_sidecar(&bytes) {
            Some((_, index)) => Ok(Some(index)),
            // It was whole when the journal was opened: make it again.
            None => Ok(Some(self.seal(first)?)),
        }
    }

    /// Makes and keeps the index of a segment whose end is known.
    pub(super) fn seal(&self, first: u64) -> Result<Bytes> {
        let (file, sealed) = {
            let held = self.held.lock();
            let Some(segment) = held.get(&first) else {
                return Err(Error::new(ErrorKind::Gone, "index segment", format!("segment {first}")));
            };
            let sealed = Sealed { first, last: segment.last, length: segment.length, newest: segment.newest.as_ms() };
            (segment.file.clone(), sealed)
        };
        let mut reader = Reader::new(&*file, first, sealed.length);
        let mut failure = None;
        let index = self.indexer.index(&mut std::iter::from_fn(|| match reader.next() {
            Ok(record) => record,
            Err(error) => {
                failure = Some(error);
                None
            }
        }));
        if let Some(error) = failure {
            return Err(error);
        }
        self.keep_sidecar(first, &format::sidecar(sealed, &index))
            .map_err(|error| Error::io("write index", sidecar_path(&self.dir, first).display().to_string(), error))?;
        if let Some(segment) = self.held.lock().get_mut(&first) {
            segment.sealed = true;
            segment.indexed = true;
        }
        Ok(Bytes::from(index))
    }

    fn keep_sidecar(&self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let path = sidecar_path(&self.dir, first);
        let draft = path.with_extension("index.tmp");
        let file = self.files.create(&draft)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        self.files.rename(&draft, &path)?;
        self.files.sync_dir(&self.dir)
    }

    pub(super) fn release(&self, below: u64) -> Result<usize> {
        let mut n_released = 0;
        loop {
            let (first, file) = {
                let mut held = self.held.lock();
                let Some((first, segment)) = held.first_key_value() else { break };
                if !segment.sealed || !segment.indexed || segment.last >= below {
                    break;
                }
                let first = *first;
                let Some(segment) = held.remove(&first) else { break };
                (first, segment.file)
            };
            self.give_back(first, file)
                .map_err(|error| Error::io("release segment", format!("segment {first}"), error))?;
            n_released += 1;
        }
        if n_released > 0 {
            let synced = self.files.sync_dir(&self.dir);
            synced.map_err(|error| Error::io("release segment", self.dir.display().to_string(), error))?;
        }
        Ok(n_released)
    }

    /// The sidecar goes first: a segment without one is read again, one with a sidecar and no segment would be a riddle.
    fn give_back(&self, first: u64, file: Arc<dyn File>) -> io::Result<()> {
        let path = segment_path(&self.dir, first);
        self.files.remove(&sidecar_path(&self.dir, first))?;
        let mut spares = self.spares.lock();
        if spares.ready.len() < SPARES && file.len()? == u64::from(self.segment_bytes) {
            let spare = spares.name(&self.dir);
            self.files.rename(&path, &spare)?;
            spares.ready.push((spare, file));
            return Ok(());
        }
        drop(spares);
        self.files.remove(&path)
    }

    /// Prepares spare files until there are enough. An error stays noted until a later try succeeds.
    pub(super) fn prepare_spares(&self) -> io::Result<()> {
        while self.spares.lock().ready.len() < SPARES {
            let path = self.spares.lock().name(&self.dir);
            match zero_filled(&*self.files, &path, self.segment_bytes) {
                Ok(file) => {
                    let mut spares = self.spares.lock();
                    spares.ready.push((path, file));
                    spares.trouble = None;
                }
                Err(error) => {
                    let _gone = self.files.remove(&path);
                    self.spares.lock().trouble = Some(error.kind());
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Spares {
    pub(super) fn name(&mut self, dir: &Path) -> PathBuf {
        self.next_number += 1;
        dir.join(format!("spare.{}", self.next_number))
    }
}

/// A file full of zeros, written and synced: later writes into it change no metadata and find their blocks.
fn zero_filled(files: &dyn Files, path: &Path, bytes: u32) -> io::Result<Arc<dyn File>> {
    let file = files.create(path)?;
    let zeros = vec![0; CHUNK.min(bytes as usize)];
    let mut at = 0;
    while at < u64::from(bytes) {
        let n = zeros.len().min((u64::from(bytes) - at) as usize);
        file.write_at(&zeros[..n], at)?;
        at += n as u64;
    }
    file.sync()?;
    Ok(file)
}

pub(super) fn read_whole(files: &dyn Files, path: &Path) -> io::Result<Bytes> {
    let file = files.open(path)?;
    let mut bytes = vec![0; file.len()? as usize];
    let n_read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(n_read);
    Ok(Bytes::from(bytes))
}

/// Reads the records of one segment in order, up to the first place that holds none.
pub(super) struct Reader<'a> {
    file: &'a dyn File,
    segment: u64,
    length: u32,
    /// Where the next record begins.
    pub(super) offset: u32,
    pub(super) next_sequence: u64,
    /// The durable sequence that the records read so far attest.
    pub(super) durable_before: u64,
    buffer: Vec<u8>,
    buffer_at: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a dyn File, segment: u64, length: u32) -> Self {
        Self {
            file,
            segment,
            length,
            offset: HEADER_BYTES,
            next_sequence: segment,
            durable_before: 0,
            buffer: Vec::new(),
            buffer_at: HEADER_BYTES,
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Record>> {
        let mut found = self.in_buffer();
        if found.is_none() && self.refill()? {
            found = self.in_buffer();
        }
        let Some(found) = found.filter(|found| found.sequence == self.next_sequence) else { return Ok(None) };
        let place = Place { segment: self.segment, offset: self.offset };
        self.offset += found.length as u32;
        self.next_sequence += 1;
        self.durable_before = self.durable_before.max(found.durable_before);
        Ok(Some(Record { sequence: found.sequence, place, kind: found.kind, payload: found.payload }))
    }

    fn in_buffer(&self) -> Option<format::Found> {
        if self.offset >= self.length {
            return None;
        }
        format::read_record(self.buffer.get((self.offset - self.buffer_at) as usize..)?)
    }

    /// Reads on from where the next record begins; false when that cannot show more than what is there.
    fn refill(&mut self) -> Result<bool> {
        let left = self.length.saturating_sub(self.offset) as usize;
        if left < RECORD_HEADER_BYTES {
            return Ok(false);
        }
        let rest = self.buffer.get((self.offset - self.buffer_at) as usize..).unwrap_or_default();
        let wanted = format::record_length(rest).unwrap_or(0).max(CHUNK).min(left);
        if rest.len() >= wanted {
            return Ok(false);
        }
        self.buffer.resize(wanted, 0);
        let n_read = self
            .file
            .read_at(&mut self.buffer, u64::from(self.offset))
            .map_err(|error| Error::io("read journal", format!("segment {}", self.segment), error))?;
        self.buffer.truncate(n_read);
        self.buffer_at = self.offset;
        // The record at the beginning may be longer than a chunk.
        if let Some(length) = format::record_length(&self.buffer)
            && length > self.buffer.len()
            && length <= left
        {
            self.buffer.resize(length, 0);
            let n_read = self
                .file
                .read_at(&mut self.buffer, u64::from(self.offset))
                .map_err(|error| Error::io("read journal", format!("segment {}", self.segment), error))?;
            self.buffer.truncate(n_read);
        }
        Ok(true)
    }
}
