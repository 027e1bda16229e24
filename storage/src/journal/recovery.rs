//! Opening a journal: what is there, what of it can be believed, what is cut.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use tracing::{info, warn};

use super::{
    Options,
    files::{File, Files},
    format::{self, HEADER_BYTES, Head, RECORD_HEADER_BYTES},
    segments::{Held, Reader, Segments, Spares, read_whole, segment_path, sidecar_path},
};
use crate::{Error, ErrorKind, Result, model::Timestamp};

/// No record that follows a bad one in the same files can be this many sequences after it.
const FAR_AWAY: u64 = 1 << 28;

/// A segment as it was found.
struct Scanned {
    held: Held,
    /// Something other than zeros follows its last record.
    torn_at: Option<u32>,
}

pub(super) fn open(files: Arc<dyn Files>, options: Options) -> Result<Segments> {
    let dir = options.dir.clone();
    let failed = |what: &str, error: io::Error| Error::io("open journal", format!("{what} {}", dir.display()), error);
    files.create_dir(&dir).map_err(|error| failed("cannot make the directory", error))?;
    let lock = files.lock(&dir.join("lock")).map_err(|error| locked(&*files, &dir, error))?;
    let names = files.list(&dir).map_err(|error| failed("cannot list the directory", error))?;
    let mut spares = Spares::default();
    let mut firsts = Vec::new();
    for name in names {
        let path = dir.join(&name);
        if let Some(first) = name.strip_suffix(".journal").and_then(|digits| digits.parse::<u64>().ok()) {
            firsts.push(first);
        } else if name.ends_with(".tmp") {
            files.remove(&path).map_err(|error| failed("cannot clear a draft in", error))?;
        } else if let Some(number) = name.strip_prefix("spare.").and_then(|digits| digits.parse::<u64>().ok()) {
            spares.next_number = spares.next_number.max(number);
            keep_spare(&*files, &path, options.segment_bytes, &mut spares)
                .map_err(|error| failed("cannot look at a spare file in", error))?;
        }
    }
    firsts.sort_unstable();
    let mut recovery = Recovery { files: &*files, dir: &dir, held: BTreeMap::new(), upto: 0, spares };
    recovery.take(&firsts, options.segment_bytes)?;
    let Recovery { held, upto, spares, .. } = recovery;
    let segments = Segments {
        files: files.clone(),
        dir: dir.clone(),
        indexer: options.indexer,
        segment_bytes: options.segment_bytes,
        held: Mutex::new(held),
        spares: Mutex::new(spares),
        recovered_upto: upto,
        _lock: lock,
    };
    let unindexed: Vec<u64> =
        segments.held.lock().iter().filter(|(_, held)| !held.indexed).map(|(first, _)| *first).collect();
    for first in unindexed {
        segments.seal(first)?;
    }
    Ok(segments)
}

fn locked(files: &dyn Files, dir: &Path, error: io::Error) -> Error {
    if error.kind() != io::ErrorKind::WouldBlock {
        return Error::io("open journal", format!("cannot write to {}", dir.display()), error);
    }
    let process = read_whole(files, &dir.join("lock")).ok();
    let process = process.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok()).unwrap_or_default();
    let message = format!("{} is in use by another process ({})", dir.display(), process.trim());
    Error::new(ErrorKind::Unavailable, "open journal", message)
}

fn keep_spare(files: &dyn Files, path: &Path, bytes: u32, spares: &mut Spares) -> io::Result<()> {
    let file = files.open(path)?;
    if file.len()? == u64::from(bytes) && spares.ready.len() < 2 {
        spares.ready.push((path.to_owned(), file));
        return Ok(());
    }
    files.remove(path)
}

struct Recovery<'a> {
    files: &'a dyn Files,
    dir: &'a Path,
    held: BTreeMap<u64, Held>,
    /// The last sequence that is there.
    upto: u64,
    spares: Spares,
}

