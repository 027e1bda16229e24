//! The log of one application, as far as memory holds it: its marks, where its entries stand, and the newest entries themselves.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

use super::{
    PAGE_BYTES,
    places::{OpenRun, Run, Stretch},
    state::State,
};
use crate::{
    Error, ErrorKind, Result,
    changelog::{LogEntry, Marks, Page, waiters::Waiters},
    journal::{Appended, Journal, Kind, Place},
    model::{AppId, ChangeId, Entry, Offset},
};

pub(super) struct Log {
    pub(super) app: AppId,
    /// The epoch before anything was logged.
    first_epoch: u32,
    held: Mutex<Held>,
    /// Who waits for the applied mark.
    pub(super) applied: Arc<Waiters<Offset, ()>>,
    /// Who waits for a change to be logged.
    pub(super) logged: Arc<Waiters<ChangeId, Offset>>,
}

#[derive(Default)]
struct Held {
    epoch: u32,
    /// The last entry.
    head: u64,
    /// The last entry that is known to be durable.
    durable: u64,
    applied: u64,
    /// As it was saved last before the log was opened.
    applied_at_open: u64,
    told: u64,
    /// Everything at or below it is no longer held.
    trimmed: u64,
    /// Appends that are not known to be durable: journal sequence and position of the last entry of each.
    in_flight: VecDeque<(u64, u64)>,
    /// The newest entries, up to the head.
    recent: VecDeque<Recent>,
    /// Entries in indexed segments, oldest first; then those in segments that are not indexed yet.
    sealed: VecDeque<Run>,
    open: VecDeque<OpenRun>,
    /// The segment of the newest record of the marks; 0: there is none.
    saved_in: u64,
    /// The marks are not in the journal as they are.
    unsaved: bool,
}

struct Recent {
    logged: LogEntry,
    /// Size of its record.
    bytes: usize,
}

/// How far a reader may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    Applied,
    Logged,
}

/// How a page is made.
pub(super) enum Plan {
    Page(Page),
    /// From the journal: what is above `since`, up to and with `upto`.
    Disk {
        since: Offset,
        upto: u64,
    },
}

/// What memory knows of a change.
pub(super) enum Known {
    Entry(LogEntry),
    /// Logged, its entry is on disk.
    At(Offset),
    /// Not in a segment that memory knows of.
    NotHere,
}

impl Log {
    pub(super) fn new(app: AppId, first_epoch: u32) -> Arc<Self> {
        let held = Mutex::new(Held { epoch: first_epoch, ..Held::default() });
        Arc::new(Self { app, first_epoch, held, applied: Waiters::new(), logged: Waiters::new() })
    }

    pub(super) fn exists(&self) -> bool {
        let held = self.held.lock();
        held.epoch > self.first_epoch || held.head > 0
    }

    /// What outsiders may see: the head is the last durable entry.
    pub(super) fn marks(&self, durable: u64) -> Marks {
        let mut held = self.held.lock();
        held.note_durable(durable);
        Marks {
            head: held.at(held.durable),
            applied: held.at(held.applied),
            told: held.at(held.told),
            trimmed: held.at(held.trimmed),
        }
    }

    /// Appends entries that follow `tail`, with their journal payloads. Gives them with their places, and the bytes that they
    /// weigh here.
    pub(super) fn append(
        &self,
        journal: &Journal,
        tail: Offset,
        entries: &[Arc<Entry>],
        payloads: Vec<Vec<u8>>,
    ) -> Result<(Vec<LogEntry>, usize)> {
        let mut held = self.held.lock();
        if tail != held.at(held.head) {
            return Err(self.fenced(tail, held.at(held.head)));
        }
        let sizes: Vec<usize> = payloads.iter().map(Vec::len).collect();
        let places = journal.append(payloads.into_iter().map(|payload| (Kind::LogEntry, payload)).collect())?;
        let mut logged = Vec::with_capacity(entries.len());
        for ((entry, appended), bytes) in entries.iter().zip(&places).zip(&sizes) {
            held.epoch = entry.offset.epoch;
            held.head = entry.offset.position;
            held.place(entry.offset.position, entry.change_id, appended.place);
            self.logged.wake(&entry.change_id, &entry.offset);
            let entry = LogEntry { entry: entry.clone(), place: appended.sequence };
            held.recent.push_back(Recent { logged: entry.clone(), bytes: *bytes });
            logged.push(entry);
        }
        if let Some(last) = places.last() {
            let head = held.head;
            held.in_flight.push_back((last.sequence, head));
        }
        Ok((logged, sizes.into_iter().map(weight).sum()))
    }

    /// Whether nobody else has appended.
    pub(super) fn check_tail(&self, tail: Offset) -> Result<()> {
        let held = self.held.lock();
        let head = held.at(held.head);
        if tail == head { Ok(()) } else { Err(self.fenced(tail, head)) }
    }

