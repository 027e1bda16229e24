//! Group commit: whoever appends queues bytes, one thread writes and syncs them, everybody who waits is woken.

use std::{
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use super::{
    Appended, Kind, Options, Place,
    files::File,
    format::{self, HEADER_BYTES, RECORD_HEADER_BYTES},
    keeper::Keeper,
    segments::{Held, Segments, segment_path},
};
use crate::{Error, ErrorKind, Result, model::Timestamp};

/// Syncs so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FsyncStatistics {
    pub count: u64,
    pub total: Duration,
    pub longest: Duration,
}

pub(super) struct Committer {
    segments: Arc<Segments>,
    backlog_bytes: usize,
    tail: Mutex<Tail>,
    work: Condvar,
    waiting: Mutex<Waiting>,
    failure: watch::Sender<Option<Arc<Error>>>,
    statistics: Mutex<FsyncStatistics>,
    first_sync: Mutex<Duration>,
    keeper: Keeper,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Where the next record goes, and what is not written yet.
struct Tail {
    next_sequence: u64,
    /// The segment that is appended to; none before the first record.
    segment: Option<(u64, Arc<dyn File>)>,
    offset: u32,
    chunks: Vec<Chunk>,
    pending_bytes: usize,
    closing: bool,
}

/// Records that stand next to each other in one segment.
struct Chunk {
    segment: u64,
    file: Arc<dyn File>,
    offset: u32,
    bytes: Vec<u8>,
    last: u64,
    /// The file to be given the segment's name before it is written.
    begins: Option<PathBuf>,
    /// The segment before, which is complete now.
    seals: Option<u64>,
}

struct Waiting {
    durable: u64,
    list: Vec<(u64, oneshot::Sender<()>)>,
}

impl Committer {
    pub(super) fn start(segments: Arc<Segments>, options: &Options) -> Result<Arc<Self>> {
        let started = Instant::now();
        segments
            .prepare_spares()
            .map_err(|error| Error::io("prepare segment", segments.dir.display().to_string(), error))?;
        let recovered = segments.recovered_upto;
        let committer = Arc::new(Self {
            keeper: Keeper::start(segments.clone())?,
            segments,
            backlog_bytes: options.backlog_bytes,
            tail: Mutex::new(Tail {
                next_sequence: recovered + 1,
                segment: None,
                offset: 0,
                chunks: Vec::new(),
                pending_bytes: 0,
                closing: false,
            }),
            work: Condvar::new(),
            waiting: Mutex::new(Waiting { durable: recovered, list: Vec::new() }),
            failure: watch::channel(None).0,
            statistics: Mutex::default(),
            first_sync: Mutex::new(started.elapsed()),
            thread: Mutex::new(None),
        });
        committer.time_a_sync()?;
        let running = committer.clone();
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || running.run());
        let thread = thread.map_err(|error| Error::io("start journal", "its thread", error))?;
        *committer.thread.lock() = Some(thread);
        Ok(committer)
    }

    fn time_a_sync(&self) -> Result<()> {
        let Some(file) = self.segments.spares.lock().ready.first().map(|(_, file)| file.clone()) else { return Ok(()) };
        let started = Instant::now();
        file.write_at(&[0], 0)
            .and_then(|()| file.sync())
            .map_err(|error| Error::io("sync", self.segments.dir.display().to_string(), error))?;
        *self.first_sync.lock() = started.elapsed();
        Ok(())
    }

    pub(super) fn append(&self, records: &[(Kind, Vec<u8>)]) -> Result<Vec<Appended>> {
        let largest = (self.segments.segment_bytes - HEADER_BYTES) as usize;
        let size_of = |payload: &[u8]| RECORD_HEADER_BYTES + payload.len();
        let mut n_bytes = 0;
        for (_, payload) in records {
            if size_of(payload) > largest {
                let message = format!("a record of {} bytes is larger than a segment", payload.len());
                return Err(Error::new(ErrorKind::Invalid, "append to journal", message));
            }
            n_bytes += size_of(payload);
        }
        let mut tail = self.tail.lock();
        if let Some(failure) = &*self.failure.borrow() {
            return Err(again(failure));
        }
        if tail.closing {
            return Err(Error::new(ErrorKind::Unavailable, "append to journal", "the journal is closing"));
        }
        if tail.pending_bytes > 0 && tail.pending_bytes + n_bytes > self.backlog_bytes {
            let message = format!("{} bytes wait for the disk", tail.pending_bytes);
            return Err(Error::new(ErrorKind::Full, "append to journal", message));
        }
        self.check_room(&tail, records)?;
        let appended = records.iter().filter_map(|(kind, payload)| self.push(&mut tail, *kind, payload)).collect();
        tail.pending_bytes += n_bytes;
        drop(tail);
        self.work.notify_one();
        Ok(appended)
    }

