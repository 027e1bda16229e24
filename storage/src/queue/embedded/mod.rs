//! Queues over the journal, for stages in one process.
//!
//! A durable message is a record of the journal ([`codec`]); what is settled is written lazily, a few times a second, so after a crash
//! the last moment comes again. A consumer may receive a message before its fsync: what it makes of it stands behind it in the same
//! journal. Queues `FromLog` and `Transient` live in memory and drop what does not fit. Of a long durable backlog, memory holds the
//! front and the numbers; the rest is read back. Messages that are not settled do not hold journal segments: they are carried to
//! the newest one before theirs is released.

pub(crate) mod codec;
mod consumer;
pub(crate) mod index;
mod queue;
mod recovery;
mod settled;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};

use self::{
    consumer::EmbeddedConsumer,
    queue::{Published, Queue, undeclared},
};
use super::{Consumer, Durability, Message, QueueInfo, Queues};
use crate::{
    Error, ErrorKind, Result,
    journal::{Appended, Journal, Kind, Place},
    model::ChangeId,
};

/// The bounds of each queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a durable queue's unsettled messages; past it publishing is `Full`.
    pub durable_bytes: usize,
    /// Of those, bytes that are kept in memory; the rest is read back from the journal.
    pub memory_bytes: usize,
    /// Bytes of a `FromLog` queue; past it messages are dropped.
    pub from_log_bytes: usize,
    /// Bytes of a `Transient` queue; past it messages are dropped.
    pub transient_bytes: usize,
    /// Messages of a queue in memory; past it they are dropped.
    pub messages: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            durable_bytes: 64 << 20,
            memory_bytes: 16 << 20,
            from_log_bytes: 32 << 20,
            transient_bytes: 16 << 20,
            messages: 65_536,
        }
    }
}

/// Asked before durable messages are taken on a queue that is no dead-letter queue; its error is the publisher's.
pub type Admission = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// Transient queues that are remembered after their consumer went: whoever still publishes to them is not told off.
const GONE_REMEMBERED: usize = 1_024;
/// How long publishing waits for room in the journal, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(2);
const ROOM_EVERY: Duration = Duration::from_millis(2);
/// Bytes of messages that are read back, or carried, at once.
const BATCH_BYTES: usize = 128 * 1024;

/// The queues of a journal. Cheap to clone.
#[derive(Clone)]
pub struct EmbeddedQueues {
    shared: Arc<Shared>,
}

struct Shared {
    journal: Journal,
    limits: Limits,
    admission: RwLock<Option<Admission>>,
    queues: RwLock<BTreeMap<String, Arc<Queue>>>,
    /// Names of transient queues whose consumer went, oldest first.
    gone: Mutex<VecDeque<String>>,
    /// Held while states are written, so that an older one never stands behind a newer one.
    saving: Mutex<()>,
}

