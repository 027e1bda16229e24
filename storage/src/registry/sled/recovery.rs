//! Opening: the store as it was left, or made anew from the export, and then what the journal has above it.
//!
//! The store's mark says how far in the journal it has come; replaying more than needed does no harm, since every record of
//! the journal says what is there afterwards. A store without a mark is one that never got ready. A damaged one is moved
//! aside and kept. What may never happen is a hole: a mark (or an export) that lies below the oldest record that the journal
//! still holds, or above its end.

use std::{
    fs::{self, DirBuilder},
    io::ErrorKind as Io,
    ops::{AddAssign, ControlFlow},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tracing::{error, info};

use super::{
    codec::{check_entry, decode_call, record_key, record_value, store_key, store_value},
    export::{self, Summary, Writer},
    layer::{Layer, Range, Slot},
    store::{Engine, Store},
};
use crate::{
    Error, ErrorKind, Result,
    journal::{self, Journal},
    model::Timestamp,
    registry::Kind,
};

pub(super) const STORE: &str = "sled";
/// The store while it is being replaced by a smaller one.
const SHRINKING: &str = "sled.shrinking";
const MARK_FORMAT: u8 = 1;
/// A store is made anew when it takes this many times the space of its records …
const BLOATED: u64 = 20;
/// … and this many bytes.
const BLOATED_BYTES: u64 = 64 * 1024 * 1024;
/// Records of the journal are taken in by portions of about this many bytes.
const PORTION_BYTES: usize = 8 * 1024 * 1024;

/// Where a registry lives.
pub(super) struct Site {
    pub(super) dir: PathBuf,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) journal: Journal,
}

/// A store that holds everything up to its mark.
pub(super) struct Restored {
    pub(super) store: Box<dyn Store>,
    pub(super) mark: u64,
    /// About what it holds: what replaying the journal changed is not counted.
    pub(super) records: Content,
    /// The export, if there is a sound one.
    pub(super) export: Option<Summary>,
}

/// The store that was there.
struct Kept {
    store: Box<dyn Store>,
    mark: u64,
    records: Content,
}

/// A registry at its start.
pub(super) struct Opened {
    pub(super) store: Box<dyn Store>,
    pub(super) mark: u64,
    pub(super) export: Summary,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Content {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

impl AddAssign for Content {
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.bytes += other.bytes;
    }
}

/// Opens the store with everything that the journal has on disk, makes it small when it takes too much space, and sees to it
/// that there is an export.
pub(super) fn open(site: &Site) -> Result<Opened> {
    let upto = site.journal.durable_upto();
    let mut restored = restore(site, upto)?;
    if is_bloated(&restored)? {
        let export = export_now(site, &*restored.store, upto)?;
        restored = shrink(site, restored, export)?;
    }
    let export = match restored.export {
        Some(export) => export,
        None => export_now(site, &*restored.store, restored.mark)?,
    };
    info!(records = restored.records.records, mark = restored.mark, export = export.sequence, "the registry is open");
    Ok(Opened { store: restored.store, mark: restored.mark, export })
}

/// Opens the store with everything up to a sequence of the journal, or makes it anew.
pub(super) fn restore(site: &Site, upto: u64) -> Result<Restored> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&site.dir).map_err(|error| site.io_error("", error))?;
    export::remove_unfinished(&site.dir)?;
    let export = sound_export(site)?;
    let oldest = site.journal.segments().first().map_or(1, |segment| segment.first);
    let reaches = |sequence: u64| sequence + 1 >= oldest;

    let kept = match site.kept_store()? {
        // The export is newer than what was found: better than a hole.
        Some(Kept { mark, .. }) if !reaches(mark) && export.is_some_and(|export| reaches(export.sequence)) => {
            site.set_aside(&format!("its mark {mark} lies below the journal, which begins at {oldest}"))?;
            None
        }
        kept => kept,
    };
    let Kept { store, mark, records } = match kept {
        Some(kept) => kept,
        None => {
            let (store, mark) = new_store(&site.dir, &*site.engine, export)?;
            let records = content(&*store)?;
            Kept { store, mark, records }
        }
    };
    if !reaches(mark) {
        let message =
            format!("it has everything up to {mark}, but the journal begins at {oldest}: records are missing");
        return Err(site.corrupt(&message));
    }
    if mark > upto {
        let message =
            format!("it has everything up to {mark}, but the journal ends at {upto}: they do not belong together");
        return Err(site.corrupt(&message));
    }
    replay(site, &*store, mark, upto)?;
    Ok(Restored { store, mark: upto, records, export })
}

