//! The composition of the backends: the only place that knows which adapter stands behind which seam.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{ChangeLog, Documents, Queues, Registry, Result, embedded};

/// Which adapter stands behind each seam, and what the embedded ones need to know. Made by the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `message_queue.adapter`: `embedded` or `rabbitmq`.
    pub queues: String,
    /// `change_log.adapter`: `journal` or `redis`.
    pub change_log: String,
    /// `registry.adapter`: `sled` or `redis`.
    pub registry: String,
    /// `database.adapter`: `tantivy` or `elasticsearch`.
    pub documents: String,
    /// `data.dir`
    pub dir: PathBuf,
    /// Size of a journal segment in bytes.
    pub segment_bytes: u32,
    /// How long and how much of the change log is kept, whichever ends first.
    pub history_age: Duration,
    pub history_bytes: u64,
    /// Bytes of documents in memory that wait for the index; from three quarters on, writes are refused as `Full`.
    pub overlay_bytes: usize,
    /// Memory of the index writer in bytes, at least 15 MB.
    pub index_writer_bytes: usize,
    /// How often the index is committed while something changes.
    pub commit_every: Duration,
}

/// The four seams, opened.
#[derive(Clone)]
pub struct Backends {
    pub queues: Arc<dyn Queues>,
    pub change_log: Arc<dyn ChangeLog>,
    pub registry: Arc<dyn Registry>,
    pub documents: Arc<dyn Documents>,
    engine: embedded::Engine,
}

/// Opens every backend.
pub async fn open(settings: Settings) -> Result<Backends> {
    let _ = settings;
    todo!()
}

impl Backends {
    /// Waits until a backend has failed for good (a failed fsync): the process has to stop with this error.
    pub async fn failed(&self) -> crate::Error {
        self.engine.failed().await
    }

    /// Flushes and closes everything, in order. To be called once, when nothing uses the backends any more.
    pub async fn close(&self) -> Result<()> {
        self.engine.close().await
    }
}
