//! Documents in tantivy, with an overlay in memory and the journal as its write-ahead log.
//!
//! What is applied goes into the [`overlay`], which readers look at first; the [`indexer`] brings it into the index about once a
//! second, with a [`payload`] that says how far the index has come in the journal (the [`trail`]); what the journal has above that
//! is applied again at the start. So nothing here is durable by itself but the index as of its last commit and the
//! [`definitions`], and nothing more has to be.
//!
//! There is one index for all applications, with a fixed [`schema`]. A [`search`] translates its filter into a [`query`] of the
//! index that finds exactly what the filter means, leaves out what the overlay has newer versions of, and merges the overlay in, in
//! one [`order`](sort). Fields that become filterable are indexed for stored documents by [`reindex`].

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tantivy::{Directory, Index, IndexReader, ReloadPolicy, directory::MmapDirectory};
use tokio::sync::Semaphore;
use tracing::info;

use crate::{
    Error, ErrorKind, Result,
    changelog::{LogEntry, embedded::codec},
    documents::{Documents, Found, Query, Stored},
    journal::{Journal, Kind, Record},
    model::{
        AppId, DocumentId, ModelName,
        filter::{Condition, Field},
    },
};

mod overlay;
mod weight;

mod definitions;
pub mod doctor;
mod schema;
mod value;

mod cursor;
mod lookup;
mod query;
mod search;
mod sort;

pub(crate) mod copy;
mod indexer;
mod payload;
mod reindex;
mod shared;
mod trail;
mod writer;

mod fault;

#[cfg(test)]
mod tests;

use definitions::{Definitions, Dropped};
use fault::fault;
use indexer::Indexer;
use overlay::{Look, Overlay};
use payload::Payload;
use schema::Scope;
use search::Search;
use shared::{Applied, Batch, Progress, Shared, Stop};
use writer::Writer;

#[derive(Debug, Clone)]
pub struct Options {
    pub dir: PathBuf,
    /// Bytes of documents in memory that wait for the index. From three quarters on [`TantivyDocuments::admission`] is `Full`;
    /// at the limit `apply` waits.
    pub overlay_bytes: usize,
    /// Memory of the index writer in bytes, at least 15 MB.
    pub writer_bytes: usize,
    /// How often the index is committed while something changes.
    pub commit_every: Duration,
}

/// The documents of all applications in one tantivy index.
pub struct TantivyDocuments {
    shared: Arc<Shared>,
    index_dir: PathBuf,
    /// How many searches may run at once: they are work for the processor.
    searches: Semaphore,
    indexer: Mutex<Option<JoinHandle<()>>>,
}

impl TantivyDocuments {
    /// Opens or makes the index and applies what the journal has above it. Blocking.
    pub fn open(options: Options, journal: Journal) -> Result<Self> {
        let index_dir = options.dir.join("index");
        fs::create_dir_all(&index_dir)
            .map_err(|error| Error::io("open documents", index_dir.display().to_string(), error))?;
        let directory = MmapDirectory::open(&index_dir).map_err(|error| fault("open documents", error.into()))?;
        Self::open_in(Box::new(directory), options, journal, |indexer| indexer)
    }

