//! The only loop that receives, decodes, handles, publishes, acknowledges, retries, isolates and dead-letters.
//!
//! 1. receive a batch; what cannot be decoded goes to the dead letters at once,
//! 2. let the worker handle it (a panic is a failure like any other),
//! 3. publish what it led to, 4. tell the worker, 5. acknowledge.
//!
//! When a step fails because a backend is absent, the batch is tried again until it is back: it costs no tries. Any other failure
//! isolates: the batch is handled one message at a time; the one that fails is tried [`TRIES`] times with back-off, then goes
//! to `QUEUE.dead` with the reason. Order is kept: nothing overtakes a message that is being tried again.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use metrics::{counter, histogram};
use nexxus_storage::{
    Consumer, Error, ErrorKind, Queues, Result, failpoint,
    model::Timestamp,
    queue::{Death, Delivery, Durability, Message, Receipt},
};
use tokio::time::Instant;
use tracing::{error, warn};

use super::{Outbox, Received, Worker, is_absence};
use crate::{
    messages::Typed,
    service::{Failure, Stop},
};

/// How often a message is tried before it goes to the dead letters.
pub const TRIES: u32 = 5;
const FIRST_BACK_OFF: Duration = Duration::from_millis(20);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);
const RECONNECT: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_secs(1);
/// Between two parts of long work, for what arrives.
const BREATH: Duration = Duration::from_millis(1);

/// What a stage consumes, and how.
pub struct Input {
    /// The stage's name, for logs and metrics.
    pub stage: &'static str,
    /// The queue that it consumes; declared where it is not there yet.
    pub queue: String,
    /// How the queue treats its messages. One that goes with its consumer keeps no dead letters.
    pub durability: Durability,
    /// Messages that are taken at once, and unsettled at a time, at most.
    pub prefetch: usize,
}

/// The queue of the messages of `queue` that failed for good.
pub fn dead_letters_of(queue: &str) -> String {
    format!("{queue}.dead")
}

