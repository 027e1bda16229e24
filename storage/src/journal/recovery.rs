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
    clock::Clock,
    failure::Failure,
    files::{File, Files, is_full, read_whole},
    format::{self, BadHead, HEAD_BYTES, HEAD_USED_BYTES, Head},
    pins::Pins,
    reader::Reader,
    segments::{Active, Held, Segments, corrupt, segment_path, sidecar_path},
    sidecar,
    spares::Spares,
    survey::survey,
};
use crate::{Error, ErrorKind, Result, model::Timestamp};

/// The sizes that a segment may have: at least some records, offsets within 32 bits.
const SEGMENT_BYTES: std::ops::RangeInclusive<u32> = 16 * 1024..=1024 * 1024 * 1024;
/// Smallest part that is written without tearing.
const SECTOR: usize = 512;
/// How much is copied at once.
const CHUNK: usize = 1024 * 1024;

/// Opens what is there, and the segment to append to; none when the disk is too full for it.
pub(super) fn open(files: Arc<dyn Files>, options: Options) -> Result<(Arc<Segments>, Option<Active>)> {
    let dir = options.dir;
    let failed = |what: &str, error: io::Error| Error::io("open journal", format!("{what} {}", dir.display()), error);
    if !SEGMENT_BYTES.contains(&options.segment_bytes) {
        let (least, most) = (SEGMENT_BYTES.start(), SEGMENT_BYTES.end());
        let message = format!("a segment has {least} to {most} bytes, not {}", options.segment_bytes);
        return Err(Error::new(ErrorKind::Invalid, "open journal", message));
    }
    files.create_dir(&dir).map_err(|error| failed("cannot make the directory", error))?;
    let lock = files.lock(&dir.join("lock")).map_err(|error| locked(&*files, &dir, error))?;
    let found = Found::look(&*files, &dir).map_err(|error| failed("cannot look into", error))?;
    // A process that was killed may have left names that only memory has.
    files.sync_dir(&dir).map_err(|error| failed("cannot sync", error))?;
    let mut recovery = Recovery { files: &*files, dir: &dir, held: BTreeMap::new(), upto: 0, empty: None };
    recovery.take(&found.firsts)?;
    let Recovery { held, upto, empty, .. } = recovery;
    let spares = Spares::found(&*files, &dir, &found.spares, options.segment_bytes)
        .map_err(|error| failed("cannot take up the spare files in", error))?;
    let clock = Clock::beginning(Timestamp::now(), held.values().map(|held| held.newest).max());
    let segments = Arc::new(Segments {
        files: files.clone(),
        dir: dir.clone(),
        indexer: options.indexer,
        segment_bytes: options.segment_bytes,
        held: Mutex::new(held),
        spares,
        recovered_upto: upto,
        clock,
        failure: Arc::new(Failure::default()),
        open_files: Mutex::default(),
        housekeeping: Mutex::default(),
        pins: Pins::default(),
        _lock: lock,
    });
    index_all(&segments)?;
    let active = begin(&segments, empty).map_err(|error| failed("cannot begin a segment in", error))?;
    Ok((segments, active))
}

pub(super) fn locked(files: &dyn Files, dir: &Path, error: io::Error) -> Error {
    if error.kind() != io::ErrorKind::WouldBlock {
        return Error::io("open journal", format!("cannot write to {}", dir.display()), error);
    }
    let process = read_whole(files, &dir.join("lock")).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let process = match process.as_deref().map(str::trim) {
        None | Some("") => "another process".to_owned(),
        Some(pid) => format!("process {pid}"),
    };
    let message = format!("{} is in use by {process}", dir.display());
    Error::new(ErrorKind::Unavailable, "open journal", message)
}

/// What the directory holds.
#[derive(Default)]
pub(super) struct Found {
    pub(super) firsts: Vec<u64>,
    sidecars: Vec<u64>,
    spares: Vec<u64>,
    drafts: Vec<String>,
}

impl Found {
    pub(super) fn list(files: &dyn Files, dir: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        for name in files.list(dir)? {
            let number = |text: Option<&str>| text.and_then(|digits| digits.parse::<u64>().ok());
            if let Some(first) = number(name.strip_suffix(".journal")).filter(|first| *first > 0) {
                found.firsts.push(first);
            } else if let Some(first) = number(name.strip_suffix(".index")) {
                found.sidecars.push(first);
            } else if let Some(spare) = number(name.strip_prefix("spare.")) {
                found.spares.push(spare);
            } else if name.ends_with(".tmp") {
                found.drafts.push(name);
            }
        }
        found.firsts.sort_unstable();
        Ok(found)
    }

