//! Keeps the logs in bounds: the oldest stretches go when they are too old, or when all logs together hold too many bytes. One process
//! does it at a time.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::{AT_A_TIME, History, Logs, TRIM};
use crate::{
    Result,
    model::{AppId, Timestamp},
    redis_servers::{Arguments, next},
};
use futures_util::{StreamExt, TryStreamExt, stream};

const EVERY: Duration = Duration::from_secs(10);
/// Long enough for one round.
const LEASE: (&str, Duration) = ("change-log.history", Duration::from_secs(60));

pub(super) struct Retention {
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What is left of a log.
struct Rest {
    went: bool,
    bytes: u64,
    /// When its oldest stretch ended; none where it holds nothing.
    ended: Option<u64>,
}

impl Retention {
    pub(super) fn start(logs: Logs, history: History) -> Self {
        let holder = ulid::Ulid::generate().to_string();
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                match logs.redis.hold(LEASE.0, &holder, LEASE.1).await {
                    Ok(true) => {
                        if let Err(error) = logs.keep_to(history).await {
                            warn!(%error, "the history is not trimmed");
                        }
                    }
                    Ok(false) => {}
                    Err(error) => debug!(%error, "the history is not looked at"),
                }
            }
        });
        Self { task: Mutex::new(Some(task)) }
    }

    pub(super) fn stop(&self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

impl Drop for Retention {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Logs {
    /// One round.
    pub(super) async fn keep_to(&self, history: History) -> Result<()> {
        let now = Timestamp::now().as_ms().unsigned_abs();
        let oldest = now.saturating_sub(history.age.as_millis() as u64);
        let apps = self.applications().await?;
        let aged = stream::iter(apps).map(|app| async move {
            let mut rest = self.trim(&app, oldest).await?;
            while rest.went {
                rest = self.trim(&app, oldest).await?;
            }
            Ok::<_, crate::Error>((app, rest))
        });
        let mut held: Vec<(AppId, Rest)> = aged.buffer_unordered(AT_A_TIME).try_collect().await?;
        let mut bytes: u64 = held.iter().map(|(_, rest)| rest.bytes).sum();
        while bytes > history.bytes {
            // The oldest stretch of all.
            let oldest = held.iter_mut().filter(|(_, rest)| rest.ended.is_some()).min_by_key(|(_, rest)| rest.ended);
            let Some((app, rest)) = oldest else { break };
            let before = rest.bytes;
            *rest = self.trim(app, u64::MAX).await?;
            if !rest.went {
                rest.ended = None; // What is left of it waits for its writer.
            }
            bytes -= before.saturating_sub(rest.bytes).min(bytes);
        }
        Ok(())
    }

    async fn trim(&self, app: &AppId, ended_before: u64) -> Result<Rest> {
        let keys = self.keys(app);
        let mut arguments = Arguments::default();
        arguments.number(ended_before);
        let touched = [&*keys.marks, &keys.log, &keys.changes, &keys.ages];
        let mut answer = self.redis.run("trim log", &TRIM, &touched, &arguments).await?.list()?;
        let went = next(&mut answer)?.number()? == 1;
        let (bytes, ended) = (next(&mut answer)?.number()?, next(&mut answer)?.number()?);
        Ok(Rest { went, bytes, ended: (ended > 0).then_some(ended) })
    }
}