/// Runs a worker on a queue until told to stop.
pub async fn run<W: Worker>(queues: Arc<dyn Queues>, input: Input, worker: W, stop: Stop) -> Result<(), Failure> {
    queues.declare(&input.queue, input.durability).await?;
    if input.durability != Durability::Transient {
        queues.declare(&dead_letters_of(&input.queue), Durability::Durable).await?;
    }
    let mut runner = Runner { queues, input, worker, out: Outbox::default(), stop };
    while !runner.stop.is_cancelled() {
        match runner.serve().await {
            Ok(()) => return Ok(()),
            Err(error) if is_absence(&error) => {
                warn!(stage = runner.input.stage, %error, "the queue is away, connecting again");
                runner.pause(RECONNECT).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

struct Runner<W: Worker> {
    queues: Arc<dyn Queues>,
    input: Input,
    worker: W,
    out: Outbox,
    stop: Stop,
}

/// Deliveries that were decoded.
struct Batch<T> {
    received: Vec<Received<T>>,
    raw: Vec<Message>,
    receipts: Vec<Receipt>,
}

impl<W: Worker> Runner<W> {
    async fn serve(&mut self) -> Result<()> {
        let mut consumer = self.queues.consume(&self.input.queue, self.input.prefetch).await?;
        self.consume(&mut *consumer).await
    }

    async fn consume(&mut self, consumer: &mut dyn Consumer) -> Result<()> {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let until = if self.worker.has_more() { Instant::now() + BREATH } else { next_tick };
            let deliveries = tokio::select! {
                biased;
                () = self.stop.cancelled() => return self.drain(consumer).await,
                deliveries = consumer.receive(self.input.prefetch) => Some(deliveries?),
                () = tokio::time::sleep_until(until) => None,
            };
            if let Some(deliveries) = deliveries {
                self.take(consumer, deliveries).await?;
            }
            if self.worker.has_more() {
                self.go_on().await;
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                self.tick().await;
            }
        }
    }

    /// What is waiting when the stop comes was accepted before it: it is still handled.
    async fn drain(&mut self, consumer: &mut dyn Consumer) -> Result<()> {
        while let Some(deliveries) = consumer.receive(self.input.prefetch).now_or_never() {
            self.take(consumer, deliveries?).await?;
        }
        Ok(())
    }

    async fn tick(&mut self) {
        let ticking = async {
            self.worker.tick(&mut self.out).await?;
            self.publish().await?;
            self.worker.told().await
        };
        if let Err(error) = contained("tick", ticking).await {
            self.out.take();
            warn!(stage = self.input.stage, %error, "the stage's housekeeping failed");
        }
    }

    async fn go_on(&mut self) {
        let going_on = async {
            self.worker.go_on(&mut self.out).await?;
            self.publish().await?;
            self.worker.told().await
        };
        if let Err(error) = contained("go on", going_on).await {
            self.out.take();
            warn!(stage = self.input.stage, %error, "a part of the stage's long work failed");
            // It may be left as it was.
            self.pause(FIRST_BACK_OFF).await;
        }
    }

    async fn take(&mut self, consumer: &mut dyn Consumer, deliveries: Vec<Delivery>) -> Result<()> {
        let started = Instant::now();
        let n_deliveries = deliveries.len();
        let mut batch = Batch {
            received: Vec::with_capacity(n_deliveries),
            raw: Vec::with_capacity(n_deliveries),
            receipts: Vec::with_capacity(n_deliveries),
        };
        for delivery in deliveries {
            match read::<W::Input>(&delivery.message) {
                Ok(body) => {
                    batch.received.push(received(&delivery, body));
                    batch.raw.push(delivery.message);
                    batch.receipts.push(delivery.receipt);
                }
                Err(error) => {
                    self.give_up_unread(&delivery.message, &error).await?;
                    consumer.ack(vec![delivery.receipt]).await?;
                }
            }
        }
        if !batch.received.is_empty() {
            self.settle(consumer, batch).await?;
        }
        histogram!("nexxus_stage_duration_seconds", "stage" => self.input.stage).record(started.elapsed());
        Ok(())
    }

    async fn settle(&mut self, consumer: &mut dyn Consumer, batch: Batch<W::Input>) -> Result<()> {
        if let Err(error) = self.until_present(&batch.received).await {
            if is_absence(&error) {
                return Err(error); // Stopping: what is not acknowledged comes back at the next start.
            }
            if batch.received.len() > 1 {
                warn!(stage = self.input.stage, %error, "a batch failed, handling its messages one by one");
            }
            for (message, raw) in batch.received.iter().zip(&batch.raw) {
                self.handle_alone(message, raw).await?;
            }
        }
        failpoint::reach_about("runner.told", || self.input.stage.to_owned())?;
        consumer.ack(batch.receipts).await?;
        failpoint::reach_about("runner.acknowledged", || self.input.stage.to_owned())
    }

    /// One message, tried until it is done or buried.
    async fn handle_alone(&mut self, message: &Received<W::Input>, raw: &Message) -> Result<()> {
        let mut back_off = FIRST_BACK_OFF;
        for tries in 1.. {
            let Err(error) = self.until_present(std::slice::from_ref(message)).await else { return Ok(()) };
            if is_absence(&error) {
                return Err(error); // Stopping, as above.
            }
            counter!("nexxus_stage_messages_total", "stage" => self.input.stage, "result" => "failed").increment(1);
            if tries == TRIES {
                return self.give_up(message, raw, &error).await;
            }
            warn!(stage = self.input.stage, change = %message.id, %error, tries, "a message failed, trying again");
            self.pause(back_off).await;
            if self.stop.is_cancelled() {
                // Its tries were not spread over time as they should be: it has all of them again at the next start.
                return Err(Error::new(ErrorKind::Unavailable, "handle message", "the stage is stopping"));
            }
            back_off = (back_off * 4).min(LONGEST_BACK_OFF);
        }
        Ok(())
    }

    /// A message failed for good.
    async fn give_up(&mut self, message: &Received<W::Input>, raw: &Message, error: &Error) -> Result<()> {
        let reason = error.to_string();
        let ending = async {
            self.worker.dead(message, &reason, &mut self.out).await?;
            self.publish().await?;
            self.worker.told().await
        };
        let told = contained("give up message", ending).await;
        self.end(raw, told, &reason, TRIES).await
    }

    /// A message that cannot be read will never be handled: it is not tried again.
    async fn give_up_unread(&mut self, raw: &Message, error: &Error) -> Result<()> {
        let reason = error.to_string();
        let ending = async {
            self.worker.unreadable(raw, &reason, &mut self.out).await?;
            self.publish().await?;
            self.worker.told().await
        };
        let told = contained("give up message", ending).await;
        self.end(raw, told, &reason, 1).await
    }

    /// A message goes to the dead letters even if the worker cannot do what should go with that.
    async fn end(&mut self, raw: &Message, told: Result<()>, reason: &str, tries: u32) -> Result<()> {
        if let Err(error) = told {
            self.out.take();
            if is_absence(&error) {
                return Err(error);
            }
            error!(stage = self.input.stage, change = %raw.id, %error, "the end of a message could not be told");
        }
        self.bury(raw, reason, tries).await
    }

    /// Handles and publishes; waits as long as a backend is absent. Gives an absence back only when the node is stopping.
    async fn until_present(&mut self, batch: &[Received<W::Input>]) -> Result<()> {
        let mut back_off = FIRST_BACK_OFF;
        loop {
            let error = match self.attempt(batch).await {
                Ok(()) => break,
                Err(error) => error,
            };
            self.out.take();
            if !is_absence(&error) || self.stop.is_cancelled() {
                return Err(error);
            }
            warn!(stage = self.input.stage, %error, "a backend is away, waiting");
            self.pause(back_off).await;
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        }
        counter!("nexxus_stage_messages_total", "stage" => self.input.stage, "result" => "done")
            .increment(batch.len() as u64);
        Ok(())
    }

    async fn attempt(&mut self, batch: &[Received<W::Input>]) -> Result<()> {
        let stage = self.input.stage;
        let handling = async {
            failpoint::wait_at("runner.handling", || stage.to_owned()).await;
            self.worker.handle(batch, &mut self.out).await?;
            failpoint::reach_about("runner.handled", || stage.to_owned())?;
            self.publish().await?;
            failpoint::reach_about("runner.published", || stage.to_owned())?;
            self.worker.told().await
        };
        contained("handle message", handling).await
    }

    /// Publishes what the outbox holds. Of messages that need not be durable none is precious: whoever misses them heals itself,
    /// so nobody waits for them, and one receiver that is away holds up no other.
    async fn publish(&mut self) -> Result<()> {
        for (queue, messages) in self.out.take() {
            let is_precious = messages.iter().any(|message| message.durable);
            match self.queues.publish(&queue, messages).await {
                Err(error) if !is_precious => {
                    warn!(stage = self.input.stage, queue, %error, "messages that are not precious were dropped");
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    async fn bury(&mut self, message: &Message, reason: &str, tries: u32) -> Result<()> {
        let queue = self.input.queue.clone();
        error!(stage = self.input.stage, change = %message.id, reason, "a message goes to the dead letters");
        counter!("nexxus_stage_messages_total", "stage" => self.input.stage, "result" => "dead").increment(1);
        if self.input.durability == Durability::Transient {
            return Ok(());
        }
        let dead_letters = dead_letters_of(&queue);
        let death = Death { queue, reason: reason.to_owned(), tries, time: Timestamp::now() };
        self.queues.publish(&dead_letters, vec![Message { dead: Some(death), ..message.clone() }]).await
    }

    async fn pause(&self, duration: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(duration) => {}
        }
    }
}

fn read<T: Typed>(message: &Message) -> Result<Arc<T>> {
    failpoint::reach_about("runner.decode", || message.trace.clone().unwrap_or_default())?;
    T::from_message(message)
}

fn received<T>(delivery: &Delivery, body: Arc<T>) -> Received<T> {
    let message = &delivery.message;
    Received {
        id: message.id,
        app: message.app.clone(),
        offset: message.offset,
        time: message.time,
        trace: message.trace.clone(),
        redelivered: delivery.redelivered,
        body,
    }
}

/// Turns a panic of the worker into an error: one bad message must not end the stage.
async fn contained(operation: &'static str, handling: impl Future<Output = Result<()>>) -> Result<()> {
    match AssertUnwindSafe(handling).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "of unknown cause".into());
            Err(Error::new(ErrorKind::Internal, operation, format!("panic: {text}")))
        }
    }
}

#[cfg(test)]
mod tests;
