//! Feeds: a reader remembers in each part the revision up to which it has read, and asks for what came after. So a read includes what
//! any process wrote before it, and nothing is kept for a reader but the last changes, once for all.

use std::{
    collections::HashSet,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

use super::{NEWS, Parts, record_from};
use crate::{
    Error, ErrorKind, Result,
    model::AppId,
    redis_servers::{Arguments, Effect, Listener, Reply, next},
    registry::{Feed, Key, Kind, News},
};

/// How often a waiting reader looks when nothing rang: a ring may be lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Wakes the feeds of this process when something was written, here or elsewhere.
#[derive(Default)]
pub(super) struct Bells(Mutex<Vec<Weak<Bell>>>);

struct Bell {
    kinds: Vec<Kind>,
    rung: Notify,
    /// A part may have lost the last of what it told, and told other things under the same revisions since.
    is_doubtful: AtomicBool,
}

/// What one part rings.
pub(super) struct PartListener {
    bells: Arc<Bells>,
    /// Its server may forget what it confirmed: a replica that takes over, or a file that is synced now and then.
    may_forget: bool,
    was_heard: AtomicBool,
}

impl PartListener {
    pub(super) fn new(bells: Arc<Bells>, may_forget: bool) -> Self {
        Self { bells, may_forget, was_heard: AtomicBool::new(false) }
    }
}

impl Bells {
    fn add(&self, bell: &Arc<Bell>) {
        let mut bells = self.0.lock();
        bells.retain(|known| known.strong_count() > 0);
        bells.push(Arc::downgrade(bell));
    }

    fn ring(&self, is_meant: impl Fn(&Bell) -> bool) {
        let bells = self.0.lock();
        bells.iter().filter_map(Weak::upgrade).filter(|bell| is_meant(bell)).for_each(|bell| bell.rung.notify_one());
    }
}

impl Listener for PartListener {
    fn heard(&self, message: &[u8]) {
        let told: Vec<&[u8]> = message.split(|byte| *byte == b' ').collect();
        self.bells.ring(|bell| bell.kinds.iter().any(|kind| told.contains(&kind.name().as_bytes())));
    }

    /// The first time only says that the part is listened to.
    fn missed(&self) {
        let again = self.was_heard.swap(true, Ordering::AcqRel);
        self.bells.ring(|bell| {
            if again && self.may_forget {
                bell.is_doubtful.store(true, Ordering::Release);
            }
            true
        });
    }
}

pub(super) struct RedisFeed {
    parts: Arc<Parts>,
    bell: Arc<Bell>,
    /// Of each part, the revision up to which it is read.
    read: Vec<u64>,
    /// Fetched by `changed`, not yet given out.
    fetched: Vec<News>,
}

/// What a part tells.
struct Told {
    part: u16,
    revision: u64,
    missed: bool,
    news: Vec<News>,
}

impl RedisFeed {
    pub(super) async fn open(parts: Arc<Parts>, bells: &Bells, kinds: &[Kind]) -> Result<Self> {
        let mut distinct: Vec<Kind> = kinds.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let bell = Arc::new(Bell { kinds: distinct, rung: Notify::new(), is_doubtful: AtomicBool::new(false) });
        bells.add(&bell);
        let now = (0..parts.count).map(|part| {
            let parts = parts.clone();
            async move {
                let key = parts.key(part, "revision");
                parts.redis.command("open feed", Effect::Repeatable, "GET", &key, &Arguments::default()).await?.number()
            }
        });
        let read = try_join_all(now).await?;
        Ok(Self { parts, bell, read, fetched: Vec::new() })
    }

    /// Takes in what these parts tell: all at the same time, and as a whole or not at all.
    async fn fetch(&mut self, parts: impl Iterator<Item = u16>) -> Result<()> {
        let is_doubtful = self.bell.is_doubtful.load(Ordering::Acquire);
        let told = try_join_all(parts.map(|part| self.ask(part, self.read[usize::from(part)]))).await?;
        if is_doubtful && self.bell.is_doubtful.swap(false, Ordering::AcqRel) {
            self.fetched = vec![News::Reload];
        }
        for told in told {
            self.read[usize::from(told.part)] = told.revision;
            if told.missed {
                self.fetched = vec![News::Reload];
            } else if self.fetched != [News::Reload] {
                self.fetched.extend(told.news);
            }
        }
        Ok(())
    }

    async fn ask(&self, part: u16, since: u64) -> Result<Told> {
        let mut arguments = Arguments::with_capacity(2 + self.bell.kinds.len());
        arguments.text(&self.parts.key(part, "")).number(since);
        for kind in &self.bell.kinds {
            arguments.text(kind.name());
        }
        let revision = self.parts.key(part, "revision");
        let mut answer = self.parts.redis.run("read feed", &NEWS, &[&revision], &arguments).await?.list()?;
        let revision = next(&mut answer)?.number()?;
        let missed = next(&mut answer)?.number()? == 1;
        let mut changes = Vec::new();
        while let Some(kind) = answer.next() {
            let name = kind.text()?;
            let kind = self.bell.kinds.iter().find(|kind| kind.name() == name).ok_or_else(|| damaged(&name))?;
            for entry in next(&mut answer)?.list()? {
                changes.push(change_from(*kind, entry)?);
            }
        }
        changes.sort_by_key(|(place, _, _)| *place);
        let mut news = Vec::with_capacity(changes.len());
        for (_, key, value) in changes {
            let value = match value {
                Value::Removed => None,
                Value::Here(value) => Some(value),
                Value::Elsewhere => self.value_of(&key).await?,
            };
            news.push(News::Written { key, value });
        }
        Ok(Told { part, revision, missed, news })
    }

    /// A value that is too large to stand in the feed: as it is now. What made it so is told later, once more.
    async fn value_of(&self, key: &Key) -> Result<Option<Bytes>> {
        let records = self.parts.of_kind("records", key.kind, key.app.as_ref());
        let mut arguments = Arguments::default();
        arguments.text(&key.id);
        let found = self.parts.redis.command("read feed", Effect::Repeatable, "HGET", &records, &arguments).await?;
        Ok(record_from(key.clone(), found)?.map(|record| record.value))
    }
}

#[async_trait]
impl Feed for RedisFeed {
    async fn read(&mut self) -> Result<Vec<News>> {
        self.fetch(0..self.parts.count).await?;
        Ok(std::mem::take(&mut self.fetched))
    }

    async fn read_about(&mut self, apps: &[&AppId]) -> Result<Vec<News>> {
        let parts: HashSet<u16> = apps.iter().map(|app| self.parts.part_of(Some(app))).collect();
        self.fetch(parts.into_iter()).await?;
        Ok(std::mem::take(&mut self.fetched))
    }

    async fn changed(&mut self) -> Result<()> {
        while self.fetched.is_empty() {
            // What rings from now on, or has rung since the last wait, is kept for the wait below.
            self.fetch(0..self.parts.count).await?;
            if self.fetched.is_empty() {
                drop(timeout(LOOK_EVERY, self.bell.rung.notified()).await);
            }
        }
        Ok(())
    }
}

enum Value {
    Removed,
    Here(Bytes),
    Elsewhere,
}

/// An entry of a feed: its place in the order of its part, its key and its value.
fn change_from(kind: Kind, entry: Reply) -> Result<((u64, u64), Key, Value)> {
    let mut parts = entry.list()?;
    let id = next(&mut parts)?.text()?;
    let place = id.split_once('-').and_then(|(revision, number)| Some((revision.parse().ok()?, number.parse().ok()?)));
    let mut fields = next(&mut parts)?.list()?;
    let name = next(&mut fields)?.text()?;
    let news = next(&mut fields)?.bytes()?;
    let Some(((app, id), place)) = name.split_once('\n').zip(place) else { return Err(damaged(&name)) };
    let app = match app {
        "" => None,
        app => Some(AppId::parse(app).map_err(|_| damaged(&name))?),
    };
    let value = match news.first() {
        Some(b'-') => Value::Removed,
        Some(b'=') => Value::Here(news.slice(1..)),
        _ => Value::Elsewhere,
    };
    Ok((place, Key { kind, app, id: id.to_owned() }, value))
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "read feed", format!("{what} in a feed of Redis"))
}
