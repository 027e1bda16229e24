//! Who waits for something in a log, whatever process brings it about.
//!
//! Of each application that somebody waits for, one task looks for all of them: when somebody comes, when the channel of the log tells
//! of what they wait for, and each second, because a message may be lost. So thousands who wait cost one round trip at a time.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::debug;

use super::{FIND_AT_A_TIME, Found, Logs};
use crate::{
    changelog::{
        LogEntry,
        waiters::{Waiters, Waiting},
    },
    model::{AppId, ChangeId, Offset},
    redis_servers::Listener,
};

/// How often a task looks when nothing was told.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a task stays when nobody waits any more.
const LINGER: Duration = Duration::from_secs(60);
/// The rest after a look that failed.
const REST: Duration = Duration::from_millis(200);

pub(super) struct Watches {
    logs: Logs,
    watches: Arc<Mutex<HashMap<AppId, Arc<Watch>>>>,
}

/// Those who wait for something in one log.
struct Watch {
    applied: Arc<Waiters<Offset, ()>>,
    /// None: its entry is gone.
    changes: Arc<Waiters<ChangeId, Option<LogEntry>>>,
    barriers: Arc<Waiters<ChangeId, ()>>,
    state: Mutex<State>,
    nudged: Notify,
}

#[derive(Default)]
struct State {
    /// The applied mark, as far as it is known.
    applied: Offset,
    /// What is waited for and logged, but not known to be applied.
    logged: HashMap<ChangeId, Offset>,
    work: Work,
}

/// What has to be looked at.
#[derive(Default)]
struct Work {
    marks: bool,
    changes: HashSet<ChangeId>,
    barriers: HashSet<ChangeId>,
}

impl Watches {
    pub(super) fn new(logs: Logs) -> Self {
        Self { logs, watches: Arc::default() }
    }

    pub(super) async fn applied(&self, app: &AppId, upto: Offset) {
        let waiting = self.register(app, |watch| {
            let mut state = watch.state.lock();
            if state.applied >= upto {
                return None;
            }
            state.work.marks = true;
            Some(watch.applied.register(upto))
        });
        if let Some(waiting) = waiting {
            waiting.await;
        }
    }

    pub(super) async fn change(&self, app: &AppId, change: ChangeId) -> Option<LogEntry> {
        let waiting: Waiting<_, _> = self.register(app, |watch| {
            watch.state.lock().work.changes.insert(change);
            watch.changes.register(change)
        });
        waiting.await
    }

    pub(super) async fn passed(&self, app: &AppId, barrier: ChangeId) {
        let waiting = self.register(app, |watch| {
            watch.state.lock().work.barriers.insert(barrier);
            watch.barriers.register(barrier)
        });
        waiting.await;
    }

    /// Registers with the watch of an application, which ends only while nobody can.
    fn register<T>(&self, app: &AppId, register: impl FnOnce(&Watch) -> T) -> T {
        let mut watches = self.watches.lock();
        let watch = watches.entry(app.clone()).or_insert_with(|| self.begin(app));
        let registered = register(watch);
        watch.nudged.notify_one();
        registered
    }

    fn begin(&self, app: &AppId) -> Arc<Watch> {
        let watch = Arc::new(Watch {
            applied: Waiters::new(),
            changes: Waiters::new(),
            barriers: Waiters::new(),
            state: Mutex::default(),
            nudged: Notify::new(),
        });
        let channel = self.logs.keys(app).news;
        self.logs.redis.listen(channel.clone(), watch.clone());
        let round =
            Round { logs: self.logs.clone(), app: app.clone(), channel, watches: Arc::downgrade(&self.watches) };
        tokio::spawn(round.run(watch.clone()));
        watch
    }
}

/// The task of a watch.
struct Round {
    logs: Logs,
    app: AppId,
    channel: String,
    watches: Weak<Mutex<HashMap<AppId, Arc<Watch>>>>,
}

impl Round {
    async fn run(self, watch: Arc<Watch>) {
        let mut wanted_at = Instant::now();
        loop {
            if let Some((changes, barriers)) = watch.next_work() {
                match self.logs.look(&self.app, &changes, &barriers).await {
                    Ok(found) => watch.take_in(&changes, &barriers, found),
                    Err(error) => {
                        debug!(app = %self.app, %error, "cannot look for those who wait");
                        tokio::time::sleep(REST).await;
                        watch.look_at_everything();
                    }
                }
                continue;
            }
            if tokio::time::timeout(LOOK_EVERY, watch.nudged.notified()).await.is_ok() {
                continue;
            }
            if watch.is_wanted() {
                wanted_at = Instant::now();
                watch.look_at_everything();
            }
            let Some(watches) = self.watches.upgrade() else { return self.logs.redis.unlisten(&self.channel) };
            let mut watches = watches.lock();
            if wanted_at.elapsed() > LINGER && !watch.is_wanted() {
                watches.remove(&self.app);
                return self.logs.redis.unlisten(&self.channel);
            }
        }
    }
}

