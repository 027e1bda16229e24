//! One queue: what waits, what is in the hands of the consumer, what is settled.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use super::{
    Limits,
    codec::{Encoded, State},
    settled::Settled,
};
use crate::{
    Error, ErrorKind, Result,
    journal::{Appended, Journal, Kind, Place},
    model::{ChangeId, Timestamp},
    queue::{Delivery, Durability, Message, QueueInfo, Receipt},
};

/// What a message weighs besides its payload.
const OVERHEAD: usize = 128;
/// Room for this many messages is kept by an empty queue.
const SPARE_CAPACITY: usize = 4_096;
/// How often a queue says in the log that it drops messages.
const WARN_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Queue {
    pub(super) name: String,
    limits: Limits,
    held: Mutex<Held>,
    /// There is something to receive, a turn to take, or an end to notice.
    pub(super) changed: Notify,
}

struct Held {
    presence: Presence,
    /// The number of the next message: the order of publishing.
    next: u64,
    /// Given back: before all others, by number.
    returned: BTreeMap<u64, Waiting>,
    ready: VecDeque<Waiting>,
    /// Delivered to the active consumer, by receipt.
    unacked: HashMap<u64, Waiting>,
    next_receipt: u64,
    /// The first one is active, the others stand by.
    consumers: VecDeque<u64>,
    next_consumer: u64,
    settled: Settled,
    /// What is settled is not in the journal as it is.
    unsaved: bool,
    /// Of everything that is held, waiting or delivered.
    bytes: usize,
    /// Of the messages that wait in memory.
    in_memory: usize,
    dropped: u64,
    /// When drops were last logged, and how many there were then.
    warned: (Option<Instant>, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Declared(Durability),
    /// A transient queue whose consumer is gone: it takes messages and drops them.
    Gone,
    Undeclared,
}

/// A message that is not settled.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) number: u64,
    pub(super) id: ChangeId,
    pub(super) time: Timestamp,
    pub(super) bytes: usize,
    /// Where it stands in the journal; none for what is not durable.
    pub(super) at: Option<Appended>,
    /// None: it is read back from the journal when its turn comes.
    pub(super) message: Option<Box<Message>>,
    pub(super) redelivered: bool,
}

/// What became of messages for a durable queue.
pub(super) enum Published {
    /// They are durable when this journal sequence is.
    Upto(Option<u64>),
    /// The journal needs a moment; nothing was published.
    NoRoom(Error),
}

/// What a consumer gets.
pub(super) enum Taken {
    Deliveries(Vec<Delivery>),
    /// The next messages have to be read back first.
    Load(Vec<(u64, Appended)>),
    Nothing,
}

impl Queue {
    pub(super) fn new(name: String, limits: Limits) -> Self {
        let held = Held {
            presence: Presence::Undeclared,
            next: 1,
            returned: BTreeMap::new(),
            ready: VecDeque::new(),
            unacked: HashMap::new(),
            next_receipt: 0,
            consumers: VecDeque::new(),
            next_consumer: 0,
            settled: Settled::new(1),
            unsaved: false,
            bytes: 0,
            in_memory: 0,
            dropped: 0,
            warned: (None, 0),
        };
        Self { name, limits, held: Mutex::new(held), changed: Notify::new() }
    }

    /// A durable queue as the journal holds it: what is not settled, by number.
    pub(super) fn recovered(name: String, limits: Limits, state: State, waiting: Vec<Waiting>) -> Self {
        let queue = Self::new(name, limits);
        {
            let mut held = queue.held.lock();
            if !waiting.is_empty() {
                held.presence = Presence::Declared(Durability::Durable);
            }
            (held.next, held.settled) = (state.next, state.settled);
            for message in waiting {
                held.bytes += message.bytes;
                held.in_memory += if message.message.is_some() { message.bytes } else { 0 };
                held.ready.push_back(message);
            }
        }
        queue
    }

