//! The change log in Redis.
//!
//! Of each application, all in one slot (one hash tag), so that a script sees and changes it at once:
//! - `log`, a stream: an entry has the id `EPOCH-POSITION` and one field, its change id; the value is the entry as the embedded journal
//!   has it ([`codec`], which carries a format number).
//! - `changes`, a hash: change id → position. `marks`, a hash: epoch, head, applied, told, trimmed, bytes.
//! - `ages`, a list of stretches of the log, oldest first: what retention lets go of at once (`retention`).
//! - `passed`, a sorted set: barriers of the last minute.
//! - `news`, a channel: what was logged, applied and passed, for who waits in any process ([`waiting`]).
//!
//! Every call is one script and one round trip. Redis runs scripts one after the other and answers when the change is on its disk
//! (`appendfsync always`), so nobody sees what may be lost.

mod retention;
#[cfg(test)]
mod tests;
mod waiting;

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use self::{retention::Retention, waiting::Watches};
use super::{ChangeLog, LogEntry, Marks, Page, check_dense, embedded::codec};
use crate::{
    Error, ErrorKind, Result,
    model::{AppId, ChangeId, Entry, Offset},
    open::RedisSettings,
    redis_servers::{Arguments, Effect, Redis, Reply, Script, next},
};

/// A page ends when it has this many bytes.
const PAGE_BYTES: usize = 1 << 20;
/// Changes that one script looks up.
const FIND_AT_A_TIME: usize = 200;
/// Applications that are asked about at a time.
const AT_A_TIME: usize = 32;
/// Bits of a place that hold the position; the epoch is above them.
const POSITION_BITS: u32 = 40;

macro_rules! script {
    ($name:ident, $effect:ident, $file:literal) => {
        static $name: LazyLock<Script> = LazyLock::new(|| Script::new(Effect::$effect, include_str!($file)));
    };
}
script!(APPEND, Once, "append.lua");
script!(MARK, Repeatable, "mark.lua");
script!(READ, Repeatable, "read.lua");
script!(FIND, Repeatable, "find.lua");
script!(PASS, Repeatable, "pass.lua");
script!(BEGIN, Once, "begin.lua");
script!(TRIM, Repeatable, "trim.lua");

/// How long and how much of the logs is kept, whichever ends first.
#[derive(Debug, Clone, Copy)]
pub struct History {
    pub age: Duration,
    /// Of all applications together: bytes of entries as they are stored.
    pub bytes: u64,
}

/// The change logs in Redis. Cheap to clone.
#[derive(Clone)]
pub struct RedisChangeLog {
    logs: Logs,
    watches: Arc<Watches>,
    retention: Arc<Retention>,
}

/// Reading and writing, without anybody who waits.
#[derive(Clone)]
struct Logs {
    redis: Redis,
    /// Applications that are in the list of all.
    listed: Arc<Mutex<HashSet<AppId>>>,
}

/// The keys of an application.
struct AppKeys {
    marks: String,
    log: String,
    changes: String,
    ages: String,
    passed: String,
    news: String,
}

/// What a look at a log tells.
struct Found {
    marks: Marks,
    entries: Vec<Option<LogEntry>>,
    passed: Vec<bool>,
}

impl RedisChangeLog {
    /// Connects to the servers for a change log alone.
    pub async fn connect(settings: &RedisSettings, history: History) -> Result<Self> {
        Ok(Self::new(Redis::connect(settings).await?, history))
    }

    pub(crate) fn new(redis: Redis, history: History) -> Self {
        let logs = Logs { redis, listed: Arc::default() };
        let retention = Arc::new(Retention::start(logs.clone(), history));
        Self { watches: Arc::new(Watches::new(logs.clone())), logs, retention }
    }

    /// Ends what runs on its own. The connections stay open.
    pub(crate) fn close(&self) {
        self.retention.stop();
    }
}

impl Logs {
    fn keys(&self, app: &AppId) -> AppKeys {
        let key = |name| self.redis.keys().of_app(app, name);
        AppKeys {
            marks: key("marks"),
            log: key("log"),
            changes: key("changes"),
            ages: key("ages"),
            passed: key("passed"),
            news: key("news"),
        }
    }

    async fn look(&self, app: &AppId, changes: &[ChangeId], barriers: &[ChangeId]) -> Result<Found> {
        let keys = self.keys(app);
        let mut arguments = Arguments::with_capacity(changes.len() + barriers.len() + 1);
        arguments.number(changes.len());
        for change in changes.iter().chain(barriers) {
            arguments.bytes(bytes_of(*change));
        }
        let touched = [&*keys.marks, &keys.log, &keys.changes, &keys.passed];
        let mut answer = self.redis.run("look at log", &FIND, &touched, &arguments).await?.list()?;
        let marks = marks_from(&mut answer)?;
        let entries = next(&mut answer)?.list()?.map(|payload| entry_from(app, payload)).collect::<Result<_>>()?;
        let passed = next(&mut answer)?.list()?.map(|passed| Ok(passed.number()? == 1)).collect::<Result<_>>()?;
        Ok(Found { marks, entries, passed })
    }

