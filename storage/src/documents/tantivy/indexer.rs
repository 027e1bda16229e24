//! The indexer: one thread of low priority that brings what was applied into the index, about once a second.
//!
//! One turn: freeze the overlay; walk the trail; take a piece of the documents that need new fields; write it all in one commit
//! that says how far it has come in the journal; publish the new state of the index and drop the frozen layer in one step. When
//! the commit fails, the same batch is written again by a new writer until it succeeds: nothing of it is lost, readers keep
//! seeing it in the overlay, and callers of `apply` wait once the overlay is full.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tantivy::TantivyError;
use tracing::{error, info, warn};

use super::{
    fault::fault,
    overlay::Frozen,
    shared::{Applied, Batch as Incoming, Shared, Stop, Wishes},
    trail::Trail,
    writer::{Batch, Writer},
};
use crate::{
    changelog::embedded::codec,
    journal::Record,
    model::{AppId, Offset},
};

/// How much the other threads come first. Answers are quicker with it (engine figures: p99 of acks 10 to 7 ms at 15); much more of
/// it, and a processor that is busy with other things starves the index until writes are refused.
const NICE: i32 = 10;
/// An entry that is durable and was not applied for so long is applied here.
const PATIENCE: Duration = Duration::from_secs(10);
const SHORTEST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(5);
/// How often a commit is tried when the process is about to end: the journal has everything.
const LAST_TRIES: u32 = 3;

pub(super) struct Indexer {
    shared: Arc<Shared>,
    writer: Writer,
    trail: Trail,
    /// Where the last commit stands.
    committed: u64,
    /// The last commit that was asked for and done.
    done: u64,
    /// Applications dropped before the start whose purge may not have been committed.
    purges: Vec<(AppId, Offset)>,
    patience: Duration,
}

/// The indexer was told to end before it was done.
struct Ended;

/// Tells that the indexer has ended, also when it panics: whoever waits for it must not wait for ever.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.tell(|progress| progress.ended = true);
    }
}

impl Indexer {
    pub(super) fn new(shared: Arc<Shared>, writer: Writer, committed: u64, purges: Vec<(AppId, Offset)>) -> Self {
        Self { shared, writer, trail: Trail::at(committed), committed, done: 0, purges, patience: PATIENCE }
    }

    #[cfg(test)]
    pub(super) fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Documents of this title make the index fail.
    #[cfg(test)]
    pub(super) fn with_poison(mut self, title: &'static str) -> Self {
        self.writer.poison = Some(title);
        self
    }

    /// Runs until it is told to stop. Has its own thread.
    pub(super) fn run(self) {
        let ending = Ending(self.shared.clone());
        // On Linux a priority is one of the calling thread; the threads that it makes inherit it.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            warn!(%error, "the document index runs at normal priority");
        }
        let mut indexer = self;
        let mut goes_on = false;
        loop {
            let patience = if goes_on { Duration::ZERO } else { indexer.shared.commit_every };
            let wishes = indexer.shared.await_wishes(indexer.done, patience);
            if wishes.stop == Some(Stop::Aborted) {
                break;
            }
            match indexer.turn(wishes) {
                Ok(more) => goes_on = more,
                Err(Ended) => break,
            }
            if wishes.stop == Some(Stop::Finished) && indexer.shared.overlay.read().is_clean() {
                break;
            }
        }
        drop(indexer); // Gives the lock of the directory back before anybody hears that it ended.
        drop(ending);
    }

    /// One turn; says whether there is more to do at once.
    fn turn(&mut self, wishes: Wishes) -> Result<bool, Ended> {
        let begun = Instant::now();
        let (frozen, head) = {
            let mut overlay = self.shared.overlay.write();
            // Read under the lock: what is logged later may be dropped later, too.
            (overlay.freeze(), self.shared.journal.head())
        };
        let Frozen { layer, places } = frozen;
        self.trail.add(places);
        let position = self.walk(head);
        let chunk = self.shared.next_chunk(&self.writer.reader().searcher(), &layer).unwrap_or_else(|error| {
            error!(%error, "cannot index new fields");
            None
        });
        let has_chunk = chunk.is_some();
        let is_last = wishes.stop.is_some() && position > self.committed;
        if layer.is_empty() && !has_chunk && self.purges.is_empty() && wishes.forget_below == 0 && !is_last {
            self.publish(wishes.commits, position);
            return Ok(false);
        }
        let purges = self.purges.clone();
        let forget_below = wishes.forget_below;
        let batch = Batch { layer, purges, forget_below, chunk, position, poisonous: HashSet::new() };
        self.write(batch)?;
        self.committed = position;
        self.purges.clear();
        self.publish(wishes.commits, position);
        self.shared.count_commit(begun.elapsed().as_millis() as u64);
        Ok(has_chunk)
    }

    /// Makes readers see the index as it is now.
    fn publish(&mut self, commits: u64, position: u64) {
        self.shared.overlay.write().publish(self.writer.reader().searcher());
        self.done = self.done.max(commits);
        self.shared.tell(|progress| {
            progress.commits = self.done;
            progress.turns += 1;
            progress.committed = position;
            progress.failing = None;
        });
    }

    /// Writes a batch until it is written.
    fn write(&mut self, mut batch: Batch) -> Result<(), Ended> {
        let mut rest = SHORTEST_REST;
        let mut n_tries = 0;
        while let Err(error) = self.writer.write(&batch) {
            if self.shared.is_aborted() {
                return Err(Ended);
            }
            n_tries += 1;
            self.report(error.clone());
            if n_tries >= 2 && self.writer.isolate(&mut batch, &error) {
                continue;
            }
            match self.shared.rest(rest) {
                Some(Stop::Finished) if n_tries < LAST_TRIES => {}
                Some(_) => return Err(Ended),
                None => rest = (rest * 2).min(LONGEST_REST),
            }
        }
        if n_tries > 0 {
            info!(n_tries, "the document index is written again");
        }
        Ok(())
    }

    fn report(&self, error: TantivyError) {
        self.shared.figures.failures.fetch_add(1, Ordering::Relaxed);
        let error = fault("index", error);
        warn!(%error, "the document index cannot be written, trying again");
        self.shared.tell(|progress| progress.failing = Some(error.to_string().into()));
    }

    fn walk(&mut self, head: u64) -> u64 {
        match self.trail.advance(&self.shared.journal, head, self.patience) {
            Ok((position, late)) => {
                if let Some(record) = late {
                    self.adopt(&record);
                }
                position
            }
            Err(error) => {
                error!(%error, "cannot walk the journal, the document index holds it");
                self.trail.position()
            }
        }
    }

    /// Applies an entry that was logged and that nobody has applied.
    fn adopt(&self, record: &Record) {
        let sequence = record.sequence;
        let adopted = codec::decode(&record.payload, sequence).and_then(|(app, entry)| {
            warn!(%app, sequence, offset = %entry.entry.offset, "applying a logged entry that its writer has not applied");
            self.shared.apply(&mut Incoming::new(&app, std::slice::from_ref(&entry)))
        });
        match adopted {
            Ok(Applied::All) => {}
            Ok(Applied::Full) => warn!(sequence, "no room for a logged entry, trying again"),
            Err(error) => error!(sequence, %error, "cannot apply a logged entry, the document index holds the journal"),
        }
    }
}