    /// Lists, and clears away drafts and sidecars without a segment.
    fn look(files: &dyn Files, dir: &Path) -> io::Result<Self> {
        let found = Self::list(files, dir)?;
        for name in &found.drafts {
            files.remove(&dir.join(name))?;
        }
        for first in found.sidecars.iter().filter(|first| found.firsts.binary_search(first).is_err()) {
            files.remove(&sidecar_path(dir, *first))?;
        }
        Ok(found)
    }
}

/// Gives each segment its index, and back to the disk what a segment that ended early does not need.
fn index_all(segments: &Segments) -> Result<()> {
    let held: Vec<_> = segments.list().into_iter().filter(|segment| segment.last >= segment.first).collect();
    for segment in held {
        if !segment.indexed {
            match segments.seal(segment.first) {
                // The keeper tries again when there is room.
                Err(error) if error.kind == ErrorKind::DiskFull => {
                    warn!(segment = segment.first, %error, "a segment could not be indexed");
                    continue;
                }
                sealed => sealed?,
            }
        }
        let needed = segment.bytes.next_multiple_of(u64::from(HEAD_BYTES));
        let path = segment_path(&segments.dir, segment.first);
        let shortened = segments.files.open(&path).and_then(|file| match file.length()? > 2 * needed {
            true => file.truncate(needed),
            false => Ok(()),
        });
        if let Err(error) = shortened {
            warn!(segment = segment.first, %error, "the end of a segment could not be given back");
        }
    }
    Ok(())
}

/// Begins the segment to append to: in the empty last one, if there is one, else in a new one.
fn begin(segments: &Segments, empty: Option<Arc<dyn File>>) -> io::Result<Option<Active>> {
    let head = Head { first: segments.recovered_upto + 1, salt: rand::random() };
    if let Some(file) = empty
        && file.length()? == u64::from(segments.segment_bytes)
    {
        // What was written to it and cut must not come back: the new salt sees to that.
        file.write_at(&head.encode()[..SECTOR], 0)?;
        file.sync()?;
        let active = Active { head, file };
        segments.hold(&active);
        return Ok(Some(active));
    }
    match segments.prepare(1) {
        Err(error) if is_full(&error) => {
            warn!(%error, "there is no room for the next segment of the journal: nothing can be written");
            return Ok(None);
        }
        prepared => prepared?,
    }
    let Some(spare) = segments.spares.take() else { return Ok(None) };
    segments.begin(&spare, head)?;
    Ok(Some(Active { head, file: spare.file }))
}

struct Recovery<'a> {
    files: &'a dyn Files,
    dir: &'a Path,
    held: BTreeMap<u64, Held>,
    /// The last sequence that is there.
    upto: u64,
    /// The file of the last segment, when that holds nothing.
    empty: Option<Arc<dyn File>>,
}