    fn open_in(
        directory: Box<dyn Directory>,
        options: Options,
        journal: Journal,
        prepare: impl FnOnce(Indexer) -> Indexer,
    ) -> Result<Self> {
        let index_dir = options.dir.join("index");
        let opened = || -> tantivy::Result<(Index, schema::Fields, IndexReader)> {
            let (index, fields) = schema::open_index(directory)?;
            let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
            Ok((index, fields, reader))
        };
        let (index, fields, reader) = opened().map_err(|error| fault("open documents", error))?;
        let committed = committed(&index, &reader)?;
        let definitions = Definitions::open(&options.dir.join("fields"))?;
        let dropped = definitions.dropped();
        let void = dropped.iter().map(|(app, dropped)| (app.clone(), dropped.upto)).collect();
        let purges: Vec<_> = dropped
            .into_iter()
            .filter(|(_, dropped)| dropped.sequence > committed)
            .map(|(app, dropped)| (app, dropped.upto))
            .collect();
        let needs_purge = !purges.is_empty();
        let overlay = Overlay::new(reader.searcher(), options.overlay_bytes, void);
        let shared = Arc::new(Shared::new(
            fields,
            overlay,
            definitions,
            journal,
            committed,
            options.commit_every,
            options.overlay_bytes,
        ));
        let writer = Writer::new(shared.clone(), index, reader, options.writer_bytes);
        let indexer = prepare(Indexer::new(shared.clone(), writer, committed, purges));
        let thread = thread::Builder::new().name("documents-indexer".to_owned()).spawn(move || indexer.run());
        let thread = thread.map_err(|error| Error::io("open documents", "the indexer thread", error))?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let documents = Self { shared, index_dir, searches: Semaphore::new(cores), indexer: Mutex::new(Some(thread)) };
        if needs_purge {
            documents.commit_blocking()?;
        }
        documents.replay(committed)?;
        Ok(documents)
    }

    /// Applies what the journal has above a sequence.
    fn replay(&self, committed: u64) -> Result<()> {
        let mut n_entries = 0;
        self.shared.journal.replay(committed + 1, &mut |record: Record| {
            if record.kind != Kind::LogEntry {
                return Ok(());
            }
            n_entries += 1;
            let (app, entry) = codec::decode(&record.payload, record.sequence)?;
            self.apply_blocking(&app, &[entry])
        })?;
        if n_entries > 0 {
            info!(n_entries, committed, "applied what the journal had above the document index");
        }
        Ok(())
    }

    fn apply_blocking(&self, app: &AppId, entries: &[LogEntry]) -> Result<()> {
        let mut batch = Batch::new(app, entries);
        loop {
            self.shared.check_open("apply")?;
            let before = self.shared.progress().turns;
            match self.shared.apply(&mut batch)? {
                Applied::All => return Ok(()),
                Applied::Full => self.shared.await_progress(|progress| progress.turns > before),
            }
        }
    }

    fn commit_blocking(&self) -> Result<()> {
        let number = self.shared.wish_commit();
        self.shared.await_progress(|progress| progress.commits >= number);
        if self.shared.progress().commits >= number { Ok(()) } else { self.shared.check_open("commit") }
    }

    /// Waits for progress that is enough, or for the end of the indexer.
    async fn until(&self, is_enough: impl Fn(&Progress) -> bool) -> Progress {
        let mut progress = self.shared.follow();
        let reached = progress.wait_for(|progress| progress.ended || is_enough(progress)).await;
        // The sender lives as long as `self`, so it is never gone.
        reached.map(|progress| progress.clone()).unwrap_or_default()
    }

    /// Commits what was applied before the call.
    pub async fn commit(&self) -> Result<()> {
        let number = self.shared.wish_commit();
        let progress = self.until(|progress| progress.commits >= number).await;
        if progress.commits >= number { Ok(()) } else { self.shared.check_open("commit") }
    }

    /// The journal sequence up to which the journal is no longer needed for the documents.
    pub fn committed(&self) -> u64 {
        self.shared.progress().committed
    }

    /// `Full`, with the reason, while the index is so far behind that what is accepted now would wait.
    pub fn admission(&self) -> Result<()> {
        let bytes = self.shared.overlay.read().bytes();
        let limit = self.shared.overlay_bytes;
        if bytes < limit / 4 * 3 {
            return Ok(());
        }
        let percent = bytes.saturating_mul(100) / limit.max(1);
        let why = match self.shared.progress().failing {
            Some(error) => format!("the document index cannot be written: {error}"),
            None => "the document index is behind".to_owned(),
        };
        Err(Error::new(ErrorKind::Full, "admit", format!("{why} ({percent} % of the documents that may wait for it)")))
    }

