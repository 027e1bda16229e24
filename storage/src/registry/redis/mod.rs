//! The registry in Redis.
//!
//! Records are spread over a few parts, by application; a part is one slot of a cluster (one hash tag), so that one script sees and
//! changes it at once. One server has one part, a cluster sixteen: as many as a feed has to ask. In a part:
//! - `records:KIND:APP`, a hash: id → `REVISION OWNER VALUE`; `ids:KIND:APP`, a sorted set: the ids in their order.
//! - `revision`, a counter: each call that writes gets the next one.
//! - `feed:KIND`, a stream of the last changes; `trimmed`, a hash: up to where feeds are cut off; `news`, a channel that rings ([`feed`]).
//! - `owned:PROCESS`, a set, and `dead:PROCESS`: volatile records and the processes they live with ([`life`]).
//!
//! Every call is one script and one round trip. Redis runs scripts one after the other, and answers when a change is on its disk.

mod feed;
mod life;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use self::{
    feed::{Bells, PartListener, RedisFeed},
    life::Life,
};
use super::{Expect, Feed, Key, Kind, Record, Registry, Write, check_call};
use crate::{
    Error, ErrorKind, Result,
    model::AppId,
    open::RedisSettings,
    redis_servers::{Arguments, Effect, Redis, Reply, Script, next},
};

/// The layout above.
const FORMAT: u64 = 1;
/// Parts of a new installation on a cluster.
const PARTS_OF_A_CLUSTER: u16 = 16;
/// How long a process counts as living after a sign of life.
const LEASE: Duration = Duration::from_secs(5);
/// Most writes of one call: what Redis takes in one command, with a margin.
const MOST_WRITES: usize = 100_000;
/// Most records of a page.
const MOST_RECORDS: usize = 1_000_000;

macro_rules! script {
    ($name:ident, $effect:ident, $text:expr) => {
        static $name: LazyLock<Script> = LazyLock::new(|| Script::new(Effect::$effect, $text));
    };
}
script!(WRITE, Once, concat!("#!lua\n", include_str!("tell.lua"), include_str!("write.lua")));
// Removals go on when the memory of the server is full.
script!(REMOVE, Once, concat!("#!lua flags=allow-oom\n", include_str!("tell.lua"), include_str!("write.lua")));
script!(LIST, Repeatable, include_str!("list.lua"));
script!(NEWS, Repeatable, include_str!("news.lua"));
script!(BURY, Repeatable, concat!("#!lua flags=allow-oom\n", include_str!("tell.lua"), include_str!("bury.lua")));
script!(BEAT, Repeatable, include_str!("beat.lua"));

/// The registry in Redis. Ends with [`close`](Self::close).
pub struct RedisRegistry {
    parts: Arc<Parts>,
    life: Life,
    bells: Arc<Bells>,
}

/// Where records are.
struct Parts {
    redis: Redis,
    count: u16,
}

/// What became of a call.
enum Written {
    Done,
    /// Volatile records: this process counts as dead.
    Dead,
}

impl RedisRegistry {
    /// Connects to the servers for a registry alone.
    pub async fn connect(settings: &RedisSettings) -> Result<Self> {
        Self::open(Redis::connect(settings).await?).await
    }

    /// Opens the registry, or makes it. `Invalid` for one that a newer build made.
    pub(crate) async fn open(redis: Redis) -> Result<Self> {
        Self::open_with(redis, LEASE).await
    }

    /// `lease`: how long this process counts as living after a sign of life.
    async fn open_with(redis: Redis, lease: Duration) -> Result<Self> {
        let count = agree_on_parts(&redis).await?;
        let parts = Arc::new(Parts { redis, count });
        let bells = Arc::new(Bells::default());
        for part in 0..count {
            let listener = PartListener::new(bells.clone(), parts.redis.may_forget());
            parts.redis.listen(parts.redis.keys().of_part(part, "news"), Arc::new(listener));
        }
        let life = Life::begin(parts.clone(), lease).await?;
        Ok(Self { parts, life, bells })
    }

    /// Removes the volatile records of this process and ends what runs on its own. The connections stay open.
    pub async fn close(&self) -> Result<()> {
        for part in 0..self.parts.count {
            self.parts.redis.unlisten(&self.parts.redis.keys().of_part(part, "news"));
        }
        self.life.end().await
    }
}

/// How many parts there are: as the first process decided.
async fn agree_on_parts(redis: &Redis) -> Result<u16> {
    let key = redis.keys().of_all("format");
    let wanted = if redis.is_cluster() { PARTS_OF_A_CLUSTER } else { 1 };
    for (name, value) in [("registry", FORMAT), ("parts", u64::from(wanted))] {
        let mut arguments = Arguments::default();
        arguments.text(name).number(value);
        redis.command("open registry", Effect::Repeatable, "HSETNX", &key, &arguments).await?;
    }
    let mut arguments = Arguments::default();
    arguments.text("registry").text("parts");
    let mut facts = redis.command("open registry", Effect::Repeatable, "HMGET", &key, &arguments).await?.list()?;
    let (format, parts) = (next(&mut facts)?.number()?, next(&mut facts)?.number()?);
    if format > FORMAT {
        let message =
            format!("the registry in Redis is of format {format}, this build reads up to {FORMAT}: use a newer one");
        return Err(Error::new(ErrorKind::Invalid, "open registry", message));
    }
    match u16::try_from(parts) {
        Ok(parts) if parts > 0 => Ok(parts),
        _ => Err(Error::new(ErrorKind::Corrupt, "open registry", format!("{key} tells of {parts} parts"))),
    }
}