    fn fenced(&self, tail: Offset, head: Offset) -> Error {
        let message = format!("the log of {} ends at {head:?}, not at {tail:?}", self.app);
        Error::new(ErrorKind::Fenced, "append", message)
    }

    /// Begins a new epoch, at least this one; `save` writes its state to the journal. Gives also the sequence of that record.
    pub(super) fn begin_epoch(
        &self,
        least: u32,
        save: impl FnOnce(State) -> Result<Appended>,
    ) -> Result<(Offset, u64)> {
        let mut held = self.held.lock();
        let epoch = held.epoch.checked_add(1).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "begin epoch", format!("{} has had all epochs there are", self.app))
        })?;
        let epoch = epoch.max(least);
        let saved = save(State { epoch, ..State::default() })?;
        *held = Held { epoch, saved_in: saved.place.segment, unsaved: held.unsaved, ..Held::default() };
        let begin = held.at(0);
        drop(held);
        self.applied.wake_upto(&begin, &());
        Ok((begin, saved.sequence))
    }

    /// Gives whether the marks became worth saving.
    pub(super) fn mark_applied(&self, upto: Offset, durable: u64) -> Result<bool> {
        let mut held = self.held.lock();
        if !held.may_mark(&self.app, "mark applied", upto, durable)? || upto.position <= held.applied {
            return Ok(false);
        }
        held.applied = upto.position;
        let newly = !std::mem::replace(&mut held.unsaved, true);
        drop(held);
        self.applied.wake_upto(&upto, &());
        Ok(newly)
    }

    /// Gives whether the marks became worth saving.
    pub(super) fn mark_told(&self, upto: Offset, durable: u64) -> Result<bool> {
        let mut held = self.held.lock();
        if !held.may_mark(&self.app, "mark told", upto, durable)? || upto.position <= held.told {
            return Ok(false);
        }
        held.told = upto.position;
        Ok(!std::mem::replace(&mut held.unsaved, true))
    }

    pub(super) async fn wait_applied(&self, upto: Offset) {
        let waiting = self.applied.register(upto);
        let is_applied = {
            let held = self.held.lock();
            held.at(held.applied) >= upto
        };
        if !is_applied {
            waiting.await;
        }
    }

    /// What a reader gets of a log that has no entry.
    pub(super) fn empty_page(&self, since: Offset) -> Result<Page> {
        match self.plan(since, Sight::Applied, 0, 0)? {
            Plan::Page(page) => Ok(page),
            Plan::Disk { .. } => Ok(Page::default()),
        }
    }

    /// How to read on after `since`.
    pub(super) fn plan(&self, since: Offset, sight: Sight, limit: usize, durable: u64) -> Result<Plan> {
        let mut held = self.held.lock();
        held.note_durable(durable);
        if since.epoch != held.epoch || since.position < held.trimmed {
            let oldest = held.at(held.trimmed);
            return Err(gone(&self.app, format!("{since:?} is not held any more, the oldest is {oldest:?}")));
        }
        if since.position > held.durable {
            let message = format!("{since:?} is above the head {:?} of {}", held.at(held.durable), self.app);
            return Err(Error::new(ErrorKind::Invalid, "read", message));
        }
        let upto = match sight {
            Sight::Applied => held.applied,
            Sight::Logged => held.durable,
        };
        if since.position >= upto || limit == 0 {
            return Ok(Plan::Page(Page { entries: Vec::new(), next: since, end: since.position >= upto }));
        }
        let held_from = held.head - held.recent.len() as u64;
        let Some(skip) = since.position.checked_sub(held_from) else { return Ok(Plan::Disk { since, upto }) };
        let most = limit.min((upto - since.position) as usize);
        let mut bytes = 0;
        let entries: Vec<_> = (held.recent.range(skip as usize..).take(most))
            .take_while(|recent| {
                let fits = bytes < PAGE_BYTES;
                bytes += recent.bytes;
                fits
            })
            .map(|recent| recent.logged.clone())
            .collect();
        Ok(Plan::Page(page(since, entries, upto)))
    }

    /// Where up to `limit` entries stand, from a position on.
    pub(super) fn stretch(&self, from: Offset, limit: usize) -> Stretch {
        let held = self.held.lock();
        if from.epoch != held.epoch {
            return Stretch::Gone;
        }
        if let Some(run) = held.open.iter().find(|run| run.holds(from.position)) {
            return Stretch::Places(run.places(from.position, limit));
        }
        let after = held.sealed.partition_point(|run| run.first <= from.position);
        match after.checked_sub(1).and_then(|index| held.sealed.get(index)) {
            Some(run) if run.holds(from.position) => Stretch::Sealed(run.segment),
            _ => Stretch::Gone,
        }
    }

    /// What memory knows of a change that is durable.
    pub(super) fn locate(&self, change: ChangeId, durable: u64) -> Known {
        let mut held = self.held.lock();
        held.note_durable(durable);
        let position = held.open.iter().find_map(|run| run.position(change));
        match position.filter(|position| *position <= held.durable) {
            None => Known::NotHere,
            Some(position) => match held.recent(position) {
                Some(logged) => Known::Entry(logged),
                None => Known::At(held.at(position)),
            },
        }
    }

    /// Where a change is that is in no indexed segment, durable or not.
    pub(super) fn offset_of(&self, change: ChangeId) -> Option<Offset> {
        let held = self.held.lock();
        held.open.iter().find_map(|run| run.position(change)).map(|position| held.at(position))
    }

    pub(super) fn is_trimmed(&self, offset: Offset) -> bool {
        let held = self.held.lock();
        offset.epoch != held.epoch || offset.position <= held.trimmed
    }

    /// An entry that memory holds.
    pub(super) fn recent(&self, offset: Offset) -> Option<LogEntry> {
        let held = self.held.lock();
        if offset.epoch == held.epoch { held.recent(offset.position) } else { None }
    }

    /// The segments that hold entries and are indexed, newest first, and the epoch.
    pub(super) fn sealed_segments(&self) -> (u32, Vec<u64>) {
        let held = self.held.lock();
        (held.epoch, held.sealed.iter().rev().map(|run| run.segment).collect())
    }

    /// The first segment with an entry that was not told to the next stage.
    pub(super) fn first_untold(&self) -> Option<u64> {
        let held = self.held.lock();
        held.first_above(held.told)
    }

    /// The first segment with an entry that is not applied.
    pub(super) fn first_unapplied(&self) -> Option<u64> {
        let held = self.held.lock();
        held.first_above(held.applied)
    }

    /// What was applied for certain when the log was opened, where that is not all.
    pub(super) fn unapplied_at_open(&self) -> Option<Offset> {
        let held = self.held.lock();
        let since = held.applied_at_open.max(held.trimmed);
        (since < held.head).then(|| held.at(since))
    }

    /// Forgets the oldest entries that memory holds; they are read from the journal from now on.
    pub(super) fn evict(&self, entries: usize) {
        let mut held = self.held.lock();
        let entries = entries.min(held.recent.len());
        held.recent.drain(..entries);
    }

    /// What has to be saved; the marks count as saved from now on.
    pub(super) fn save(&self) -> State {
        let mut held = self.held.lock();
        held.unsaved = false;
        held.state()
    }

    /// A record of the marks stands in this segment. One of an epoch that is over does not count.
    pub(super) fn saved_in(&self, epoch: u32, segment: u64) {
        let mut held = self.held.lock();
        if epoch == held.epoch {
            held.saved_in = held.saved_in.max(segment);
        }
    }

    /// Whether the newest record of the marks goes when everything below this sequence goes.
    pub(super) fn is_saved_below(&self, below: u64) -> bool {
        let held = self.held.lock();
        (held.epoch > self.first_epoch || held.head > 0) && held.saved_in < below
    }

    /// The segment is indexed from now on: what memory held of it goes.
    pub(super) fn seal(&self, segment: u64) {
        let mut held = self.held.lock();
        while held.open.front().is_some_and(|run| run.segment <= segment) {
            if let Some(run) = held.open.pop_front() {
                held.sealed.push_back(run.sealed());
            }
        }
        held.open.shrink_to_fit();
    }

    /// Segments below this one are released.
    pub(super) fn trim(&self, first_kept: u64) {
        let mut held = self.held.lock();
        while held.sealed.front().is_some_and(|run| run.segment < first_kept) {
            if let Some(run) = held.sealed.pop_front() {
                held.trimmed = run.last();
            }
        }
    }
}

