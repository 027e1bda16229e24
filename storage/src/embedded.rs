//! The embedded engine: one journal, and the four adapters that stand on it, opened, kept in bounds and closed in order.
//!
//! What is where in the data directory: `journal/` (see [`crate::journal`]), `registry/`, `documents/`, `format`, the number of this
//! layout, after a restore `epoch`, the least epoch of a log that begins, and `documents-elsewhere` or `registry-elsewhere` where they
//! are in another engine.

use std::{path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::info;

use crate::{
    ChangeLog, Documents, Error, ErrorKind, Result,
    changelog::embedded::EmbeddedChangeLog,
    documents::tantivy::{Options as DocumentOptions, TantivyDocuments},
    journal::{self, Journal},
    open::Settings,
    queue::embedded::{EmbeddedQueues, Limits},
    registry::sled::SledRegistry,
};

pub mod doctor;
pub mod indexer;
mod layout;
mod retention;
pub mod space;
#[cfg(test)]
pub(crate) mod tests;
mod upkeep;
pub(crate) mod wire;

use self::{
    indexer::StreamIndexer,
    layout::Part,
    retention::History,
    space::{Demand, Room, Space},
    upkeep::{Duties, Upkeep},
};

/// Most bytes that wait for the journal's disk.
const JOURNAL_BACKLOG: usize = 32 << 20;
/// Entries that documents elsewhere are given at once at the start.
const CAUGHT_UP_AT_ONCE: usize = 1_000;
/// How long the numbers of documents elsewhere are waited for.
const COUNTED_IN: Duration = Duration::from_secs(2);

/// The embedded engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    journal: Journal,
    /// None where it is in an engine of its own.
    registry: Option<Arc<SledRegistry>>,
    documents: Place,
    duties: Arc<Duties>,
    upkeep: Upkeep,
    backing_up: Arc<tokio::sync::Mutex<()>>,
}

/// What is in other engines than this one.
#[derive(Default)]
pub(crate) struct Elsewhere {
    pub(crate) documents: Option<Arc<dyn Documents>>,
    pub(crate) registry: bool,
}

/// Where the documents are.
#[derive(Clone)]
enum Place {
    /// Beside the journal, which is their write-ahead log.
    Here(Arc<TantivyDocuments>),
    /// In an engine of their own: what they were given before the applied mark was saved, they have.
    Elsewhere(Arc<dyn Documents>),
}

/// Makes a directory one that can be opened, and whose logs all begin with at least this epoch.
pub(crate) fn prepare_dir(dir: &Path, least_epoch: u32) -> Result<()> {
    layout::check(dir)?;
    layout::set_least_epoch(dir, least_epoch)
}

/// What a repair has not come to yet nobody would make up for.
fn refuse_unfinished_repair(settings: &Settings) -> Result<()> {
    if layout::repair_begun(&settings.dir)?.is_none() {
        return Ok(());
    }
    let message =
        format!("{}: a repair was interrupted: `nexxus doctor --repair` has to finish it", settings.dir.display());
    Err(Error::new(ErrorKind::Corrupt, "open data directory", message))
}

impl Engine {
    /// Opens a data directory, or makes it: the journal, then what stands on it, brought up to what the journal holds. Blocking.
    pub fn open(settings: &Settings) -> Result<Self> {
        refuse_unfinished_repair(settings)?;
        Self::open_with(settings, Elsewhere::default())
    }

    /// The same for a repair, which is not finished then. Blocking.
    fn open_for_repair(settings: &Settings) -> Result<Self> {
        Self::open_with(settings, Elsewhere::default())
    }

    /// The same without what is elsewhere, to be followed by [`Self::catch_up`]. Blocking.
    pub(crate) fn open_without(settings: &Settings, elsewhere: Elsewhere) -> Result<Self> {
        refuse_unfinished_repair(settings)?;
        Self::open_with(settings, elsewhere)
    }