impl Parts {
    fn part_of(&self, app: Option<&AppId>) -> u16 {
        // Not the hash of the server: the tag is the number of the part.
        app.map_or(0, |app| (crc32fast::hash(app.as_str().as_bytes()) % u32::from(self.count)) as u16)
    }

    fn key(&self, part: u16, name: &str) -> String {
        self.redis.keys().of_part(part, name)
    }

    fn of_kind(&self, what: &str, kind: Kind, app: Option<&AppId>) -> String {
        let app_name = app.map_or("", AppId::as_str);
        self.key(self.part_of(app), &format!("{what}:{kind}:{app_name}"))
    }

    /// One call of the script. `Conflict` when a condition does not hold.
    async fn write(&self, owner: &str, writes: &[Write]) -> Result<Written> {
        let Some(first) = writes.first() else { return Ok(Written::Done) };
        if writes.len() > MOST_WRITES {
            let message = format!("a call of {} writes, {MOST_WRITES} are allowed", writes.len());
            return Err(Error::new(ErrorKind::Invalid, "write records", message));
        }
        let app = first.key.app.as_ref();
        let part = self.part_of(app);
        let mut arguments = Arguments::with_capacity(3 + writes.len() * 5);
        arguments.text(&self.key(part, "")).text(app.map_or("", AppId::as_str)).text(owner);
        for write in writes {
            arguments.text(write.key.kind.name()).text(&write.key.id);
            match &write.value {
                Some(value) => arguments.text("=").bytes(value.clone()),
                None => arguments.text("-").text(""),
            };
            match write.expect {
                Expect::Anything => arguments.text("*"),
                Expect::Absent => arguments.text("absent"),
                Expect::Revision(revision) => arguments.number(revision),
            };
        }
        let removes = writes.iter().all(|write| write.value.is_none());
        let script = if removes { &REMOVE } else { &WRITE };
        let mut answer =
            self.redis.run("write records", script, &[&self.key(part, "revision")], &arguments).await?.list()?;
        match &*next(&mut answer)?.text()? {
            "ok" => Ok(Written::Done),
            "dead" => Ok(Written::Dead),
            _ => {
                let (kind, id) = (next(&mut answer)?.text()?, next(&mut answer)?.text()?);
                let message = format!("{kind} {id} is not as expected");
                Err(Error::new(ErrorKind::Conflict, "write records", message))
            }
        }
    }

    /// Removes what a process wrote.
    async fn bury(&self, owner: &str) -> Result<()> {
        for part in 0..self.count {
            let mut arguments = Arguments::default();
            arguments.text(&self.key(part, "")).text(owner);
            let revision = self.key(part, "revision");
            while self.redis.run("bury process", &BURY, &[&revision], &arguments).await?.number()? > 0 {}
        }
        Ok(())
    }
}

#[async_trait]
impl Registry for RedisRegistry {
    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        let records = self.parts.of_kind("records", key.kind, key.app.as_ref());
        let mut arguments = Arguments::default();
        arguments.text(&key.id);
        let found = self.parts.redis.command("get record", Effect::Repeatable, "HGET", &records, &arguments).await?;
        record_from(key.clone(), found)
    }

    async fn list(
        &self,
        kind: Kind,
        app: Option<&AppId>,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        let mut arguments = Arguments::default();
        match after {
            Some(after) if after >= prefix => arguments.text(&format!("({after}")),
            _ => arguments.text(&format!("[{prefix}")),
        };
        // No text has this byte: all that begin with the prefix are below.
        let mut beyond = format!("({prefix}").into_bytes();
        beyond.push(0xff);
        arguments.bytes(beyond).number(limit.min(MOST_RECORDS));
        let (ids, records) = (self.parts.of_kind("ids", kind, app), self.parts.of_kind("records", kind, app));
        let mut answer = self.parts.redis.run("list records", &LIST, &[&ids, &records], &arguments).await?.list()?;
        let mut page = Vec::with_capacity(answer.len() / 2);
        while let Some(id) = answer.next() {
            let key = Key { kind, app: app.cloned(), id: id.text()? };
            page.extend(record_from(key, next(&mut answer)?)?);
        }
        Ok(page)
    }

    async fn write(&self, writes: Vec<Write>) -> Result<()> {
        if check_call(&writes)? {
            return self.life.write(&writes).await;
        }
        self.parts.write("", &writes).await.map(drop)
    }

    async fn feed(&self, kinds: &[Kind]) -> Result<Box<dyn Feed>> {
        Ok(Box::new(RedisFeed::open(self.parts.clone(), &self.bells, kinds).await?))
    }

    async fn hold(&self, name: &str, holder: &str, ttl: Duration) -> Result<bool> {
        self.parts.redis.hold(name, holder, ttl).await
    }

    async fn release(&self, name: &str, holder: &str) -> Result<()> {
        self.parts.redis.release(name, holder).await
    }
}

fn record_from(key: Key, found: Reply) -> Result<Option<Record>> {
    if found.is_nil() {
        return Ok(None);
    }
    let stored = found.bytes()?;
    let damaged =
        || Error::new(ErrorKind::Corrupt, "read record", format!("{} {} is damaged in Redis", key.kind, key.id));
    let mut spaces = stored.iter().enumerate().filter(|(_, byte)| **byte == b' ').map(|(at, _)| at);
    let (Some(first), Some(second)) = (spaces.next(), spaces.next()) else { return Err(damaged()) };
    let digits = std::str::from_utf8(&stored[..first]).ok().and_then(|digits| digits.parse().ok());
    let Some(revision) = digits else { return Err(damaged()) };
    let value: Bytes = stored.slice(second + 1..);
    Ok(Some(Record { key, value, revision }))
}
