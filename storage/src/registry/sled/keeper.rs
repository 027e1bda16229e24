//! The keeper: the one thread that writes to the store.
//!
//! A turn: gather what has become durable, put it into the store, mark and flush it, take it off the memory; then write a
//! part of the export, if one is due. An export is written between turns, a portion at a time, from a store that goes on
//! changing: it is good from the mark at which it began, because replaying the journal from there is good over anything newer.
//!
//! When the store fails it is opened again, or made anew, for as long as it takes; what waits for it stays in memory.

use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tracing::{debug, error, info};

use super::{
    Options, Shared,
    codec::{record_key, record_value},
    export::{Summary, Writer},
    layer::{Range, Slot},
    recovery::{self, Site},
    state::Frozen,
    store::{Store, panic_text},
};
use crate::{
    Error, ErrorKind, Result,
    model::Timestamp,
    registry::{Key, Kind},
};

/// Records that are put into the store between two chances for a list.
const PORTION: usize = 64;
/// Records of an export that are written in one turn.
const EXPORT_PORTION: usize = 1_000;
/// An export is not written again before the journal has grown by this many times its size.
const EXPORT_WORTH: u64 = 8;
/// Between tries to open a store that failed: at first, at most.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
const EXPORT_RETRY: Duration = Duration::from_secs(60);

/// Where the keeper gets its orders.
#[derive(Default)]
pub(super) struct Desk {
    orders: Mutex<Orders>,
    wake: Condvar,
    left: Condvar,
    /// Since when the store works on one thing.
    busy: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Orders {
    /// Something waits for the store.
    work: bool,
    /// It should not wait any longer.
    hurry: bool,
    /// A reader found the store unreadable.
    suspect: bool,
    exports: Vec<oneshot::Sender<Result<u64>>>,
    close: Option<oneshot::Sender<Result<()>>>,
    end: bool,
    /// The keeper has gone.
    gone: bool,
}

impl Desk {
    pub(super) fn work_came(&self) {
        self.order(|orders| orders.work = true);
    }

    pub(super) fn hurry(&self) {
        self.order(|orders| orders.hurry = true);
    }

    pub(super) fn suspect(&self) {
        self.order(|orders| orders.suspect = true);
    }

    /// Tells the keeper to end, and waits until it has. False when it hangs.
    pub(super) fn end(&self, patience: Duration) -> bool {
        self.order(|orders| orders.end = true);
        let mut orders = self.orders.lock();
        self.left.wait_while_for(&mut orders, |orders| !orders.gone, patience);
        orders.gone
    }

    /// How long the store has been working on one thing.
    pub(super) fn busy_for(&self) -> Duration {
        self.busy.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) async fn export(&self) -> Result<u64> {
        self.ask(|orders, reply| orders.exports.push(reply)).await
    }

    pub(super) async fn close(&self) -> Result<()> {
        self.ask(|orders, reply| orders.close = Some(reply)).await
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock());
        self.wake.notify_one();
    }

    async fn ask<T>(&self, order: impl FnOnce(&mut Orders, oneshot::Sender<Result<T>>)) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.order(|orders| {
            if !orders.gone {
                order(orders, reply)
            }
        });
        let gone = |_| Error::new(ErrorKind::Unavailable, "use registry", "the registry has ended");
        answer.await.map_err(gone)?
    }

    /// Waits for orders and takes them.
    fn wait(&self, wait: Wait<'_>) -> Orders {
        let mut orders = self.orders.lock();
        let begun = Instant::now();
        loop {
            let at_most = match wait {
                _ if orders.end || orders.close.is_some() => break,
                Wait::AtOnce => break,
                Wait::Gather(_) if orders.hurry || orders.suspect || !orders.exports.is_empty() => break,
                Wait::Gather(options) if orders.work => options.gather,
                Wait::Gather(options) => options.look_every,
                Wait::Pause(pause) => pause,
            };
            if self.wake.wait_until(&mut orders, begun + at_most).timed_out() {
                break;
            }
        }
        let (end, gone) = (orders.end, orders.gone);
        std::mem::replace(&mut *orders, Orders { end, gone, ..Orders::default() })
    }

    /// Nobody will take orders any more; who waits for an answer hears so.
    fn leave(&self) {
        *self.orders.lock() = Orders { gone: true, end: true, ..Orders::default() };
        self.left.notify_all();
    }
}

#[derive(Clone, Copy)]
enum Wait<'a> {
    AtOnce,
    /// For work, gathered for a while, or for the time to look around.
    Gather(&'a Options),
    /// For nothing but the end.
    Pause(Duration),
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    site: Site,
    export: Summary,
    exporting: Option<Export>,
    /// Who asked for an export that has not begun.
    asked: Vec<oneshot::Sender<Result<u64>>>,
    /// Whether something was put into the store since the last export began.
    changed: bool,
    last_export: Instant,
    next_export_try: Instant,
    last_look: Instant,
    last_kept: Instant,
    retry: Duration,
}