impl Watch {
    fn is_wanted(&self) -> bool {
        !self.applied.is_idle() || !self.changes.is_idle() || !self.barriers.is_idle()
    }

    fn look_at_everything(&self) {
        let mut state = self.state.lock();
        let waiting: HashSet<_> = self.changes.keys().into_iter().collect();
        state.logged.retain(|change, _| waiting.contains(change)); // Others gave up.
        state.work.marks = true;
        state.work.changes = waiting;
        state.work.barriers = self.barriers.keys().into_iter().collect();
    }

    /// As much as one look takes.
    fn next_work(&self) -> Option<(Vec<ChangeId>, Vec<ChangeId>)> {
        let mut state = self.state.lock();
        let work = &mut state.work;
        let take = |of: &mut HashSet<ChangeId>| {
            let taken: Vec<_> = of.iter().copied().take(FIND_AT_A_TIME).collect();
            for id in &taken {
                of.remove(id);
            }
            taken
        };
        let (changes, barriers) = (take(&mut work.changes), take(&mut work.barriers));
        let any = std::mem::take(&mut work.marks) || !changes.is_empty() || !barriers.is_empty();
        any.then_some((changes, barriers))
    }

    fn take_in(&self, changes: &[ChangeId], barriers: &[ChangeId], found: Found) {
        let marks = found.marks;
        let mut state = self.state.lock();
        state.applied = state.applied.max(marks.applied);
        self.applied.wake_upto(&state.applied, &());
        for (change, entry) in changes.iter().zip(found.entries) {
            let logged = state.logged.get(change).copied();
            match entry {
                Some(entry) if entry.entry.offset <= state.applied => {
                    state.logged.remove(change);
                    self.changes.wake(change, &Some(entry));
                }
                Some(entry) => drop(state.logged.insert(*change, entry.entry.offset)),
                None if logged.is_some_and(|at| at.epoch < marks.head.epoch || at <= marks.trimmed) => {
                    state.logged.remove(change);
                    self.changes.wake(change, &None);
                }
                None => {}
            }
        }
        state.look_at_applied();
        drop(state);
        let passed = barriers.iter().zip(found.passed).filter(|(_, passed)| *passed);
        passed.for_each(|(barrier, _)| self.barriers.wake(barrier, &()));
    }

    fn hear(&self, message: &[u8]) -> Option<()> {
        let (what, rest) = message.split_first()?;
        match what {
            b'B' => self.barriers.wake(&change_from(rest)?, &()),
            b'A' => {
                let mut words = std::str::from_utf8(rest).ok()?.split(' ');
                let applied = Offset::new(words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                let mut state = self.state.lock();
                state.applied = state.applied.max(applied);
                self.applied.wake_upto(&state.applied, &());
                state.look_at_applied();
            }
            b'L' => {
                let mut parts = rest.splitn(3, |byte| *byte == b' ');
                let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
                let (epoch, first) = (number()?, number()?);
                let mut state = self.state.lock();
                for (position, change) in (first..).zip(parts.next()?.chunks_exact(16)) {
                    let change = change_from(change)?;
                    if self.changes.is_awaited(&change) {
                        state.logged.insert(change, Offset::new(epoch as u32, position));
                    }
                }
                state.look_at_applied();
            }
            _ => return None,
        }
        self.nudged.notify_one();
        Some(())
    }
}

impl<K: Ord + Clone, T> Waiters<K, T> {
    fn is_idle(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    /// Whether somebody waits for exactly this.
    fn is_awaited(&self, key: &K) -> bool {
        self.waiting.lock().range((key.clone(), 0)..=(key.clone(), u64::MAX)).next().is_some()
    }

    /// What is waited for.
    fn keys(&self) -> Vec<K> {
        let mut keys: Vec<K> = self.waiting.lock().keys().map(|(key, _)| key.clone()).collect();
        keys.dedup_by(|key, before| key == before);
        keys
    }
}

impl State {
    /// What was logged and is applied now has to be looked at.
    fn look_at_applied(&mut self) {
        let applied = self.applied;
        self.work.changes.extend(self.logged.iter().filter(|(_, at)| **at <= applied).map(|(change, _)| *change));
    }
}

impl Listener for Watch {
    fn heard(&self, message: &[u8]) {
        if self.hear(message).is_none() {
            self.missed(); // From a newer version, perhaps.
        }
    }

    fn missed(&self) {
        self.look_at_everything();
        self.nudged.notify_one();
    }
}

fn change_from(bytes: &[u8]) -> Option<ChangeId> {
    Some(ChangeId(ulid::Ulid::from_bytes(bytes.try_into().ok()?)))
}
