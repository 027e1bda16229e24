//! The writer: *decide, log, apply, tell, acknowledge*, in this order (design §3).
//!
//! It takes commands by batches. Per application, one [`Lane`] decides what each command does to the document that it meets, logs
//! the decisions in the application's one order, applies them, and hands the changes to the transport manager. A crash
//! anywhere leads to the same decisions with the same offsets: what the log holds is taken as decided.

mod definition;
mod lane;
mod purge;

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use futures_util::future::join_all;
use nexxus_storage::{
    Error, Result,
    model::{AppId, ChangeId, Entry, Event, Offset},
    queue::{Message, Payload},
};

use self::lane::Lane;
use crate::{
    domain::Domain,
    messages::{Change, Command, Intent},
    worker::{Outbox, Received, Worker},
};

/// Applications that are kept in hand; past it all of them are taken over anew.
const MOST_LANES: usize = 10_000;

/// Pages of what a deleted application leaves behind that are removed between two batches.
const PURGED_PAGES: usize = 20;

/// The worker of the stage `writer`.
pub struct Writer {
    domain: Domain,
    lanes: HashMap<AppId, Lane>,
    /// Where the logs ended that lanes appended to, also those that are gone.
    confirmed: HashMap<AppId, Offset>,
    /// What the outbox holds goes up to here; until it is published.
    telling: Vec<(AppId, Offset)>,
    /// The queue of its commands.
    queue: String,
    /// Deleted applications that leave something behind; none when it has to be looked for.
    purging: Option<Vec<AppId>>,
}

impl Writer {
    /// A writer of the applications whose commands come by this queue.
    pub fn new(domain: Domain, queue: String) -> Self {
        let (lanes, confirmed) = (HashMap::new(), HashMap::new());
        Self { domain, lanes, confirmed, telling: Vec::new(), queue, purging: None }
    }

    /// What the last outbox held is published when `telling` is empty. If it is not, all of that has to be told again: lanes begin
    /// with a take-over, which collects what was logged and not told.
    fn begin(&mut self) {
        if !self.telling.is_empty() || self.lanes.len() > MOST_LANES {
            self.lanes.clear();
        }
        self.telling.clear();
    }

    /// Logs that a command went to the dead letters.
    async fn refuse(&mut self, app: &AppId, change: ChangeId, refusal: Event, out: &mut Outbox) -> Result<(), Error> {
        self.begin();
        let mut lane = self.lanes.remove(app).unwrap_or_else(|| self.new_lane(app.clone()));
        let refused = lane.refuse(change, refusal).await;
        self.note_confirmed(&lane);
        let entries = refused?;
        self.tell(lane.app(), &entries, &Traces::new(), out);
        self.lanes.insert(lane.app().clone(), lane);
        Ok(())
    }

    fn new_lane(&self, app: AppId) -> Lane {
        let confirmed = self.confirmed.get(&app).copied().unwrap_or_default();
        Lane::new(self.domain.clone(), app, confirmed)
    }

    fn note_confirmed(&mut self, lane: &Lane) {
        let Some(tail) = lane.tail else { return };
        if self.confirmed.len() >= MOST_LANES && !self.confirmed.contains_key(lane.app()) {
            self.confirmed.clear();
        }
        self.confirmed.insert(lane.app().clone(), tail);
    }

    fn tell(&mut self, app: &AppId, entries: &[Arc<Entry>], traces: &Traces, out: &mut Outbox) {
        let Some(last) = entries.last() else { return };
        let queue = self.domain.routes.transport_manager.queue_of(app);
        let message = |entry| change_message(app, entry, traces.get(&entry.change_id).cloned());
        out.publish_all(queue, entries.iter().map(message));
        self.telling.push((app.clone(), last.offset));
    }
}

type Traces = HashMap<ChangeId, String>;

#[async_trait]
impl Worker for Writer {
    type Input = Command;