    pub(super) fn declare(&self, durability: Durability) -> Result<()> {
        let mut held = self.held.lock();
        match held.presence {
            Presence::Declared(present) if present != durability => {
                let message = format!("queue {} is {present:?}, not {durability:?}", self.name);
                Err(Error::new(ErrorKind::Conflict, "declare queue", message))
            }
            _ => {
                held.presence = Presence::Declared(durability);
                Ok(())
            }
        }
    }

    /// None when it was not declared; a transient queue whose consumer is gone counts as such.
    pub(super) fn durability(&self) -> Option<Durability> {
        match self.held.lock().presence {
            Presence::Declared(durability) => Some(durability),
            Presence::Gone => Some(Durability::Transient),
            Presence::Undeclared => None,
        }
    }

    /// Publishes to a durable queue: messages, and the records of those that are durable. Gives the last journal sequence to wait for.
    pub(super) fn publish_durable(
        &self,
        journal: &Journal,
        messages: &[Message],
        encoded: Vec<Option<Encoded>>,
    ) -> Result<Published> {
        let sizes: Vec<_> = encoded.iter().map(|encoded| OVERHEAD + encoded.as_ref().map_or(0, Encoded::len)).collect();
        let total: usize = sizes.iter().sum();
        let mut held = self.held.lock();
        if held.bytes > 0 && held.bytes + total > self.limits.durable_bytes {
            let message = format!("queue {} holds {} bytes that are not settled", self.name, held.bytes);
            return Err(Error::new(ErrorKind::Full, "publish", message));
        }
        let first = held.next;
        let is_durable: Vec<_> = encoded.iter().map(Option::is_some).collect();
        let records: Vec<_> = (first..)
            .zip(encoded)
            .filter_map(|(number, encoded)| Some((Kind::QueueMessage, encoded?.numbered(number))))
            .collect();
        let places = match records.is_empty() {
            true => Vec::new(),
            false => match journal.append(records) {
                Ok(places) => places,
                Err(error) if error.kind == ErrorKind::Full => return Ok(Published::NoRoom(error)),
                Err(error) => return Err(error),
            },
        };
        let last = places.last().map(|at| at.sequence);
        let mut places = places.into_iter();
        for (((number, message), bytes), is_durable) in (first..).zip(messages).zip(sizes).zip(is_durable) {
            let at = if is_durable { places.next() } else { None };
            let keep = at.is_none() || held.has_room(bytes, self.limits.memory_bytes);
            held.ready.push_back(Waiting {
                number,
                id: message.id,
                time: message.time,
                bytes,
                at,
                message: keep.then(|| Box::new(message.clone())),
                redelivered: false,
            });
            held.in_memory += if keep { bytes } else { 0 };
        }
        held.next += messages.len() as u64;
        held.bytes += total;
        drop(held);
        self.changed.notify_waiters();
        Ok(Published::Upto(last))
    }

    /// Publishes to a queue in memory; what does not fit is dropped and counted.
    pub(super) fn publish_in_memory(&self, messages: Vec<Message>) {
        let mut held = self.held.lock();
        let (bytes, count) = match held.presence {
            Presence::Declared(Durability::FromLog) => (self.limits.from_log_bytes, self.limits.messages),
            Presence::Declared(_) => (self.limits.transient_bytes, self.limits.messages),
            Presence::Gone | Presence::Undeclared => (0, 0),
        };
        for message in messages {
            let weight = OVERHEAD + message.payload.weight();
            if held.bytes + weight > bytes || held.ready.len() >= count {
                held.dropped += 1;
                continue;
            }
            let number = held.next;
            held.next += 1;
            held.bytes += weight;
            held.in_memory += weight;
            held.ready.push_back(Waiting::new(number, message, weight));
        }
        held.warn_of_drops(&self.name);
        drop(held);
        self.changed.notify_waiters();
    }

    /// A new consumer: its turn comes when those before it are gone.
    pub(super) fn join(&self) -> Result<u64> {
        let mut held = self.held.lock();
        if !matches!(held.presence, Presence::Declared(_)) {
            return Err(undeclared("consume", &self.name));
        }
        held.next_consumer += 1;
        let consumer = held.next_consumer;
        held.consumers.push_back(consumer);
        Ok(consumer)
    }

