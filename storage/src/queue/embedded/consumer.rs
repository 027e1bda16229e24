//! One consumer of one queue.

use std::sync::Arc;

use async_trait::async_trait;

use super::{
    Shared,
    queue::{Queue, Taken},
};
use crate::{
    Error, ErrorKind, Result,
    journal::Appended,
    queue::{Consumer, Delivery, Receipt},
};

pub(super) struct EmbeddedConsumer {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    id: u64,
    prefetch: usize,
}

impl EmbeddedConsumer {
    pub(super) fn join(shared: Arc<Shared>, queue: Arc<Queue>, prefetch: usize) -> Result<Self> {
        let id = queue.join()?;
        Ok(Self { shared, queue, id, prefetch: prefetch.max(1) })
    }

    /// Reads messages back from the journal. They stay in the queue meanwhile: giving up loses none.
    async fn load(&self, spilled: Vec<(u64, Appended)>) -> Result<()> {
        let read = self.shared.read_back(spilled).await?;
        let mut messages = Vec::with_capacity(read.len());
        for (number, at, outcome) in read {
            match outcome {
                Ok(message) => messages.push((number, message)),
                // It was carried to a newer segment, or removed: what stood there before may be anything now. Look again.
                Err(_) if self.queue.place_of(number) != Some(at) => {}
                Err(error) => return Err(error),
            }
        }
        self.queue.fill(messages);
        Ok(())
    }
}

#[async_trait]
impl Consumer for EmbeddedConsumer {
    async fn receive(&mut self, max: usize) -> Result<Vec<Delivery>> {
        loop {
            let mut changed = std::pin::pin!(self.queue.changed.notified());
            // From here on nothing that happens is missed.
            changed.as_mut().enable();
            match self.queue.take(self.id, max, self.prefetch)? {
                Taken::Deliveries(deliveries) => return Ok(deliveries),
                Taken::Load(spilled) => self.load(spilled).await?,
                Taken::Nothing => changed.await,
            }
        }
    }

    async fn ack(&mut self, done: Vec<Receipt>) -> Result<()> {
        self.queue.ack(done);
        Ok(())
    }

    async fn give_back(&mut self, receipts: Vec<Receipt>) -> Result<()> {
        self.queue.give_back(receipts);
        Ok(())
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        self.queue.leave(self.id);
        self.shared.forget_gone(&self.queue);
    }
}

/// An error that a reading thread ended with.
pub(super) fn aborted(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "read queue", "the read was aborted").with_source(error)
}
