//! What has to be done for devices from time to time: cursors written, devices removed whose `keepFor` has passed, sessions removed
//! that have ended.
//!
//! Only time in which this process ran counts: after a start every device has its whole `keepFor` again. So the clocks are kept
//! here, in memory, fed by the registry; the removal itself is conditional on the record that was read.
//!
//! Devices that did nothing since the start have no clock of their own, for there may be millions: they all went to sleep at the
//! start, and are looked through a stretch at a time when the first of them may be due.

use std::collections::HashMap;

use nexxus_storage::{
    ErrorKind, Result,
    model::{AppId, DeviceId, Timestamp},
    registry::{
        Expect, Feed, Key, Kind, News, Record, Write,
        records::{Connection, Device, Session, Typed, decode},
    },
};
use tokio::time::{Duration, Instant, MissedTickBehavior};
use tracing::{debug, warn};

use crate::{
    domain::{Domain, outlast},
    service::{Failure, Stop},
};

const TICK: Duration = Duration::from_secs(1);
/// How long a device that never connected is kept at least.
const NEVER_CONNECTED: Duration = Duration::from_secs(10 * 60);
/// How long any device is kept by the clock: one that is just connecting has its new generation a moment before its connection.
/// `keepFor: 0` is carried out by the disconnect itself.
const AT_LEAST: Duration = Duration::from_secs(10);
/// Devices that are removed in one go; the others follow with the next tick.
const AT_ONCE: usize = 500;
/// How often sessions that have ended are looked for.
const SESSIONS_EVERY: Duration = Duration::from_secs(10 * 60);
const KINDS: [Kind; 2] = [Kind::Device, Kind::Connection];
/// Records that are read at once.
const PAGE: usize = 1_000;
/// Devices that are looked through in one tick, which takes some hundredths of a second. With more, the last of them are removed a
/// little late.
const LOOKED_THROUGH: usize = 5 * PAGE;