    /// A consumer goes: what it has not settled returns to the front.
    pub(super) fn leave(&self, consumer: u64) {
        let mut held = self.held.lock();
        let Some(place) = held.consumers.iter().position(|other| *other == consumer) else { return };
        held.consumers.remove(place);
        if place == 0 {
            let unacked = std::mem::take(&mut held.unacked);
            unacked.into_values().for_each(|waiting| held.give_back(waiting));
        }
        if held.consumers.is_empty() && held.presence == Presence::Declared(Durability::Transient) {
            held.clear();
            held.presence = Presence::Gone;
        }
        drop(held);
        self.changed.notify_waiters();
    }

    /// Hands out up to `max` messages, as far as the prefetch allows. An error: the queue was deleted.
    pub(super) fn take(&self, consumer: u64, max: usize, prefetch: usize) -> Result<Taken> {
        let mut held = self.held.lock();
        match held.consumers.front() {
            Some(active) if *active == consumer => {}
            _ if held.consumers.contains(&consumer) => return Ok(Taken::Nothing),
            _ => return Err(Error::new(ErrorKind::Gone, "receive", format!("queue {} was deleted", self.name))),
        }
        let most = max.max(1).min(prefetch.saturating_sub(held.unacked.len()));
        let mut deliveries = Vec::new();
        while deliveries.len() < most {
            let Some(next) = held.next_waiting() else { break };
            let Some(message) = next.message.as_deref().cloned() else { break };
            let Some(waiting) = held.pop_waiting() else { break };
            held.next_receipt += 1;
            let receipt = held.next_receipt;
            deliveries.push(Delivery { message, redelivered: waiting.redelivered, receipt: Receipt(receipt) });
            held.unacked.insert(receipt, waiting);
        }
        if !deliveries.is_empty() {
            return Ok(Taken::Deliveries(deliveries));
        }
        let spilled: Vec<_> = held.waiting().take(most).map_while(Waiting::spilled).collect();
        Ok(if spilled.is_empty() { Taken::Nothing } else { Taken::Load(spilled) })
    }

    /// Messages that were read back.
    pub(super) fn fill(&self, messages: Vec<(u64, Message)>) {
        let mut held = self.held.lock();
        for (number, message) in messages {
            let Some(waiting) = held.find_waiting(number).filter(|waiting| waiting.message.is_none()) else { continue };
            let bytes = waiting.bytes;
            waiting.message = Some(Box::new(message));
            held.in_memory += bytes;
        }
    }

    /// Where a message stands now: it may have been carried to a newer segment.
    pub(super) fn place_of(&self, number: u64) -> Option<Appended> {
        let mut held = self.held.lock();
        held.find_waiting(number).and_then(|waiting| waiting.at)
    }

    /// Receipts of deliveries that were returned meanwhile settle nothing.
    pub(super) fn ack(&self, done: Vec<Receipt>) {
        let mut held = self.held.lock();
        for Receipt(receipt) in done {
            if let Some(waiting) = held.unacked.remove(&receipt) {
                held.settle(&waiting);
            }
        }
    }

    pub(super) fn give_back(&self, receipts: Vec<Receipt>) {
        let mut held = self.held.lock();
        for Receipt(receipt) in receipts {
            if let Some(waiting) = held.unacked.remove(&receipt) {
                held.give_back(waiting);
            }
        }
        drop(held);
        self.changed.notify_waiters();
    }

    pub(super) fn info(&self) -> Option<QueueInfo> {
        let held = self.held.lock();
        let Presence::Declared(durability) = held.presence else { return None };
        Some(QueueInfo {
            name: self.name.clone(),
            durability,
            ready: (held.returned.len() + held.ready.len()) as u64,
            unacked: held.unacked.len() as u64,
            consumers: held.consumers.len() as u64,
            oldest: held.waiting().next().map(|waiting| waiting.time),
            dropped: held.dropped,
        })
    }