/// The export when it can be used. A damaged one is as good as none; one of a newer format is an error.
fn sound_export(site: &Site) -> Result<Option<Summary>> {
    match export::check(&site.dir) {
        Err(error) if error.kind == ErrorKind::Corrupt => {
            error!(%error, "the export of the registry is damaged, a new one will be written");
            Ok(None)
        }
        outcome => outcome,
    }
}

impl Site {
    /// The store that is there, with its mark and what it holds, unless it is damaged or was never ready: then it is moved aside.
    fn kept_store(&self) -> Result<Option<Kept>> {
        let dir = self.dir.join(STORE);
        if !dir.exists() {
            return Ok(None);
        }
        let opened = self.engine.open(&dir).and_then(|store| {
            let records = content(&*store)?;
            let mark = store.mark()?.map(|mark| decode_mark(&mark)).transpose()?;
            Ok((store, mark, records))
        });
        match opened {
            Ok((store, Some(mark), records)) => {
                self.remove_leftover()?;
                return Ok(Some(Kept { store, mark, records }));
            }
            Ok((store, None, _)) => {
                drop(store);
                self.set_aside("it has no mark: it lost everything, or never got ready")?;
            }
            Err(error) if error.kind == ErrorKind::Corrupt => self.set_aside(&error.to_string())?,
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// Moves the store aside, for a look later.
    fn set_aside(&self, reason: &str) -> Result<()> {
        let time = Timestamp::now().to_string().replace(':', "-");
        let kept_as = self.dir.join(format!("{STORE}.damaged-{time}"));
        fs::rename(self.dir.join(STORE), &kept_as).map_err(|error| self.io_error(STORE, error))?;
        export::sync_dir(&self.dir)?;
        error!(reason, kept_as = %kept_as.display(), "the store of the registry is damaged: it is made anew from the last export and the journal");
        Ok(())
    }

    fn remove_leftover(&self) -> Result<()> {
        match fs::remove_dir_all(self.dir.join(SHRINKING)) {
            Err(error) if error.kind() != Io::NotFound => Err(self.io_error(SHRINKING, error)),
            _ => Ok(()),
        }
    }

    fn io_error(&self, name: &str, error: std::io::Error) -> Error {
        Error::io("open registry", self.dir.join(name).display().to_string(), error)
    }

    fn corrupt(&self, message: &str) -> Error {
        let message = format!("{}: {message}; `nexxus doctor` explains what can be done", self.dir.display());
        Error::new(ErrorKind::Corrupt, "open registry", message)
    }
}

/// A new store with what the export of the directory has, or nothing; gives also how far in the journal it has come.
pub(super) fn new_store(dir: &Path, engine: &dyn Engine, export: Option<Summary>) -> Result<(Box<dyn Store>, u64)> {
    let store = engine.open(&dir.join(STORE))?;
    if export.is_some() {
        export::read(dir, &mut |key, slot| put(&*store, key.kind, &store_key(key.app.as_ref(), &key.id), &slot))?;
    }
    let mark = export.map_or(0, |export| export.sequence);
    finish(&*store, mark)?;
    export::sync_dir(dir)?;
    Ok((store, mark))
}

/// Takes in the records of the journal above `mark` up to `upto`.
fn replay(site: &Site, store: &dyn Store, mark: u64, upto: u64) -> Result<()> {
    if mark == upto {
        return Ok(());
    }
    let mut portion = Layer::default();
    site.journal.replay(mark + 1, &mut |record| {
        if record.kind != journal::Kind::Registry || record.sequence > upto {
            return Ok(());
        }
        for change in decode_call(record.payload)? {
            let key = store_key(change.key.app.as_ref(), &change.key.id);
            portion.put(change.key.kind, key, Slot { revision: record.sequence, value: change.value });
        }
        if portion.bytes() > PORTION_BYTES { take_in(store, &std::mem::take(&mut portion)) } else { Ok(()) }
    })?;
    take_in(store, &portion)?;
    finish(store, upto)
}

fn take_in(store: &dyn Store, layer: &Layer) -> Result<()> {
    layer.iter().try_for_each(|(kind, key, slot)| put(store, kind, key, slot))
}

pub(super) fn put(store: &dyn Store, kind: Kind, key: &[u8], slot: &Slot) -> Result<()> {
    match &slot.value {
        Some(value) => store.put(kind, key, &store_value(slot.revision, value)),
        None => store.delete(kind, key),
    }
}

/// Makes durable what was put, and says that it is everything up to `upto`.
pub(super) fn finish(store: &dyn Store, upto: u64) -> Result<()> {
    store.set_mark(&encode_mark(upto))?;
    store.flush()
}

fn encode_mark(sequence: u64) -> Vec<u8> {
    [&[MARK_FORMAT][..], &sequence.to_be_bytes()].concat()
}

pub(super) fn decode_mark(mark: &[u8]) -> Result<u64> {
    match mark {
        [MARK_FORMAT, sequence @ ..] if let Ok(sequence) = sequence.try_into() => Ok(u64::from_be_bytes(sequence)),
        [format, ..] if *format > MARK_FORMAT => {
            let message = format!("the store of the registry is of format {format}, this build reads {MARK_FORMAT}");
            Err(Error::new(ErrorKind::Unsupported, "open registry", message))
        }
        _ => Err(Error::new(ErrorKind::Corrupt, "open registry", "the mark of the store cannot be read")),
    }
}

/// Reads everything once: what cannot be read is found here. Two threads share the kinds: there may be millions of records.
pub(super) fn content(store: &dyn Store) -> Result<Content> {
    let next = AtomicUsize::new(0);
    let read = || {
        let mut read = Content::default();
        while let Some(kind) = Kind::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            read += content_of(store, *kind)?;
        }
        Ok(read)
    };
    std::thread::scope(|scope| {
        let other = std::thread::Builder::new().name("registry-reader".to_owned()).spawn_scoped(scope, read);
        let mut content = read()?;
        match other.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(read)) => content += read?,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            // There is no other thread: everything was read here.
            Err(_) => {}
        }
        Ok(content)
    })
}

