//! Looking into a journal that may be damaged, without opening it, and writing anew what is damaged of it.
//!
//! Everything is read, also what has a sidecar. What cannot be read is a *loss*: the records between two whole ones, a segment
//! that is missing, the end of one that later ones show to have been longer. The end of the last segment is no loss: what stands
//! there was never confirmed, as far as can be told.
//!
//! A repair keeps the sequences of what is whole, so whatever counts by them goes on. In the place of lost records there are records
//! of the caller's choosing, one for each.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use serde::Serialize;

use super::{
    Kind, Record,
    files::{Disk, File, Files},
    format::{self, BadHead, HEAD_BYTES, Head},
    reader::Reader,
    recovery::{Found, locked},
    segments::{segment_path, sidecar_path},
    sidecar,
    survey::survey,
};
use crate::{Error, ErrorKind, Result};

/// Records that one segment made of nothing but replacements has at most.
const REPLACEMENTS_PER_SEGMENT: u64 = 1_000_000;
/// How much is written at once.
const CHUNK: usize = 4 << 20;

/// A journal that nobody else can open while this is there.
pub struct Patient {
    dir: PathBuf,
    files: Disk,
    pub segments: Vec<SegmentFound>,
    _lock: Box<dyn Send + Sync>,
}

/// What was found of one segment.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentFound {
    /// Its file's name.
    pub file: String,
    pub first: u64,
    /// The last record that it has, or had; below `first` when it never had one.
    pub last: u64,
    pub bytes: u64,
    pub state: SegmentState,
    pub sidecar: SidecarState,
    /// What of it is whole, in order.
    #[serde(skip)]
    whole: Vec<Stretch>,
    /// What of it cannot be read, in order.
    pub lost: Vec<Loss>,
    /// Drawn when the file became a segment.
    #[serde(skip)]
    salt: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentState {
    Whole,
    /// Its end holds something that was never confirmed: the next start cuts it.
    Torn,
    Damaged,
    /// Its file is not there.
    Missing,
}

/// What can be made anew at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SidecarState {
    Whole,
    Missing,
    Damaged,
}

/// Records that stand next to each other.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    first: u64,
    last: u64,
    at: u32,
}

/// Records that are gone, and where in the file they stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Loss {
    pub first: u64,
    pub last: u64,
    pub from_byte: u32,
    pub to_byte: u32,
}

impl Patient {
    /// Locks a journal's directory and reads everything in it; `visit` gets every record that is whole. `Unavailable` when a process
    /// has it open; `Unsupported` when a newer version wrote it. Changes nothing. Blocking.
    pub fn examine(dir: &Path, visit: &mut dyn FnMut(&Record)) -> Result<Self> {
        let files = Disk;
        let lock = files.lock(&dir.join("lock")).map_err(|error| locked(&files, dir, error))?;
        let found = Found::list(&files, dir).map_err(|error| failed(dir, error))?;
        let mut patient = Self { dir: dir.to_owned(), files, segments: Vec::new(), _lock: lock };
        for (place, first) in found.firsts.iter().copied().enumerate() {
            patient.note_missing(first);
            let segment = patient.read_segment(first, found.firsts.get(place + 1).copied(), visit)?;
            patient.segments.push(segment);
        }
        Ok(patient)
    }

    /// The oldest record that there is, or would come next.
    pub fn oldest(&self) -> u64 {
        self.segments.first().map_or(1, |segment| segment.first)
    }