impl Recovery<'_> {
    fn take(&mut self, firsts: &[u64], segment_bytes: u32) -> Result<()> {
        self.upto = firsts.first().map_or(0, |first| first - 1);
        for (place, first) in firsts.iter().enumerate() {
            let torn = match self.sealed(*first)? {
                Some(held) if *first == self.upto + 1 => {
                    self.upto = held.last;
                    self.held.insert(*first, held);
                    None
                }
                Some(_) => return Err(self.gap(*first)),
                None => self.scan(*first, segment_bytes)?,
            };
            if let Some(torn_at) = torn {
                return self.cut(*first, torn_at, &firsts[place + 1..], segment_bytes);
            }
        }
        Ok(())
    }

    fn gap(&self, first: u64) -> Error {
        let missing = self.upto + 1;
        let path = segment_path(self.dir, first);
        let message = format!(
            "{}: records {missing} to {} before it are missing: `nexxus doctor` explains",
            path.display(),
            first - 1
        );
        Error::new(ErrorKind::Corrupt, "open journal", message)
    }

    fn io(&self, first: u64, error: io::Error) -> Error {
        Error::io("open journal", segment_path(self.dir, first).display().to_string(), error)
    }

    /// A segment with a valid sidecar is not read again.
    fn sealed(&self, first: u64) -> Result<Option<Held>> {
        let path = sidecar_path(self.dir, first);
        let bytes = match read_whole(self.files, &path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io(first, error)),
        };
        let Some((sealed, _)) = format::read_sidecar(&bytes).filter(|(sealed, _)| sealed.first == first) else {
            return Ok(None);
        };
        let file = self.files.open(&segment_path(self.dir, first)).map_err(|error| self.io(first, error))?;
        self.check_head(first, &*file)?;
        Ok(Some(Held {
            last: sealed.last,
            length: sealed.length,
            sealed: true,
            indexed: true,
            newest: Timestamp::from_ms(sealed.newest).unwrap_or_else(|_| Timestamp::now()),
            file,
        }))
    }

    fn check_head(&self, first: u64, file: &dyn File) -> Result<bool> {
        let mut head = [0; 24];
        let n_read = file.read_at(&mut head, 0).map_err(|error| self.io(first, error))?;
        match format::read_segment_header(&head[..n_read]) {
            Head::First(found) => Ok(found == first),
            Head::Invalid => Ok(false),
            Head::Newer(format) => {
                let path = segment_path(self.dir, first);
                let message = format!(
                    "{} has format {format}, this version reads up to {}: start it with the version that wrote it, or a newer one",
                    path.display(),
                    format::FORMAT
                );
                Err(Error::new(ErrorKind::Unsupported, "open journal", message))
            }
        }
    }

    /// Reads a segment to its end; gives where it is torn, if it is, or if it does not follow the one before.
    fn scan(&mut self, first: u64, segment_bytes: u32) -> Result<Option<u32>> {
        let scanned = self.scanned(first, segment_bytes)?;
        if first != self.upto + 1 {
            // A torn segment before it has been cut already, so this is a hole.
            return Err(self.gap(first));
        }
        if scanned.held.last >= first {
            self.upto = scanned.held.last;
            self.held.insert(first, scanned.held);
            return Ok(scanned.torn_at);
        }
        // Begun and never written to, or torn at its first record.
        Ok(Some(scanned.torn_at.unwrap_or(HEADER_BYTES)))
    }

    fn scanned(&self, first: u64, segment_bytes: u32) -> Result<Scanned> {
        let file = self.files.open(&segment_path(self.dir, first)).map_err(|error| self.io(first, error))?;
        let is_headed = self.check_head(first, &*file)?;
        let length = file.len().map_err(|error| self.io(first, error))?.min(u64::from(segment_bytes.max(HEADER_BYTES)));
        let length = u32::try_from(length).unwrap_or(segment_bytes);
        let mut reader = Reader::new(&*file, first, length);
        while reader.next()?.is_some() {}
        let (end, last) = (reader.offset, reader.next_sequence - 1);
        let torn_at =
            if is_zero_from(&*file, end, length).map_err(|error| self.io(first, error))? { None } else { Some(end) };
        if !is_headed && last >= first {
            let message =
                format!("{} has a damaged head before valid records", segment_path(self.dir, first).display());
            return Err(Error::new(ErrorKind::Corrupt, "open journal", message));
        }
        let held =
            Held { last, length: end, sealed: true, indexed: false, newest: Timestamp::now(), file: file.clone() };
        Ok(Scanned { held, torn_at })
    }

    /// Cuts what follows the last valid record, unless it shows that confirmed data is damaged.
    fn cut(&mut self, first: u64, torn_at: u32, later: &[u64], segment_bytes: u32) -> Result<()> {
        let missing = self.upto + 1;
        for segment in std::iter::once(&first).chain(later) {
            let from = if *segment == first { torn_at } else { HEADER_BYTES };
            let file = self.files.open(&segment_path(self.dir, *segment)).map_err(|error| self.io(*segment, error))?;
            let witness = witness_of(&*file, from, segment_bytes, missing).map_err(|error| self.io(*segment, error))?;
            if let Some(witness) = witness {
                let message = format!(
                    "{} is damaged at byte {torn_at}: record {missing} cannot be read, though record {witness} was written after it had been confirmed: `nexxus doctor` explains",
                    segment_path(self.dir, first).display()
                );
                return Err(Error::new(ErrorKind::Corrupt, "open journal", message));
            }
        }
        if torn_at > HEADER_BYTES || !later.is_empty() {
            info!(segment = first, at = torn_at, next = missing, "cut what was written and never confirmed");
        }
        // Later segments hold nothing that was confirmed; an empty one goes too, and its file is used again.
        let empty = (!self.held.contains_key(&first)).then_some(first);
        for segment in empty.into_iter().chain(later.iter().copied()) {
            self.recycle(segment, segment_bytes).map_err(|error| self.io(segment, error))?;
        }
        Ok(())
    }

    fn recycle(&mut self, first: u64, segment_bytes: u32) -> io::Result<()> {
        let path: PathBuf = segment_path(self.dir, first);
        match self.files.remove(&sidecar_path(self.dir, first)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if self.spares.ready.len() >= 2 {
            return self.files.remove(&path);
        }
        let spare = self.spares.name(self.dir);
        self.files.rename(&path, &spare)?;
        keep_spare(self.files, &spare, segment_bytes, &mut self.spares)
            .inspect_err(|error| warn!(%error, "a spare file cannot be used"))
    }
}

