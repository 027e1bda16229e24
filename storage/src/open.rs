//! The composition of the backends: the only place that knows which adapter stands behind which seam.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::{
    ChangeLog, Documents, Error, ErrorKind, Queues, Registry, Result,
    backup::{About, Snapshot},
    embedded,
};

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
    /// Held for reading by writers between logging and applying; for writing while nothing is in between.
    still: Arc<RwLock<()>>,
}

/// Opens every backend. `Invalid` for an adapter that does not exist, `Unsupported` for one that this build lacks.
pub async fn open(settings: Settings) -> Result<Backends> {
    check(&settings)?;
    let opening = tokio::task::spawn_blocking(move || embedded::Engine::open(&settings));
    let engine = opening
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, "open", "opening was aborted").with_source(error))??;
    Ok(Backends {
        queues: Arc::new(engine.queues()),
        change_log: Arc::new(engine.change_log()),
        registry: engine.registry(),
        documents: engine.documents(),
        engine,
        still: Arc::default(),
    })
}

/// An adapter that could stand behind a seam, and the feature that it needs.
type Adapter = (&'static str, Option<&'static str>);

const QUEUES: [Adapter; 2] = [("embedded", None), ("rabbitmq", Some("rabbitmq"))];
const CHANGE_LOGS: [Adapter; 2] = [("journal", None), ("redis", Some("redis"))];
const REGISTRIES: [Adapter; 2] = [("sled", None), ("redis", Some("redis"))];
const DOCUMENTS: [Adapter; 2] = [("tantivy", None), ("elasticsearch", Some("elasticsearch"))];

fn check(settings: &Settings) -> Result<()> {
    check_adapter("message_queue.adapter", &settings.queues, &QUEUES)?;
    check_adapter("change_log.adapter", &settings.change_log, &CHANGE_LOGS)?;
    check_adapter("registry.adapter", &settings.registry, &REGISTRIES)?;
    check_adapter("database.adapter", &settings.documents, &DOCUMENTS)
}

fn check_adapter(key: &str, asked: &str, known: &[Adapter]) -> Result<()> {
    match known.iter().find(|(name, _)| *name == asked) {
        Some((_, None)) => Ok(()),
        Some((_, Some(feature))) => {
            let message = format!("{key} = \"{asked}\": compiled without the feature `{feature}`");
            Err(Error::new(ErrorKind::Unsupported, "open", message))
        }
        None => {
            let allowed: Vec<_> = known.iter().map(|(name, _)| format!("`{name}`")).collect();
            let message = format!("{key} = \"{asked}\": allowed is {}", allowed.join(" or "));
            Err(Error::new(ErrorKind::Invalid, "open", message))
        }
    }
}

impl Backends {
    /// Waits until a backend has failed for good (a failed fsync): the process has to stop with this error.
    pub async fn failed(&self) -> Error {
        self.engine.failed().await
    }

    /// Held by a writer from before it logs until what it logged is applied, to the documents and to the registry: a backup is of a
    /// moment in which nobody holds it. Not to be held while waiting for anything else.
    pub async fn applying(&self) -> RwLockReadGuard<'_, ()> {
        self.still.read().await
    }

    /// A consistent copy of everything, for a backup. `Unavailable` while another one is taken.
    pub async fn snapshot(&self, about: About) -> Result<Snapshot> {
        self.engine.snapshot(&self.still, about).await
    }

    /// Flushes and closes everything, in order. To be called once, when nothing uses the backends any more.
    pub async fn close(&self) -> Result<()> {
        self.engine.close().await
    }

    /// Numbers for operators, as a JSON object: `journal`, `registry`, `documents`.
    pub async fn statistics(&self) -> Result<Value> {
        self.engine.statistics().await
    }
}