impl EmbeddedQueues {
    /// Opens the queues that the journal holds; what was not settled waits again, marked as redelivered. Blocking.
    pub fn open(journal: Journal, limits: Limits) -> Result<Self> {
        let recovered = recovery::recover(&journal, limits)?;
        let queues = recovered.into_iter().map(|queue| (queue.name.clone(), Arc::new(queue))).collect();
        let shared = Shared {
            journal,
            limits,
            admission: RwLock::default(),
            queues: RwLock::new(queues),
            gone: Mutex::default(),
            saving: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// From now on durable messages are taken only when this agrees. Dead letters always are.
    pub fn admit_by(&self, admission: Admission) {
        *self.shared.admission.write() = Some(admission);
    }

    /// Writes what was settled since it was last written; it is durable with the next commit. Gives the sequence of that record, if
    /// there was anything. To be called a few times a second, and at the end.
    pub fn save_settled(&self) -> Result<Option<u64>> {
        let _alone = self.shared.saving.lock();
        let queues = self.shared.all();
        let states: Vec<_> =
            queues.iter().filter_map(|queue| queue.save().map(|state| (queue.name.clone(), state))).collect();
        if states.is_empty() {
            return Ok(None);
        }
        let appended = codec::encode_states(&states)
            .and_then(|payload| self.shared.journal.append(vec![(Kind::QueueState, payload)]));
        match appended {
            Ok(appended) => Ok(appended.last().map(|at| at.sequence)),
            Err(error) => {
                let unsaved = queues.iter().filter(|queue| states.iter().any(|(name, _)| *name == queue.name));
                unsaved.for_each(|queue| queue.not_saved());
                Err(error)
            }
        }
    }

    /// Appends unsettled messages anew whose records stand below the sequence, before what is below it is released. Gives the journal
    /// sequence that has to be durable before that; none when there is nothing to wait for. Blocking.
    pub fn carry(&self, below: u64) -> Result<Option<u64>> {
        let mut last = None;
        for queue in self.shared.all() {
            let mut records = Vec::new();
            let mut bytes = 0;
            for (number, place) in queue.places_below(below) {
                let payload = self.shared.journal.read(place)?.payload;
                bytes += payload.len();
                records.push((number, payload.to_vec()));
                if bytes >= BATCH_BYTES {
                    bytes = 0;
                    last = queue.carry(&self.shared.journal, std::mem::take(&mut records))?.or(last);
                }
            }
            last = queue.carry(&self.shared.journal, records)?.or(last);
        }
        Ok(last)
    }

    async fn save_and_sync(&self) -> Result<()> {
        match self.save_settled()? {
            Some(sequence) => self.shared.journal.durable(sequence).await,
            None => Ok(()),
        }
    }
}

impl Shared {
    fn queue(&self, name: &str) -> Option<Arc<Queue>> {
        self.queues.read().get(name).cloned()
    }

    fn declared(&self, operation: &'static str, name: &str) -> Result<(Arc<Queue>, Durability)> {
        let found = self.queue(name).and_then(|queue| queue.durability().map(|durability| (queue, durability)));
        found.ok_or_else(|| undeclared(operation, name))
    }

    fn all(&self) -> Vec<Arc<Queue>> {
        self.queues.read().values().cloned().collect()
    }

    fn admit(&self, queue: &str) -> Result<()> {
        match &*self.admission.read() {
            Some(admission) if !queue.ends_with(".dead") => admission(),
            _ => Ok(()),
        }
    }

    /// Remembers the name of a transient queue whose consumer went, and forgets the oldest of such names.
    fn forget_gone(&self, queue: &Arc<Queue>) {
        if !queue.is_gone() {
            return;
        }
        let mut gone = self.gone.lock();
        gone.push_back(queue.name.clone());
        if gone.len() > GONE_REMEMBERED
            && let Some(oldest) = gone.pop_front()
        {
            let mut queues = self.queues.write();
            if queues.get(&oldest).is_some_and(|queue| queue.is_gone()) {
                queues.remove(&oldest);
            }
        }
    }

    /// Reads messages back from the journal, in order, about [`BATCH_BYTES`] of them.
    async fn read_back(
        self: &Arc<Self>,
        spilled: Vec<(u64, Appended)>,
    ) -> Result<Vec<(u64, Appended, Result<Message>)>> {
        // What is on its way to the disk cannot be read from it yet.
        if let Some(last) = spilled.iter().map(|(_, at)| at.sequence).max() {
            self.journal.durable(last).await?;
        }
        let shared = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut messages = Vec::new();
            let mut bytes = 0;
            for (number, at) in spilled {
                if bytes >= BATCH_BYTES {
                    break;
                }
                let message = shared.read_message(number, at.place).map(|(message, size)| {
                    bytes += size;
                    message
                });
                messages.push((number, at, message));
            }
            messages
        });
        reading.await.map_err(consumer::aborted)
    }

    fn read_message(&self, number: u64, place: Place) -> Result<(Message, usize)> {
        let record = self.journal.read(place)?;
        let (found, message) = codec::decode(&record.payload)?;
        if found != number {
            let message = format!("message {number} is not where it was written");
            return Err(Error::new(ErrorKind::Corrupt, "read queue", message));
        }
        Ok((message, record.payload.len()))
    }
}