fn content_of(store: &dyn Store, kind: Kind) -> Result<Content> {
    let mut content = Content::default();
    store.scan(kind, &Range::ALL, &mut |key, value| {
        check_entry(key, value)?;
        content.records += 1;
        content.bytes += (key.len() + value.len()) as u64;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(content)
}

/// Writes an export of a store that nobody changes meanwhile.
fn export_now(site: &Site, store: &dyn Store, sequence: u64) -> Result<Summary> {
    let mut writer = Writer::begin(&site.dir, sequence, Timestamp::now())?;
    for kind in Kind::ALL {
        store.scan(kind, &Range::ALL, &mut |key, value| {
            let slot = record_value(value)?;
            writer.record(&record_key(kind, key)?, slot.revision, slot.value.as_deref().unwrap_or_default())?;
            Ok(ControlFlow::Continue(()))
        })?;
    }
    writer.finish()
}

fn is_bloated(restored: &Restored) -> Result<bool> {
    let size = restored.store.size_on_disk()?;
    Ok(size > BLOATED_BYTES && size / BLOATED > restored.records.bytes)
}

/// Makes the store anew from an export that was just written.
fn shrink(site: &Site, restored: Restored, export: Summary) -> Result<Restored> {
    let before = restored.store.size_on_disk()?;
    drop(restored.store);
    let dir = site.dir.join(STORE);
    fs::rename(&dir, site.dir.join(SHRINKING)).map_err(|error| site.io_error(STORE, error))?;
    let (store, mark) = new_store(&site.dir, &*site.engine, Some(export))?;
    site.remove_leftover()?;
    info!(before, after = store.size_on_disk()?, "the store of the registry was made small");
    Ok(Restored { store, mark, records: restored.records, export: Some(export) })
}