impl Domain {
    /// Flushes cursors each second, removes devices whose `keepFor` has passed without a connection, counted while this process
    /// ran, and sessions that have ended; until told to stop.
    pub async fn keep_devices(self, stop: Stop) -> Result<(), Failure> {
        let registry = self.backends.registry.clone();
        let mut feed = registry.feed(&KINDS).await?;
        let mut clocks = Clocks::since(Start::of(Instant::now(), Timestamp::now()));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sessions_at = Instant::now() + SESSIONS_EVERY;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            self.cursors.flush(&*registry).await.unwrap_or_else(|error| warn!(%error, "cursors could not be written"));
            if let Err(error) = self.wind(&mut clocks, &mut *feed).await {
                outlast("the expiry of devices", error).await?;
                continue;
            }
            self.expire_due(&mut clocks).await;
            if let Err(error) = self.look_through_sleepers(&mut clocks).await {
                outlast("the expiry of devices", error).await?;
            }
            if Instant::now() >= sessions_at {
                sessions_at = Instant::now() + SESSIONS_EVERY;
                self.drop_ended_sessions().await.unwrap_or_else(|error| warn!(%error, "ended sessions are kept"));
            }
        }
        self.cursors.flush(&*registry).await?;
        Ok(())
    }

    /// Brings the clocks up to the registry.
    async fn wind(&self, clocks: &mut Clocks, feed: &mut dyn Feed) -> Result<()> {
        let news = feed.read().await?;
        clocks.started.look_at_time(Timestamp::now());
        // What was read and not taken in, because of an error, the feed does not tell again.
        let known = std::mem::replace(&mut clocks.known, Known::InPart);
        if known != Known::All || news.contains(&News::Reload) {
            let are_all_asleep = known == Known::Nothing && !news.contains(&News::Reload);
            self.load(clocks, are_all_asleep).await?;
        }
        for news in news {
            if let News::Written { key, value } = news {
                clocks.take_in(&key, value.as_deref());
            }
        }
        clocks.known = Known::All;
        Ok(())
    }

    /// Reads every device and connection there is; clocks that run go on. `are_all_asleep`: but for those who are connected.
    async fn load(&self, clocks: &mut Clocks, are_all_asleep: bool) -> Result<()> {
        let mut anew = Clocks::since(clocks.started);
        for app in self.catalog.list() {
            let mut after = None;
            while !are_all_asleep && let Some(page) = self.page(Kind::Device, app.id(), &mut after).await? {
                for device in page.iter().filter_map(read::<Device>) {
                    let since = clocks.of.get(&(device.app.clone(), device.id.clone())).map(|clock| clock.since);
                    if since.is_some() || !anew.was_idle(&device) {
                        anew.registered(&device, since);
                    }
                }
            }
            let mut after = None;
            while let Some(page) = self.page(Kind::Connection, app.id(), &mut after).await? {
                for connection in page.iter().filter_map(read::<Connection>) {
                    let is_known = anew.of.contains_key(&(connection.app.clone(), connection.device.clone()));
                    if !is_known && let Some((device, _)) = self.device_record(app.id(), &connection.device).await? {
                        anew.registered(&device, None);
                    }
                    anew.connected(connection);
                }
            }
        }
        *clocks = Clocks { known: Known::InPart, ..anew };
        Ok(())
    }

    /// The next records of a kind. None after the last.
    async fn page(&self, kind: Kind, app: &AppId, after: &mut Option<String>) -> Result<Option<Vec<Record>>> {
        let page = self.backends.registry.list(kind, Some(app), "", after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(None) };
        *after = Some(last.key.id.clone());
        Ok(Some(page))
    }

    /// Removes devices that did nothing since the start for as long as they are kept: a stretch of all devices, when it is time.
    async fn look_through_sleepers(&self, clocks: &mut Clocks) -> Result<()> {
        let (mut n_seen, mut n_due) = (0, 0);
        while n_seen < LOOKED_THROUGH && n_due < AT_ONCE && clocks.sleepers.is_time(Instant::now()) {
            let Some(app) = clocks.sleepers.app.clone() else {
                clocks.sleepers.turn_to(self.catalog.list().first().map(|first| first.id()));
                continue;
            };
            let Some(page) = self.page(Kind::Device, &app, &mut clocks.sleepers.after).await? else {
                clocks.sleepers.turn_to(self.catalog.list().iter().map(|next| next.id()).find(|next| **next > app));
                continue;
            };
            n_seen += page.len();
            for device in page.iter().filter_map(read::<Device>) {
                if clocks.is_due_asleep(&device, Instant::now()) {
                    n_due += 1;
                    self.expire(&device.app, &device.id, device.generation).await?;
                }
            }
        }
        Ok(())
    }

    async fn expire_due(&self, clocks: &mut Clocks) {
        for (app, device, generation) in clocks.due(Instant::now()) {
            match self.expire(&app, &device, generation).await {
                Ok(true) => debug!(%app, %device, "the device has expired"),
                // It is coming back just now: what it wrote is in the feed.
                Ok(false) => {}
                Err(error) => {
                    warn!(%app, %device, %error, "a device that has expired could not be removed");
                    return;
                }
            }
        }
    }

    async fn expire(&self, app: &AppId, device: &DeviceId, generation: u64) -> Result<bool> {
        let Some((record, revision)) = self.device_record(app, device).await? else { return Ok(true) };
        if record.generation != generation || self.is_connected(app, device).await? {
            return Ok(false);
        }
        self.expire_device(&record, revision).await
    }

    async fn drop_ended_sessions(&self) -> Result<()> {
        let registry = &self.backends.registry;
        for app in self.catalog.list() {
            let mut after: Option<String> = None;
            loop {
                let page = registry.list(Kind::Session, Some(app.id()), "", after.as_deref(), 500).await?;
                for record in &page {
                    let session: Session = record.decode()?;
                    if session.expires_at <= Timestamp::now() {
                        self.drop_session(&session, record.revision).await?;
                    }
                }
                match page.last() {
                    Some(last) => after = Some(last.key.id.clone()),
                    None => break,
                }
            }
        }
        Ok(())
    }

    async fn drop_session(&self, session: &Session, revision: u64) -> Result<()> {
        let key = Key::session(&session.app, &session.device, &session.id);
        let removal = Write { key, value: None, expect: Expect::Revision(revision) };
        match self.backends.registry.write(vec![removal]).await {
            // It was renewed, or ended otherwise.
            Err(error) if error.kind == ErrorKind::Conflict => return Ok(()),
            outcome => outcome?,
        }
        super::forget_unused(&*self.backends.registry, &session.app, &session.user, &session.device).await
    }
}

/// A record that cannot be read is left to those who need it.
fn read<T: Typed>(record: &Record) -> Option<T> {
    record.decode().inspect_err(|error| warn!(key = %record.key.id, %error, "a record cannot be read")).ok()
}