#[async_trait]
impl Queues for EmbeddedQueues {
    async fn declare(&self, queue: &str, durability: Durability) -> Result<()> {
        if queue.is_empty() || queue.len() > usize::from(u8::MAX) {
            let message = format!("a queue name has 1 to 255 bytes, not {}", queue.len());
            return Err(Error::new(ErrorKind::Invalid, "declare queue", message));
        }
        let new = || Arc::new(Queue::new(queue.to_owned(), self.shared.limits));
        self.shared.queues.write().entry(queue.to_owned()).or_insert_with(new).declare(durability)
    }

    async fn publish(&self, queue: &str, messages: Vec<Message>) -> Result<()> {
        let (queue, durability) = self.shared.declared("publish", queue)?;
        if durability != Durability::Durable {
            queue.publish_in_memory(messages);
            return Ok(());
        }
        if messages.iter().any(|message| message.durable) {
            self.shared.admit(&queue.name)?;
        }
        let started = Instant::now();
        loop {
            let encode = |message: &Message| message.durable.then(|| codec::encode(&queue.name, message)).transpose();
            let encoded = messages.iter().map(encode).collect::<Result<_>>()?;
            match queue.publish_durable(&self.shared.journal, &messages, encoded)? {
                Published::Upto(Some(last)) => return self.shared.journal.durable(last).await,
                Published::Upto(None) => return Ok(()),
                Published::NoRoom(error) if started.elapsed() >= PATIENCE => return Err(error),
                Published::NoRoom(_) => {
                    self.shared.journal.durable(self.shared.journal.head()).await?;
                    tokio::time::sleep(ROOM_EVERY).await;
                }
            }
        }
    }

    async fn consume(&self, queue: &str, prefetch: usize) -> Result<Box<dyn Consumer>> {
        let (queue, _) = self.shared.declared("consume", queue)?;
        Ok(Box::new(EmbeddedConsumer::join(self.shared.clone(), queue, prefetch)?))
    }

    async fn list(&self) -> Result<Vec<QueueInfo>> {
        Ok(self.shared.all().iter().filter_map(|queue| queue.info()).collect())
    }

    async fn browse(&self, queue: &str, after: Option<ChangeId>, limit: usize) -> Result<Vec<Message>> {
        let (queue, _) = self.shared.declared("browse queue", queue)?;
        let mut shown: Vec<(u64, Option<Message>)> = Vec::new();
        let mut spilled = Vec::new();
        for (number, found) in queue.browse(after, limit)? {
            if let Err(at) = found {
                spilled.push((number, at));
            }
            shown.push((number, found.ok()));
        }
        while !spilled.is_empty() {
            let read = self.shared.read_back(spilled.clone()).await?;
            spilled.drain(..read.len());
            for (number, at, message) in read {
                let message = match message {
                    Ok(message) => Some(message),
                    // Carried to a newer segment meanwhile: read it there. Settled: it does not wait any more.
                    Err(error) => match queue.place_of(number) {
                        Some(place) if place == at => return Err(error),
                        Some(place) => {
                            spilled.push((number, place));
                            None
                        }
                        None => None,
                    },
                };
                if let Ok(place) = shown.binary_search_by_key(&number, |(number, _)| *number) {
                    shown[place].1 = message;
                }
            }
        }
        Ok(shown.into_iter().filter_map(|(_, message)| message).collect())
    }

    async fn remove(&self, queue: &str, ids: &[ChangeId]) -> Result<usize> {
        let (queue, _) = self.shared.declared("remove messages", queue)?;
        let removed = queue.remove(&ids.iter().copied().collect());
        self.save_and_sync().await?;
        Ok(removed)
    }

    async fn delete(&self, queue: &str) -> Result<()> {
        let (queue, _) = self.shared.declared("delete queue", queue)?;
        queue.delete();
        self.save_and_sync().await
    }
}