#[cfg(test)]
impl Log {
    /// How many entries memory holds, and of how many it knows the place.
    pub(super) fn in_memory(&self) -> (usize, usize) {
        let held = self.held.lock();
        (held.recent.len(), held.open.iter().map(|run| run.sealed().entries as usize).sum())
    }
}

/// Building up from the journal at open.
impl Log {
    /// Takes the marks that a segment holds.
    pub(super) fn absorb_state(&self, state: State, segment: u64) {
        let mut held = self.held.lock();
        if state.epoch > held.epoch {
            *held = Held { epoch: state.epoch, ..Held::default() };
        }
        if state.epoch == held.epoch {
            let joined = held.state().joined(state);
            (held.head, held.applied, held.told) = (joined.head, joined.applied, joined.told);
            held.saved_in = segment;
        }
    }

    /// Takes the entries that an indexed segment holds.
    pub(super) fn absorb_run(&self, epoch: u32, run: Run) -> Result<()> {
        let mut held = self.held.lock();
        held.expect(&self.app, epoch, run.first)?;
        if epoch == held.epoch && run.entries > 0 {
            held.sealed.push_back(run);
            held.head = held.head.max(run.last());
        }
        Ok(())
    }

    /// Takes one entry of a segment that is not indexed.
    pub(super) fn absorb_entry(&self, offset: Offset, change: ChangeId, place: Place) -> Result<()> {
        let mut held = self.held.lock();
        held.expect(&self.app, offset.epoch, offset.position)?;
        if offset.epoch == held.epoch {
            held.place(offset.position, change, place);
            held.head = held.head.max(offset.position);
        }
        Ok(())
    }

