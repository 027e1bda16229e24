//! What has to be done for devices from time to time: cursors written, devices removed whose `keepFor` has passed, sessions removed
//! that have ended.
//!
//! Only time in which this process ran counts: after a start every device has its whole `keepFor` again. So the clocks are kept
//! here, in memory, fed by the registry; the removal itself is conditional on the record that was read.

use std::collections::HashMap;

use nexxus_storage::{
    ErrorKind, Result,
    model::{AppId, DeviceId, Timestamp},
    registry::{
        Expect, Feed, Key, Kind, News, Write,
        records::{Connection, Device, Session, decode},
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

impl Domain {
    /// Flushes cursors each second, removes devices whose `keepFor` has passed without a connection, counted while this process
    /// ran, and sessions that have ended; until told to stop.
    pub async fn keep_devices(self, stop: Stop) -> Result<(), Failure> {
        let registry = self.backends.registry.clone();
        let mut feed = registry.feed(&KINDS).await?;
        let mut clocks = Clocks::default();
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
        // What was read and not taken in, because of an error, the feed does not tell again.
        if !std::mem::replace(&mut clocks.are_whole, false) || news.contains(&News::Reload) {
            self.load(clocks).await?;
        } else {
            for news in news {
                if let News::Written { key, value } = news {
                    clocks.take_in(&key, value.as_deref());
                }
            }
        }
        clocks.are_whole = true;
        Ok(())
    }

    /// Reads every device and connection there is; clocks that run go on.
    async fn load(&self, clocks: &mut Clocks) -> Result<()> {
        let registry = &self.backends.registry;
        let mut anew = Clocks::default();
        for app in self.catalog.list() {
            let devices: Vec<Device> = registry.load_all(Kind::Device, Some(app.id()), "").await?;
            for device in devices {
                let since = clocks.of.get(&(device.app.clone(), device.id.clone())).map(|clock| clock.since);
                anew.registered(&device, since);
            }
            let connections: Vec<Connection> = registry.load_all(Kind::Connection, Some(app.id()), "").await?;
            connections.into_iter().for_each(|connection| anew.connected(connection));
        }
        clocks.of = anew.of;
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

/// Since when each device has had no connection.
#[derive(Default)]
struct Clocks {
    of: HashMap<(AppId, DeviceId), Clock>,
    /// They stand for everything that the feed told so far.
    are_whole: bool,
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
        let least = if device.generation == 0 { NEVER_CONNECTED } else { AT_LEAST };
        clock.keep_for = Duration::from_secs(device.keep_for).max(least);
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

#[cfg(test)]
mod tests {
    use nexxus_storage::model::Offset;

    use super::*;

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

    fn is_due(clocks: &Clocks) -> bool {
        !clocks.due(Instant::now()).is_empty()
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_is_due_when_it_was_away_for_its_time() {
        let mut clocks = Clocks::default();
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
        let mut clocks = Clocks::default();
        clocks.registered(&device(60, 0), None);
        tokio::time::advance(Duration::from_secs(599)).await;
        assert!(!is_due(&clocks));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(is_due(&clocks));
        clocks.registered(&device(3600, 0), None);
        assert!(!is_due(&clocks));
    }
}