impl Recovery<'_> {
    fn take(&mut self, firsts: &[u64]) -> Result<()> {
        self.upto = firsts.first().map_or(0, |first| first - 1);
        for (place, first) in firsts.iter().copied().enumerate() {
            if first != self.upto + 1 {
                return Err(self.gap(first));
            }
            let file = self.files.open(&self.path(first)).map_err(|error| self.io(first, error))?;
            let head = self.head(first, &*file)?;
            let next = firsts.get(place + 1).copied();
            let held = match self.sealed(head, &*file)? {
                Some(held) => held,
                None => match next {
                    Some(next) => self.scan_complete(head, &*file, next)?,
                    None => self.scan_last(head, &*file)?,
                },
            };
            if held.last < first {
                self.empty = Some(file);
            }
            self.upto = held.last;
            self.held.insert(first, held);
        }
        Ok(())
    }

    fn path(&self, first: u64) -> PathBuf {
        segment_path(self.dir, first)
    }

    fn io(&self, first: u64, error: io::Error) -> Error {
        Error::io("open journal", self.path(first).display().to_string(), error)
    }

    fn gap(&self, first: u64) -> Error {
        let before = self.held.last_key_value().map_or(0, |(first, _)| *first);
        let what = match self.upto + 1 {
            missing if missing < first => {
                format!("does not follow {}: records {missing} to {} are missing", name(before), first - 1)
            }
            _ => format!("does not follow {}, which holds records up to {}", name(before), self.upto),
        };
        corrupt(&self.path(first), &what)
    }

    fn head(&self, first: u64, file: &dyn File) -> Result<Head> {
        let mut bytes = [0; HEAD_USED_BYTES];
        let n_read = file.read_at(&mut bytes, 0).map_err(|error| self.io(first, error))?;
        match Head::decode(&bytes[..n_read]) {
            Ok(head) if head.first == first => Ok(head),
            Ok(head) => Err(corrupt(&self.path(first), &format!("has the head of {}", name(head.first)))),
            Err(BadHead::Damaged) => Err(corrupt(
                &self.path(first),
                &format!("is damaged from byte 0 to byte {HEAD_USED_BYTES}, in its head"),
            )),
            Err(BadHead::Newer(format)) => {
                let message = format!(
                    "{} has format {format}, and this version reads up to {}: start the version that wrote it, or a newer one",
                    self.path(first).display(),
                    format::FORMAT
                );
                Err(Error::new(ErrorKind::Unsupported, "open journal", message))
            }
        }
    }

    /// A segment with a valid sidecar is not read again.
    fn sealed(&self, head: Head, file: &dyn File) -> Result<Option<Held>> {
        let first = head.first;
        let sealed =
            sidecar::sealed(self.files, &sidecar_path(self.dir, first)).map_err(|error| self.io(first, error))?;
        let Some(sealed) = sealed.filter(|sealed| sealed.first == first && sealed.last >= first) else {
            return Ok(None);
        };
        let file_length = file.length().map_err(|error| self.io(first, error))?;
        if file_length < u64::from(sealed.length) {
            let what = format!("is cut off at byte {file_length}: its records end at byte {}", sealed.length);
            return Err(corrupt(&self.path(first), &what));
        }
        let newest = Timestamp::from_ms(sealed.newest).unwrap_or_else(|_| Timestamp::now());
        let (salt, last, length) = (head.salt, sealed.last, sealed.length);
        Ok(Some(Held { salt, last, length, sealed: true, indexed: true, newest }))
    }

    fn length(&self, first: u64, file: &dyn File) -> Result<u32> {
        let length = file.length().map_err(|error| self.io(first, error))?;
        Ok(u32::try_from(length).unwrap_or(u32::MAX))
    }

    fn held(&self, head: Head, file: &dyn File, last: u64, length: u32) -> Result<Held> {
        let newest = file.modified().map_err(|error| self.io(head.first, error))?;
        Ok(Held { salt: head.salt, last, length, sealed: true, indexed: false, newest })
    }

    /// Reads a segment that another one follows: it was durable up to its end before that one was begun.
    fn scan_complete(&self, head: Head, file: &dyn File, next: u64) -> Result<Held> {
        let file_length = self.length(head.first, file)?;
        let mut reader = Reader::new(file, head, file_length);
        while reader.last() + 1 < next && reader.next()?.is_some() {}
        let (missing, at) = (reader.last() + 1, reader.offset());
        if missing == next {
            return self.held(head, file, reader.last(), at);
        }
        let survey = survey(file, head, at, file_length, missing).map_err(|error| self.io(head.first, error))?;
        let (to, last) = (survey.resumes_at.unwrap_or(file_length), next - 1);
        let what = format!(
            "is damaged from byte {at} to byte {to}: record {missing} cannot be read, though {} shows that all up to {last} were confirmed",
            name(next)
        );
        Err(corrupt(&self.path(head.first), &what))
    }

    /// Reads the segment that was appended to last. What follows its last whole record was never confirmed, unless a later record
    /// says otherwise.
    fn scan_last(&self, head: Head, file: &dyn File) -> Result<Held> {
        let first = head.first;
        let file_length = self.length(first, file)?;
        let mut reader = Reader::new(file, head, file_length);
        while reader.next()?.is_some() {}
        let (missing, at) = (reader.last() + 1, reader.offset());
        let survey = survey(file, head, at, file_length, missing).map_err(|error| self.io(first, error))?;
        if let Some(witness) = survey.witness {
            let what = format!(
                "is damaged from byte {at} to byte {}: record {missing} cannot be read, though record {witness} shows that it was confirmed",
                survey.resumes_at.unwrap_or(file_length),
            );
            return Err(corrupt(&self.path(first), &what));
        }
        if survey.resumes_at.is_some() {
            info!(segment = first, at, record = missing, "cut what was written to the journal and never confirmed");
        }
        // Whoever opens takes these records as durable. They may be so in memory only, even after a sync that failed.
        write_again(file, reader.last_batch_at(), at).map_err(|error| self.io(first, error))?;
        self.held(head, file, reader.last(), at)
    }
}

fn name(first: u64) -> String {
    format!("{first:020}.journal")
}

fn write_again(file: &dyn File, from: u32, to: u32) -> io::Result<()> {
    let mut at = from;
    let mut buffer = Vec::new();
    while at < to {
        buffer.resize(CHUNK.min((to - at) as usize), 0);
        let n_read = file.read_at(&mut buffer, u64::from(at))?;
        if n_read == 0 {
            break;
        }
        file.write_at(&buffer[..n_read], u64::from(at))?;
        at += n_read as u32;
    }
    file.sync()
}