    /// Everything was absorbed: what the journal holds is durable, and applied before anything is served.
    pub(super) fn opened(&self) -> Result<()> {
        let mut held = self.held.lock();
        if let Some(last) = held.last_placed().filter(|last| *last < held.head) {
            return Err(missing(&self.app, held.at(last), held.at(held.head)));
        }
        held.durable = held.head;
        held.applied_at_open = held.applied;
        held.applied = held.head;
        held.trimmed = held.first_placed().map_or(held.head, |first| first - 1);
        Ok(())
    }
}

impl Held {
    /// The segment with the entry after this position; none when there is no such entry.
    fn first_above(&self, position: u64) -> Option<u64> {
        if position >= self.head {
            return None;
        }
        let next = position.max(self.trimmed) + 1;
        let sealed = self.sealed.iter().find(|run| run.holds(next)).map(|run| run.segment);
        sealed.or_else(|| self.open.iter().find(|run| run.holds(next)).map(|run| run.segment))
    }

    fn at(&self, position: u64) -> Offset {
        Offset::new(self.epoch, position)
    }

    fn state(&self) -> State {
        State { epoch: self.epoch, head: self.head, applied: self.applied, told: self.told }
    }

    fn note_durable(&mut self, durable: u64) {
        while let Some((sequence, position)) = self.in_flight.front().copied() {
            if sequence > durable {
                break;
            }
            self.durable = position;
            self.in_flight.pop_front();
        }
    }

    /// Marks of another epoch are old news; marks above what is durable are mistakes.
    fn may_mark(&mut self, app: &AppId, operation: &'static str, upto: Offset, durable: u64) -> Result<bool> {
        self.note_durable(durable);
        if upto > self.at(self.durable) {
            let message = format!("{upto:?} is above the head {:?} of {app}", self.at(self.durable));
            return Err(Error::new(ErrorKind::Invalid, operation, message));
        }
        Ok(upto.epoch == self.epoch)
    }

    fn recent(&self, position: u64) -> Option<LogEntry> {
        let index = position.checked_sub(self.head - self.recent.len() as u64)?.checked_sub(1)?;
        self.recent.get(index as usize).map(|recent| recent.logged.clone())
    }

    fn place(&mut self, position: u64, change: ChangeId, place: Place) {
        match self.open.back_mut() {
            Some(run) if run.segment == place.segment => run.push(change, place.offset),
            _ => {
                let mut run = OpenRun::new(place.segment, position);
                run.push(change, place.offset);
                self.open.push_back(run);
            }
        }
    }

    fn first_placed(&self) -> Option<u64> {
        self.sealed.front().map(|run| run.first).or_else(|| self.open.front().map(|run| run.first))
    }

    fn last_placed(&self) -> Option<u64> {
        self.open.back().map(OpenRun::last).or_else(|| self.sealed.back().map(|run| run.last()))
    }

    /// At open: entries follow each other, also across segments. A new epoch forgets what was before.
    fn expect(&mut self, app: &AppId, epoch: u32, first: u64) -> Result<()> {
        if epoch > self.epoch {
            *self = Self { epoch, ..Self::default() };
        }
        // What is before the oldest segment was released; the marks may know of it.
        let last = self.last_placed().unwrap_or(self.head);
        let follows = first == last + 1 || (self.last_placed().is_none() && (last == 0 || first <= last));
        if epoch == self.epoch && !follows {
            return Err(missing(app, self.at(last), self.at(first)));
        }
        Ok(())
    }
}

/// About what an entry weighs in memory: its JSON becomes a tree.
fn weight(payload: usize) -> usize {
    payload * 3 + 200
}

pub(super) fn page(since: Offset, entries: Vec<LogEntry>, upto: u64) -> Page {
    let next = entries.last().map_or(since, |last| last.entry.offset);
    Page { entries, next, end: next.position >= upto }
}

pub(super) fn gone(app: &AppId, message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Gone, "read", format!("log of {app}: {message}"))
}

fn missing(app: &AppId, last: Offset, next: Offset) -> Error {
    let message = format!("the log of {app} lacks entries between {last:?} and {next:?}: the journal is not whole");
    Error::new(ErrorKind::Corrupt, "open change log", message)
}
