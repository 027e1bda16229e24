//! What the callers and the indexer share: the overlay, the definitions, and how they wake one another.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;

use super::{
    definitions::Definitions,
    lookup,
    overlay::{Incoming, Overlaid, Overlay, Taken},
    schema::{Fields, Scope},
};
use crate::{
    Error, ErrorKind, Result,
    changelog::LogEntry,
    journal::Journal,
    model::{AppId, Offset},
};

pub(super) struct Shared {
    pub(super) fields: Fields,
    pub(super) overlay: RwLock<Overlay>,
    pub(super) definitions: Definitions,
    pub(super) journal: Journal,
    pub(super) overlay_bytes: usize,
    pub(super) commit_every: Duration,
    wishes: Mutex<Wishes>,
    /// A wish was made.
    wished: Condvar,
    /// Progress was made; for callers that block.
    moved: Condvar,
    /// The same for those that do not.
    progress: watch::Sender<Progress>,
    is_closing: AtomicBool,
    pub(super) figures: Figures,
}

/// What the indexer is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wishes {
    /// How many commits were asked for.
    pub(super) commits: u64,
    /// The overlay is half full.
    pub(super) room: bool,
    /// Deletes below this place can be forgotten.
    pub(super) forget_below: u64,
    /// There are fields to index.
    pub(super) indexing: bool,
    pub(super) stop: Option<Stop>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Commit what there is first.
    Finished,
    /// At once; the journal has everything.
    Aborted,
}

/// How far the indexer has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// How many of the commits that were asked for are done.
    pub(super) commits: u64,
    /// Counts how often the overlay was relieved.
    pub(super) turns: u64,
    /// Every log entry at or below this journal sequence is in the index.
    pub(super) committed: u64,
    /// Why the last attempt failed; none once one has succeeded.
    pub(super) failing: Option<Arc<str>>,
    /// The indexer has ended.
    pub(super) ended: bool,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) last_commit_ms: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) failures: AtomicU64,
}

/// What is to be done with an entry.
enum Step {
    /// It changes nothing here.
    Pass(u64),
    Put(Incoming),
}

/// Entries on their way into the overlay.
pub(super) struct Batch {
    app: AppId,
    steps: VecDeque<Step>,
}

/// How far a batch has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Applied {
    All,
    /// Wait until the indexer has made room.
    Full,
}

impl Batch {
    pub(super) fn new(app: &AppId, entries: &[LogEntry]) -> Self {
        let step = |entry: &LogEntry| match Overlaid::new(entry) {
            None => Step::Pass(entry.place),
            Some(overlaid) => match overlaid.subject() {
                Some(document) => Step::Put(Incoming {
                    scope: Scope::new(app, &document.model),
                    id: document.id.clone(),
                    overlaid: Arc::new(overlaid),
                    checked: None,
                }),
                None => Step::Pass(entry.place),
            },
        };
        Self { app: app.clone(), steps: entries.iter().map(step).collect() }
    }
}

impl Shared {
    pub(super) fn new(
        fields: Fields,
        overlay: Overlay,
        definitions: Definitions,
        journal: Journal,
        committed: u64,
        commit_every: Duration,
        overlay_bytes: usize,
    ) -> Self {
        Self {
            fields,
            overlay: RwLock::new(overlay),
            definitions,
            journal,
            overlay_bytes,
            commit_every,
            wishes: Mutex::default(),
            wished: Condvar::new(),
            moved: Condvar::new(),
            progress: watch::Sender::new(Progress { committed, ..Progress::default() }),
            is_closing: AtomicBool::new(false),
            figures: Figures::default(),
        }
    }

    /// Whether the newest offset of an application is known: only then can its entries be applied.
    pub(super) fn knows(&self, app: &AppId) -> bool {
        self.overlay.read().newest(app).is_some()
    }

    /// Finds out the newest offset of an application. Blocking, for a while where it has many documents.
    pub(super) fn learn(&self, app: &AppId) -> Result<Offset> {
        let (known, searcher) = {
            let overlay = self.overlay.read();
            (overlay.newest(app), overlay.searcher().clone())
        };
        if let Some(known) = known {
            return Ok(known);
        }
        // Nothing of the application was applied yet, so the index has all there is.
        let newest = lookup::newest(&searcher, &self.fields, app)?;
        let mut overlay = self.overlay.write();
        overlay.learn_newest(app, newest);
        Ok(overlay.newest(app).unwrap_or(newest))
    }