    /// Says that the change log holds nothing below this journal sequence any more: what is remembered of documents deleted there
    /// is dropped with the next commit.
    pub fn forget_deletes_below(&self, place: u64) {
        self.shared.wish(|wishes| wishes.forget_below = wishes.forget_below.max(place));
    }

    /// Waits until the indexer has ended although nobody asked it to: the process has to stop then.
    pub async fn failed(&self) -> Error {
        self.until(|_| false).await;
        if self.shared.is_closing() {
            std::future::pending::<()>().await;
        }
        Error::new(ErrorKind::Internal, "index", "the document indexer has ended")
    }

    /// Commits what there is and ends the indexer. Nothing can be applied or searched for new states any more. An error says that
    /// the index is behind; the journal has what it lacks.
    pub async fn close(&self) -> Result<()> {
        self.shared.stop(Stop::Finished);
        let progress = self.until(|_| false).await;
        self.join();
        match progress.failing {
            Some(error) => Err(Error::new(ErrorKind::Unavailable, "close documents", error.to_string())),
            None => Ok(()),
        }
    }

    fn join(&self) {
        if let Some(indexer) = self.indexer.lock().take() {
            // A panic of the indexer was reported when it happened.
            let _panicked = indexer.join();
        }
    }

    /// Runs a piece of work that blocks, where it may.
    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            Err(Error::new(ErrorKind::Internal, "read documents", "the task panicked").with_source(error))
        })
    }

    async fn search_at(&self, query: Query) -> Result<Found> {
        let permit = self.searches.acquire().await;
        let shared = self.shared.clone();
        let found = Self::blocking(move || {
            let scope = Scope::new(&query.app, &query.model);
            // Whether a field is ready is looked up before the view is taken: it stays ready.
            let search = Search::new(query, &shared.definitions.get(&scope))?;
            let view = shared.overlay.read().view(&scope);
            search.run(&shared.fields, view)
        })
        .await;
        drop(permit);
        found
    }
}

impl Drop for TantivyDocuments {
    /// Without [`TantivyDocuments::close`] nothing is committed any more: the journal has it.
    fn drop(&mut self) {
        self.shared.stop(Stop::Aborted);
        self.join();
    }
}

/// How far an index has come.
fn committed(index: &Index, reader: &IndexReader) -> Result<u64> {
    let metas = index.load_metas().map_err(|error| fault("open documents", error))?;
    match metas.payload {
        Some(payload) => Ok(Payload::parse(&payload)?.sequence),
        None if reader.searcher().num_docs() == 0 => Ok(0),
        None => Err(Error::new(ErrorKind::Corrupt, "open documents", "the document index does not say what is in it")),
    }
}

#[async_trait]
impl Documents for TantivyDocuments {
    async fn apply(&self, app: &AppId, entries: &[LogEntry]) -> Result<()> {
        if !self.shared.knows(app) {
            let (shared, app) = (self.shared.clone(), app.clone());
            Self::blocking(move || shared.learn(&app)).await?;
        }
        let mut batch = Batch::new(app, entries);
        loop {
            self.shared.check_open("apply")?;
            let before = self.shared.progress().turns;
            match self.shared.apply(&mut batch)? {
                Applied::All => return Ok(()),
                Applied::Full => self.until(|progress| progress.turns > before).await,
            };
        }
    }

    async fn get(&self, app: &AppId, model: &ModelName, ids: &[DocumentId]) -> Result<Vec<Option<Stored>>> {
        let scope = Scope::new(app, model);
        let (looks, searcher) = {
            let overlay = self.shared.overlay.read();
            let looks: Vec<_> = ids.iter().map(|id| overlay.look(&scope, id)).collect();
            (looks, overlay.searcher().clone())
        };
        let stored = looks.into_iter().zip(ids).map(|(look, id)| match look {
            Look::Found(overlaid) => Ok(overlaid.stored()),
            Look::Nothing => Ok(None),
            // Tens of microseconds: less than a task elsewhere would cost.
            Look::Below => Ok(lookup::stored(&searcher, &self.shared.fields, &scope, id.as_str())?.map(|it| it.stored)),
        });
        stored.collect()
    }