    /// Up to `limit` waiting messages after the one named; the place of those that have to be read back.
    pub(super) fn browse(
        &self,
        after: Option<ChangeId>,
        limit: usize,
    ) -> Result<Vec<(u64, Result<Message, Appended>)>> {
        let held = self.held.lock();
        let mut waiting = held.waiting();
        if let Some(after) = after
            && !waiting.any(|waiting| waiting.id == after)
        {
            let message = format!("queue {} has no waiting message {after}", self.name);
            return Err(Error::new(ErrorKind::Invalid, "browse queue", message));
        }
        let shown = waiting.take(limit).filter_map(|waiting| match (&waiting.message, waiting.at) {
            (Some(message), _) => Some((waiting.number, Ok((**message).clone()))),
            (None, Some(at)) => Some((waiting.number, Err(at))),
            (None, None) => None,
        });
        Ok(shown.collect())
    }

    /// Removes waiting messages; gives how many there were.
    pub(super) fn remove(&self, ids: &HashSet<ChangeId>) -> usize {
        let mut held = self.held.lock();
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut held.ready).into_iter().partition(|waiting| ids.contains(&waiting.id));
        held.ready = VecDeque::from(kept);
        let returned = held.returned.values().filter(|waiting| ids.contains(&waiting.id));
        let numbers: Vec<_> = returned.map(|waiting| waiting.number).collect();
        let returned: Vec<_> = numbers.iter().filter_map(|number| held.returned.remove(number)).collect();
        for waiting in gone.iter().chain(&returned) {
            held.forget_body(waiting);
            held.settle(waiting);
        }
        gone.len() + returned.len()
    }

    pub(super) fn delete(&self) {
        let mut held = self.held.lock();
        held.clear();
        held.consumers.clear();
        held.presence = Presence::Undeclared;
        drop(held);
        self.changed.notify_waiters();
    }

    pub(super) fn is_gone(&self) -> bool {
        self.held.lock().presence == Presence::Gone
    }

    /// What has to be saved, if anything has; it counts as saved from now on.
    pub(super) fn save(&self) -> Option<State> {
        let mut held = self.held.lock();
        std::mem::take(&mut held.unsaved).then(|| State { next: held.next, settled: held.settled.clone() })
    }

    pub(super) fn not_saved(&self) {
        self.held.lock().unsaved = true;
    }

    /// Messages whose records stand below a sequence.
    pub(super) fn places_below(&self, below: u64) -> Vec<(u64, Place)> {
        let held = self.held.lock();
        let all = held.waiting().chain(held.unacked.values());
        let mut places: Vec<_> = all
            .filter_map(|waiting| Some((waiting.number, waiting.at?)))
            .filter(|(_, at)| at.place.segment < below)
            .map(|(number, at)| (number, at.place))
            .collect();
        places.sort_unstable_by_key(|(number, _)| *number);
        places
    }

    /// Appends records of messages anew, those that are still held. Gives the last sequence. The lock is held throughout, so that
    /// a message is settled either before, and not carried, or after, by a state that stands after its new record.
    pub(super) fn carry(&self, journal: &Journal, records: Vec<(u64, Vec<u8>)>) -> Result<Option<u64>> {
        let mut held = self.held.lock();
        let delivered: HashMap<u64, u64> =
            held.unacked.iter().map(|(receipt, waiting)| (waiting.number, *receipt)).collect();
        let records: Vec<_> = (records.into_iter())
            .filter(|(number, _)| delivered.contains_key(number) || held.find_waiting(*number).is_some())
            .collect();
        if records.is_empty() {
            return Ok(None);
        }
        let numbers: Vec<_> = records.iter().map(|(number, _)| *number).collect();
        let appended = journal.append(records.into_iter().map(|(_, record)| (Kind::QueueMessage, record)).collect())?;
        for (number, at) in numbers.into_iter().zip(&appended) {
            let waiting = match delivered.get(&number) {
                Some(receipt) => held.unacked.get_mut(receipt),
                None => held.find_waiting(number),
            };
            if let Some(waiting) = waiting {
                waiting.at = Some(*at);
            }
        }
        Ok(appended.last().map(|at| at.sequence))
    }
}