    /// Applies as much of a batch as there is room for.
    pub(super) fn apply(&self, batch: &mut Batch) -> Result<Applied> {
        if !self.knows(&batch.app) {
            self.learn(&batch.app)?;
        }
        loop {
            let taken = self.take(batch);
            match taken {
                Taken::Yes => return Ok(Applied::All),
                Taken::Full => return Ok(Applied::Full),
                Taken::LookUp => self.look_up(batch)?,
            }
        }
    }

    fn take(&self, batch: &mut Batch) -> Taken {
        let mut overlay = self.overlay.write();
        let mut taken = Taken::Yes;
        while let Some(step) = batch.steps.front() {
            match step {
                Step::Pass(place) => overlay.pass_over(*place),
                Step::Put(incoming) => taken = overlay.take(incoming),
            }
            if taken != Taken::Yes {
                break;
            }
            batch.steps.pop_front();
        }
        let is_half_full = overlay.waiting() >= self.overlay_bytes / 2;
        drop(overlay);
        if is_half_full || taken == Taken::Full {
            self.wish(|wishes| wishes.room = true);
        }
        taken
    }

    /// Looks up whether the index has something as new as the first entry of a batch.
    fn look_up(&self, batch: &mut Batch) -> Result<()> {
        let Some(Step::Put(incoming)) = batch.steps.front_mut() else { return Ok(()) };
        let (generation, searcher) = {
            let overlay = self.overlay.read();
            (overlay.generation(), overlay.searcher().clone())
        };
        let stored = lookup::stored_offset(&searcher, &self.fields, &incoming.scope, incoming.id.as_str())?;
        if stored.is_some_and(|stored| stored >= incoming.overlaid.offset()) {
            let place = incoming.overlaid.place;
            batch.steps[0] = Step::Pass(place);
        } else {
            incoming.checked = Some(generation);
        }
        Ok(())
    }

    pub(super) fn wish(&self, wish: impl FnOnce(&mut Wishes)) {
        wish(&mut self.wishes.lock());
        self.wished.notify_all();
    }

    /// Asks for a commit; gives its number.
    pub(super) fn wish_commit(&self) -> u64 {
        let mut number = 0;
        self.wish(|wishes| {
            wishes.commits += 1;
            number = wishes.commits;
        });
        number
    }

    /// Waits for a wish, at most for a while, or not at all where one is open. For the indexer. Gives the wishes; all but `stop`
    /// and the numbers are taken as fulfilled.
    pub(super) fn await_wishes(&self, done: u64, patience: Duration) -> Wishes {
        let mut wishes = self.wishes.lock();
        let is_open =
            |wishes: &mut Wishes| wishes.commits <= done && !wishes.room && !wishes.indexing && wishes.stop.is_none();
        self.wished.wait_while_for(&mut wishes, is_open, patience);
        let taken = *wishes;
        wishes.room = false;
        wishes.indexing = false;
        wishes.forget_below = 0;
        taken
    }

    /// Sleeps after a failure, until told to stop.
    pub(super) fn rest(&self, duration: Duration) -> Option<Stop> {
        let mut wishes = self.wishes.lock();
        self.wished.wait_while_for(&mut wishes, |wishes| wishes.stop.is_none(), duration);
        wishes.stop
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.wishes.lock().stop == Some(Stop::Aborted)
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
        let _wishes = self.wishes.lock(); // So that nobody misses it between looking and waiting.
        self.moved.notify_all();
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    pub(super) fn follow(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Waits for progress that is enough. Blocking.
    pub(super) fn await_progress(&self, mut is_enough: impl FnMut(&Progress) -> bool) {
        let mut wishes = self.wishes.lock();
        self.moved.wait_while(&mut wishes, |_| {
            let progress = self.progress.borrow();
            !progress.ended && !is_enough(&progress)
        });
    }

    /// Asks the indexer to end; nothing is applied any more.
    pub(super) fn stop(&self, stop: Stop) {
        self.is_closing.store(true, Ordering::Release);
        self.wish(|wishes| wishes.stop = Some(stop));
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// An error once the indexer has ended, or is about to.
    pub(super) fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.is_closing() || self.progress.borrow().ended {
            return Err(Error::new(ErrorKind::Unavailable, operation, "the document index is closed"));
        }
        Ok(())
    }

    pub(super) fn count_commit(&self, milliseconds: u64) {
        self.figures.last_commit_ms.store(milliseconds, Ordering::Relaxed);
        self.figures.commits.fetch_add(1, Ordering::Relaxed);
    }
}
