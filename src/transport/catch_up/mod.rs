//! Catching up from the change log: after a resume, after joining, after having been too slow. The change log is the mailbox of
//! every device; an absent one costs a cursor.
//!
//! One forward [`scan`] of an application's log serves all connections that wait, in laps: who boards rides from where it has read
//! to the end of the log, and goes live there; who does not take its frames is let go and boards again later. What a lap finds for
//! whom is decided by the same matcher as live, under today's rules ([`lap`]). All scans together use a bounded share of a core
//! ([`pace`]).

mod lap;
mod pace;
mod passenger;
mod scan;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use nexxus_storage::model::{AppId, Offset};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use self::{pace::Pace, passenger::Passenger, scan::Scan};
use super::{connection::Connection, rooms::Rooms};
use crate::{domain::Domain, service::Failure};

/// Who has missed more entries than this rides in laps of its own, so that others do not wait for the scan to come to them.
const FAR: u64 = 10_000;

/// The scans of this worker.
pub struct CatchUp {
    domain: Domain,
    rooms: Arc<Rooms>,
    platforms: Mutex<HashMap<Line, Platform>>,
    pace: Pace,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Line {
    app: AppId,
    is_far: bool,
}

/// Where connections wait for a lap; there as long as a scan runs.
#[derive(Default)]
struct Platform {
    waiting: Vec<Passenger>,
    arrival: Arc<Notify>,
}

impl CatchUp {
    pub fn new(domain: Domain, rooms: Arc<Rooms>) -> Arc<Self> {
        let pace = Pace::new(domain.config.now().limits.replay_share.of_one());
        Arc::new(Self { domain, rooms, platforms: Mutex::default(), pace })
    }

    /// Has the log read for a connection until it is live, or full: then it has to come again when its frames are taken.
    pub async fn board(self: &Arc<Self>, app: &AppId, connection: &Arc<Connection>) -> Result<(), Failure> {
        let marks = self.domain.backends.change_log.marks(app).await?;
        let (passenger, from) = Passenger::begin(connection);
        let line = Line { app: app.clone(), is_far: is_far(from, marks.applied) };
        let mut platforms = self.platforms.lock();
        match platforms.get_mut(&line) {
            Some(platform) => {
                platform.waiting.push(passenger);
                platform.arrival.notify_one();
            }
            None => {
                let platform = Platform { waiting: vec![passenger], ..Platform::default() };
                let arrival = platform.arrival.clone();
                platforms.insert(line.clone(), platform);
                drop(platforms);
                tokio::spawn(self.clone().run(line, arrival));
            }
        }
        Ok(())
    }

    async fn run(self: Arc<Self>, line: Line, arrival: Arc<Notify>) {
        let app = line.app.clone();
        let mut ending = Ending { catch_up: self.clone(), line: line.clone(), is_well: false };
        match Scan::run(self, line, arrival).await {
            // Whoever boards by now has a scan of its own.
            Ok(()) => ending.is_well = true,
            Err(error) => {
                warn!(%app, %error, "reading the change log for connections has failed, they have to come back")
            }
        }
    }

    /// Takes some of those that wait. None when nobody waits and `may_end`: then the scan has ended.
    fn take_waiting(
        &self,
        line: &Line,
        may_end: bool,
        wanted: impl FnMut(&Passenger) -> bool,
    ) -> Option<Vec<Passenger>> {
        let mut platforms = self.platforms.lock();
        let platform = platforms.get_mut(line)?;
        let (taken, left) = std::mem::take(&mut platform.waiting).into_iter().partition(wanted);
        platform.waiting = left;
        if may_end && taken.is_empty() && platform.waiting.is_empty() {
            platforms.remove(line);
            return None;
        }
        Some(taken)
    }
}

/// However a scan fails, nobody waits for it any more.
struct Ending {
    catch_up: Arc<CatchUp>,
    line: Line,
    is_well: bool,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.is_well {
            return;
        }
        let platform = self.catch_up.platforms.lock().remove(&self.line);
        platform.iter().flat_map(|platform| &platform.waiting).for_each(Passenger::send_away);
    }
}

fn is_far(from: Offset, applied: Offset) -> bool {
    from.epoch == applied.epoch && applied.position.saturating_sub(from.position) > FAR
}