/// Since when each device has had no connection.
struct Clocks {
    /// Of devices that did something since the start.
    of: HashMap<(AppId, DeviceId), Clock>,
    sleepers: Sleepers,
    started: Start,
    /// How much they know of what the feed told so far.
    known: Known,
}

#[derive(Clone, Copy, PartialEq)]
enum Known {
    Nothing,
    InPart,
    All,
}

#[derive(Clone, Copy)]
struct Start {
    at: Instant,
    time: Timestamp,
    /// The latest time that was seen.
    latest: Timestamp,
    /// The clock of the machine was set back since: what has a time before the start may have come after it.
    is_uncertain: bool,
}

impl Start {
    fn of(at: Instant, time: Timestamp) -> Self {
        Self { at, time, latest: time, is_uncertain: false }
    }

    /// To be called before what was written until now is taken in.
    fn look_at_time(&mut self, now: Timestamp) {
        self.is_uncertain |= now < self.latest;
        self.latest = self.latest.max(now);
    }

    fn is_after(&self, time: Timestamp) -> bool {
        time < self.time && !self.is_uncertain
    }
}

/// How far the devices without clocks are looked through.
struct Sleepers {
    /// Before the first application: none.
    app: Option<AppId>,
    after: Option<String>,
    /// When a round begins, or has begun; none when nobody sleeps any more.
    round: Option<Instant>,
    /// When the first of those that were seen in this round is due.
    first_due: Option<Instant>,
}

impl Sleepers {
    fn is_time(&self, now: Instant) -> bool {
        self.round.is_some_and(|round| round <= now)
    }

    /// Goes on with an application; without one the round is over.
    fn turn_to(&mut self, app: Option<&AppId>) {
        (self.app, self.after) = (app.cloned(), None);
        if app.is_none() {
            self.round = self.first_due.take();
        }
    }
}

struct Clock {
    keep_for: Duration,
    generation: u64,
    /// When it last lost its last connection, was registered, or this process began.
    since: Instant,
    /// The queues of the workers that hold connections of it.
    held_by: Vec<String>,
}

impl Clocks {
    fn since(started: Start) -> Self {
        // Nobody is due earlier.
        let sleepers = Sleepers { app: None, after: None, round: Some(started.at + AT_LEAST), first_due: None };
        Self { of: HashMap::new(), sleepers, started, known: Known::Nothing }
    }

    /// Whether a device has certainly done nothing since the start.
    fn was_idle(&self, device: &Device) -> bool {
        self.started.is_after(device.last_seen.unwrap_or(device.created_at).max(device.created_at))
    }

    /// Whether the time of a device without a clock has passed; when it will, is remembered.
    fn is_due_asleep(&mut self, device: &Device, now: Instant) -> bool {
        if self.of.contains_key(&(device.app.clone(), device.id.clone())) {
            return false;
        }
        let due = self.started.at + kept_for(device);
        // One that could not be removed is seen again later.
        let next = if due <= now { now + AT_LEAST } else { due };
        self.sleepers.first_due = Some(self.sleepers.first_due.map_or(next, |first| first.min(next)));
        due <= now
    }

    fn take_in(&mut self, key: &Key, value: Option<&[u8]>) {
        match (key.kind, value) {
            (Kind::Device, Some(value)) => {
                if let Ok(device) = decode::<Device>(key, value) {
                    self.registered(&device, None);
                }
            }
            (Kind::Connection, Some(value)) => {
                if let Ok(connection) = decode::<Connection>(key, value) {
                    self.connected(connection);
                }
            }
            (kind, _) => {
                let Some(app) = key.app.clone() else { return };
                let (device, queue) = key.id.split_once('/').unwrap_or((key.id.as_str(), ""));
                let Ok(device) = DeviceId::parse(device) else { return };
                match kind {
                    Kind::Device => drop(self.of.remove(&(app, device))),
                    _ => self.disconnected(app, device, queue),
                }
            }
        }
    }

    fn registered(&mut self, device: &Device, since: Option<Instant>) {
        let now = Instant::now();
        // What writes the record of a sleeping device otherwise does not wind its clock up.
        let since = since.or_else(|| self.was_idle(device).then_some(self.started.at));
        let clock = self.of.entry((device.app.clone(), device.id.clone())).or_insert_with(|| Clock {
            keep_for: Duration::ZERO,
            generation: device.generation,
            since: since.unwrap_or(now),
            held_by: Vec::new(),
        });
        if clock.generation != device.generation {
            // It is connecting.
            clock.since = now;
        }
        clock.generation = device.generation;
        clock.keep_for = kept_for(device);
    }

