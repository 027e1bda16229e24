//! Group commit: whoever appends queues bytes, one thread writes and syncs them, everybody who waits is woken.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{
    Appended, Kind, Options, Place,
    format::{self, HEAD_BYTES, Head},
    fsyncs::FsyncStatistics,
    keeper::Keeper,
    segments::{Active, Segments},
    spares::{MOST_SPARES, Spare},
    waiters::Waiters,
};
use crate::{Error, ErrorKind, Result, failpoint};

/// What is written and synced at once, but for a larger record.
const CHUNK: usize = 1024 * 1024;
/// Writes end at a multiple of this: a page that is written only in part would have to be read first, if it is not in memory.
const PAGE: usize = 4096;

pub(super) struct Committer {
    segments: Arc<Segments>,
    backlog_bytes: usize,
    tail: Mutex<Tail>,
    work: Condvar,
    waiters: Waiters,
    statistics: Mutex<FsyncStatistics>,
    keeper: Keeper,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Where the next record goes, and what is not written yet.
struct Tail {
    next_sequence: u64,
    /// The segment that is appended to; none when there was no room for it at open.
    active: Option<Active>,
    offset: u32,
    /// Whether a file for the segment after this one was asked for.
    has_asked: bool,
    chunks: VecDeque<Chunk>,
    pending_bytes: usize,
    /// An emptied buffer, for the next chunk.
    buffer: Vec<u8>,
    closing: bool,
}

/// Records that stand next to each other in one segment.
struct Chunk {
    active: Active,
    offset: u32,
    bytes: Vec<u8>,
    last: u64,
    begins: Option<Begin>,
}

/// A new segment, to be begun before the chunk is written.
struct Begin {
    spare: Spare,
    /// The segment before, which is complete then.
    before: Option<u64>,
}

impl Committer {
    pub(super) fn start(segments: Arc<Segments>, active: Option<Active>, options: &Options) -> Result<Arc<Self>> {
        let recovered = segments.recovered_upto;
        let unindexed =
            segments.list().iter().filter(|held| held.sealed && !held.indexed).map(|held| held.first).collect();
        let committer = Arc::new(Self {
            keeper: Keeper::start(segments.clone(), unindexed)?,
            segments,
            backlog_bytes: options.backlog_bytes,
            tail: Mutex::new(Tail {
                next_sequence: recovered + 1,
                active,
                offset: HEAD_BYTES,
                has_asked: false,
                chunks: VecDeque::new(),
                pending_bytes: 0,
                buffer: Vec::new(),
                closing: false,
            }),
            work: Condvar::new(),
            waiters: Waiters::new(recovered),
            statistics: Mutex::default(),
            thread: Mutex::new(None),
        });
        let running = committer.clone();
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || running.run());
        let thread = thread.map_err(|error| Error::io("start journal", "its thread", error))?;
        *committer.thread.lock() = Some(thread);
        Ok(committer)
    }

