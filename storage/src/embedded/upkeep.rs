//! The thread that keeps the journal in bounds: it writes what is written lazily, lets memory go of what was indexed, releases
//! segments, and watches the free space of the disk.

use std::{sync::Arc, thread::JoinHandle, time::Duration};

use parking_lot::{Condvar, Mutex};
use tracing::{debug, info, warn};

use super::{
    retention::{History, Progress, releasable},
    space::Space,
};
use crate::{
    Error, ErrorKind, Result, changelog::embedded::EmbeddedChangeLog, journal::Journal, queue::embedded::EmbeddedQueues,
};

/// How often what is settled and the marks are written.
const SAVE_EVERY: Duration = Duration::from_millis(200);
/// Every so many rounds, segments are looked at.
const ROUNDS_PER_LOOK: u32 = 5;

/// Tells how far somebody is that reads the journal after a crash, as a sequence.
pub(crate) type Settled = Box<dyn Fn() -> u64 + Send + Sync>;

/// What the thread looks after.
pub(crate) struct Duties {
    pub(crate) journal: Journal,
    pub(crate) change_log: EmbeddedChangeLog,
    pub(crate) queues: EmbeddedQueues,
    pub(crate) history: History,
    /// Who needs the journal, each up to its own sequence.
    pub(crate) settled: Vec<Settled>,
    /// Told when everything below a sequence is about to go.
    pub(crate) releasing: Box<dyn Fn(u64) + Send + Sync>,
    pub(crate) space: Space,
}

/// A release that was prepared: it happens when what was carried is durable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prepared {
    below: u64,
    carried: u64,
}

impl Duties {
    /// Writes what is written lazily.
    pub(crate) fn save(&self) -> Result<()> {
        self.queues.save_settled()?;
        self.change_log.save_marks()?;
        Ok(())
    }

    /// Writes all of it.
    pub(crate) fn save_all(&self) -> Result<()> {
        self.queues.save_settled()?;
        while self.change_log.save_marks()? {}
        Ok(())
    }

    /// Takes note of new indexes and releases what may go, in two steps, so that nothing waits: what has to outlive its segment is
    /// carried forward at one look, and the segment goes at a later one, when that is durable.
    pub(super) fn look(&self, prepared: &mut Option<Prepared>) -> Result<()> {
        self.change_log.adopt_indexes()?;
        if let Some(Prepared { below, carried }) = *prepared {
            if self.journal.durable_upto() < carried {
                return Ok(());
            }
            *prepared = None;
            (self.releasing)(below);
            self.change_log.trim(below);
            let n_segments = self.journal.release(below)?;
            info!(n_segments, below, "released segments of the journal");
            return Ok(());
        }
        let progress = Progress {
            settled: self.settled.iter().map(|settled| settled()).min().unwrap_or(u64::MAX),
            untold: self.change_log.first_untold(),
        };
        if let Some(below) = releasable(&self.journal.segments(), self.history, progress, self.journal.now()) {
            let carried = self.queues.carry(below)?.max(self.change_log.carry(below)?);
            *prepared = Some(Prepared { below, carried: carried.unwrap_or(0) });
        }
        Ok(())
    }
}

/// The running thread. Dropping it ends it.
pub(crate) struct Upkeep {
    stop: Arc<Stop>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Stop {
    wished: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits a while; true when it is time to end.
    fn wait(&self, most: Duration) -> bool {
        let mut wished = self.wished.lock();
        if !*wished {
            self.changed.wait_for(&mut wished, most);
        }
        *wished
    }
}

impl Upkeep {
    pub(crate) fn start(duties: Arc<Duties>) -> Result<Self> {
        let stop = Arc::<Stop>::default();
        let heard = stop.clone();
        let thread = std::thread::Builder::new().name("upkeep".into()).spawn(move || run(&duties, &heard));
        let thread = thread.map_err(|error| Error::io("start upkeep", "its thread", error))?;
        Ok(Self { stop, thread: Mutex::new(Some(thread)) })
    }

    /// Ends the thread. Blocking.
    pub(crate) fn stop(&self) {
        *self.stop.wished.lock() = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            warn!("the upkeep of the journal had panicked");
        }
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(duties: &Duties, stop: &Stop) {
    let mut prepared = None;
    let mut round = 0_u32;
    while !stop.wait(SAVE_EVERY) {
        duties.space.look();
        report("write marks", duties.save());
        round = round.wrapping_add(1);
        if round.is_multiple_of(ROUNDS_PER_LOOK) {
            report("release segments", duties.look(&mut prepared));
        }
    }
}

/// Whatever failed is tried again in the next round. A journal that failed for good stops the process by itself.
fn report(duty: &'static str, outcome: Result<()>) {
    match outcome {
        Ok(()) => {}
        Err(error) if error.kind == ErrorKind::Full => debug!(duty, %error, "put off"),
        Err(error) => warn!(duty, %error, "the upkeep of the journal is behind"),
    }
}