/// An export under way.
struct Export {
    writer: Writer,
    kinds: std::slice::Iter<'static, Kind>,
    kind: Kind,
    after: Option<Vec<u8>>,
    at_end: bool,
    asked: Vec<oneshot::Sender<Result<u64>>>,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, site: Site, export: Summary) -> Self {
        let changed = shared.marked.load(Ordering::Acquire) > export.sequence;
        let now = Instant::now();
        Self {
            shared,
            site,
            export,
            exporting: None,
            asked: Vec::new(),
            changed,
            last_export: now,
            next_export_try: now,
            last_look: now,
            last_kept: now,
            retry: RETRY,
        }
    }

    /// Works until it is told to end.
    pub(super) fn run(mut self) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work())) {
            let message = format!("the registry's thread panicked: {}", panic_text(&*panic));
            self.shared.fail(Error::new(ErrorKind::Internal, "keep registry", message));
        }
        self.put_down_store();
        self.shared.desk.leave();
    }

    fn work(&mut self) {
        let mut broken = None;
        loop {
            let orders = self.shared.desk.wait(match broken {
                Some(pause) => Wait::Pause(pause),
                None if self.exporting.is_some() => Wait::AtOnce,
                None => Wait::Gather(&self.shared.options),
            });
            if orders.end {
                return;
            }
            if let Some(reply) = orders.close {
                // Nobody waits for the answer if the caller was dropped.
                drop(reply.send(self.close()));
                return;
            }
            self.asked.extend(orders.exports);
            let outcome = if orders.suspect { self.remake("it could not be read") } else { Ok(()) };
            broken = match outcome.and_then(|()| self.turn(orders.hurry)) {
                Ok(()) => None,
                Err(error) => self.repair(&error),
            };
        }
    }

    fn turn(&mut self, hurry: bool) -> Result<()> {
        let look = self.last_look.elapsed() >= self.shared.options.look_every;
        if self.exporting.is_none() || hurry || self.last_kept.elapsed() >= self.shared.options.gather {
            self.keep(look || !self.asked.is_empty())?;
        }
        if look {
            self.last_look = Instant::now();
        }
        if self.exporting.is_none() && (!self.asked.is_empty() || (look && self.export_is_due())) {
            self.begin_export();
        }
        self.go_on_exporting()
    }

    /// Puts what has become durable into the store. `mark`: moves the mark also when there is nothing to put.
    fn keep(&mut self, mark: bool) -> Result<()> {
        let frozen = self.freeze();
        let behind = self.shared.marked.load(Ordering::Acquire) < frozen.upto;
        if !frozen.layer.is_empty() || (mark && behind) {
            self.changed |= !frozen.layer.is_empty();
            self.with_store(|store| self.take_in(store, &frozen))?;
            self.shared.marked.store(frozen.upto, Ordering::Release);
        }
        let thawed = self.shared.state.write().thaw();
        drop((frozen, thawed));
        self.shared.room.send_modify(|turns| *turns += 1);
        self.retry = RETRY;
        self.last_kept = Instant::now();
        if self.shared.state.read().is_dirty() {
            self.shared.desk.work_came();
        }
        Ok(())
    }

    /// Under the lock of the writers no call is between the journal and the memory, so that what is frozen is everything that
    /// the journal has on disk.
    fn freeze(&self) -> Frozen {
        let _order = self.shared.writers.lock();
        let durable = self.shared.journal.durable_upto();
        let mut state = self.shared.state.write();
        state.settle(durable);
        self.shared.next_unsettled.store(state.next_unsettled().unwrap_or(u64::MAX), Ordering::Release);
        state.freeze(durable)
    }

    fn take_in(&self, store: &dyn Store, frozen: &Frozen) -> Result<()> {
        let mut entries = frozen.layer.iter().peekable();
        while entries.peek().is_some() {
            let _gate = self.shared.gate.write();
            for (kind, key, slot) in entries.by_ref().take(PORTION) {
                recovery::put(store, kind, key, slot)?;
            }
        }
        recovery::finish(store, frozen.upto)
    }

    fn with_store<T>(&self, call: impl FnOnce(&dyn Store) -> Result<T>) -> Result<T> {
        let store = self.shared.store.read();
        let Some(store) = &*store else {
            return Err(Error::new(ErrorKind::Unavailable, "keep registry", "its store is not open"));
        };
        *self.shared.desk.busy.lock() = Some(Instant::now());
        let outcome = call(&**store);
        *self.shared.desk.busy.lock() = None;
        outcome
    }

    fn close(&mut self) -> Result<()> {
        self.keep(true)?;
        if self.exporting.is_none() && self.changed {
            self.begin_export();
        }
        while self.exporting.is_some() {
            self.go_on_exporting()?;
        }
        info!(
            mark = self.shared.marked.load(Ordering::Acquire),
            export = self.export.sequence,
            "the registry is closed"
        );
        Ok(())
    }

    fn export_is_due(&self) -> bool {
        let exported = self.export.sequence;
        if self.shared.marked.load(Ordering::Acquire) <= exported || Instant::now() < self.next_export_try {
            return false;
        }
        let since = self.last_export.elapsed();
        if since >= self.shared.options.export_every {
            return true;
        }
        let segments = self.shared.journal.segments();
        let behind: u64 = segments.iter().filter(|segment| segment.last > exported).map(|segment| segment.bytes).sum();
        behind >= self.shared.options.export_after_bytes.max(EXPORT_WORTH * self.export.bytes)
    }

    fn begin_export(&mut self) {
        let asked = std::mem::take(&mut self.asked);
        let sequence = self.shared.marked.load(Ordering::Acquire);
        let begun = Writer::begin(&self.site.dir, sequence, Timestamp::now());
        self.changed = false;
        let mut kinds = Kind::ALL.iter();
        match (begun, kinds.next()) {
            (Ok(writer), Some(kind)) => {
                self.exporting = Some(Export { writer, kinds, kind: *kind, after: None, at_end: false, asked });
            }
            (Err(error), _) => self.export_failed(asked, error),
            (Ok(_), None) => {}
        }
    }

    /// Writes a portion of the export under way, and its end after the last one. A store that cannot be read is an error here;
    /// an export that cannot be written is only told.
    fn go_on_exporting(&mut self) -> Result<()> {
        let Some(mut export) = self.exporting.take() else { return Ok(()) };
        let portion = match self.with_store(|store| export.next_portion(store)) {
            Ok(portion) => portion,
            Err(error) => {
                self.abandon(export);
                return Err(error);
            }
        };
        match export.write(portion) {
            Ok(()) if !export.at_end => self.exporting = Some(export),
            Ok(()) => match export.writer.finish() {
                Ok(summary) => self.exported(export.asked, summary),
                Err(error) => self.export_failed(export.asked, error),
            },
            Err(error) => self.export_failed(export.asked, error),
        }
        Ok(())
    }

    /// Who asked for it gets the next one.
    fn abandon(&mut self, export: Export) {
        self.asked.extend(export.asked);
        self.changed = true;
    }

    fn exported(&mut self, asked: Vec<oneshot::Sender<Result<u64>>>, summary: Summary) {
        debug!(sequence = summary.sequence, records = summary.records, bytes = summary.bytes, "exported the registry");
        self.export = summary;
        self.last_export = Instant::now();
        self.shared.exported.store(summary.sequence, Ordering::Release);
        for reply in asked {
            drop(reply.send(Ok(summary.sequence)));
        }
    }

    fn export_failed(&mut self, asked: Vec<oneshot::Sender<Result<u64>>>, error: Error) {
        error!(%error, "the registry could not be exported; the journal is kept until it can be");
        self.changed = true;
        self.next_export_try = Instant::now() + EXPORT_RETRY;
        for reply in asked {
            drop(reply.send(Err(Error::new(error.kind, error.operation, error.message.clone()))));
        }
    }

    /// Opens the store again after an error. Gives how long to wait before the next try when that failed, too.
    fn repair(&mut self, error: &Error) -> Option<Duration> {
        let error = self.remake(&error.to_string()).err()?;
        let pause = self.retry;
        self.retry = LONGEST_RETRY.min(2 * pause);
        error!(%error, again_in = ?pause, "the store of the registry can neither be opened nor made anew");
        if error.kind == ErrorKind::Corrupt {
            self.shared.fail(error);
        }
        Some(pause)
    }

    fn remake(&mut self, reason: &str) -> Result<()> {
        error!(reason, "the store of the registry failed, it is opened again");
        if let Some(export) = self.exporting.take() {
            self.abandon(export);
        }
        self.put_down_store();
        let frozen = self.shared.state.read().frozen_upto();
        let upto = frozen.unwrap_or(self.shared.marked.load(Ordering::Acquire));
        let restored = recovery::restore(&self.site, upto)?;
        *self.shared.store.write() = Some(restored.store);
        info!(records = restored.records.records, mark = restored.mark, "the store of the registry is open again");
        Ok(())
    }

    fn put_down_store(&self) {
        let store = self.shared.store.write().take();
        if catch_unwind(AssertUnwindSafe(|| drop(store))).is_err() {
            error!("the store of the registry panicked while it was closed");
        }
    }
}

impl Export {
    fn next_portion(&mut self, store: &dyn Store) -> Result<Vec<(Key, Slot)>> {
        let mut portion = Vec::new();
        let range = Range { prefix: Vec::new(), after: self.after.take() };
        store.scan(self.kind, &range, &mut |key, value| {
            portion.push((record_key(self.kind, key)?, record_value(value)?));
            if portion.len() < EXPORT_PORTION {
                return Ok(ControlFlow::Continue(()));
            }
            self.after = Some(key.to_vec());
            Ok(ControlFlow::Break(()))
        })?;
        if self.after.is_none() {
            match self.kinds.next() {
                Some(next) => self.kind = *next,
                None => self.at_end = true,
            }
        }
        Ok(portion)
    }

    fn write(&mut self, portion: Vec<(Key, Slot)>) -> Result<()> {
        portion.iter().try_for_each(|(key, slot)| {
            self.writer.record(key, slot.revision, slot.value.as_deref().unwrap_or_default())
        })
    }
}
