//! The thread beside the committer: prepares files for coming segments, seals complete ones.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use tracing::{error, warn};

use super::segments::Segments;
use crate::{Error, Result};

/// How often what failed (a full disk) is tried again.
const RETRY: Duration = Duration::from_secs(1);

enum Task {
    Prepare,
    Seal(u64),
}

pub(super) struct Keeper {
    tasks: Mutex<Option<Sender<Task>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    pub(super) fn start(segments: Arc<Segments>) -> Result<Self> {
        let (tasks, incoming) = mpsc::channel();
        let run = move || {
            let mut unsealed: Vec<u64> = Vec::new();
            let mut unprepared = false;
            loop {
                let idle = unsealed.is_empty() && !unprepared;
                let task =
                    if idle { incoming.recv().map_err(RecvTimeoutError::from) } else { incoming.recv_timeout(RETRY) };
                match task {
                    Ok(Task::Prepare) => unprepared = true,
                    Ok(Task::Seal(segment)) => unsealed.push(segment),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                if unprepared {
                    unprepared = segments
                        .prepare_spares()
                        .inspect_err(|error| warn!(%error, "no room for the next segment of the journal"))
                        .is_err();
                }
                unsealed.retain(|segment| {
                    segments
                        .seal(*segment)
                        .inspect_err(|error| error!(segment, %error, "a segment could not be sealed, trying again"))
                        .is_err()
                });
            }
        };
        let thread = std::thread::Builder::new().name("journal-keeper".into()).spawn(run);
        let thread = thread.map_err(|error| Error::io("start journal", "its keeper", error))?;
        Ok(Self { tasks: Mutex::new(Some(tasks)), thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn prepare(&self) {
        self.send(Task::Prepare);
    }

    pub(super) fn seal(&self, segment: u64) {
        self.send(Task::Seal(segment));
    }

    fn send(&self, task: Task) {
        if let Some(tasks) = &*self.tasks.lock() {
            // The thread ends only when this sender is gone.
            let _unheard = tasks.send(task);
        }
    }

    pub(super) fn close(&self) {
        self.tasks.lock().take();
        if let Some(thread) = self.thread.lock().take() {
            let _ended = thread.join();
        }
    }
}
