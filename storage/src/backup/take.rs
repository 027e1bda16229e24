//! Taking a backup: what has to be done before there is a position that everything agrees on, and the copying after it.

use std::{
    fs::File,
    io::{self, Read, Write},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{OwnedMutexGuard, RwLock};
use tracing::{info, warn};

use super::{
    container::Writer,
    manifest::{Application, Manifest, Part},
    pace::Pace,
};
use crate::{
    ChangeLog as _, Error, ErrorKind, Result,
    documents::tantivy::copy::{CopiedFile, Copy},
    embedded::Engine,
    journal::{self, Pin, SegmentCopy},
    model::Timestamp,
};

/// How long the index and the registry are waited for; what is committed by then is taken.
const COMMIT_PATIENCE: Duration = Duration::from_secs(30);
/// How long writers are waited for, and kept waiting; how often; and the pause between two such tries.
const STILL_PATIENCE: Duration = Duration::from_millis(500);
const STILL_TRIES: u32 = 20;
const STILL_PAUSE: Duration = Duration::from_millis(500);

/// How much the other threads come first.
const NICE: i32 = 10;

/// What the engine does not know of itself.
#[derive(Debug, Clone)]
pub struct About {
    /// The version of Nexxus.
    pub nexxus: String,
    /// The queues of commands, by their names.
    pub writer_queues: Vec<String>,
}

/// A consistent copy of everything at one moment: open files, to be written to wherever. What it needs is kept until it is dropped.
pub struct Snapshot {
    manifest: Manifest,
    journal: Vec<SegmentCopy>,
    files: Vec<CopiedFile>,
    /// Keeps the index from removing files.
    _documents: Vec<Copy>,
    pin: Option<Pin>,
    /// One backup at a time.
    _alone: OwnedMutexGuard<()>,
}

impl Engine {
    /// Takes a snapshot. `still` is held for reading by every writer that is between logging and applying. `Unavailable` while another
    /// backup is taken, and when writers do not come to rest.
    pub(crate) async fn snapshot(&self, still: &RwLock<()>, about: About) -> Result<Snapshot> {
        let alone = self.backing_up().try_lock_owned().map_err(|_| {
            Error::new(ErrorKind::Unavailable, "back up", "another backup is being taken: wait until it is done")
        })?;
        let journal = self.journal();
        // From here on nothing goes that the oldest state which could be copied needs.
        let pin = journal.pin(first_needed(journal, self.settled()))?;
        self.bring_up_to_date().await;
        let first = first_needed(journal, self.settled());
        let pin = std::mem::replace(&mut { pin }, journal.pin(first)?);
        let engine = self.clone();
        let carried = blocking(move || engine.carry(first)).await?;
        if let Some(carried) = carried {
            journal.durable(carried).await?;
        }
        let moment = self.moment(still).await?;
        journal.durable(moment.sequence).await?;
        let (source, upto) = (journal.clone(), moment.sequence);
        let segments = blocking(move || source.copies(first, upto)).await?;
        Ok(moment.into_snapshot(first, segments, about, pin, alone))
    }

    /// Commits the index and exports the registry, so that little of the journal is needed. Where that fails or takes too long, older
    /// states and more of the journal serve as well.
    async fn bring_up_to_date(&self) {
        let (documents, registry) = (self.index(), self.registry());
        let brought = async {
            registry?.export().await?;
            documents?.commit().await
        };
        match tokio::time::timeout(COMMIT_PATIENCE, brought).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "a backup goes on with an older state of the index or the registry"),
            Err(_) => warn!("a backup goes on with an older state of the index or the registry: they take too long"),
        }
    }

    /// Waits for a moment in which everything logged is applied, and takes what has to be of it.
    async fn moment(&self, still: &RwLock<()>) -> Result<Moment> {
        for _ in 0..STILL_TRIES {
            if let Ok(_still) = tokio::time::timeout(STILL_PATIENCE, still.write()).await {
                return self.moment_now().await;
            }
            tokio::time::sleep(STILL_PAUSE).await;
        }
        let message = "writers have been at work on the same changes for too long";
        Err(Error::new(ErrorKind::Unavailable, "back up", message))
    }

    async fn moment_now(&self) -> Result<Moment> {
        let (registry, documents) = (self.registry()?, self.index()?);
        let (registry, documents) = blocking(move || Ok((registry.open_export()?, documents.copy()?))).await?;
        let log = self.change_log();
        let mut applications = Vec::new();
        for app in log.applications().await? {
            let offset = log.marks(&app).await?.head;
            applications.push(Application { id: app, offset });
        }
        let sequence = self.journal().head();
        let epoch = applications.iter().map(|app| app.offset.epoch).max().unwrap_or(0).max(log.least_epoch());
        Ok(Moment { sequence, registry, documents, applications, epoch })
    }
}