    /// The last record that there is, or was.
    pub fn last(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.last)
    }

    pub fn losses(&self) -> impl Iterator<Item = Loss> {
        self.segments.iter().flat_map(|segment| segment.lost.iter().copied())
    }

    /// Visits every record that is whole once more. Blocking.
    pub fn visit(&self, visit: &mut dyn FnMut(&Record)) -> Result<()> {
        for segment in self.segments.iter().filter(|segment| !segment.whole.is_empty()) {
            let path = segment_path(&self.dir, segment.first);
            let file = self.files.open(&path).map_err(|error| failed(&path, error))?;
            for stretch in &segment.whole {
                segment.read_stretch(&*file, *stretch, &mut |record| {
                    visit(&record);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// The records between the last segment and this one.
    fn note_missing(&mut self, first: u64) {
        let Some(last) = self.segments.last().map(|segment| segment.last) else { return };
        if last + 1 < first {
            let loss = Loss { first: last + 1, last: first - 1, from_byte: 0, to_byte: 0 };
            self.segments.push(SegmentFound::missing(loss));
        }
    }

    fn read_segment(&self, first: u64, next: Option<u64>, visit: &mut dyn FnMut(&Record)) -> Result<SegmentFound> {
        let path = segment_path(&self.dir, first);
        let failed = |error| failed(&path, error);
        let file = self.files.open(&path).map_err(failed)?;
        let bytes = file.length().map_err(failed)?;
        let (sidecar, sealed_last) = self.read_sidecar(first, bytes).map_err(failed)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (salt, lost) = (0, Vec::new());
        let state = SegmentState::Whole;
        let mut found =
            SegmentFound { file: name, first, last: first - 1, bytes, state, sidecar, whole: Vec::new(), lost, salt };
        // Its own sidecar says how many records it had; so does what comes after it.
        let end = sealed_last.into_iter().chain(next.map(|next| next - 1)).min();
        match self.read_head(first, &*file)? {
            (Some(head), is_sound) => {
                found.salt = head.salt;
                found.read_records(&*file, head, end, visit)?;
                if !is_sound {
                    found.state = SegmentState::Damaged;
                }
            }
            (None, _) => {
                found.state = SegmentState::Damaged;
                found.lose(end.unwrap_or(first - 1), 0, u32::try_from(bytes).unwrap_or(u32::MAX));
            }
        }
        Ok(found)
    }

    /// The head of a segment, and whether it is sound. Of one that is not, what matters may be there all the same: the first record
    /// tells.
    fn read_head(&self, first: u64, file: &dyn File) -> Result<(Option<Head>, bool)> {
        let path = segment_path(&self.dir, first);
        let mut bytes = [0; format::HEAD_USED_BYTES];
        let n_read = file.read_at(&mut bytes, 0).map_err(|error| failed(&path, error))?;
        match Head::decode(&bytes[..n_read]) {
            Ok(head) if head.first == first => Ok((Some(head), true)),
            Err(BadHead::Newer(format)) => {
                let message =
                    format!("{} has format {format}, written by a newer version: use that one", path.display());
                Err(Error::new(ErrorKind::Unsupported, "examine journal", message))
            }
            Ok(_) | Err(BadHead::Damaged) => {
                let guessed = Head { first, salt: format::salt_in(&bytes) };
                let is_right = Reader::new(file, guessed, u32::MAX).next()?.is_some();
                Ok((is_right.then_some(guessed), false))
            }
        }
    }

    fn read_sidecar(&self, first: u64, bytes: u64) -> io::Result<(SidecarState, Option<u64>)> {
        let path = sidecar_path(&self.dir, first);
        let sealed = sidecar::sealed(&self.files, &path)?.filter(|sealed| sealed.first == first);
        let is_whole = sidecar::index(&self.files, &path)?.is_some();
        let state = match (&sealed, is_whole) {
            (Some(sealed), true) if u64::from(sealed.length) <= bytes => SidecarState::Whole,
            _ if path.exists() => SidecarState::Damaged,
            _ => SidecarState::Missing,
        };
        Ok((state, sealed.map(|sealed| sealed.last)))
    }
}

impl SegmentFound {
    fn missing(loss: Loss) -> Self {
        let path = segment_path(Path::new(""), loss.first);
        Self {
            file: path.display().to_string(),
            first: loss.first,
            last: loss.last,
            bytes: 0,
            state: SegmentState::Missing,
            sidecar: SidecarState::Missing,
            whole: Vec::new(),
            lost: vec![loss],
            salt: 0,
        }
    }

    fn read_stretch(
        &self,
        file: &dyn File,
        stretch: Stretch,
        visit: &mut dyn FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        let head = Head { first: self.first, salt: self.salt };
        let length = u32::try_from(self.bytes).unwrap_or(u32::MAX);
        let mut reader = Reader::new(file, head, length).beginning_with(stretch.first, stretch.at);
        while reader.last() < stretch.last
            && let Some(record) = reader.next()?
        {
            visit(record)?;
        }
        Ok(())
    }

    fn lose(&mut self, last: u64, from_byte: u32, to_byte: u32) {
        if last > self.last {
            self.state = SegmentState::Damaged;
            self.lost.push(Loss { first: self.last + 1, last, from_byte, to_byte });
            self.last = last;
        }
    }

    /// Reads what is whole, and notes what is not. `end`: the last record that it is known to have had.
    fn read_records(
        &mut self,
        file: &dyn File,
        head: Head,
        end: Option<u64>,
        visit: &mut dyn FnMut(&Record),
    ) -> Result<()> {
        let length = u32::try_from(self.bytes).unwrap_or(u32::MAX);
        let mut at = HEAD_BYTES;
        loop {
            let mut reader = Reader::new(file, head, length).beginning_with(self.last + 1, at);
            while end.is_none_or(|end| reader.last() < end)
                && let Some(record) = reader.next()?
            {
                visit(&record);
            }
            if reader.last() > self.last {
                self.whole.push(Stretch { first: self.last + 1, last: reader.last(), at });
                self.last = reader.last();
            }
            if end == Some(self.last) {
                return Ok(());
            }
            at = reader.offset();
            let survey = survey(file, head, at, length, self.last + 1).map_err(|error| failed(&self.file, error))?;
            let is_torn = end.is_none() && survey.witness.is_none();
            let Some(resumes_at) = survey.resumes_at.filter(|_| !is_torn) else {
                match end {
                    Some(end) => self.lose(end, at, length),
                    None if survey.resumes_at.is_some() => self.state = SegmentState::Torn,
                    None => {}
                }
                return Ok(());
            };
            let next = sequence_at(file, resumes_at).map_err(|error| failed(&self.file, error))?;
            self.lose(next - 1, at, resumes_at);
            at = resumes_at;
        }
    }
}

fn sequence_at(file: &dyn File, at: u32) -> io::Result<u64> {
    let mut bytes = [0; format::RECORD_HEAD_BYTES];
    file.read_at(&mut bytes, u64::from(at))?;
    Ok(format::sequence_of(&bytes))
}

fn failed(what: impl AsRef<Path>, error: io::Error) -> Error {
    Error::io("examine journal", what.as_ref().display().to_string(), error)
}

/// What stands in the place of a lost record.
pub type Replacement = (Kind, Vec<u8>);

impl Patient {
    /// Writes what is damaged anew, and goes on to `upto` where the journal ends before it. What it replaces is kept in `aside`. Gives
    /// how many records have a replacement. Whole again afterwards, also when it is interrupted and begun again. Blocking.
    pub fn repair(&self, upto: u64, aside: &Path, replace: &mut dyn FnMut(u64) -> Replacement) -> Result<u64> {
        let mut n_replaced = 0;
        for segment in &self.segments {
            if matches!(segment.state, SegmentState::Damaged | SegmentState::Missing) {
                n_replaced += self.write_anew(segment, aside, replace)?;
            }
        }
        if upto > self.last() {
            // An empty journal begins behind what is known; one that has records has no hole.
            let first = if self.segments.is_empty() { upto } else { self.last() + 1 };
            let loss = Loss { first, last: upto, from_byte: 0, to_byte: 0 };
            n_replaced += self.write_anew(&SegmentFound::missing(loss), aside, replace)?;
        }
        Ok(n_replaced)
    }

    fn write_anew(
        &self,
        segment: &SegmentFound,
        aside: &Path,
        replace: &mut dyn FnMut(u64) -> Replacement,
    ) -> Result<u64> {
        let path = segment_path(&self.dir, segment.first);
        let old = match segment.state {
            SegmentState::Missing => None,
            _ => Some(self.files.open(&path).map_err(|error| failed(&path, error))?),
        };
        let mut writer = SegmentWriter::begin(self, segment.first)?;
        let mut n_replaced = 0;
        for part in segment.parts() {
            match part {
                Part::Whole(stretch) => {
                    let Some(old) = &old else { continue };
                    segment.read_stretch(&**old, stretch, &mut |record| {
                        writer.push(record.sequence, record.kind, &record.payload)
                    })?;
                }
                Part::Lost(loss) => {
                    for sequence in loss.first..=loss.last {
                        if segment.state == SegmentState::Missing && writer.n_records == REPLACEMENTS_PER_SEGMENT {
                            writer.finish(self, aside)?;
                            writer = SegmentWriter::begin(self, sequence)?;
                        }
                        let (kind, payload) = replace(sequence);
                        writer.push(sequence, kind, &Bytes::from(payload))?;
                        n_replaced += 1;
                    }
                }
            }
        }
        writer.finish(self, aside)?;
        Ok(n_replaced)
    }
}

enum Part {
    Whole(Stretch),
    Lost(Loss),
}

impl SegmentFound {
    /// All of it, in the order of the sequences.
    fn parts(&self) -> Vec<Part> {
        let whole = self.whole.iter().map(|stretch| (stretch.first, Part::Whole(*stretch)));
        let mut parts: Vec<_> = whole.chain(self.lost.iter().map(|loss| (loss.first, Part::Lost(*loss)))).collect();
        parts.sort_by_key(|(first, _)| *first);
        parts.into_iter().map(|(_, part)| part).collect()
    }
}

/// Writes one segment as a draft, and puts it in its place when it is durable.
struct SegmentWriter {
    first: u64,
    salt: u32,
    draft: PathBuf,
    file: Arc<dyn File>,
    at: u64,
    buffer: Vec<u8>,
    n_records: u64,
}

impl SegmentWriter {
    fn begin(patient: &Patient, first: u64) -> Result<Self> {
        let draft = segment_path(&patient.dir, first).with_extension("journal.tmp");
        let file = patient.files.create(&draft).map_err(|error| failed(&draft, error))?;
        let head = Head { first, salt: rand::random() };
        file.write_at(&head.encode(), 0).map_err(|error| failed(&draft, error))?;
        let at = u64::from(HEAD_BYTES);
        Ok(Self { first, salt: head.salt, draft, file, at, buffer: Vec::new(), n_records: 0 })
    }

    fn push(&mut self, sequence: u64, kind: Kind, payload: &Bytes) -> Result<()> {
        format::push_record(&mut self.buffer, sequence, kind, payload);
        self.n_records += 1;
        if self.buffer.len() >= CHUNK { self.write() } else { Ok(()) }
    }

    /// Nothing is said of what was durable before: a later segment, or the sidecar, attests to all of them.
    fn write(&mut self) -> Result<()> {
        format::seal_records(&mut self.buffer, 0, self.salt);
        self.file.write_at(&self.buffer, self.at).map_err(|error| failed(&self.draft, error))?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self, patient: &Patient, aside: &Path) -> Result<()> {
        self.write()?;
        let path = segment_path(&patient.dir, self.first);
        let placed = || -> io::Result<()> {
            self.file.sync()?;
            patient.files.create_dir(aside)?;
            for old in [path.clone(), sidecar_path(&patient.dir, self.first)] {
                if let Some(name) = old.file_name().filter(|_| old.exists()) {
                    let kept = aside.join(name);
                    // A link, so that there is the old one or the new one at any moment.
                    match std::fs::hard_link(&old, &kept) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => drop(std::fs::copy(&old, &kept)?),
                        _ => {}
                    }
                }
            }
            patient.files.sync_dir(aside)?;
            // It says what the old one held.
            match patient.files.remove(&sidecar_path(&patient.dir, self.first)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            patient.files.rename(&self.draft, &path)?;
            patient.files.sync_dir(&patient.dir)
        };
        placed().map_err(|error| failed(&path, error))
    }
}