    fn open_with(settings: &Settings, elsewhere: Elsewhere) -> Result<Self> {
        let dir = &settings.dir;
        layout::check(dir)?;
        layout::check_place(dir, Part::Documents, elsewhere.documents.is_some())?;
        layout::check_place(dir, Part::Registry, elsewhere.registry)?;
        let journal = open_journal(dir, settings.segment_bytes)?;
        let registry = match elsewhere.registry {
            true => None,
            false => Some(Arc::new(SledRegistry::open(&dir.join("registry"), journal.clone())?)),
        };
        let documents = match elsewhere.documents {
            Some(documents) => Place::Elsewhere(documents),
            None => Place::Here(Arc::new(open_index(settings, journal.clone())?)),
        };
        // Only now: what the log holds counts as applied when it is opened.
        let change_log = EmbeddedChangeLog::open_after(journal.clone(), layout::least_epoch(dir)?)?;
        let queues = EmbeddedQueues::open(journal.clone(), Limits::default())?;
        if let Place::Here(documents) = documents.clone() {
            queues.admit_by(Arc::new(move || documents.admission()));
        }
        let (needed_by_registry, needed_by_documents) = (registry.clone(), documents.clone());
        let (applied, told) = (change_log.clone(), documents.clone());
        let duties = Arc::new(Duties {
            journal: journal.clone(),
            change_log,
            queues,
            history: History { age: settings.history_age, bytes: settings.history_bytes },
            settled: vec![
                Box::new({
                    let journal = journal.clone();
                    // Only what is below the pins may go; `settled` is the last that may.
                    move || journal.pinned().saturating_sub(1)
                }),
                Box::new(move || flushed(needed_by_registry.as_ref())),
                Box::new(move || needed_by_documents.settled(&applied)),
            ],
            releasing: Box::new(move |below| told.forget_deletes_below(below)),
            space: Space::of_dir(dir, settings.reserve),
        });
        let upkeep = Upkeep::start(duties.clone())?;
        Ok(Self { inner: Arc::new(Inner { journal, registry, documents, duties, upkeep, backing_up: Arc::default() }) })
    }

    pub fn queues(&self) -> EmbeddedQueues {
        self.inner.duties.queues.clone()
    }

    pub fn change_log(&self) -> EmbeddedChangeLog {
        self.inner.duties.change_log.clone()
    }

    /// The registry in this directory. `Unsupported` when it is elsewhere.
    pub fn registry(&self) -> Result<Arc<SledRegistry>> {
        let elsewhere = || Error::new(ErrorKind::Unsupported, "open registry", "it is not in the data directory");
        self.inner.registry.clone().ok_or_else(elsewhere)
    }

    pub fn documents(&self) -> Arc<dyn Documents> {
        match &self.inner.documents {
            Place::Here(documents) => documents.clone(),
            Place::Elsewhere(documents) => documents.clone(),
        }
    }

    /// The documents in this directory. `Unsupported` when they are elsewhere.
    pub(crate) fn index(&self) -> Result<Arc<TantivyDocuments>> {
        match &self.inner.documents {
            Place::Here(documents) => Ok(documents.clone()),
            Place::Elsewhere(_) => {
                Err(Error::new(ErrorKind::Unsupported, "open documents", "they are not in the data directory"))
            }
        }
    }

    /// Gives documents that are elsewhere what the log holds above the applied mark that was saved last. To be called before anything
    /// is served: the log counts it as applied.
    pub async fn catch_up(&self) -> Result<()> {
        let Place::Elsewhere(documents) = &self.inner.documents else { return Ok(()) };
        let change_log = self.change_log();
        for (app, mut since) in change_log.unapplied_at_open() {
            loop {
                let page = change_log.read_logged(&app, since, CAUGHT_UP_AT_ONCE).await?;
                documents.apply(&app, &page.entries).await?;
                since = page.next;
                if page.end {
                    break;
                }
            }
            info!(%app, %since, "applied again what the documents may have lacked");
        }
        Ok(())
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.inner.journal
    }

    /// Up to here neither the registry nor the documents need the journal.
    pub(crate) fn settled(&self) -> u64 {
        flushed(self.inner.registry.as_ref()).min(self.inner.documents.settled(&self.inner.duties.change_log))
    }

    /// Carries to the end of the journal what stands below a sequence and has to outlive it; gives the sequence that has to be durable
    /// then. Blocking.
    pub(crate) fn carry(&self, below: u64) -> Result<Option<u64>> {
        let duties = &self.inner.duties;
        Ok(duties.queues.carry(below)?.max(duties.change_log.carry(below)?))
    }

    /// Held while a backup is taken.
    pub(crate) fn backing_up(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.inner.backing_up.clone()
    }

    /// `DiskFull` when the disk has no room for this.
    pub fn admit(&self, demand: Demand) -> Result<()> {
        self.inner.duties.space.admit(demand)
    }

    /// How much room the disk has.
    pub fn room(&self) -> Room {
        self.inner.duties.space.room()
    }