    async fn handle(&mut self, batch: &[Received<Command>], out: &mut Outbox) -> Result<(), Error> {
        self.begin();
        if batch.iter().any(|command| matches!(command.body.intent, Intent::Define { .. })) {
            self.purging = None;
        }
        let traces: Traces = batch.iter().filter_map(|command| Some((command.id, command.trace.clone()?))).collect();
        let mut lanes = std::mem::take(&mut self.lanes);
        let working = by_application(batch).into_iter().map(|(app, commands)| {
            let mut lane = lanes.remove(&app).unwrap_or_else(|| self.new_lane(app));
            async move {
                let outcome = lane.take(&commands).await;
                (lane, outcome)
            }
        });
        // Applications work side by side: each waits for its own place in the same fsync.
        let finished = join_all(working).await;
        self.lanes = lanes;
        finished.iter().for_each(|(lane, _)| self.note_confirmed(lane));
        for (lane, outcome) in finished {
            match outcome {
                Ok(entries) => {
                    self.tell(lane.app(), &entries, &traces, out);
                    self.lanes.insert(lane.app().clone(), lane);
                }
                Err(error) => {
                    // The whole batch comes again. Lanes begin with a take-over then, which tells what was logged now.
                    self.lanes.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn told(&mut self) -> Result<(), Error> {
        for (app, upto) in std::mem::take(&mut self.telling) {
            self.domain.backends.change_log.mark_told(&app, upto).await?;
        }
        Ok(())
    }

    async fn tick(&mut self, _out: &mut Outbox) -> Result<(), Error> {
        let mut purging = match self.purging.take() {
            Some(purging) => purging,
            None => purge::remains(&self.domain, &self.queue).await?,
        };
        // A backup has the application as it is before or after this.
        let domain = self.domain.clone();
        let _applying = domain.backends.applying().await;
        if let Some(app) = purging.last()
            && purge::purge(&self.domain, app, PURGED_PAGES).await?
        {
            purging.pop();
        }
        self.purging = Some(purging);
        Ok(())
    }

    async fn dead(&mut self, command: &Received<Command>, reason: &str, out: &mut Outbox) -> Result<(), Error> {
        if matches!(command.body.intent, Intent::Barrier) {
            return Ok(());
        }
        let refusal = lane::refusal(command, lane::undone(reason));
        self.refuse(&command.body.app, command.id, refusal, out).await
    }

    /// What it was about nobody knows, nor whose it was; but whoever asks for the change is told.
    async fn unreadable(&mut self, message: &Message, reason: &str, out: &mut Outbox) -> Result<(), Error> {
        let Some(app) = message.app.as_ref().filter(|_| message.durable) else { return Ok(()) };
        let problem = lane::undone(reason).with_change_id(message.id);
        self.refuse(app, message.id, Event::Rejected { document: None, device: None, problem }, out).await
    }
}

/// The commands of each application, in their order; applications in the order of their first command.
fn by_application(batch: &[Received<Command>]) -> Vec<(AppId, Vec<&Received<Command>>)> {
    let mut groups: Vec<(AppId, Vec<&Received<Command>>)> = Vec::new();
    let mut places: HashMap<&AppId, usize> = HashMap::new();
    for command in batch {
        let app = &command.body.app;
        let place = *places.entry(app).or_insert_with(|| {
            groups.push((app.clone(), Vec::new()));
            groups.len() - 1
        });
        groups[place].1.push(command);
    }
    groups
}

/// A logged change as the next stage takes it.
fn change_message(app: &AppId, entry: &Arc<Entry>, trace: Option<String>) -> Message {
    let change = Change { app: app.clone(), entry: entry.clone() };
    Message {
        id: entry.change_id,
        app: Some(app.clone()),
        offset: Some(entry.offset),
        time: entry.time,
        trace,
        dead: None,
        durable: true,
        payload: Payload::new(Arc::new(change)),
    }
}

#[cfg(test)]
mod tests;