    /// Whether there are prepared files for all segments that these records will begin.
    fn check_room(&self, tail: &Tail, records: &[(Kind, Vec<u8>)]) -> Result<()> {
        let mut n_begun = 0;
        let mut offset = if tail.segment.is_some() { tail.offset } else { self.segments.segment_bytes };
        for (_, payload) in records {
            let size = (RECORD_HEADER_BYTES + payload.len()) as u32;
            if offset + size > self.segments.segment_bytes {
                n_begun += 1;
                offset = HEADER_BYTES;
            }
            offset += size;
        }
        let spares = self.segments.spares.lock();
        if n_begun <= spares.ready.len() {
            return Ok(());
        }
        let trouble = spares.trouble;
        drop(spares);
        self.keeper.prepare();
        Err(match trouble {
            Some(kind) => Error::io("prepare segment", "no room for the next segment of the journal", kind.into()),
            None => Error::new(ErrorKind::Full, "append to journal", "the next segment is being prepared"),
        })
    }

    fn push(&self, tail: &mut Tail, kind: Kind, payload: &[u8]) -> Option<Appended> {
        let size = (RECORD_HEADER_BYTES + payload.len()) as u32;
        let sequence = tail.next_sequence;
        if tail.segment.is_none() || tail.offset + size > self.segments.segment_bytes {
            // check_room has seen that there is one.
            let (path, file) = self.segments.spares.lock().ready.pop()?;
            let seals = tail.segment.as_ref().map(|(segment, _)| *segment);
            tail.segment = Some((sequence, file.clone()));
            tail.offset = HEADER_BYTES;
            let (bytes, begins) = (Vec::new(), Some(path));
            tail.chunks.push(Chunk { segment: sequence, file, offset: HEADER_BYTES, bytes, last: 0, begins, seals });
            self.keeper.prepare();
        }
        let (segment, file) = tail.segment.clone()?;
        let place = Place { segment, offset: tail.offset };
        if tail.chunks.last().is_none_or(|chunk| chunk.segment != segment) {
            let (offset, bytes) = (tail.offset, Vec::new());
            tail.chunks.push(Chunk { segment, file, offset, bytes, last: 0, begins: None, seals: None });
        }
        let chunk = tail.chunks.last_mut()?;
        format::push_record(&mut chunk.bytes, sequence, kind, payload);
        chunk.last = sequence;
        tail.offset += size;
        tail.next_sequence += 1;
        Some(Appended { sequence, place })
    }

    fn run(&self) {
        loop {
            let mut tail = self.tail.lock();
            while tail.chunks.is_empty() {
                if tail.closing {
                    return;
                }
                self.work.wait(&mut tail);
            }
            let chunks = std::mem::take(&mut tail.chunks);
            tail.pending_bytes = 0;
            drop(tail);
            if let Err(error) = self.commit(chunks) {
                return self.fail(error);
            }
        }
    }

    fn commit(&self, mut chunks: Vec<Chunk>) -> Result<()> {
        let durable = self.durable_upto();
        for chunk in &mut chunks {
            self.write(chunk, durable)
                .map_err(|error| Error::io("write journal", format!("segment {}", chunk.segment), error))?;
        }
        let started = Instant::now();
        let mut begins = false;
        for (place, chunk) in chunks.iter().enumerate() {
            begins |= chunk.begins.is_some();
            // Chunks of one segment follow each other: its last one syncs for all.
            if chunks.get(place + 1).is_none_or(|next| next.segment != chunk.segment) {
                chunk
                    .file
                    .sync()
                    .map_err(|error| Error::io("sync journal", format!("segment {}", chunk.segment), error))?;
            }
        }
        if begins {
            let dir = &self.segments.dir;
            let synced = self.segments.files.sync_dir(dir);
            synced.map_err(|error| Error::io("sync journal", dir.display().to_string(), error))?;
        }
        self.count_sync(started.elapsed());
        self.note(&chunks);
        Ok(())
    }

