//! The change log as a stream of the journal.
//!
//! An entry is a record ([`codec`]), the marks of logs are lazy records ([`state`]). Memory holds for each application its marks, the
//! newest entries (all applications together: [`CACHE_BYTES`]) and where entries stand that are in no indexed segment yet;
//! everything older is looked up in the [`index`] of its segment. So memory grows with applications and segments, not with entries.

mod barriers;
pub mod codec;
mod history;
pub(crate) mod index;
mod log;
mod places;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};

use self::{
    barriers::Barriers,
    history::History,
    log::{Known, Log, Plan, Sight},
    places::Run,
    state::State,
};
use super::{ChangeLog, LogEntry, Marks, Page, check_dense};
use crate::{
    Error, ErrorKind, Result,
    embedded::indexer::visit_segment,
    journal::{Journal, Kind},
    model::{AppId, ChangeId, Entry, Offset},
};

/// The heads of logs that a record of kind `LogState` tells.
pub(crate) fn heads_in(payload: &[u8]) -> Result<Vec<(AppId, Offset)>> {
    let states = state::decode(payload)?;
    Ok(states.into_iter().map(|(app, state)| (app, Offset::new(state.epoch, state.head))).collect())
}

/// A record of kind `LogState` with which logs begin an epoch that is later than this one: what stands before it is not held any
/// more, nor what follows of an earlier epoch.
pub(crate) fn beginning(apps: &[AppId], after: u32) -> Result<Vec<u8>> {
    let epoch_of = |app| after.saturating_add(Offset::first_epoch_of(app));
    state::encode(apps.iter().map(|app| (app, State { epoch: epoch_of(app), ..State::default() })))
}

/// Memory for the newest entries, in bytes, about.
const CACHE_BYTES: usize = 16 << 20;
/// A page ends when it has this many bytes.
const PAGE_BYTES: usize = 1 << 20;
/// How long an append waits for room in the journal, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(2);
const ROOM_EVERY: Duration = Duration::from_millis(2);
/// Logs whose marks go into one record.
const MARKS_PER_RECORD: usize = 1_000;

/// The change logs of a journal. Cheap to clone.
#[derive(Clone)]
pub struct EmbeddedChangeLog {
    shared: Arc<Shared>,
}

struct Shared {
    journal: Journal,
    logs: RwLock<HashMap<AppId, Arc<Log>>>,
    history: History,
    cache: Cache,
    barriers: Barriers,
    /// Logs whose marks are not in the journal as they are.
    unsaved: Mutex<VecDeque<Arc<Log>>>,
    /// No log begins below it.
    least_epoch: u32,
}

/// Which entries memory holds: the oldest batches go first, whatever log they belong to.
#[derive(Default)]
struct Cache {
    batches: Mutex<(VecDeque<Batch>, usize)>,
}

struct Batch {
    log: Arc<Log>,
    entries: usize,
    bytes: usize,
}

impl Cache {
    fn keep(&self, log: &Arc<Log>, entries: usize, bytes: usize) {
        let mut batches = self.batches.lock();
        batches.0.push_back(Batch { log: log.clone(), entries, bytes });
        batches.1 += bytes;
        let mut evicted = Vec::new();
        while batches.1 > CACHE_BYTES {
            let Some(oldest) = batches.0.pop_front() else { break };
            batches.1 -= oldest.bytes;
            evicted.push(oldest);
        }
        drop(batches);
        evicted.iter().for_each(|batch| batch.log.evict(batch.entries));
    }
}

impl EmbeddedChangeLog {
    /// Opens the logs that the journal holds. The documents have to be brought up to the journal before anything is served: what it
    /// holds counts as applied. Blocking. `Corrupt` when entries are missing or of a newer format.
    pub fn open(journal: Journal) -> Result<Self> {
        Self::open_after(journal, 0)
    }

