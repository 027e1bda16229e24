//! The registry in sled, behind the journal.
//!
//! Rules:
//! - A call is one record of the journal. Its sequence is the revision of what it writes. It is shown to readers, feeds and
//!   refused writers when the journal has it on disk, not before.
//! - sled gets the records later, from one thread ([`keeper`]), which also flushes it, marks how far in the journal it has
//!   come, and writes the export ([`export`]). It is a place to read from and can be made again at any time: from the export
//!   and the journal ([`recovery`]). So a part of the journal is needed until both the mark and the export have passed it.
//! - Volatile kinds live in memory only.
//!
//! The directory: `sled/` the store, `export.jsonl` the export, `sled.damaged-…` stores that could not be read, kept for a
//! look. Only its owner may enter it.
//!
//! Locks, in this order: `writers` (conditions and journal order), `gate` (a list sees the store stand still), `state`, `store`.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use tokio::{sync::watch, time::Instant};
use tracing::error;

use self::{
    codec::{Change, encode_call, record_key, record_value, store_key},
    feed::{Inbox, SledFeed},
    keeper::{Desk, Keeper},
    layer::{Range, Slot},
    state::{State, StoredChange},
    store::{Engine, Sled, Store},
};
use super::{Expect, Feed, Key, Kind, Record, Registry, Write, check_call, leases::Leases};
use crate::{
    Error, ErrorKind, Result,
    journal::{self, Journal},
    model::AppId,
};

mod codec;
pub mod doctor;
mod export;
mod feed;
mod keeper;
mod layer;
mod recovery;
mod state;
mod store;
#[cfg(test)]
mod tests;

/// Lists of up to this many records are read where they are asked for; larger ones on a thread for blocking work.
const SHORT_LIST: usize = 200;
/// How often a call that waits for room looks again.
const ROOM_EVERY: Duration = Duration::from_millis(5);

/// The embedded registry of one directory.
pub struct SledRegistry {
    shared: Arc<Shared>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    leases: Leases,
}

/// What the embedded registry stands on, and its measures.
#[derive(Clone)]
struct Options {
    dir: PathBuf,
    engine: Arc<dyn Engine>,
    /// How long writes are gathered for the store.
    gather: Duration,
    /// How often the mark and the age of the export are looked at when nothing is written.
    look_every: Duration,
    /// Most bytes that wait for the store. A call waits for room, `patience` long, then it is `Full`.
    pending_bytes: usize,
    patience: Duration,
    /// A store that works on one thing for so long hangs (what it has to do at a time takes seconds at most).
    hangs_after: Duration,
    /// An export is written when the last one is this old, or this many bytes of the journal behind.
    export_every: Duration,
    export_after_bytes: u64,
}

impl Options {
    fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            engine: Arc::new(Sled),
            gather: Duration::from_millis(200),
            look_every: Duration::from_secs(10),
            pending_bytes: 32 * 1024 * 1024,
            patience: Duration::from_secs(5),
            hangs_after: Duration::from_secs(60),
            export_every: Duration::from_secs(3600),
            export_after_bytes: 256 * 1024 * 1024,
        }
    }
}

/// What the handle, the feeds and the keeper share.
struct Shared {
    options: Options,
    journal: Journal,
    writers: Mutex<()>,
    state: RwLock<State>,
    /// The sequence of the oldest call that is not settled, `u64::MAX` for none.
    next_unsettled: AtomicU64,
    /// Held by the keeper while it changes the store, and by lists.
    gate: RwLock<()>,
    /// None while it is being made again, and after the end.
    store: RwLock<Option<Box<dyn Store>>>,
    /// The store holds everything up to here.
    marked: AtomicU64,
    /// The export is good for replaying from here.
    exported: AtomicU64,
    /// Counts what the keeper has taken off the memory: wakes calls that wait for room.
    room: watch::Sender<u64>,
    closed: AtomicBool,
    desk: Desk,
    failure: watch::Sender<Option<Arc<Error>>>,
}

/// What became of a call at the journal.
enum Begun {
    /// It will be durable with this sequence.
    Appended(u64),
    /// A condition does not hold, which may be told once this sequence is durable.
    Refused { conflict: Error, upto: u64 },
    /// There is no room now, in memory or in the journal.
    Full(Error),
}

impl SledRegistry {
    /// Opens or makes the registry of a directory: loads the store, makes it anew from the export when it is damaged, and
    /// takes in what the journal has above it. Blocking.
    ///
    /// `Corrupt` when neither the store nor the export reaches the journal: then records would be missing.
    pub fn open(dir: &Path, journal: Journal) -> Result<Self> {
        Self::open_with(Options::new(dir), journal)
    }

