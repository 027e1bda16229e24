//! What a stage is: a handler of batches, and nothing else. Receiving, decoding, publishing, acknowledging, retrying and
//! dead-lettering belong to the [`runner`], once.

#![warn(missing_docs)]

pub mod runner;

use std::sync::Arc;

use async_trait::async_trait;
use nexxus_storage::{
    Error, ErrorKind,
    model::{AppId, ChangeId, Offset, Timestamp},
    queue::Message,
};

use crate::messages::Typed;

/// A message that was received and decoded.
#[derive(Debug)]
pub struct Received<T> {
    /// Names the message: the same id twice is the same message. Of a command it is the `changeId`.
    pub id: ChangeId,
    /// The application that it belongs to.
    pub app: Option<AppId>,
    /// The offset of the change that it carries, once it has one.
    pub offset: Option<Offset>,
    /// When it was published.
    pub time: Timestamp,
    /// W3C trace context of the request that caused it.
    pub trace: Option<String>,
    /// Whether it may have been handled before.
    pub redelivered: bool,
    /// What it says.
    pub body: Arc<T>,
}

/// What a handled batch leads to: published, in order, before the batch is acknowledged.
#[derive(Debug, Default)]
pub struct Outbox {
    messages: Vec<(String, Vec<Message>)>,
}

impl Outbox {
    /// A message for a queue, behind all that are in the outbox.
    pub fn publish(&mut self, queue: impl Into<String>, message: Message) {
        self.publish_all(queue, [message]);
    }

    /// Messages for a queue, in their order, behind all that are in the outbox.
    pub fn publish_all(&mut self, queue: impl Into<String>, more: impl IntoIterator<Item = Message>) {
        let queue = queue.into();
        match self.messages.last_mut() {
            Some((last, messages)) if *last == queue => messages.extend(more),
            _ => self.messages.push((queue, more.into_iter().collect())),
        }
    }

    /// What has to be published, by queue; the outbox is empty then.
    pub(crate) fn take(&mut self) -> Vec<(String, Vec<Message>)> {
        std::mem::take(&mut self.messages)
    }
}

/// A stage of the pipeline.
#[async_trait]
pub trait Worker: Send {
    /// What the messages of its queue say.
    type Input: Typed;

    /// Handles a batch, in order. Everything may come twice: the second time must change nothing. When it fails, the whole
    /// batch counts as not handled and comes again, one message at a time where that tells which one is at fault.
    async fn handle(&mut self, batch: &[Received<Self::Input>], out: &mut Outbox) -> Result<(), Error>;

    /// What the outbox held was published. When the worker is called again without this, all of it is lost.
    async fn told(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// A message failed for good and goes to the dead letters with this reason.
    async fn dead(&mut self, _message: &Received<Self::Input>, _reason: &str, _out: &mut Outbox) -> Result<(), Error> {
        Ok(())
    }

    /// A message cannot be read, and goes to the dead letters with this reason: all that is known of it is what travels beside its
    /// payload.
    async fn unreadable(&mut self, _message: &Message, _reason: &str, _out: &mut Outbox) -> Result<(), Error> {
        Ok(())
    }

    /// Called about once a second while nothing arrives, and between batches.
    async fn tick(&mut self, _out: &mut Outbox) -> Result<(), Error> {
        Ok(())
    }

    /// Whether work is left that was too long for one call.
    fn has_more(&self) -> bool {
        false
    }

    /// Does a part of what is left. Called between batches as long as [`has_more`](Self::has_more) says so; what has arrived meanwhile is
    /// handled in between.
    async fn go_on(&mut self, _out: &mut Outbox) -> Result<(), Error> {
        Ok(())
    }
}

/// Whether an error is the backend's absence (it costs no tries, the queue waits) rather than the message's fault.
fn is_absence(error: &Error) -> bool {
    error.is_transient() || error.kind == ErrorKind::Fenced
}