    fn connected(&mut self, connection: Connection) {
        if let Some(clock) = self.of.get_mut(&(connection.app, connection.device))
            && !clock.held_by.contains(&connection.queue)
        {
            clock.held_by.push(connection.queue);
        }
    }

    fn disconnected(&mut self, app: AppId, device: DeviceId, queue: &str) {
        let Some(clock) = self.of.get_mut(&(app, device)) else { return };
        clock.held_by.retain(|held_by| held_by != queue);
        if clock.held_by.is_empty() {
            clock.since = Instant::now();
        }
    }

    /// Devices whose time has passed, with the generation that they had then.
    fn due(&self, now: Instant) -> Vec<(AppId, DeviceId, u64)> {
        let is_due = |clock: &Clock| clock.held_by.is_empty() && now.duration_since(clock.since) >= clock.keep_for;
        self.of
            .iter()
            .filter(|(_, clock)| is_due(clock))
            .map(|((app, device), clock)| (app.clone(), device.clone(), clock.generation))
            .take(AT_ONCE)
            .collect()
    }
}

fn kept_for(device: &Device) -> Duration {
    let least = if device.generation == 0 { NEVER_CONNECTED } else { AT_LEAST };
    Duration::from_secs(device.keep_for).max(least)
}

#[cfg(test)]
mod tests {
    use nexxus_storage::model::Offset;

    use super::*;
    use crate::domain::testing::Ground;

    fn device(keep_for: u64, generation: u64) -> Device {
        Device {
            app: AppId::parse("a").expect("an id"),
            id: DeviceId::parse("d").expect("an id"),
            user: None,
            name: None,
            keep_for,
            created_at: Timestamp::now(),
            registered_at: Offset::default(),
            last_seen: None,
            generation,
            revoked: false,
        }
    }

    fn connection(queue: &str, generation: u64) -> Connection {
        let device = device(0, 0);
        Connection { app: device.app, device: device.id, queue: queue.to_owned(), generation }
    }

    /// As of a start a while ago.
    fn clocks() -> Clocks {
        Clocks::since(Start::of(Instant::now(), "2026-01-01T00:00:00Z".parse().expect("a time")))
    }

