//! Barriers: a refusal that depends on what is stored waits until everything that was accepted before it has been applied, so that
//! a write is judged on what was accepted (contract §11, design §3).
//!
//! One barrier of an application is on its way at a time. Who comes meanwhile waits for the next one, all together: the one on its
//! way may be ahead of the write that is waited for.

use std::{collections::HashMap, sync::Arc, time::Duration};

use nexxus_storage::{
    Result,
    model::{AppId, Caller, ChangeId, Problem, problem::ProblemKind},
    queue::{Message, Payload},
};
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};
use tracing::warn;

use super::Api;
use crate::messages::{Command, Intent};

/// How long a refusal waits for its barrier.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who waits for the next barrier of each application; an application that stands here has one on its way.
#[derive(Default)]
pub(super) struct Barriers {
    waiting: Mutex<HashMap<AppId, Vec<oneshot::Sender<()>>>>,
}

impl Api {
    /// Returns when everything that was accepted before this call has been applied; 503 when that takes too long.
    pub(super) async fn pass_barrier(&self, app: &AppId) -> Result<(), Problem> {
        let (passed, when_passed) = oneshot::channel();
        let is_first = {
            let mut waiting = self.barriers.waiting.lock();
            let is_first = !waiting.contains_key(app);
            waiting.entry(app.clone()).or_default().push(passed);
            is_first
        };
        if is_first {
            tokio::spawn(self.clone().send_barriers(app.clone()));
        }
        match timeout(PATIENCE, when_passed).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                let detail = "what was accepted before could not be applied in time, so this cannot be judged yet";
                Err(Problem::new(ProblemKind::Unavailable, detail).with_retry_after(1))
            }
        }
    }

    /// Sends barriers, one after the other, while somebody waits for one.
    async fn send_barriers(self, app: AppId) {
        while let Some(waiting) = self.next_round(&app) {
            match timeout(PATIENCE, self.send_barrier(&app)).await {
                Ok(Ok(())) => waiting.into_iter().for_each(|passed| {
                    // Who has given up meanwhile needs no word.
                    let _given_up = passed.send(());
                }),
                Ok(Err(error)) => warn!(%app, %error, "a barrier could not be sent"),
                Err(_) => warn!(%app, "a barrier was not passed in time"),
            }
        }
    }

    fn next_round(&self, app: &AppId) -> Option<Vec<oneshot::Sender<()>>> {
        let mut waiting = self.barriers.waiting.lock();
        let round = std::mem::take(waiting.get_mut(app)?);
        if round.is_empty() {
            waiting.remove(app);
            return None;
        }
        Some(round)
    }

    async fn send_barrier(&self, app: &AppId) -> Result<()> {
        let change = ChangeId::generate();
        let command = Command { app: app.clone(), caller: Caller::default(), intent: Intent::Barrier };
        let message = Message::new(change, Some(app.clone()), Payload::new(Arc::new(command)));
        let message = Message { durable: false, ..message };
        let queue = self.domain.routes.writer.queue_of(app);
        self.domain.backends.queues.publish(&queue, vec![message]).await?;
        self.domain.backends.change_log.wait_passed(app, change).await
    }
}
