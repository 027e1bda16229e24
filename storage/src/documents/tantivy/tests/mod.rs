//! The adapter held to the promises of its seam, and what it promises besides: nothing is lost by crashes and full disks.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tantivy::directory::MmapDirectory;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{indexer::Indexer, *};
use crate::{conformance::documents::Subject, journal, model::Entry};

mod directory;
mod recovery;

use directory::{Disk, TestDirectory};

crate::documents_conformance!(promises, || async { Store::new() });

/// An index with its journal, in a directory of its own. It commits only when it is told to, or when the overlay is half full.
struct Store {
    dir: TempDir,
    disk: Disk,
    overlay_bytes: usize,
    commit_every: Duration,
    open: Option<(Journal, Arc<TantivyDocuments>)>,
}

struct NoIndex;

impl journal::Indexer for NoIndex {
    fn index(&self, _records: &mut dyn Iterator<Item = journal::Record>) -> Vec<u8> {
        Vec::new()
    }
}

impl Store {
    fn new() -> Self {
        Self::with(|indexer| indexer)
    }

    fn with(prepare: impl FnOnce(Indexer) -> Indexer) -> Self {
        Self::make(64 << 20, Duration::from_secs(3_600), prepare)
    }

    /// One that commits all the time.
    fn restless() -> Self {
        Self::make(64 << 20, Duration::from_millis(1), |indexer| indexer)
    }

    fn with_overlay(overlay_bytes: usize) -> Self {
        Self::make(overlay_bytes, Duration::from_secs(3_600), |indexer| indexer)
    }

    fn make(overlay_bytes: usize, commit_every: Duration, prepare: impl FnOnce(Indexer) -> Indexer) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = Self { dir, disk: Disk::default(), overlay_bytes, commit_every, open: None };
        store.open(prepare).expect("open");
        store
    }

    fn open(&mut self, prepare: impl FnOnce(Indexer) -> Indexer) -> Result<()> {
        let journal = Journal::open(journal::Options {
            dir: self.dir.path().join("journal"),
            indexer: Arc::new(NoIndex),
            segment_bytes: 1 << 20,
            backlog_bytes: 8 << 20,
        })?;
        let options = Options {
            dir: self.dir.path().join("documents"),
            overlay_bytes: self.overlay_bytes,
            writer_bytes: 15_000_000,
            commit_every: self.commit_every,
        };
        let path = options.dir.join("index");
        std::fs::create_dir_all(&path).expect("a directory");
        let inner = MmapDirectory::open(&path).expect("a directory");
        let directory = Box::new(TestDirectory { inner, disk: self.disk.clone() });
        let documents = TantivyDocuments::open_in(directory, options, journal.clone(), prepare)?;
        self.open = Some((journal, Arc::new(documents)));
        Ok(())
    }

    fn tantivy(&self) -> &Arc<TantivyDocuments> {
        &self.open.as_ref().expect("an open store").1
    }

    fn journal(&self) -> &Journal {
        &self.open.as_ref().expect("an open store").0
    }

    /// Ends it as the kernel would, in the middle of what it does.
    fn kill(&mut self) {
        self.disk.fail_commits();
        if let Some((_, documents)) = self.open.take() {
            let still_held = Arc::strong_count(&documents) - 1;
            assert!(still_held == 0 || std::thread::panicking(), "{still_held} still use it");
        }
        self.disk.pass_commits();
        self.disk.unlimit();
    }

    /// Begins a commit that does not come to its end, so that what was applied stays frozen.
    async fn begin_commit(&self) {
        self.disk.hold_commits();
        let documents = self.tantivy();
        let number = documents.shared.wish_commit();
        until(|| self.disk.is_holding() || documents.shared.progress().commits >= number).await;
    }

    async fn end_commit(&self) {
        self.disk.pass_commits();
        self.tantivy().commit().await.expect("committed");
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.kill();
    }
}

#[async_trait]
impl Subject for Store {
    fn documents(&self) -> Arc<dyn Documents> {
        self.tantivy().clone()
    }

    async fn log(&self, app: &AppId, entries: Vec<Entry>) -> Vec<LogEntry> {
        let appended = loop {
            let records = entries.iter().map(|entry| (Kind::LogEntry, codec::encode(app, entry).expect("bytes")));
            match self.journal().append(records.collect()) {
                Ok(appended) => break appended,
                // The next segment is being prepared.
                Err(error) if error.kind == crate::ErrorKind::Full => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        if let Some(last) = appended.last() {
            self.journal().durable(last.sequence).await.expect("durable");
        }
        let logged = entries.into_iter().zip(appended);
        logged.map(|(entry, place)| LogEntry { entry: Arc::new(entry), place: place.sequence }).collect()
    }

    /// All is in the index; what was applied is being written to it; the same, with more above it.
    async fn stir(&self, step: usize) {
        match step % 3 {
            0 => self.end_commit().await,
            1 => self.begin_commit().await,
            _ => {}
        }
    }

    async fn crash(&mut self) {
        self.kill();
        self.open(|indexer| indexer).expect("open");
    }
}

/// Waits for something that will be.
async fn until(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never comes");
        sleep(Duration::from_millis(1)).await;
    }
}