    fn is_due(clocks: &Clocks) -> bool {
        !clocks.due(Instant::now()).is_empty()
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_is_due_when_it_was_away_for_its_time() {
        let mut clocks = clocks();
        clocks.registered(&device(60, 1), None);
        clocks.connected(connection("q1", 1));
        clocks.connected(connection("q2", 2));
        tokio::time::advance(Duration::from_secs(100)).await;
        assert!(!is_due(&clocks), "connected");
        clocks.take_in(&Key { kind: Kind::Connection, app: Some(device(0, 0).app), id: "d/q1".into() }, None);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert!(!is_due(&clocks), "connected elsewhere");
        clocks.take_in(&Key { kind: Kind::Connection, app: Some(device(0, 0).app), id: "d/q2".into() }, None);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(!is_due(&clocks), "not yet");
        // What writes its record otherwise does not wind its clock up.
        clocks.registered(&device(60, 1), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(clocks.due(Instant::now()).len(), 1);
        clocks.registered(&device(60, 2), None);
        assert!(!is_due(&clocks), "connecting");
        clocks.take_in(&Key::device(&device(0, 0).app, &device(0, 0).id), None);
        assert!(clocks.of.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_never_connected_has_ten_minutes() {
        let mut clocks = clocks();
        clocks.registered(&device(60, 0), None);
        tokio::time::advance(Duration::from_secs(599)).await;
        assert!(!is_due(&clocks));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_due(&clocks));
        clocks.registered(&device(3600, 0), None);
        assert!(!is_due(&clocks));
    }

    #[tokio::test(start_paused = true)]
    async fn who_did_nothing_since_the_start_sleeps_without_a_clock() {
        let mut clocks = Clocks::since(Start::of(Instant::now(), Timestamp::now()));
        let old = |keep_for, generation| Device {
            created_at: "2020-01-01T00:00:00Z".parse().expect("a time"),
            ..device(keep_for, generation)
        };
        assert!(!clocks.sleepers.is_time(Instant::now()));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(clocks.sleepers.is_time(Instant::now()), "the first may be due");
        let app = old(0, 1).app;
        clocks.sleepers.turn_to(Some(&app));
        for (device, expected) in [(old(60, 1), false), (old(3, 0), false), (old(10, 1), true), (old(0, 1), true)] {
            assert_eq!(clocks.is_due_asleep(&device, Instant::now()), expected, "{device:?}");
        }
        clocks.sleepers.turn_to(None);
        assert!(!clocks.sleepers.is_time(Instant::now()));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(clocks.sleepers.is_time(Instant::now()), "what could not be removed is seen again");
        // What is written without a connection does not wake it: it is due as of the start.
        clocks.registered(&old(60, 1), None);
        assert!(!clocks.is_due_asleep(&old(60, 1), Instant::now() + Duration::from_secs(100)), "it has a clock");
        tokio::time::advance(Duration::from_secs(39)).await;
        assert!(!is_due(&clocks));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_due(&clocks));
        let connects = Device { last_seen: Some("2099-01-01T00:00:00Z".parse().expect("a time")), ..old(60, 2) };
        clocks.of.clear();
        clocks.registered(&connects, None);
        assert!(!is_due(&clocks), "its time begins when it wakes");
        clocks.sleepers.turn_to(None);
        assert!(!clocks.sleepers.is_time(Instant::now() + Duration::from_secs(1_000_000)), "nobody sleeps any more");
    }

    #[tokio::test]
    async fn sleepers_are_removed_when_their_time_has_passed() {
        let ground = Ground::open().await;
        let app = ground.app(serde_json::json!({})).await;
        let registry = &ground.domain.backends.registry;
        let asleep = |n: usize, keep_for| Device {
            id: DeviceId::parse(&format!("d{n:05}")).expect("an id"),
            created_at: "2020-01-01T00:00:00Z".parse().expect("a time"),
            ..device(keep_for, 1)
        };
        let n_devices = PAGE + 5;
        let devices = (0..n_devices).map(|n| asleep(n, if n % 100 == 4 { 60 } else { 1_000_000 }));
        let writes: Vec<_> = devices.map(|device| Write::put(&device, Expect::Anything).expect("a record")).collect();
        for part in writes.chunks(500) {
            registry.write(part.to_vec()).await.expect("written");
        }
        let at = Instant::now().checked_sub(Duration::from_secs(100)).expect("up for longer");
        let mut clocks = Clocks::since(Start::of(at, Timestamp::now()));
        // One of those that would be due has connected meanwhile.
        clocks.registered(&asleep(104, 60), Some(Instant::now()));
        ground.domain.look_through_sleepers(&mut clocks).await.expect("looked through");
        let left: Vec<Device> = registry.load_all(Kind::Device, Some(app.id()), "").await.expect("read");
        assert_eq!(left.len(), n_devices - 10, "11 of {n_devices} have slept for too long, one is awake");
        assert!(left.iter().all(|device| device.keep_for == 1_000_000 || device.id.as_str() == "d00104"));
        assert!(!clocks.sleepers.is_time(Instant::now()), "the round is over");
    }

    #[tokio::test]
    async fn who_comes_after_the_clock_was_set_back_has_its_whole_time() {
        let ground = Ground::open().await;
        let app = ground.app(serde_json::json!({})).await;
        let registry = &ground.domain.backends.registry;
        let mut feed = registry.feed(&KINDS).await.expect("a feed");
        // Since the start an hour has passed; then the clock was set back to before it.
        let at = Instant::now().checked_sub(Duration::from_secs(3_600)).expect("up for longer");
        let time = Timestamp::from_ms(Timestamp::now().as_ms() + 600_000).expect("a time");
        let mut clocks = Clocks::since(Start::of(at, time));
        ground.domain.wind(&mut clocks, &mut *feed).await.expect("wound");
        registry.put(&device(60, 0), Expect::Anything).await.expect("written");
        ground.domain.wind(&mut clocks, &mut *feed).await.expect("wound");
        ground.domain.expire_due(&mut clocks).await;
        // The same when everything is read anew.
        clocks.of.clear();
        clocks.known = Known::InPart;
        ground.domain.wind(&mut clocks, &mut *feed).await.expect("wound");
        ground.domain.expire_due(&mut clocks).await;
        let left: Vec<Device> = registry.load_all(Kind::Device, Some(app.id()), "").await.expect("read");
        assert_eq!(left.len(), 1);
        assert_eq!(clocks.of.len(), 1, "it has a clock");
    }
}
