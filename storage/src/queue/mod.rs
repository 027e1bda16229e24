//! The seam between stages: named queues of messages.
//!
//! Bytes below, types above: this trait moves payloads (in one process, [`Payload`] hands over the value itself); `nexxus::messages` gives them their types, once, for all backends.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    model::{AppId, ChangeId, Offset, Timestamp},
};

pub mod embedded;
pub mod payload;

pub use payload::{Encode, Payload};

/// How a queue treats its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A published message survives everything until it is acknowledged.
    Durable,
    /// The messages stand in the change log already: the queue is its fast path. Bounded; when it is full, or the process
    /// dies, messages are dropped and the consumer reads the hole from the change log.
    FromLog,
    /// Belongs to one consumer of one process, gone with it. Bounded; dropped when full, and the consumer heals itself.
    Transient,
}

/// A message and what travels beside its payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Names it: the same id twice is the same message.
    pub id: ChangeId,
    /// The application that it belongs to; messages of one application keep their order.
    pub app: Option<AppId>,
    /// The offset of the change that it carries, once it has one.
    pub offset: Option<Offset>,
    /// When it was published first.
    pub time: Timestamp,
    /// W3C trace context of the request that caused it.
    pub trace: Option<String>,
    /// Why it went to a dead-letter queue, and after how many tries.
    pub dead: Option<Death>,
    /// False for a message that need not outlive the process even on a durable queue (a barrier).
    pub durable: bool,
    /// What the next stage needs to know.
    pub payload: Payload,
}

impl Message {
    /// A message as it is before anything happened to it: of now, with nothing but its payload, to outlive the process.
    pub fn new(id: ChangeId, app: Option<AppId>, payload: Payload) -> Self {
        Self { id, app, offset: None, time: Timestamp::now(), trace: None, dead: None, durable: true, payload }
    }
}

/// The end of a message that could not be handled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// The queue that it was in when it failed.
    pub queue: String,
    /// In words, for whoever looks at dead letters.
    pub reason: String,
    /// How often it was tried.
    pub tries: u32,
    /// When it was given up.
    pub time: Timestamp,
}

/// A message in the hands of a consumer.
#[derive(Debug)]
pub struct Delivery {
    /// As it was published.
    pub message: Message,
    /// Whether it was delivered before and not acknowledged.
    pub redelivered: bool,
    /// To be given to `ack` or `give_back` of the same consumer.
    pub receipt: Receipt,
}

/// The right to settle one delivery; consumed by settling, so that a second ack does not compile.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Receipt(pub(crate) u64);

/// What `nexxus queue list` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueInfo {
    /// As it was declared.
    pub name: String,
    /// As it was declared; it never changes.
    pub durability: Durability,
    /// Waiting for a consumer.
    pub ready: u64,
    /// Delivered, not yet acknowledged.
    pub unacked: u64,
    /// The one that gets messages, and those that stand by.
    pub consumers: u64,
    /// When the oldest waiting message was published.
    pub oldest: Option<Timestamp>,
    /// Dropped since the start, because the queue (not a durable one) was full.
    #[serde(default)]
    pub dropped: u64,
}

/// Named queues. Messages are delivered at least once, those of one application in the order of their publishing.
#[async_trait]
pub trait Queues: Send + Sync {
    /// Makes sure that the queue is there. Declaring it again with the same durability changes nothing; with another one it
    /// is a `Conflict`.
    async fn declare(&self, queue: &str, durability: Durability) -> Result<()>;

    /// Publishes in order, all or none. Returns when all durable messages on a durable queue are durable. To a queue that was
    /// not declared: `Invalid`; to a transient one whose consumer is gone: dropped. `Full` when the backlog is at its bound (durable queues; the others drop the message instead
    /// and return Ok, and say how many were dropped in `QueueInfo` and the log).
    async fn publish(&self, queue: &str, messages: Vec<Message>) -> Result<()>;

    /// Starts to consume. At most `prefetch` deliveries are unsettled at a time. One consumer at a time gets the messages of a
    /// queue; a further one stands by until the first is dropped. Dropping a consumer returns what it has not settled to the
    /// front, in order, marked as redelivered.
    async fn consume(&self, queue: &str, prefetch: usize) -> Result<Box<dyn Consumer>>;

    /// Every declared queue, by name.
    async fn list(&self) -> Result<Vec<QueueInfo>>;

    /// Looks at up to `limit` waiting messages after the one named (from the front: `None`) without taking them. `Invalid` when the
    /// one named does not wait.
    async fn browse(&self, queue: &str, after: Option<ChangeId>, limit: usize) -> Result<Vec<Message>>;

    /// Removes waiting messages by id; gives how many were there.
    async fn remove(&self, queue: &str, ids: &[ChangeId]) -> Result<usize>;

    /// Removes a queue with all that it holds; its consumers end.
    async fn delete(&self, queue: &str) -> Result<()>;
}

/// One consumer of one queue.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for one message, then takes what is there, up to `max` and the prefetch. Cancel-safe: a dropped future loses
    /// no message. An error means that the consumer has ended.
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>>;

    /// Settled messages never come back, except after a crash of the process within about a second: every stage is
    /// idempotent.
    async fn ack(&mut self, done: Vec<Receipt>) -> Result<()>;

    /// Gives deliveries back: they come again, before all others, in their order, marked as redelivered.
    async fn give_back(&mut self, receipts: Vec<Receipt>) -> Result<()>;
}