    pub(super) fn append(&self, records: &[(Kind, Vec<u8>)]) -> Result<Vec<Appended>> {
        let n_bytes = self.check_sizes(records)?;
        let mut tail = self.tail.lock();
        if let Some(error) = self.segments.failure.for_callers() {
            return Err(error);
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
        if !tail.has_asked && tail.offset > self.segments.segment_bytes / 4 {
            tail.has_asked = true;
            self.keeper.prepare(1);
        }
        drop(tail);
        self.work.notify_one();
        Ok(appended)
    }

    fn check_sizes(&self, records: &[(Kind, Vec<u8>)]) -> Result<usize> {
        let room = (self.segments.segment_bytes - HEAD_BYTES) as usize;
        let mut n_bytes = 0;
        let mut largest = 0;
        for (_, payload) in records {
            n_bytes += format::record_bytes(payload);
            largest = largest.max(format::record_bytes(payload));
        }
        let invalid = |message| Error::new(ErrorKind::Invalid, "append to journal", message);
        if largest > room {
            return Err(invalid(format!("a record of {largest} bytes is larger than the {room} of a segment")));
        }
        if n_bytes > room * MOST_SPARES {
            let message = format!("{n_bytes} bytes at once are more than {MOST_SPARES} segments of {room} bytes hold");
            return Err(invalid(message));
        }
        Ok(n_bytes)
    }

    /// Whether there are prepared files for all segments that these records will begin.
    fn check_room(&self, tail: &Tail, records: &[(Kind, Vec<u8>)]) -> Result<()> {
        let mut n_begun = 0;
        let mut offset = if tail.active.is_some() { tail.offset } else { self.segments.segment_bytes };
        for (_, payload) in records {
            let size = format::record_bytes(payload) as u32;
            if offset + size > self.segments.segment_bytes {
                n_begun += 1;
                offset = HEAD_BYTES;
            }
            offset += size;
        }
        if n_begun <= self.segments.spares.n_ready() {
            return Ok(());
        }
        self.keeper.prepare(n_begun);
        Err(match self.segments.spares.trouble() {
            Some(kind) => Error::io("append to journal", "the next segment cannot be prepared", kind.into()),
            None => Error::new(ErrorKind::Full, "append to journal", "the next segment is being prepared"),
        })
    }

    fn push(&self, tail: &mut Tail, kind: Kind, payload: &[u8]) -> Option<Appended> {
        let size = format::record_bytes(payload) as u32;
        let sequence = tail.next_sequence;
        if tail.active.is_none() || tail.offset + size > self.segments.segment_bytes {
            // check_room has seen that there is one.
            let spare = self.segments.spares.take()?;
            let before = tail.active.take().map(|active| active.head.first);
            let head = Head { first: sequence, salt: rand::random() };
            tail.active = Some(Active { head, file: spare.file.clone() });
            tail.offset = HEAD_BYTES;
            tail.has_asked = false;
            tail.begin_chunk(Some(Begin { spare, before }))?;
        } else if tail.chunks.back().is_none_or(|chunk| chunk.bytes.len() + size as usize > CHUNK) {
            tail.begin_chunk(None)?;
        }
        let chunk = tail.chunks.back_mut()?;
        format::push_record(&mut chunk.bytes, sequence, kind, payload);
        chunk.last = sequence;
        let place = Place { segment: chunk.active.head.first, offset: tail.offset };
        tail.offset += size;
        tail.next_sequence += 1;
        Some(Appended { sequence, place })
    }

    fn run(&self) {
        let _end = EndOfCommitter(self);
        let _panic = self.segments.failure.of_thread("journal");
        loop {
            let mut tail = self.tail.lock();
            let mut chunk = loop {
                if let Some(chunk) = tail.chunks.pop_front() {
                    break chunk;
                }
                if tail.closing {
                    return;
                }
                self.work.wait(&mut tail);
            };
            tail.pending_bytes -= chunk.bytes.len();
            drop(tail);
            if let Err(error) = self.commit(&mut chunk) {
                return self.segments.failure.note(error);
            }
            self.tail.lock().reuse(chunk.bytes);
        }
    }

    fn commit(&self, chunk: &mut Chunk) -> Result<()> {
        let Head { first, salt } = chunk.active.head;
        let failed = |operation| move |error| Error::io(operation, format!("segment {first}"), error);
        if let Some(begin) = &chunk.begins {
            // Everything in the segment before is durable: its last chunk was committed.
            self.segments.begin(&begin.spare, chunk.active.head).map_err(failed("begin segment of journal"))?;
            if let Some(before) = begin.before
                && self.segments.complete(before)
            {
                self.keeper.index(before);
            }
        }
        format::seal_records(&mut chunk.bytes, self.waiters.durable(), salt);
        let end = chunk.offset as usize + chunk.bytes.len();
        let padded = end.next_multiple_of(PAGE).min(self.segments.segment_bytes as usize);
        chunk.bytes.resize(padded - chunk.offset as usize, 0);
        let file = &chunk.active.file;
        file.write_at(&chunk.bytes, u64::from(chunk.offset)).map_err(failed("write journal"))?;
        let started = Instant::now();
        failpoint::reach("journal.sync").map_err(|error| failed("sync journal")(io::Error::other(error)))?;
        file.sync().map_err(failed("sync journal"))?;
        self.statistics.lock().count(started.elapsed());
        self.segments.extend(first, chunk.last, end as u32);
        self.waiters.advance(chunk.last);
        Ok(())
    }

    pub(super) async fn durable(&self, sequence: u64) -> Result<()> {
        if self.waiters.wait(sequence).await {
            return Ok(());
        }
        Err(self
            .segments
            .failure
            .for_callers()
            .unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "sync journal", "the journal was closed")))
    }

    pub(super) fn durable_upto(&self) -> u64 {
        self.waiters.durable()
    }

    pub(super) fn head(&self) -> u64 {
        self.tail.lock().next_sequence - 1
    }

    pub(super) fn statistics(&self) -> FsyncStatistics {
        *self.statistics.lock()
    }

    /// Commits what is appended, indexes the segment that was appended to, ends the threads.
    pub(super) fn close(&self) -> Result<()> {
        let active = {
            let mut tail = self.tail.lock();
            tail.closing = true;
            tail.active.as_ref().map(|active| active.head.first)
        };
        self.work.notify_one();
        let thread = self.thread.lock().take();
        let is_first = thread.is_some();
        if let Some(thread) = thread {
            // Were it to panic, the failure says so.
            let _ended = thread.join();
        }
        if let Some(error) = self.segments.failure.get() {
            self.keeper.close();
            return Err(error);
        }
        // The next start need not read it then.
        if let Some(active) = active.filter(|_| is_first)
            && self.segments.complete(active)
        {
            self.keeper.index(active);
        }
        self.keeper.close();
        Ok(())
    }
}

/// However the committer ends: nothing waits for it any more.
struct EndOfCommitter<'a>(&'a Committer);

impl Drop for EndOfCommitter<'_> {
    fn drop(&mut self) {
        // Under the lock, so that no append slips in between.
        self.0.tail.lock().chunks.clear();
        self.0.waiters.end();
    }
}

impl Tail {
    fn begin_chunk(&mut self, begins: Option<Begin>) -> Option<()> {
        let (active, bytes) = (self.active.clone()?, std::mem::take(&mut self.buffer));
        self.chunks.push_back(Chunk { active, offset: self.offset, bytes, last: 0, begins });
        Some(())
    }

    fn reuse(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= 2 * CHUNK {
            buffer.clear();
            self.buffer = buffer;
        }
    }
}

/// How long one sync takes, where it does nothing else than what a commit does.
pub(super) fn time_a_sync(active: &Active) -> io::Result<Duration> {
    let mut times = [Duration::ZERO; 3];
    for time in &mut times {
        active.file.write_at(&[0; PAGE], u64::from(HEAD_BYTES))?;
        let started = Instant::now();
        active.file.sync()?;
        *time = started.elapsed();
    }
    times.sort_unstable();
    Ok(times[1])
}