    /// Puts an application into the list of all. Before its log begins, so that no log is ever missing there.
    async fn list(&self, app: &AppId) -> Result<()> {
        if self.listed.lock().contains(app) {
            return Ok(());
        }
        let mut arguments = Arguments::default();
        arguments.text(app.as_str());
        let key = self.redis.keys().of_all("logs");
        self.redis.command("list log", Effect::Repeatable, "SADD", &key, &arguments).await?;
        self.listed.lock().insert(app.clone());
        Ok(())
    }

    async fn applications(&self) -> Result<Vec<AppId>> {
        let key = self.redis.keys().of_all("logs");
        let listed =
            self.redis.command("list logs", Effect::Repeatable, "SMEMBERS", &key, &Arguments::default()).await?;
        let apps: Vec<AppId> = listed.list()?.map(app_from).collect::<Result<_>>()?;
        let begun = stream::iter(apps).map(|app| async move {
            let begun = self.look(&app, &[], &[]).await?.marks.head.epoch > 0;
            Ok::<_, Error>(begun.then_some(app))
        });
        let mut apps: Vec<AppId> =
            begun.buffer_unordered(AT_A_TIME).try_filter_map(|app| async { Ok(app) }).try_collect().await?;
        apps.sort_unstable();
        Ok(apps)
    }

    /// One call of the script, which says what became of it.
    async fn append(&self, app: &AppId, tail: Offset, entries: &[Arc<Entry>], listed: bool) -> Result<String> {
        let keys = self.keys(app);
        let payloads = entries.iter().map(|entry| codec::encode(app, entry)).collect::<Result<Vec<_>>>()?;
        let mut arguments = Arguments::with_capacity(entries.len() * 2 + 6);
        arguments.text(&keys.news).number(tail.epoch).number(tail.position).number(u8::from(listed));
        if let Some(last) = entries.last() {
            arguments.number(last.time.as_ms()).number(payloads.iter().map(Vec::len).sum::<usize>());
        } else {
            arguments.number(0).number(0);
        }
        for (entry, payload) in entries.iter().zip(payloads) {
            arguments.bytes(bytes_of(entry.change_id)).bytes(payload);
        }
        let touched = [&*keys.marks, &keys.log, &keys.changes, &keys.ages];
        let mut answer = self.redis.run("append", &APPEND, &touched, &arguments).await?.list()?;
        let outcome = next(&mut answer)?.text()?;
        if outcome == "fenced" {
            let held = Offset::new(next(&mut answer)?.number()? as u32, next(&mut answer)?.number()?);
            return Err(fenced(app, tail, held));
        }
        Ok(outcome)
    }

    async fn mark(&self, app: &AppId, name: &'static str, upto: Offset) -> Result<()> {
        let keys = self.keys(app);
        let mut arguments = Arguments::default();
        arguments.text(&keys.news).text(name).number(upto.epoch).number(upto.position);
        if self.redis.run("mark log", &MARK, &[&keys.marks], &arguments).await?.number()? == 1 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Invalid, "mark log", format!("{upto:?} is above the head of the log of {app}")))
    }

    async fn page(&self, app: &AppId, since: Offset, limit: usize, mark: &'static str) -> Result<Page> {
        let keys = self.keys(app);
        let mut arguments = Arguments::default();
        // A script counts in doubles; no page is longer than this.
        arguments.number(since.epoch).number(since.position).number(limit.min(1_000_000)).number(PAGE_BYTES).text(mark);
        let mut answer = self.redis.run("read log", &READ, &[&keys.marks, &keys.log], &arguments).await?.list()?;
        let marks = marks_from(&mut answer)?;
        check_since(app, since, &marks)?;
        let mut entries = Vec::new();
        for payload in next(&mut answer)?.list()? {
            entries.extend(entry_from(app, payload)?);
        }
        let next = entries.last().map_or(since, |last| last.entry.offset);
        let upto = if mark == "head" { marks.head } else { marks.applied };
        Ok(Page { entries, next, end: next >= upto })
    }
}

#[async_trait]
impl ChangeLog for RedisChangeLog {
    async fn marks(&self, app: &AppId) -> Result<Marks> {
        Ok(self.logs.look(app, &[], &[]).await?.marks)
    }

    async fn append(&self, app: &AppId, tail: Offset, entries: Vec<Entry>) -> Result<Vec<LogEntry>> {
        check_dense(app, tail, &entries)?;
        let entries: Vec<_> = entries.into_iter().map(Arc::new).collect();
        let listed = self.logs.listed.lock().contains(app);
        if self.logs.append(app, tail, &entries, listed).await? == "unlisted" {
            self.logs.list(app).await?;
            self.logs.append(app, tail, &entries, true).await?;
        }
        Ok(entries.into_iter().map(|entry| LogEntry { place: place(entry.offset), entry }).collect())
    }