    fn open_with(options: Options, journal: Journal) -> Result<Self> {
        let site =
            recovery::Site { dir: options.dir.clone(), engine: options.engine.clone(), journal: journal.clone() };
        let restored = recovery::open(&site)?;
        let shared = Arc::new(Shared {
            options,
            journal,
            writers: Mutex::default(),
            state: RwLock::default(),
            next_unsettled: AtomicU64::new(u64::MAX),
            gate: RwLock::default(),
            store: RwLock::new(Some(restored.store)),
            marked: AtomicU64::new(restored.mark),
            exported: AtomicU64::new(restored.export.sequence),
            room: watch::Sender::new(0),
            closed: AtomicBool::new(false),
            desk: Desk::default(),
            failure: watch::Sender::new(None),
        });
        let keeper = Keeper::new(shared.clone(), site, restored.export);
        let keeper = std::thread::Builder::new().name("registry".to_owned()).spawn(move || keeper.run());
        let keeper = keeper.map_err(|error| Error::io("open registry", "its thread", error))?;
        Ok(Self { shared, keeper: Mutex::new(Some(keeper)), leases: Leases::default() })
    }

    /// Everything up to this sequence of the journal is in the store and behind the export: the registry needs no record at
    /// or below it any more.
    pub fn flushed(&self) -> u64 {
        self.shared.look_after_keeper();
        self.shared.marked.load(Ordering::Acquire).min(self.shared.exported.load(Ordering::Acquire))
    }

    /// Writes an export now. Gives the sequence of the journal that it is good for: at least the last one that was durable at
    /// the time of the call.
    pub async fn export(&self) -> Result<u64> {
        self.shared.check_open()?;
        self.shared.desk.export().await
    }

    /// The newest export, open for reading: the sequence of the journal that it is good for, and its length.
    pub(crate) fn open_export(&self) -> Result<(std::fs::File, u64, u64)> {
        export::open(&self.shared.options.dir)
    }

    /// Takes everything durable into the store, writes an export when something changed since the last, and ends. Calls that
    /// come later are `Unavailable`; feeds end. The journal has to be open until this returns.
    pub async fn close(&self) -> Result<()> {
        {
            let _order = self.shared.writers.lock();
            if self.shared.closed.swap(true, Ordering::AcqRel) {
                return Ok(());
            }
        }
        let hangs = |_| Error::new(ErrorKind::Timeout, "close registry", "its store does not answer");
        let closing = tokio::time::timeout(self.shared.options.hangs_after, self.shared.desk.close());
        let outcome = closing.await.map_err(hangs).flatten();
        self.end_keeper();
        outcome
    }

    /// Waits until the registry has failed for good: its store hangs, or can neither be read nor made again. The process has
    /// to stop.
    pub async fn failed(&self) -> Error {
        let mut failure = self.shared.failure.subscribe();
        match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
            Ok(Some(error)) => Error::new(error.kind, error.operation, error.message.clone()),
            _ => std::future::pending().await,
        }
    }

    fn end_keeper(&self) {
        self.shared.state.read().inboxes.close();
        let Some(keeper) = self.keeper.lock().take() else { return };
        if self.shared.desk.end(self.shared.options.patience) {
            // It catches its own panics and has told of them.
            drop(keeper.join());
        } else {
            error!("the store of the registry does not come to an end, it is left to itself");
        }
    }
}

impl Drop for SledRegistry {
    /// Without a `close` before it this is as good as a crash: the next open replays the journal.
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.end_keeper();
    }
}

#[async_trait]
impl Registry for SledRegistry {
    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        self.shared.get(key)
    }

    async fn list(
        &self,
        kind: Kind,
        app: Option<&AppId>,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        let range = Range { prefix: store_key(app, prefix), after: after.map(|after| store_key(app, after)) };
        if limit <= SHORT_LIST {
            return self.shared.list(kind, &range, limit);
        }
        let shared = self.shared.clone();
        let listing = tokio::task::spawn_blocking(move || shared.list(kind, &range, limit));
        listing.await.map_err(|error| Error::new(ErrorKind::Internal, "list records", error.to_string()))?
    }

    async fn write(&self, writes: Vec<Write>) -> Result<()> {
        let volatile = check_call(&writes)?;
        if writes.is_empty() {
            return Ok(());
        }
        if volatile {
            return self.shared.write_volatile(writes);
        }
        match self.shared.begin_with_room(&writes).await? {
            Begun::Appended(sequence) => self.shared.durable(sequence).await,
            Begun::Refused { conflict, upto } => self.shared.durable(upto).await.and(Err(conflict)),
            Begun::Full(error) => Err(error),
        }
    }

    async fn feed(&self, kinds: &[Kind]) -> Result<Box<dyn Feed>> {
        self.shared.check_open()?;
        self.shared.settle();
        let inbox = Arc::new(Inbox::new(kinds));
        self.shared.state.write().inboxes.add(&inbox);
        Ok(Box::new(SledFeed { shared: self.shared.clone(), inbox }))
    }

    async fn hold(&self, name: &str, holder: &str, ttl: Duration) -> Result<bool> {
        self.shared.check_open()?;
        Ok(self.leases.hold(name, holder, ttl))
    }

    async fn release(&self, name: &str, holder: &str) -> Result<()> {
        self.leases.release(name, holder);
        Ok(())
    }
}

