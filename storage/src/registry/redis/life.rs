//! Volatile records live as long as the process that wrote them: it gives a sign of life now and then, and when it has not for
//! the time of its lease, any other process removes its records and tells of it.
//!
//! A process that was away for longer (paused, cut off) finds out with its next sign of life, or its next volatile write: it begins a
//! new life and writes its records again.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::{BEAT, Parts, Written};
use crate::{
    Error, ErrorKind, Result,
    redis_servers::{Arguments, Effect, next},
    registry::{Expect, Key, Write},
};

/// Signs of life in the time of a lease.
const BEATS: u32 = 4;
/// Records that are written again at a time.
const AT_A_TIME: usize = 500;

pub(super) struct Life {
    alive: Arc<Alive>,
    beating: Mutex<Option<JoinHandle<()>>>,
}

struct Alive {
    parts: Arc<Parts>,
    lease: Duration,
    /// Who this process is now; held while it becomes another.
    owner: tokio::sync::RwLock<String>,
    /// The volatile records of this process: what has to be written again in a new life.
    own: Mutex<HashMap<Key, Bytes>>,
}

impl Life {
    pub(super) async fn begin(parts: Arc<Parts>, lease: Duration) -> Result<Self> {
        let alive =
            Arc::new(Alive { parts, lease, owner: tokio::sync::RwLock::new(new_owner()), own: Mutex::default() });
        let owner = alive.owner.read().await.clone();
        alive.beat(&owner, true, false).await?;
        let beating = tokio::spawn({
            let alive = Arc::downgrade(&alive);
            async move {
                let mut in_touch_since = None;
                loop {
                    tokio::time::sleep(lease / BEATS).await;
                    let Some(alive) = alive.upgrade() else { return };
                    match alive.live_on(in_touch_since).await {
                        Ok(()) => in_touch_since = in_touch_since.or(Some(Instant::now())),
                        Err(error) => {
                            warn!(%error, "no sign of life could be given");
                            in_touch_since = None;
                        }
                    }
                }
            }
        });
        Ok(Self { alive, beating: Mutex::new(Some(beating)) })
    }

    pub(super) async fn write(&self, writes: &[Write]) -> Result<()> {
        for _ in 0..2 {
            let owner = self.alive.owner.read().await;
            match self.alive.parts.write(&owner, writes).await? {
                Written::Done => {
                    self.alive.note(writes);
                    return Ok(());
                }
                Written::Dead => {
                    let dead = owner.clone();
                    drop(owner);
                    self.alive.live_anew(&dead).await?;
                }
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "write records", "this process counts as dead again and again"))
    }

    pub(super) async fn end(&self) -> Result<()> {
        if let Some(beating) = self.beating.lock().take() {
            beating.abort();
        }
        let owner = self.alive.owner.write().await;
        let mut arguments = Arguments::default();
        arguments.text(&owner);
        let redis = &self.alive.parts.redis;
        redis.command("end process", Effect::Repeatable, "ZREM", &redis.keys().of_all("living"), &arguments).await?;
        self.alive.parts.bury(&owner).await
    }
}

#[cfg(test)]
impl Life {
    /// As if the process were stopped for a while.
    pub(super) fn pause(&self) {
        if let Some(beating) = self.beating.lock().take() {
            beating.abort();
        }
    }
}

impl Drop for Life {
    /// Without an end before it this is as good as a crash: others remove the records.
    fn drop(&mut self) {
        if let Some(beating) = self.beating.lock().take() {
            beating.abort();
        }
    }
}

impl Alive {
    fn note(&self, writes: &[Write]) {
        let mut own = self.own.lock();
        for write in writes {
            match &write.value {
                Some(value) => drop(own.insert(write.key.clone(), value.clone())),
                None => drop(own.remove(&write.key)),
            }
        }
    }

    /// One sign of life, and the end of those who give none. After Redis was away nobody is declared dead before everybody had the time
    /// to be heard of again.
    async fn live_on(&self, in_touch_since: Option<Instant>) -> Result<()> {
        let may_declare = in_touch_since.is_some_and(|since| since.elapsed() > self.lease);
        let owner = self.owner.read().await.clone();
        let Some(dead) = self.beat(&owner, false, may_declare).await? else {
            return self.live_anew(&owner).await;
        };
        for dead in dead {
            self.parts.bury(&dead).await?;
            let mut arguments = Arguments::default();
            arguments.text(&dead);
            let redis = &self.parts.redis;
            redis.command("bury process", Effect::Repeatable, "SREM", &redis.keys().of_all("dead"), &arguments).await?;
            info!(process = dead, "removed the connections of a process that is gone");
        }
        Ok(())
    }

    /// Gives a sign of life; none when this process counts as dead. Gives the dead whose records are still there.
    async fn beat(&self, owner: &str, begins: bool, may_declare: bool) -> Result<Option<Vec<String>>> {
        let keys = self.parts.redis.keys();
        let mut arguments = Arguments::default();
        arguments.text(owner).number(self.lease.as_millis()).number(u8::from(begins)).number(u8::from(may_declare));
        let touched = [&*keys.of_all("living"), &keys.of_all("dead")];
        let mut answer = self.parts.redis.run("give a sign of life", &BEAT, &touched, &arguments).await?.list()?;
        if next(&mut answer)?.number()? == 0 {
            return Ok(None);
        }
        next(&mut answer)?.list()?.map(|dead| dead.text()).collect::<Result<_>>().map(Some)
    }

    /// Becomes another process, which has the same records. Does nothing where that has happened already.
    async fn live_anew(&self, dead: &str) -> Result<()> {
        let mut owner = self.owner.write().await;
        if *owner != dead {
            return Ok(());
        }
        warn!("this process was not heard of for too long: its connections are told anew");
        let new = new_owner();
        self.beat(&new, true, false).await?;
        let own: Vec<(Key, Bytes)> = self.own.lock().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let mut by_app: HashMap<_, Vec<Write>> = HashMap::new();
        for (key, value) in own {
            let write = Write { key, value: Some(value), expect: Expect::Anything };
            by_app.entry(write.key.app.clone()).or_default().push(write);
        }
        for writes in by_app.values().flat_map(|writes| writes.chunks(AT_A_TIME)) {
            self.parts.write(&new, writes).await?;
        }
        *owner = new;
        Ok(())
    }
}

fn new_owner() -> String {
    ulid::Ulid::generate().to_string()
}