#[cfg(test)]
impl Queue {
    /// Bytes of the waiting messages that memory holds: as counted, and as they are.
    pub(super) fn in_memory(&self) -> (usize, usize) {
        let held = self.held.lock();
        let bodies = held.waiting().filter(|waiting| waiting.message.is_some());
        (held.in_memory, bodies.map(|waiting| waiting.bytes).sum())
    }
}

impl Waiting {
    pub(super) fn new(number: u64, message: Message, bytes: usize) -> Self {
        let (id, time) = (message.id, message.time);
        Self { number, id, time, bytes, at: None, message: Some(Box::new(message)), redelivered: false }
    }

    /// A message as it was found in the journal.
    pub(super) fn recovered(number: u64, message: Message, record_bytes: usize, at: Appended) -> Self {
        let waiting = Self::new(number, message, OVERHEAD + record_bytes);
        Self { at: Some(at), redelivered: true, ..waiting }
    }

    fn spilled(&self) -> Option<(u64, Appended)> {
        if self.message.is_some() { None } else { self.at.map(|at| (self.number, at)) }
    }
}

impl Held {
    fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        self.returned.values().chain(&self.ready)
    }

    fn next_waiting(&self) -> Option<&Waiting> {
        self.waiting().next()
    }

    fn pop_waiting(&mut self) -> Option<Waiting> {
        let waiting = self.returned.pop_first().map(|(_, waiting)| waiting).or_else(|| self.ready.pop_front())?;
        self.forget_body(&waiting);
        if self.ready.is_empty() && self.ready.capacity() > SPARE_CAPACITY {
            self.ready.shrink_to(SPARE_CAPACITY);
        }
        Some(waiting)
    }

    fn find_waiting(&mut self, number: u64) -> Option<&mut Waiting> {
        if self.returned.contains_key(&number) {
            return self.returned.get_mut(&number);
        }
        let found = self.ready.binary_search_by_key(&number, |waiting| waiting.number).ok()?;
        self.ready.get_mut(found)
    }

    /// Whether one more message that can be read back is kept in memory.
    fn has_room(&self, bytes: usize, most: usize) -> bool {
        self.in_memory == 0 || self.in_memory + bytes <= most
    }

    fn forget_body(&mut self, waiting: &Waiting) {
        if waiting.message.is_some() {
            self.in_memory = self.in_memory.saturating_sub(waiting.bytes);
        }
    }

    fn give_back(&mut self, mut waiting: Waiting) {
        waiting.redelivered = true;
        self.in_memory += waiting.bytes;
        self.returned.insert(waiting.number, waiting);
    }

    fn settle(&mut self, waiting: &Waiting) {
        self.bytes = self.bytes.saturating_sub(waiting.bytes);
        self.settled.insert(waiting.number, waiting.number);
        self.unsaved |= self.presence == Presence::Declared(Durability::Durable);
    }

    fn clear(&mut self) {
        self.returned.clear();
        self.ready.clear();
        self.unacked.clear();
        (self.bytes, self.in_memory) = (0, 0);
        self.settled = Settled::new(self.next);
        self.unsaved |= self.presence == Presence::Declared(Durability::Durable);
    }

    fn warn_of_drops(&mut self, queue: &str) {
        let (warned, known) = self.warned;
        let is_due = warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY);
        if self.dropped > known && is_due && self.presence != Presence::Gone {
            self.warned = (Some(Instant::now()), self.dropped);
            let dropped = self.dropped - known;
            warn!(queue, dropped, "a queue is full and drops messages; its consumer reads them from the change log");
        }
    }
}

pub(super) fn undeclared(operation: &'static str, queue: &str) -> Error {
    Error::new(ErrorKind::Invalid, operation, format!("queue {queue} was not declared"))
}