impl Shared {
    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, "use registry", "the registry is closed"));
        }
        Ok(())
    }

    fn get(&self, key: &Key) -> Result<Option<Record>> {
        self.check_open()?;
        self.settle();
        let stored = store_key(key.app.as_ref(), &key.id);
        if key.kind.is_volatile() {
            let slot = self.state.read().volatile.get(key.kind, &stored).cloned();
            return Ok(slot.and_then(|slot| as_record(key.clone(), slot)));
        }
        let in_memory = self.state.read().visible(key.kind, &stored).cloned();
        let slot = match in_memory {
            Some(slot) => Some(slot),
            None => self.in_store(key.kind, &stored)?,
        };
        Ok(slot.and_then(|slot| as_record(key.clone(), slot)))
    }

    fn list(&self, kind: Kind, range: &Range, limit: usize) -> Result<Vec<Record>> {
        self.check_open()?;
        self.settle();
        if kind.is_volatile() {
            let state = self.state.read();
            let entries = state.volatile.range(kind, range).take(limit);
            return entries.filter_map(|(key, slot)| stored_record(kind, key, slot.clone()).transpose()).collect();
        }
        // While the gate is held the store does not change, so the two make one picture.
        let _gate = self.gate.read();
        let over = self.state.read().visible_range(kind, range, limit);
        self.with_store(|store| merge_with_store(store, kind, range, over, limit))
    }

    fn in_store(&self, kind: Kind, key: &[u8]) -> Result<Option<Slot>> {
        self.with_store(|store| store.get(kind, key)?.map(|value| record_value(&value)).transpose())
    }

    /// Reads from the store. When that fails the keeper makes it anew.
    fn with_store<T>(&self, read: impl FnOnce(&dyn Store) -> Result<T>) -> Result<T> {
        let outcome = match &*self.store.read() {
            Some(store) => read(&**store),
            None => {
                let message = "the registry's store is being made again";
                return Err(Error::new(ErrorKind::Unavailable, "read registry", message));
            }
        };
        outcome.inspect_err(|_| self.desk.suspect())
    }

    fn look_after_keeper(&self) {
        if self.desk.busy_for() > self.options.hangs_after {
            self.fail(Error::new(ErrorKind::Internal, "keep registry", "its store hangs"));
        }
    }

    fn fail(&self, error: Error) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| Arc::new(error));
            first
        });
    }

    /// Shows what has become durable.
    fn settle(&self) {
        if self.next_unsettled.load(Ordering::Acquire) == u64::MAX {
            return;
        }
        let durable = self.journal.durable_upto();
        if self.next_unsettled.load(Ordering::Acquire) <= durable {
            let mut state = self.state.write();
            state.settle(durable);
            self.next_unsettled.store(state.next_unsettled().unwrap_or(u64::MAX), Ordering::Release);
        }
    }

    async fn durable(&self, sequence: u64) -> Result<()> {
        self.journal.durable(sequence).await?;
        self.settle();
        Ok(())
    }

    /// Waits for room as long as it is worth it.
    async fn begin_with_room(&self, writes: &[Write]) -> Result<Begun> {
        let deadline = Instant::now() + self.options.patience;
        let mut room = self.room.subscribe();
        loop {
            room.mark_unchanged();
            let error = match self.begin(writes)? {
                Begun::Full(error) => error,
                begun => return Ok(begun),
            };
            self.desk.hurry();
            // The journal does not tell when it has room again, so it is asked.
            let again = deadline.min(Instant::now() + ROOM_EVERY);
            if tokio::time::timeout_at(again, room.changed()).await.is_err() && Instant::now() >= deadline {
                self.look_after_keeper();
                return Ok(Begun::Full(error));
            }
        }
    }

    /// Judges a call and appends it to the journal.
    fn begin(&self, writes: &[Write]) -> Result<Begun> {
        let _order = self.writers.lock();
        self.check_open()?;
        if self.state.read().pending_bytes() > self.options.pending_bytes {
            let message = "too much waits for the registry's store";
            return Ok(Begun::Full(Error::new(ErrorKind::Full, "write records", message)));
        }
        let mut changes = Vec::with_capacity(writes.len());
        for Write { key, value, expect } in writes {
            let stored = store_key(key.app.as_ref(), &key.id);
            if *expect != Expect::Anything {
                let latest = self.state.read().latest(key.kind, &stored).cloned();
                let slot = if latest.is_some() { latest } else { self.in_store(key.kind, &stored)? };
                if let Some(conflict) = conflict(key, *expect, slot.as_ref()) {
                    return Ok(Begun::Refused { conflict, upto: slot.map_or(0, |slot| slot.revision) });
                }
            }
            changes.push(StoredChange { key: stored, change: Change { key: key.clone(), value: value.clone() } });
        }
        match self.append(changes) {
            Err(error) if error.kind == ErrorKind::Full => Ok(Begun::Full(error)),
            outcome => outcome.map(Begun::Appended),
        }
    }

    /// Appends a call to the journal, under the lock of the writers.
    fn append(&self, changes: Vec<StoredChange>) -> Result<u64> {
        let payload = encode_call(changes.iter().map(|stored| &stored.change));
        let appended = self.journal.append(vec![(journal::Kind::Registry, payload)])?;
        let Some(sequence) = appended.first().map(|appended| appended.sequence) else {
            return Err(Error::new(ErrorKind::Internal, "write records", "the journal gave no sequence"));
        };
        let mut state = self.state.write();
        let was_dirty = state.is_dirty();
        state.append(sequence, changes);
        self.next_unsettled.fetch_min(sequence, Ordering::AcqRel);
        let much = state.pending_bytes() > self.options.pending_bytes / 2;
        drop(state);
        if much {
            self.desk.hurry();
        } else if !was_dirty {
            self.desk.work_came();
        }
        Ok(sequence)
    }

    fn write_volatile(&self, writes: Vec<Write>) -> Result<()> {
        self.check_open()?;
        self.settle();
        let mut state = self.state.write();
        let mut changes = Vec::with_capacity(writes.len());
        for Write { key, value, expect } in writes {
            let stored = store_key(key.app.as_ref(), &key.id);
            if let Some(conflict) = conflict(&key, expect, state.volatile.get(key.kind, &stored)) {
                return Err(conflict);
            }
            changes.push(StoredChange { key: stored, change: Change { key, value } });
        }
        state.write_volatile(changes);
        Ok(())
    }
}