/// The first sequence of the segment to begin with: the one before the oldest that is needed, where it is held. So the decision of
/// a command that its queue has not settled yet is in the backup with it.
fn first_needed(journal: &journal::Journal, settled: u64) -> u64 {
    let segments = journal.segments();
    let needed = segments.partition_point(|segment| segment.first <= settled + 1).saturating_sub(1);
    segments.get(needed.saturating_sub(1)).map_or(settled + 1, |segment| segment.first)
}

/// What has to be of one moment.
struct Moment {
    sequence: u64,
    registry: (File, u64, u64),
    documents: Copy,
    applications: Vec<Application>,
    epoch: u32,
}

impl Moment {
    fn into_snapshot(
        mut self,
        first: u64,
        journal: Vec<SegmentCopy>,
        about: About,
        pin: Pin,
        alone: OwnedMutexGuard<()>,
    ) -> Snapshot {
        let segment = |segment: &SegmentCopy| Part { name: format!("journal/{}", segment.name), bytes: segment.bytes };
        let mut parts: Vec<Part> = journal.iter().map(segment).collect();
        let (export, registry, bytes) = self.registry;
        parts.push(Part { name: "registry/export.jsonl".to_owned(), bytes });
        let mut files = vec![CopiedFile::Open(export, bytes)];
        for (name, file) in std::mem::take(&mut self.documents.files) {
            parts.push(Part { name: format!("documents/{name}"), bytes: file.bytes() });
            files.push(file);
        }
        let manifest = Manifest {
            nexxus: about.nexxus,
            created: Timestamp::now(),
            sequence: self.sequence,
            journal_from: first,
            registry,
            documents: self.documents.sequence,
            writer_queues: about.writer_queues,
            epoch: self.epoch,
            applications: self.applications,
            parts,
        };
        info!(sequence = manifest.sequence, bytes = manifest.bytes(), "a backup begins");
        Snapshot { manifest, journal, files, _documents: vec![self.documents], pin: Some(pin), _alone: alone }
    }
}

impl CopiedFile {
    fn bytes(&self) -> u64 {
        match self {
            Self::Open(_, bytes) => *bytes,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

impl Snapshot {
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Writes the backup on a thread of its own, of low priority and at a gentle pace: the server comes first.
    pub async fn write_aside(self, out: impl Write + Send + 'static) -> Result<Manifest> {
        let (done, outcome) = tokio::sync::oneshot::channel();
        let write = move || {
            // On Linux a priority is one of the calling thread.
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                warn!(%error, "a backup runs at normal priority");
            }
            let mut pace = Pace::begin();
            // Nobody may wait for it any more.
            let _unheard = done.send(self.write(out, &mut |_| pace.rest()));
        };
        let thread = std::thread::Builder::new().name("backup".to_owned()).spawn(write);
        thread.map_err(|error| Error::io("back up", "its thread", error))?;
        outcome.await.map_err(|_| Error::new(ErrorKind::Internal, "back up", "the thread ended early"))?
    }

    /// Writes the backup; `told` hears of the bytes of its parts as they are written. Blocking.
    pub fn write(mut self, out: impl Write, told: &mut dyn FnMut(u64)) -> Result<Manifest> {
        let mut writer = Writer::begin(out, &self.manifest)?;
        let (of_journal, of_files) = self.manifest.parts.split_at(self.journal.len());
        for (part, segment) in of_journal.iter().zip(&self.journal) {
            writer.part(&part.name, part.bytes, &mut FileReader { file: segment.file.clone(), at: 0 }, told)?;
        }
        // The rest is not of the journal: that may go on and release what it has.
        self.journal.clear();
        self.pin = None;
        for (part, file) in of_files.iter().zip(&mut self.files) {
            match file {
                CopiedFile::Open(file, _) => writer.part(&part.name, part.bytes, file, told)?,
                CopiedFile::Bytes(bytes) => writer.part(&part.name, part.bytes, &mut &bytes[..], told)?,
            }
        }
        writer.finish()?;
        Ok(self.manifest)
    }
}

/// Reads a file of the journal from its beginning.
struct FileReader {
    file: Arc<dyn journal::files::File>,
    at: u64,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_read = self.file.read_at(buffer, self.at)?;
        self.at += n_read as u64;
        Ok(n_read)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, "back up", "the work was aborted").with_source(error))?
}