    /// Waits until a part has failed for good: the process has to stop with this error.
    pub async fn failed(&self) -> Error {
        let registry = async {
            match &self.inner.registry {
                Some(registry) => registry.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = self.inner.journal.failed() => error,
            error = registry => error,
            error = self.inner.documents.failed() => error,
        }
    }

    /// Writes everything that is written lazily and closes the parts, the journal last. All of them are closed even when one fails;
    /// the first error is given. Nothing is lost then: the next start takes from the journal what is behind.
    pub async fn close(&self) -> Result<()> {
        let inner = self.inner.clone();
        let saved = blocking(move || {
            inner.upkeep.stop();
            inner.duties.save_all()
        });
        let saved = saved.await;
        let documents = self.inner.documents.close().await;
        let registry = match &self.inner.registry {
            Some(registry) => registry.close().await,
            None => Ok(()),
        };
        let journal = self.inner.journal.clone();
        let closed = blocking(move || journal.close()).await;
        saved.and(documents).and(registry).and(closed)
    }

    /// Numbers for operators, as a JSON object.
    pub async fn statistics(&self) -> Result<Value> {
        let journal = &self.inner.journal;
        let (segments, fsyncs) = (journal.segments(), journal.fsync_statistics());
        let mean = fsyncs.total.as_secs_f64() / fsyncs.count.max(1) as f64;
        let journal = json!({
            "segments": segments.len(),
            "bytes": segments.iter().map(|segment| segment.bytes).sum::<u64>(),
            "oldest": segments.first().map(|segment| segment.first),
            "head": journal.head(),
            "durable": journal.durable_upto(),
            "fsyncs": fsyncs.count,
            "fsyncSeconds": mean,
            "longestFsyncSeconds": fsyncs.longest.as_secs_f64(),
            "fsyncSecondsAtOpen": journal.fsync_at_open().as_secs_f64(),
        });
        let registry = json!({ "flushed": self.inner.registry.as_ref().map(|registry| registry.flushed()) });
        let disk = self.inner.duties.space.figures();
        let documents = self.inner.documents.statistics().await?;
        Ok(json!({ "journal": journal, "registry": registry, "documents": documents, "disk": disk }))
    }
}

impl Place {
    /// Up to here they do not need the journal.
    fn settled(&self, change_log: &EmbeddedChangeLog) -> u64 {
        match self {
            Self::Here(documents) => documents.committed(),
            Self::Elsewhere(_) => change_log.first_unapplied().map_or(u64::MAX, |segment| segment.saturating_sub(1)),
        }
    }

    fn forget_deletes_below(&self, place: u64) {
        match self {
            Self::Here(documents) => documents.forget_deletes_below(place),
            Self::Elsewhere(_) => {} // They go by age.
        }
    }

    async fn failed(&self) -> Error {
        match self {
            Self::Here(documents) => documents.failed().await,
            Self::Elsewhere(_) => std::future::pending().await,
        }
    }

    async fn close(&self) -> Result<()> {
        match self {
            Self::Here(documents) => documents.close().await,
            Self::Elsewhere(_) => Ok(()),
        }
    }

    async fn statistics(&self) -> Result<Value> {
        match self {
            Self::Here(documents) => documents.statistics().await,
            // The other numbers are wanted also while that engine is away.
            Self::Elsewhere(documents) => match timeout(COUNTED_IN, documents.statistics()).await {
                Ok(Ok(statistics)) => Ok(statistics),
                Ok(Err(error)) => Ok(json!({ "failing": error.to_string() })),
                Err(_) => Ok(json!({ "failing": "no answer in time" })),
            },
        }
    }
}

/// Up to here the registry does not need the journal.
fn flushed(registry: Option<&Arc<SledRegistry>>) -> u64 {
    registry.map_or(u64::MAX, |registry| registry.flushed())
}

fn open_index(settings: &Settings, journal: Journal) -> Result<TantivyDocuments> {
    let options = DocumentOptions {
        dir: settings.dir.join("documents"),
        overlay_bytes: settings.overlay_bytes,
        writer_bytes: settings.index_writer_bytes,
        commit_every: settings.commit_every,
    };
    TantivyDocuments::open(options, journal)
}

/// Opens the journal of a data directory. Blocking.
pub(crate) fn open_journal(dir: &Path, segment_bytes: u32) -> Result<Journal> {
    Journal::open(journal::Options {
        dir: dir.join("journal"),
        indexer: Arc::new(StreamIndexer),
        segment_bytes,
        backlog_bytes: JOURNAL_BACKLOG,
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, "close", "the work was aborted").with_source(error))?
}
