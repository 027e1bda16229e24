//! The thread beside the committer: prepares files for coming segments, indexes complete ones.

use std::{sync::Arc, thread::JoinHandle, time::Duration};

use parking_lot::{Condvar, Mutex};
use tracing::{error, warn};

use super::segments::Segments;
use crate::{Error, ErrorKind, Result};

/// How often what failed (a full disk) is tried again.
const RETRY: Duration = if cfg!(test) { Duration::from_millis(5) } else { Duration::from_secs(1) };

pub(super) struct Keeper {
    orders: Arc<(Mutex<Orders>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What was asked for and not taken up yet.
#[derive(Default)]
struct Orders {
    /// So many prepared files are wanted.
    n_spares: usize,
    /// Complete segments, to be indexed.
    complete: Vec<u64>,
    closing: bool,
}

impl Keeper {
    /// Starts it with the complete segments that have no index yet.
    pub(super) fn start(segments: Arc<Segments>, unindexed: Vec<u64>) -> Result<Self> {
        let name = "journal-keeper";
        let orders = Arc::new((Mutex::new(Orders { complete: unindexed, ..Orders::default() }), Condvar::new()));
        let taken = orders.clone();
        let run = move || {
            let _end = segments.failure.of_thread(name);
            Work { segments, n_spares: 0, unindexed: Vec::new(), is_in_trouble: false }.run(&taken.0, &taken.1);
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        let thread = thread.map_err(|error| Error::io("start journal", "its keeper", error))?;
        Ok(Self { orders, thread: Mutex::new(Some(thread)) })
    }

    /// Asks for files for the next segments, so that there are so many.
    pub(super) fn prepare(&self, n_spares: usize) {
        let mut orders = self.orders.0.lock();
        if orders.n_spares < n_spares {
            orders.n_spares = n_spares;
            self.orders.1.notify_one();
        }
    }

    /// Asks for the index of a complete segment.
    pub(super) fn index(&self, segment: u64) {
        self.orders.0.lock().complete.push(segment);
        self.orders.1.notify_one();
    }

    /// Tries once more what was asked for, and ends.
    pub(super) fn close(&self) {
        self.orders.0.lock().closing = true;
        self.orders.1.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ended = thread.join();
        }
    }
}

struct Work {
    segments: Arc<Segments>,
    /// So many prepared files are wanted.
    n_spares: usize,
    unindexed: Vec<u64>,
    /// It was said that none can be prepared.
    is_in_trouble: bool,
}

impl Work {
    fn run(mut self, orders: &Mutex<Orders>, ordered: &Condvar) {
        loop {
            let mut orders = orders.lock();
            if orders.n_spares == 0 && orders.complete.is_empty() && !orders.closing {
                match self.unindexed.is_empty() && self.n_spares == 0 {
                    true => ordered.wait(&mut orders),
                    false => drop(ordered.wait_for(&mut orders, RETRY)),
                }
            }
            self.n_spares = self.n_spares.max(std::mem::take(&mut orders.n_spares));
            self.unindexed.append(&mut orders.complete);
            let closing = orders.closing;
            drop(orders);
            if !closing {
                self.prepare();
            }
            self.index();
            if closing {
                return;
            }
        }
    }

    fn index(&mut self) {
        let mut left = Vec::new();
        for segment in std::mem::take(&mut self.unindexed) {
            match self.segments.seal(segment) {
                Ok(()) => {}
                // It will not get better: readers find the damage for themselves.
                Err(error) if matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Unsupported) => {
                    error!(segment, %error, "a segment of the journal cannot be indexed");
                }
                Err(error) => {
                    warn!(segment, %error, "a segment of the journal could not be indexed, trying again");
                    left.push(segment);
                }
            }
        }
        self.unindexed = left;
    }

    fn prepare(&mut self) {
        match self.segments.prepare(self.n_spares) {
            Ok(()) => {
                if std::mem::take(&mut self.is_in_trouble) {
                    tracing::info!("there is room for the next segment of the journal again");
                }
                self.n_spares = 0;
            }
            Err(error) if self.is_in_trouble => tracing::debug!(%error, "still no room for the next segment"),
            Err(error) => {
                warn!(%error, "the next segment of the journal cannot be prepared, trying again each second");
                self.is_in_trouble = true;
            }
        }
    }
}