    /// The same where offsets of other logs may be known that ended before this epoch: logs that begin, begin with it, or a later one.
    pub fn open_after(journal: Journal, least_epoch: u32) -> Result<Self> {
        let shared = Shared {
            history: History::new(journal.clone()),
            journal,
            logs: RwLock::default(),
            cache: Cache::default(),
            barriers: Barriers::new(),
            unsaved: Mutex::default(),
            least_epoch,
        };
        for segment in shared.journal.segments() {
            if segment.sealed && segment.indexed {
                shared.absorb_index(segment.first)?;
            } else {
                visit_segment(&shared.journal, segment.first, &mut |record| shared.absorb_record(&record))?;
            }
        }
        shared.logs.read().values().try_for_each(|log| log.opened())?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The least epoch that a log may begin with.
    pub fn least_epoch(&self) -> u32 {
        self.shared.least_epoch
    }

    /// Writes the marks that changed since they were last written, of at most a thousand logs; they are durable with the next commit.
    /// Gives whether there are more. To be called a few times a second, and at the end until there are none.
    pub fn save_marks(&self) -> Result<bool> {
        let logs: Vec<_> = {
            let mut unsaved = self.shared.unsaved.lock();
            let count = unsaved.len().min(MARKS_PER_RECORD);
            unsaved.drain(..count).collect()
        };
        match self.shared.save(&logs) {
            Ok(_) => Ok(!self.shared.unsaved.lock().is_empty()),
            Err(error) => {
                self.shared.unsaved.lock().extend(logs);
                Err(error)
            }
        }
    }

    /// Writes marks anew whose newest record is below the sequence, before what is below it is released. Gives the journal
    /// sequence that has to be durable before that; none when there is nothing to wait for.
    pub fn carry(&self, below: u64) -> Result<Option<u64>> {
        let logs: Vec<_> = self.shared.logs.read().values().filter(|log| log.is_saved_below(below)).cloned().collect();
        let mut last = None;
        for logs in logs.chunks(MARKS_PER_RECORD) {
            last = self.shared.save(logs)?.or(last);
        }
        Ok(last)
    }

    /// The first segment that holds an entry which was not told to the next stage.
    pub fn first_untold(&self) -> Option<u64> {
        self.shared.logs.read().values().filter_map(|log| log.first_untold()).min()
    }

    /// The first segment with an entry that is not applied, of all applications.
    pub(crate) fn first_unapplied(&self) -> Option<u64> {
        self.shared.logs.read().values().filter_map(|log| log.first_unapplied()).min()
    }

    /// The logs with entries that may not have been applied before the opening: all above the offset. They count as applied, for
    /// the documents of this engine have them from the journal; those of another one have to be given them.
    pub(crate) fn unapplied_at_open(&self) -> Vec<(AppId, Offset)> {
        let logs = self.shared.logs.read();
        logs.iter().filter_map(|(app, log)| Some((app.clone(), log.unapplied_at_open()?))).collect()
    }

    /// Takes note of segments that were indexed since: memory lets go of what their indexes say. To be called about once a second.
    /// Blocking.
    pub fn adopt_indexes(&self) -> Result<()> {
        for segment in self.shared.journal.segments() {
            if segment.sealed && segment.indexed && !self.shared.history.knows(segment.first) {
                self.shared.history.read_index(segment.first)?;
                self.shared.logs.read().values().for_each(|log| log.seal(segment.first));
            }
        }
        Ok(())
    }

    /// Forgets what is in segments before this one. To be called before they are released.
    pub fn trim(&self, first_kept: u64) {
        self.shared.logs.read().values().for_each(|log| log.trim(first_kept));
        self.shared.history.trim(first_kept);
    }
}

impl Shared {
    fn absorb_index(&self, segment: u64) -> Result<()> {
        let index = self.history.read_index(segment)?;
        for of in &index.apps {
            let log = self.log_or(&of.app, 0);
            if let Some(state) = of.state {
                log.absorb_state(state, segment);
            }
            if of.entries > 0 {
                log.absorb_run(of.epoch, Run { segment, first: of.first, entries: of.entries })?;
            }
        }
        Ok(())
    }