fn conflict(key: &Key, expect: Expect, found: Option<&Slot>) -> Option<Error> {
    let there = found.filter(|slot| slot.value.is_some()).map(|slot| slot.revision);
    let message = match (expect, there) {
        (Expect::Anything, _) | (Expect::Absent, None) => return None,
        (Expect::Revision(expected), Some(revision)) if expected == revision => return None,
        (Expect::Absent, Some(_)) => "is there already",
        (Expect::Revision(_), Some(_)) => "was written meanwhile",
        (Expect::Revision(_), None) => "is gone",
    };
    Some(Error::new(ErrorKind::Conflict, "write records", format!("{} {} {message}", key.kind, key.id)))
}

fn as_record(key: Key, slot: Slot) -> Option<Record> {
    slot.value.map(|value| Record { key, value, revision: slot.revision })
}

fn stored_record(kind: Kind, key: &[u8], slot: Slot) -> Result<Option<Record>> {
    Ok(as_record(record_key(kind, key)?, slot))
}

/// The first records of a range: `over` lies over what the store has.
fn merge_with_store(
    store: &dyn Store,
    kind: Kind,
    range: &Range,
    over: Vec<(Vec<u8>, Slot)>,
    limit: usize,
) -> Result<Vec<Record>> {
    let mut found = Vec::new();
    if limit == 0 {
        return Ok(found);
    }
    let mut over = over.into_iter().peekable();
    store.scan(kind, range, &mut |key, value| {
        while let Some((earlier, slot)) = over.next_if(|(candidate, _)| candidate.as_slice() < key) {
            found.extend(stored_record(kind, &earlier, slot)?);
            if found.len() == limit {
                return Ok(ControlFlow::Break(()));
            }
        }
        let slot = match over.next_if(|(candidate, _)| candidate == key) {
            Some((_, slot)) => slot,
            None => record_value(value)?,
        };
        found.extend(stored_record(kind, key, slot)?);
        Ok(if found.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    for (key, slot) in over {
        if found.len() == limit {
            break;
        }
        found.extend(stored_record(kind, &key, slot)?);
    }
    Ok(found)
}
