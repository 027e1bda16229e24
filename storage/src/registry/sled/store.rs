//! What the adapter asks of an ordered key-value store, and sled behind it. Another store is another [`Engine`].
//!
//! sled is used within what its reports and its source leave standing:
//! - one thread writes and calls the blocking flush; `flush_async` hangs with many callers;
//! - its flush ends before the disk has everything (`sync_file_range`), so the file is synced here as well;
//! - a page that is large goes to a file of its own that is never synced, and an error there hangs the next flush. So large
//!   values are cut into pieces and segments are large enough that no page gets there;
//! - no batches and transactions: they switch a lock on for every read;
//! - a panic in it is an error like any other.

use std::{
    collections::HashSet,
    fs::File,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::layer::Range;
use crate::{Error, ErrorKind, Result, registry::Kind};

/// Memory for pages, in bytes. What sled really uses is a multiple of it.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// A page may have a quarter of it. A page holds up to 17 records, or 257 keys.
const SEGMENT_BYTES: usize = 2 * 1024 * 1024;
/// Larger values are cut.
const PIECE_BYTES: usize = 16 * 1024;
/// How long a lock of the directory is waited for: sled gives its own back a little after it was dropped.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How often a value is looked for whose pieces were replaced meanwhile.
const RACES: usize = 100;

const META: &str = "meta";
const MARK: &str = "mark";
/// The pieces of large values: number of the value (u64), number of the piece (u32), both big endian.
const PIECES: &str = "pieces";
/// How a value begins: whole, or cut, with the number of its pieces' value after it.
const WHOLE: u8 = 0;
const CUT: u8 = 1;

/// Opens stores. `Corrupt` when what is there is damaged and another one has to be made; other errors may pass.
pub(super) trait Engine: Send + Sync {
    fn open(&self, dir: &Path) -> Result<Box<dyn Store>>;
}

/// An ordered store with a space of keys for each kind. One thread writes, any thread reads. What was written is durable
/// after a `flush`; after a crash, a beginning of what was written later may be there.
pub(super) trait Store: Send + Sync {
    fn get(&self, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>>;

    fn put(&self, kind: Kind, key: &[u8], value: &[u8]) -> Result<()>;

    fn delete(&self, kind: Kind, key: &[u8]) -> Result<()>;

    /// Visits the entries of a range in the order of their keys, until the visitor breaks off.
    fn scan(&self, kind: Kind, range: &Range, visit: &mut Visitor<'_>) -> Result<()>;

    /// A value of its own beside the records.
    fn mark(&self) -> Result<Option<Vec<u8>>>;

    fn set_mark(&self, mark: &[u8]) -> Result<()>;

    fn flush(&self) -> Result<()>;

    fn size_on_disk(&self) -> Result<u64>;
}

pub(super) type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>> + 'a;

pub(super) struct Sled;

impl Engine for Sled {
    fn open(&self, dir: &Path) -> Result<Box<dyn Store>> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match guard("open registry", || SledStore::open(dir)) {
                Ok(store) => return Ok(Box::new(store)),
                Err(error) if error.kind == ErrorKind::Unavailable && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

struct SledStore {
    db: sled::Db,
    /// sled's file, to sync it.
    file: File,
    meta: sled::Tree,
    pieces: sled::Tree,
    /// By kind.
    trees: Vec<sled::Tree>,
    next_number: AtomicU64,
}

impl SledStore {
    fn open(dir: &Path) -> sled::Result<Self> {
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).mode(sled::Mode::LowSpace);
        let db = config.segment_size(SEGMENT_BYTES).flush_every_ms(None).open()?;
        let file = File::open(dir.join("db"))?;
        let (meta, pieces) = (db.open_tree(META)?, db.open_tree(PIECES)?);
        let trees = Kind::ALL.iter().map(|kind| db.open_tree(kind.name())).collect::<sled::Result<_>>()?;
        let last = pieces.last()?.and_then(|(key, _)| piece_number(&key)).unwrap_or(0);
        let store = Self { db, file, meta, pieces, trees, next_number: AtomicU64::new(last + 1) };
        store.remove_orphans()?;
        Ok(store)
    }

    /// Removes pieces that no value stands for: a crash came between.
    fn remove_orphans(&self) -> sled::Result<()> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let mut known = HashSet::new();
        for entry in self.trees.iter().flat_map(sled::Tree::iter) {
            known.extend(cut_number(&entry?.1));
        }
        for key in self.pieces.iter().keys() {
            let key = key?;
            if !piece_number(&key).is_some_and(|number| known.contains(&number)) {
                self.pieces.remove(key)?;
            }
        }
        Ok(())
    }

    fn read(&self, kind: Kind, key: &[u8]) -> sled::Result<Option<Vec<u8>>> {
        for _ in 0..RACES {
            let Some(stored) = self.trees[kind as usize].get(key)? else { return Ok(None) };
            if let Some(value) = self.assemble(&stored)? {
                return Ok(Some(value));
            }
        }
        Err(damage("pieces of a value are missing"))
    }

    /// The value, unless its pieces were removed meanwhile because there is another one now.
    fn assemble(&self, stored: &[u8]) -> sled::Result<Option<Vec<u8>>> {
        match (stored.split_first(), cut_number(stored)) {
            (Some((&WHOLE, value)), _) => Ok(Some(value.to_vec())),
            (Some((&CUT, rest)), Some(number)) => {
                let length = rest.get(8..).and_then(|length| length.try_into().ok()).map_or(0, u64::from_be_bytes);
                let mut value = Vec::new();
                for piece in self.pieces.scan_prefix(number.to_be_bytes()).values() {
                    value.extend_from_slice(&piece?);
                }
                Ok((value.len() as u64 == length).then_some(value))
            }
            _ => Err(damage("a value that is neither whole nor cut")),
        }
    }

    fn write(&self, kind: Kind, key: &[u8], value: &[u8]) -> sled::Result<()> {
        let stored = if value.len() <= PIECE_BYTES {
            [&[WHOLE], value].concat()
        } else {
            let number = self.next_number.fetch_add(1, Ordering::Relaxed);
            for (index, piece) in value.chunks(PIECE_BYTES).enumerate() {
                let key = [&number.to_be_bytes()[..], &(index as u32).to_be_bytes()].concat();
                self.pieces.insert(key, piece)?;
            }
            [&[CUT][..], &number.to_be_bytes(), &(value.len() as u64).to_be_bytes()].concat()
        };
        let before = self.trees[kind as usize].insert(key, stored)?;
        self.remove_pieces(before)
    }

    fn remove_pieces(&self, before: Option<sled::IVec>) -> sled::Result<()> {
        let Some(number) = before.and_then(|before| cut_number(&before)) else { return Ok(()) };
        for key in self.pieces.scan_prefix(number.to_be_bytes()).keys() {
            self.pieces.remove(key?)?;
        }
        Ok(())
    }
}

impl Store for SledStore {
    fn get(&self, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>> {
        guard("read registry", || self.read(kind, key))
    }

    fn put(&self, kind: Kind, key: &[u8], value: &[u8]) -> Result<()> {
        guard("write registry", || self.write(kind, key, value))
    }

    fn delete(&self, kind: Kind, key: &[u8]) -> Result<()> {
        guard("write registry", || {
            let before = self.trees[kind as usize].remove(key)?;
            self.remove_pieces(before)
        })
    }

    fn scan(&self, kind: Kind, range: &Range, visit: &mut Visitor<'_>) -> Result<()> {
        let mut outcome = Ok(());
        guard("list registry", || {
            for entry in self.trees[kind as usize].range::<&[u8], _>(range.bounds()) {
                let (key, stored) = entry?;
                if !range.covers(&key) {
                    break;
                }
                let visited = match stored.split_first() {
                    Some((&WHOLE, value)) => visit(&key, value),
                    // Looked up anew, for the case that it is replaced meanwhile.
                    _ => match self.read(kind, &key)? {
                        Some(value) => visit(&key, &value),
                        None => continue,
                    },
                };
                match visited {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => break,
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
            }
            Ok(())
        })?;
        outcome
    }

    fn mark(&self) -> Result<Option<Vec<u8>>> {
        guard("read registry", || Ok(self.meta.get(MARK)?.map(|mark| mark.to_vec())))
    }

    fn set_mark(&self, mark: &[u8]) -> Result<()> {
        guard("write registry", || self.meta.insert(MARK, mark).map(drop))
    }

    fn flush(&self) -> Result<()> {
        guard("flush registry", || {
            self.db.flush()?;
            Ok(self.file.sync_all()?)
        })
    }

    fn size_on_disk(&self) -> Result<u64> {
        guard("measure registry", || self.db.size_on_disk())
    }
}

fn cut_number(stored: &[u8]) -> Option<u64> {
    let (&CUT, rest) = stored.split_first()? else { return None };
    rest.first_chunk().map(|number| u64::from_be_bytes(*number))
}

fn piece_number(key: &[u8]) -> Option<u64> {
    key.first_chunk().map(|number| u64::from_be_bytes(*number))
}

fn damage(what: &str) -> sled::Error {
    sled::Error::ReportableBug(what.to_owned())
}

/// Runs a call of sled; a panic in it is damage.
fn guard<T>(operation: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(outcome) => outcome.map_err(|error| to_error(operation, error)),
        Err(panic) => Err(Error::new(ErrorKind::Corrupt, operation, format!("sled panicked: {}", panic_text(&*panic)))),
    }
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

fn to_error(operation: &'static str, error: sled::Error) -> Error {
    use std::io::ErrorKind as Io;
    match error {
        // sled makes I/O errors of its own when it reads what it cannot make sense of; those of the system are no damage.
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            Error::new(ErrorKind::Unavailable, operation, "sled's directory is in use").with_source(error)
        }
        sled::Error::Io(error)
            if matches!(error.kind(), Io::UnexpectedEof | Io::InvalidData | Io::InvalidInput | Io::Other) =>
        {
            Error::new(ErrorKind::Corrupt, operation, "sled").with_source(error)
        }
        sled::Error::Io(error) => Error::io(operation, "sled", error),
        error => Error::new(ErrorKind::Corrupt, operation, "sled").with_source(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that another test starts has a copy of the lock until it runs its program: that is waited for.
    fn reopened(dir: &Path) -> SledStore {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            match SledStore::open(dir) {
                Err(sled::Error::Io(error))
                    if error.to_string().contains("could not acquire lock") && std::time::Instant::now() < until =>
                {
                    std::thread::yield_now();
                }
                opened => return opened.unwrap(),
            }
        }
    }

    fn sizes(dir: &Path) -> (usize, usize) {
        let store = reopened(dir);
        (store.trees[Kind::User as usize].len(), store.pieces.len())
    }

    #[test]
    fn large_values_are_cut_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let lengths = [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 4_000_000];
        {
            let store = Sled.open(dir.path()).unwrap();
            for (round, length) in lengths.into_iter().cycle().take(20).enumerate() {
                let value = vec![round as u8; length];
                store.put(Kind::User, b"one", &value).unwrap();
                store.put(Kind::User, format!("{length}").as_bytes(), &value).unwrap();
                assert!(store.get(Kind::User, b"one").unwrap() == Some(value), "{length} bytes");
            }
            let mut seen = 0;
            store
                .scan(Kind::User, &Range::ALL, &mut |key, value| {
                    seen += usize::from(std::str::from_utf8(key).unwrap().parse() == Ok(value.len()));
                    Ok(ControlFlow::Continue(()))
                })
                .unwrap();
            assert_eq!(seen, lengths.len());
            store.flush().unwrap();
        }
        let blobs = std::fs::read_dir(dir.path().join("blobs")).unwrap().count();
        assert_eq!(blobs, 0, "sled has no files that nobody syncs");
        let pieces: usize =
            lengths.into_iter().filter(|length| *length > PIECE_BYTES).map(|length| length.div_ceil(PIECE_BYTES)).sum();
        assert_eq!(sizes(dir.path()), (lengths.len() + 1, pieces), "the last value of `one` is whole");
    }

    #[test]
    fn pieces_without_a_value_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = SledStore::open(dir.path()).unwrap();
            store.put(Kind::User, b"kept", &vec![1; PIECE_BYTES + 1]).unwrap();
            store.put(Kind::User, b"removed", &vec![1; PIECE_BYTES + 1]).unwrap();
            store.delete(Kind::User, b"removed").unwrap();
            assert_eq!(store.pieces.len(), 2);
            store.put(Kind::User, b"lost", &vec![1; PIECE_BYTES + 1]).unwrap();
            store.trees[Kind::User as usize].remove(b"lost").unwrap();
            store.flush().unwrap();
        }
        assert_eq!(sizes(dir.path()), (1, 2));
    }

    #[test]
    fn readers_never_see_a_value_half_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        store.put(Kind::User, b"a", &vec![0; PIECE_BYTES * 3]).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..200_u8 {
                    store.put(Kind::User, b"a", &vec![round; PIECE_BYTES * usize::from(1 + round % 4)]).unwrap();
                }
            });
            while !writer.is_finished() {
                let value = store.get(Kind::User, b"a").unwrap().unwrap();
                assert!(value.iter().all(|byte| *byte == value[0]));
            }
        });
    }

    #[test]
    fn a_directory_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = SledStore::open(dir.path()).unwrap();
        let error = guard("open registry", || SledStore::open(dir.path())).map(drop).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        drop(first);
        Sled.open(dir.path()).map(drop).unwrap();
    }

    #[test]
    fn a_panic_is_damage() {
        let error = guard::<()>("test", || panic!("like {}", "this")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt);
        assert!(error.message.contains("like this"), "{error}");
    }
}