    fn absorb_record(&self, record: &crate::journal::Record) -> Result<()> {
        match record.kind {
            Kind::LogEntry => {
                let head = codec::peek(&record.payload)?;
                let app = AppId::parse(head.app)
                    .map_err(|error| Error::new(ErrorKind::Corrupt, "open change log", error.to_string()))?;
                self.log_or(&app, 0).absorb_entry(head.offset, head.change_id, record.place)
            }
            Kind::LogState => {
                for (app, state) in state::decode(&record.payload)? {
                    self.log_or(&app, 0).absorb_state(state, record.place.segment);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn log(&self, app: &AppId) -> Option<Arc<Log>> {
        self.logs.read().get(app).cloned()
    }

    fn log_or_new(&self, app: &AppId) -> Arc<Log> {
        self.log_or(app, self.epoch_before(app))
    }

    /// The epoch of a log in which nothing was logged yet: 0, unless offsets of its former life may be known.
    fn epoch_before(&self, app: &AppId) -> u32 {
        if self.least_epoch == 0 { 0 } else { self.least_epoch_of(app) }
    }

    /// The least epoch that a log may begin.
    fn least_epoch_of(&self, app: &AppId) -> u32 {
        self.least_epoch.saturating_add(Offset::first_epoch_of(app))
    }

    fn log_or(&self, app: &AppId, epoch: u32) -> Arc<Log> {
        match self.log(app) {
            Some(log) => log,
            None => self.logs.write().entry(app.clone()).or_insert_with(|| Log::new(app.clone(), epoch)).clone(),
        }
    }

    /// Writes the marks of some logs. Gives the sequence of the record.
    fn save(&self, logs: &[Arc<Log>]) -> Result<Option<u64>> {
        if logs.is_empty() {
            return Ok(None);
        }
        // The marks are read before the record has its place; a log that moves on in between is unsaved again.
        let states: Vec<_> = logs.iter().map(|log| (&log.app, log.save())).collect();
        let payload = state::encode(states.iter().copied())?;
        let appended = self.journal.append(vec![(Kind::LogState, payload)])?;
        let Some(appended) = appended.last() else { return Ok(None) };
        logs.iter().zip(&states).for_each(|(log, (_, state))| log.saved_in(state.epoch, appended.place.segment));
        Ok(Some(appended.sequence))
    }

    /// Appends as soon as the journal has room: what was accepted has to fit, only the disk may need a moment.
    async fn append(&self, log: &Arc<Log>, tail: Offset, entries: Vec<Entry>) -> Result<Vec<LogEntry>> {
        let entries: Vec<_> = entries.into_iter().map(Arc::new).collect();
        let started = Instant::now();
        loop {
            let payloads = entries.iter().map(|entry| codec::encode(&log.app, entry)).collect::<Result<_>>()?;
            match log.append(&self.journal, tail, &entries, payloads) {
                Ok((logged, bytes)) => {
                    self.cache.keep(log, logged.len(), bytes);
                    return Ok(logged);
                }
                Err(error) if error.kind == ErrorKind::Full && started.elapsed() < PATIENCE => {
                    self.journal.durable(self.journal.head()).await?;
                    tokio::time::sleep(ROOM_EVERY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn note_unsaved(&self, log: &Arc<Log>, newly: bool) {
        if newly {
            self.unsaved.lock().push_back(log.clone());
        }
    }

    async fn page(self: &Arc<Self>, app: &AppId, since: Offset, limit: usize, sight: Sight) -> Result<Page> {
        let Some(log) = self.log(app) else { return Log::new(app.clone(), self.epoch_before(app)).empty_page(since) };
        match log.plan(since, sight, limit, self.journal.durable_upto())? {
            Plan::Page(page) => Ok(page),
            Plan::Disk { since, upto } => {
                let shared = self.clone();
                let entries = blocking(move || shared.history.read(&log, since.next(), upto, limit)).await?;
                Ok(log::page(since, entries, upto))
            }
        }
    }

    /// The entries of the changes that are in the log and durable.
    async fn find(self: &Arc<Self>, log: &Arc<Log>, changes: &[ChangeId]) -> Result<Vec<Option<LogEntry>>> {
        let durable = self.journal.durable_upto();
        let known: Vec<_> = changes.iter().map(|change| log.locate(*change, durable)).collect();
        // Only now: segments go from what memory knows to what indexes know, so that none is missed in this order.
        let (epoch, segments) = log.sealed_segments();
        let mut found = vec![None; changes.len()];
        let mut on_disk = Vec::new();
        for (index, (change, known)) in changes.iter().zip(known).enumerate() {
            match known {
                Known::Entry(entry) => found[index] = Some(entry),
                Known::At(offset) => on_disk.push((index, *change, Some(offset))),
                Known::NotHere if self.history.may_hold(&segments, *change) => on_disk.push((index, *change, None)),
                Known::NotHere => {}
            }
        }
        if on_disk.is_empty() {
            return Ok(found);
        }
        let (shared, log) = (self.clone(), log.clone());
        let read = blocking(move || {
            let mut read = Vec::new();
            for (index, change, offset) in on_disk {
                let offset = match offset {
                    Some(offset) => Some(offset),
                    None => shared.history.find(&log, epoch, &segments, change)?,
                };
                if let Some(offset) = offset {
                    read.push((index, shared.entry(&log, offset)?));
                }
            }
            Ok(read)
        });
        for (index, entry) in read.await? {
            found[index] = entry;
        }
        Ok(found)
    }

    /// Where a change is, durable or not.
    async fn offset_of(self: &Arc<Self>, log: &Arc<Log>, change: ChangeId) -> Result<Option<Offset>> {
        if let Some(offset) = log.offset_of(change) {
            return Ok(Some(offset));
        }
        let (epoch, segments) = log.sealed_segments();
        if !self.history.may_hold(&segments, change) {
            return Ok(None);
        }
        let (shared, log) = (self.clone(), log.clone());
        blocking(move || shared.history.find(&log, epoch, &segments, change)).await
    }

    /// One durable entry; none when it was released meanwhile. Blocking.
    fn entry(&self, log: &Log, offset: Offset) -> Result<Option<LogEntry>> {
        match self.history.read(log, offset, offset.position, 1) {
            Ok(mut entries) => Ok(entries.pop()),
            Err(error) if error.kind == ErrorKind::Gone => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl ChangeLog for EmbeddedChangeLog {
    async fn marks(&self, app: &AppId) -> Result<Marks> {
        let durable = self.shared.journal.durable_upto();
        let begin = Offset::new(self.shared.epoch_before(app), 0);
        let none = Marks { head: begin, applied: begin, told: begin, trimmed: begin };
        Ok(self.shared.log(app).map_or(none, |log| log.marks(durable)))
    }

    async fn append(&self, app: &AppId, tail: Offset, entries: Vec<Entry>) -> Result<Vec<LogEntry>> {
        check_dense(app, tail, &entries)?;
        let log = self.shared.log_or_new(app);
        if entries.is_empty() {
            return log.check_tail(tail).map(|()| Vec::new());
        }
        let logged = self.shared.append(&log, tail, entries).await?;
        if let Some(last) = logged.last() {
            self.shared.journal.durable(last.place).await?;
        }
        Ok(logged)
    }

    async fn mark_applied(&self, app: &AppId, upto: Offset) -> Result<()> {
        let log = self.shared.log_or_new(app);
        let newly = log.mark_applied(upto, self.shared.journal.durable_upto())?;
        self.shared.note_unsaved(&log, newly);
        Ok(())
    }

    async fn mark_told(&self, app: &AppId, upto: Offset) -> Result<()> {
        let log = self.shared.log_or_new(app);
        let newly = log.mark_told(upto, self.shared.journal.durable_upto())?;
        self.shared.note_unsaved(&log, newly);
        Ok(())
    }

    async fn read(&self, app: &AppId, since: Offset, limit: usize) -> Result<Page> {
        self.shared.page(app, since, limit, Sight::Applied).await
    }

    async fn read_logged(&self, app: &AppId, since: Offset, limit: usize) -> Result<Page> {
        self.shared.page(app, since, limit, Sight::Logged).await
    }

    async fn find(&self, app: &AppId, changes: &[ChangeId]) -> Result<Vec<Option<LogEntry>>> {
        match self.shared.log(app) {
            Some(log) => self.shared.find(&log, changes).await,
            None => Ok(vec![None; changes.len()]),
        }
    }

    async fn wait_applied(&self, app: &AppId, upto: Offset) -> Result<()> {
        self.shared.log_or_new(app).wait_applied(upto).await;
        Ok(())
    }

    async fn wait_change(&self, app: &AppId, change: ChangeId) -> Result<LogEntry> {
        let log = self.shared.log_or_new(app);
        let logged = log.logged.register(change);
        let offset = match self.shared.offset_of(&log, change).await? {
            Some(offset) => offset,
            None => logged.await,
        };
        log.wait_applied(offset).await;
        if let Some(entry) = log.recent(offset) {
            return Ok(entry);
        }
        let shared = self.shared.clone();
        match blocking(move || shared.entry(&log, offset)).await? {
            Some(entry) => Ok(entry),
            None => Err(log::gone(app, format!("the entry of change {change} is not held any more"))),
        }
    }

    async fn pass(&self, app: &AppId, barrier: ChangeId) -> Result<()> {
        self.shared.barriers.pass(app, barrier);
        Ok(())
    }

    async fn wait_passed(&self, app: &AppId, barrier: ChangeId) -> Result<()> {
        self.shared.barriers.wait(app, barrier).await;
        Ok(())
    }

    async fn applications(&self) -> Result<Vec<AppId>> {
        let logs = self.shared.logs.read();
        let mut apps: Vec<_> = logs.values().filter(|log| log.exists()).map(|log| log.app.clone()).collect();
        apps.sort_unstable();
        Ok(apps)
    }

    async fn begin_epoch(&self, app: &AppId) -> Result<Offset> {
        let log = self.shared.log_or_new(app);
        let (begin, sequence) = log.begin_epoch(self.shared.least_epoch_of(app), |state| {
            let payload = state::encode([(app, state)].into_iter())?;
            let appended = self.shared.journal.append(vec![(Kind::LogState, payload)])?;
            appended
                .last()
                .copied()
                .ok_or_else(|| Error::new(ErrorKind::Internal, "begin epoch", "nothing was appended"))
        })?;
        self.shared.journal.durable(sequence).await?;
        Ok(begin)
    }
}

/// Runs what reads the disk where it holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::new(ErrorKind::Internal, "read change log", "the read was aborted").with_source(error)
    })?
}