fn is_zero_from(file: &dyn File, from: u32, to: u32) -> io::Result<bool> {
    let mut at = from;
    let mut buffer = vec![0; 64 * 1024];
    while at < to {
        let wanted = buffer.len().min((to - at) as usize);
        let n_read = file.read_at(&mut buffer[..wanted], u64::from(at))?;
        if n_read == 0 {
            break;
        }
        if buffer[..n_read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += n_read as u32;
    }
    Ok(true)
}

/// A valid record in these bytes that was written when record `missing` was durable already.
fn witness_of(file: &dyn File, from: u32, to: u32, missing: u64) -> io::Result<Option<u64>> {
    let mut bytes = vec![0; to.saturating_sub(from) as usize];
    let n_read = file.read_at(&mut bytes, u64::from(from))?;
    bytes.truncate(n_read);
    let mut at = 0;
    while at + RECORD_HEADER_BYTES <= bytes.len() {
        // Looked at first, as the checksum of every place where a record might begin would take for ever.
        let is_plausible = format::sequence_of(&bytes[at..])
            .is_some_and(|sequence| sequence > missing && sequence - missing < FAR_AWAY);
        match is_plausible.then(|| format::read_record(&bytes[at..])).flatten() {
            Some(found) if found.durable_before >= missing => return Ok(Some(found.sequence)),
            Some(found) => at += found.length,
            None => at += 1,
        }
    }
    Ok(None)
}