    async fn search(&self, query: Query) -> Result<Found> {
        self.search_at(query).await
    }

    async fn count(&self, app: &AppId, model: &ModelName) -> Result<u64> {
        let (app, model) = (app.clone(), model.clone());
        let all = Query {
            app,
            model,
            condition: Condition::All,
            sort: Vec::new(),
            limit: 0,
            cursor: None,
            count: true,
            text: None,
            at_least: None,
        };
        Ok(self.search_at(all).await?.total.unwrap_or_default())
    }

    async fn define(&self, app: &AppId, model: &ModelName, fields: &[Field]) -> Result<()> {
        let (shared, scope, fields) = (self.shared.clone(), Scope::new(app, model), fields.to_vec());
        Self::blocking(move || {
            if !shared.definitions.define(&scope, &fields)? {
                return Ok(());
            }
            let (is_freezing, searcher) = {
                let overlay = shared.overlay.read();
                (overlay.is_freezing(&scope), overlay.searcher().clone())
            };
            // What is in the current layer will be indexed by the new definition. Only what has been fed to the index lacks it.
            if !is_freezing && !reindex::has_any(&searcher, &shared.fields, &scope)? {
                let revision = shared.definitions.get(&scope).revision;
                return shared.definitions.set_ready(&scope, revision);
            }
            shared.wish(|wishes| wishes.indexing = true);
            Ok(())
        })
        .await
    }

    async fn indexing(&self, app: &AppId, model: &ModelName) -> Result<Vec<(String, f64)>> {
        let (shared, scope) = (self.shared.clone(), Scope::new(app, model));
        Self::blocking(move || {
            let searcher = shared.overlay.read().searcher().clone();
            shared.indexing(&searcher, &scope)
        })
        .await
    }

    async fn drop_application(&self, app: &AppId) -> Result<()> {
        let (shared, app) = (self.shared.clone(), app.clone());
        Self::blocking(move || {
            shared.check_open("drop application")?;
            shared.learn(&app)?;
            let (upto, sequence) = {
                let mut overlay = shared.overlay.write();
                let upto = overlay.drop_application(&app);
                // Read under the lock: a commit that stands above it was frozen after the drop.
                (upto, shared.journal.head() + 1)
            };
            shared.definitions.drop_application(&app, Dropped { upto, sequence })
        })
        .await
    }

    async fn statistics(&self) -> Result<Value> {
        let (shared, dir) = (self.shared.clone(), self.index_dir.clone());
        Self::blocking(move || statistics(&shared, &dir)).await
    }
}

fn statistics(shared: &Shared, dir: &Path) -> Result<Value> {
    let (searcher, bytes, waiting) = {
        let overlay = shared.overlay.read();
        (overlay.searcher().clone(), overlay.bytes(), overlay.documents())
    };
    let deletes = lookup::count_deletes(&searcher)?;
    let progress = shared.progress();
    let indexing = shared.definitions.unready();
    let indexing: Vec<_> =
        indexing.iter().map(|(scope, _)| json!({ "app": scope.app, "model": scope.model })).collect();
    Ok(json!({
        "documents": searcher.num_docs() - deletes,
        "deletesRemembered": deletes,
        "bareDocuments": lookup::count_bare(&searcher, &shared.fields)?,
        "segments": searcher.segment_readers().len(),
        "bytes": directory_bytes(dir),
        "overlayBytes": bytes,
        "overlayLimitBytes": shared.overlay_bytes,
        "overlayDocuments": waiting,
        "committedSequence": progress.committed,
        "commits": shared.figures.commits.load(Ordering::Relaxed),
        "lastCommitMs": shared.figures.last_commit_ms.load(Ordering::Relaxed),
        "failures": shared.figures.failures.load(Ordering::Relaxed),
        "failing": progress.failing.as_deref(),
        "indexing": indexing,
    }))
}

/// Files come and go while they are counted: those that are gone count nothing.
fn directory_bytes(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}