    fn write(&self, chunk: &mut Chunk, durable: u64) -> std::io::Result<()> {
        format::seal_records(&mut chunk.bytes, durable);
        if let Some(spare) = &chunk.begins {
            self.segments.files.rename(spare, &segment_path(&self.segments.dir, chunk.segment))?;
            chunk.file.write_at(&format::segment_header(chunk.segment), 0)?;
        }
        chunk.file.write_at(&chunk.bytes, u64::from(chunk.offset))
    }

    /// What was written is durable: readers may see it, waiters are woken, complete segments are sealed.
    fn note(&self, chunks: &[Chunk]) {
        let mut sealed = Vec::new();
        {
            let mut held = self.segments.held.lock();
            for chunk in chunks {
                if let Some(segment) = chunk.seals
                    && let Some(segment_before) = held.get_mut(&segment)
                {
                    segment_before.sealed = true;
                    sealed.push(segment);
                }
                let segment = held.entry(chunk.segment).or_insert_with(|| Held {
                    last: 0,
                    length: HEADER_BYTES,
                    sealed: false,
                    indexed: false,
                    newest: Timestamp::now(),
                    file: chunk.file.clone(),
                });
                segment.last = chunk.last;
                segment.length = chunk.offset + chunk.bytes.len() as u32;
                segment.newest = Timestamp::now();
            }
        }
        sealed.into_iter().for_each(|segment| self.keeper.seal(segment));
        let Some(last) = chunks.last().map(|chunk| chunk.last) else { return };
        let mut waiting = self.waiting.lock();
        waiting.durable = last;
        let woken: Vec<_> = waiting.list.extract_if(.., |(sequence, _)| *sequence <= last).collect();
        drop(waiting);
        for (_, waiter) in woken {
            // Who no longer waits does not mind.
            let _unheard = waiter.send(());
        }
    }

    fn count_sync(&self, took: Duration) {
        let mut statistics = self.statistics.lock();
        statistics.count += 1;
        statistics.total += took;
        statistics.longest = statistics.longest.max(took);
    }

    fn fail(&self, error: Error) {
        tracing::error!(%error, "the journal has failed: nothing more is accepted, the process has to stop");
        {
            // Under the lock, so that no append slips in between.
            let mut tail = self.tail.lock();
            tail.chunks.clear();
            self.failure.send_replace(Some(Arc::new(error)));
        }
        // Dropping the senders wakes the waiters, who find the failure.
        self.waiting.lock().list.clear();
    }

    pub(super) async fn durable(&self, sequence: u64) -> Result<()> {
        let waiter = {
            let mut waiting = self.waiting.lock();
            if sequence <= waiting.durable {
                return Ok(());
            }
            if let Some(failure) = &*self.failure.borrow() {
                return Err(again(failure));
            }
            let (sender, waiter) = oneshot::channel();
            waiting.list.push((sequence, sender));
            waiter
        };
        match waiter.await {
            Ok(()) => Ok(()),
            Err(_) => Err(match &*self.failure.borrow() {
                Some(failure) => again(failure),
                None => Error::new(ErrorKind::Unavailable, "sync journal", "the journal was closed"),
            }),
        }
    }

    pub(super) fn durable_upto(&self) -> u64 {
        self.waiting.lock().durable
    }

    pub(super) fn head(&self) -> u64 {
        self.tail.lock().next_sequence - 1
    }

    pub(super) async fn failed(&self) -> Error {
        let mut failure = self.failure.subscribe();
        match failure.wait_for(Option::is_some).await.ok().as_deref() {
            Some(Some(failure)) => again(failure),
            // The sender lives as long as this.
            _ => std::future::pending().await,
        }
    }

    pub(super) fn statistics(&self) -> FsyncStatistics {
        *self.statistics.lock()
    }

    pub(super) fn first_sync(&self) -> Duration {
        *self.first_sync.lock()
    }

    pub(super) fn close(&self) -> Result<()> {
        self.tail.lock().closing = true;
        self.work.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // It panics nowhere; were it to, the failure below is not set and what was waited for has not returned.
            let _ended = thread.join();
        }
        self.keeper.close();
        self.waiting.lock().list.clear();
        match &*self.failure.borrow() {
            Some(failure) => Err(again(failure)),
            None => Ok(()),
        }
    }
}

/// The failure, for one more caller.
fn again(failure: &Error) -> Error {
    Error::new(failure.kind, failure.operation, format!("the journal has failed: {failure}"))
}