    async fn mark_applied(&self, app: &AppId, upto: Offset) -> Result<()> {
        self.logs.mark(app, "applied", upto).await
    }

    async fn mark_told(&self, app: &AppId, upto: Offset) -> Result<()> {
        self.logs.mark(app, "told", upto).await
    }

    async fn read(&self, app: &AppId, since: Offset, limit: usize) -> Result<Page> {
        self.logs.page(app, since, limit, "applied").await
    }

    async fn read_logged(&self, app: &AppId, since: Offset, limit: usize) -> Result<Page> {
        self.logs.page(app, since, limit, "head").await
    }

    async fn find(&self, app: &AppId, changes: &[ChangeId]) -> Result<Vec<Option<LogEntry>>> {
        let mut found = Vec::with_capacity(changes.len());
        for changes in changes.chunks(FIND_AT_A_TIME) {
            found.extend(self.logs.look(app, changes, &[]).await?.entries);
        }
        Ok(found)
    }

    async fn wait_applied(&self, app: &AppId, upto: Offset) -> Result<()> {
        self.watches.applied(app, upto).await;
        Ok(())
    }

    async fn wait_change(&self, app: &AppId, change: ChangeId) -> Result<LogEntry> {
        let gone = || {
            Error::new(
                ErrorKind::Gone,
                "wait for change",
                format!("the entry of change {change} of {app} is not held any more"),
            )
        };
        self.watches.change(app, change).await.ok_or_else(gone)
    }

    async fn pass(&self, app: &AppId, barrier: ChangeId) -> Result<()> {
        let keys = self.logs.keys(app);
        let mut arguments = Arguments::default();
        arguments.text(&keys.news).bytes(bytes_of(barrier));
        self.logs.redis.run("pass barrier", &PASS, &[&keys.passed], &arguments).await.map(drop)
    }

    async fn wait_passed(&self, app: &AppId, barrier: ChangeId) -> Result<()> {
        self.watches.passed(app, barrier).await;
        Ok(())
    }

    async fn applications(&self) -> Result<Vec<AppId>> {
        self.logs.applications().await
    }

    async fn begin_epoch(&self, app: &AppId) -> Result<Offset> {
        self.logs.list(app).await?;
        let keys = self.logs.keys(app);
        let mut arguments = Arguments::default();
        arguments.text(&keys.news).number(Offset::first_epoch_of(app));
        let touched = [&*keys.marks, &keys.log, &keys.changes, &keys.ages];
        let epoch = self.logs.redis.run("begin epoch", &BEGIN, &touched, &arguments).await?.number()?;
        Ok(Offset::new(epoch as u32, 0))
    }
}

fn check_since(app: &AppId, since: Offset, marks: &Marks) -> Result<()> {
    if since.epoch != marks.head.epoch || since < marks.trimmed {
        let message = format!("{since:?} of {app} is not held any more, the oldest is {:?}", marks.trimmed);
        return Err(Error::new(ErrorKind::Gone, "read", message));
    }
    if since > marks.head {
        let message = format!("{since:?} is above the head {:?} of {app}", marks.head);
        return Err(Error::new(ErrorKind::Invalid, "read", message));
    }
    Ok(())
}

fn fenced(app: &AppId, tail: Offset, held: Offset) -> Error {
    let message = if held < tail {
        format!(
            "the log of {app} ends at {held:?}, below {tail:?}: Redis has lost what it confirmed, or another writer began anew"
        )
    } else {
        format!("the log of {app} ends at {held:?}, not at {tail:?}: another writer has taken over")
    };
    Error::new(ErrorKind::Fenced, "append", message)
}

/// Rises with the offset, also over epochs.
fn place(offset: Offset) -> u64 {
    (u64::from(offset.epoch) << POSITION_BITS) | (offset.position & ((1 << POSITION_BITS) - 1))
}

fn bytes_of(change: ChangeId) -> Bytes {
    Bytes::copy_from_slice(&change.0.to_bytes())
}

fn marks_from(answer: &mut impl Iterator<Item = Reply>) -> Result<Marks> {
    let epoch = next(answer)?.number()? as u32;
    let mut mark = || Ok::<_, Error>(Offset::new(epoch, next(answer)?.number()?));
    Ok(Marks { head: mark()?, applied: mark()?, told: mark()?, trimmed: mark()? })
}

fn entry_from(app: &AppId, payload: Reply) -> Result<Option<LogEntry>> {
    if payload.is_nil() {
        return Ok(None);
    }
    let (of, logged) = codec::decode(&payload.bytes()?, 0)?;
    if of != *app {
        return Err(Error::new(ErrorKind::Corrupt, "read log", format!("an entry of {of} is in the log of {app}")));
    }
    Ok(Some(LogEntry { place: place(logged.entry.offset), ..logged }))
}

fn app_from(name: Reply) -> Result<AppId> {
    let name = name.text()?;
    AppId::parse(&name).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "list logs", format!("\"{name}\" is no application")).with_source(error)
    })
}
