//! Reads the change log for the laps of one application, one after the other, until nobody waits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nexxus_storage::{
    ErrorKind, Result,
    model::{DeviceId, Offset, SubscriptionId, UserId},
    registry::{
        Feed, Key, Kind, News,
        records::{self, decode},
    },
};
use tokio::sync::Notify;
use tracing::error;

use super::{CatchUp, Line, lap::Lap, passenger::Passenger};

/// Entries that are read at once.
const PAGE: usize = 512;
/// How long a scan waits for connections to take their frames before it goes on without them.
const PATIENCE: Duration = Duration::from_millis(20);
/// How often it is tried to make those live that have read everything.
const RETRY: Duration = Duration::from_millis(50);
/// Most subscriptions on board: whoever comes after that waits for the next lap.
const MOST_SUBSCRIPTIONS: usize = 100_000;

const KINDS: [Kind; 2] = [Kind::Subscription, Kind::User];

pub(super) struct Scan {
    catch_up: Arc<CatchUp>,
    line: Line,
    arrival: Arc<Notify>,
    lap: Lap,
    feed: Box<dyn Feed>,
    position: Offset,
}

impl Scan {
    pub(super) async fn run(catch_up: Arc<CatchUp>, line: Line, arrival: Arc<Notify>) -> Result<()> {
        let feed = catch_up.domain.backends.registry.feed(&KINDS).await?;
        let (lap, position) = (Lap::default(), Offset::default());
        let mut scan = Self { catch_up, line, arrival, lap, feed, position };
        while let Some(waiting) = scan.catch_up.take_waiting(&scan.line, scan.lap.is_empty(), |_| true) {
            scan.refresh().await?;
            scan.board(waiting).await?;
            scan.begin_lap();
            while !scan.lap.is_empty() && !scan.step().await? {}
        }
        Ok(())
    }

    /// Goes to where somebody on board has to read from.
    fn begin_lap(&mut self) {
        if let Some(position) = self.lap.begins_at() {
            self.position = position;
        }
    }

    /// Takes connections on board, with what they are subscribed to. Those for whom there is no room go back to waiting.
    async fn board(&mut self, waiting: Vec<Passenger>) -> Result<()> {
        let mut waiting = waiting.into_iter();
        for passenger in waiting.by_ref() {
            let device = passenger.connection.device.clone();
            let is_known = self.lap.knows(&device);
            self.lap.board(passenger);
            if !is_known {
                self.load(&device).await?;
            }
            if self.lap.n_subscriptions() >= MOST_SUBSCRIPTIONS {
                break;
            }
        }
        if let Some(platform) = self.catch_up.platforms.lock().get_mut(&self.line) {
            platform.waiting.extend(waiting);
        }
        Ok(())
    }

    async fn load(&mut self, device: &DeviceId) -> Result<()> {
        let registry = &self.catch_up.domain.backends.registry;
        let prefix = format!("{device}/");
        let subscriptions: Vec<records::Subscription> =
            registry.load_all(Kind::Subscription, Some(&self.line.app), &prefix).await?;
        for subscription in subscriptions {
            self.subscribe(subscription).await?;
        }
        Ok(())
    }

    async fn subscribe(&mut self, subscription: records::Subscription) -> Result<()> {
        let facts = match &subscription.user {
            Some(user) if self.lap.facts_of(user).is_none() => {
                Some(self.catch_up.domain.facts_of(&self.line.app, user).await?)
            }
            _ => None,
        };
        self.lap.subscribe(subscription, facts);
        Ok(())
    }

    /// Reads on by one page. Gives whether that was the end of the log, and of the lap: those on board that cannot go live yet ride
    /// in the next one.
    async fn step(&mut self) -> Result<bool> {
        let begun = Instant::now();
        let log = &self.catch_up.domain.backends.change_log;
        let page = match log.read(&self.line.app, self.position, PAGE).await {
            Ok(page) => page,
            Err(error) if matches!(error.kind, ErrorKind::Gone | ErrorKind::Invalid) => {
                self.refresh().await?;
                return match self.leap().await? {
                    true => Ok(false),
                    false => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        // After the page: a subscription that is not known then was made above everything in the page, and the rules are at least
        // those that were in force for it.
        self.refresh().await?;
        let mut waited = Duration::ZERO;
        for read in &page.entries {
            self.lap.give(&read.entry);
            waited += self.make_room(read.entry.offset).await;
        }
        metrics::counter!("nexxus_replayed_entries_total").increment(page.entries.len() as u64);
        self.position = page.next;
        self.lap.read_to(page.next);
        if page.end {
            let (rooms, app) = (&self.catch_up.rooms, &self.line.app);
            self.lap.join(page.next, |one| rooms.try_join(app, &one.connection, Some(one.ride), page.next));
        }
        self.catch_up.pace.rest(begun.elapsed().saturating_sub(waited)).await;
        match page.end {
            true if self.lap.is_empty() => {}
            true => self.wait().await?,
            false => self.take_along().await?,
        }
        Ok(page.end)
    }

    /// Waits a little for those that have too much to take; goes on without those that still do. Gives how long it waited.
    async fn make_room(&mut self, position: Offset) -> Duration {
        let full = self.lap.take_full();
        if full.is_empty() {
            return Duration::ZERO;
        }
        let begun = Instant::now();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        for passenger in &full {
            if tokio::time::timeout_at(deadline, passenger.connection.has_room()).await.is_err() {
                self.lap.let_go(passenger, position);
            }
        }
        begun.elapsed()
    }

    /// Whoever waits and has read as far as this rides along from here.
    async fn take_along(&mut self) -> Result<()> {
        if self.lap.is_empty() || self.lap.n_subscriptions() >= MOST_SUBSCRIPTIONS {
            return Ok(());
        }
        let position = self.position;
        match self.catch_up.take_waiting(&self.line, false, |one| one.read().is_none_or(|read| read >= position)) {
            Some(waiting) => self.board(waiting).await,
            None => Ok(()),
        }
    }

    /// Everything is read, and somebody cannot go live yet: until there is more to read or somebody comes, or a little later.
    async fn wait(&self) -> Result<()> {
        let log = &self.catch_up.domain.backends.change_log;
        tokio::select! {
            applied = log.wait_applied(&self.line.app, self.position.next()) => applied,
            () = self.arrival.notified() => Ok(()),
            () = tokio::time::sleep(RETRY) => Ok(()),
        }
    }

    /// The log does not reach back any more for somebody on board. Gives whether there is another place to read from now.
    async fn leap(&mut self) -> Result<bool> {
        let marks = self.catch_up.domain.backends.change_log.marks(&self.line.app).await?;
        let has_leapt = self.lap.leap(|read| marks.reach_back_to(read), marks.applied);
        let former = self.position;
        self.begin_lap();
        // Whoever it was for may have gone meanwhile.
        Ok(has_leapt || self.lap.is_empty() || self.position != former)
    }

    /// Takes in everything that was written to the registry before this call.
    async fn refresh(&mut self) -> Result<()> {
        let domain = self.catch_up.domain.clone();
        let news = self.feed.read().await?;
        domain.catalog.refresh().await?;
        // Without rules nothing can be shown, and nothing may be passed over.
        match domain.catalog.find(&self.line.app) {
            Some(application) => self.lap.define(&application),
            None => self.lap.revoke(),
        }
        if news.contains(&News::Reload) {
            for device in self.lap.forget_subscriptions() {
                self.load(&device).await?;
            }
            return Ok(());
        }
        for news in news {
            if let News::Written { key, value } = news
                && key.app.as_ref() == Some(&self.line.app)
            {
                self.take(&key, value.as_deref()).await?;
            }
        }
        Ok(())
    }

    async fn take(&mut self, key: &Key, value: Option<&[u8]>) -> Result<()> {
        match (key.kind, value) {
            (Kind::Subscription, Some(value)) => match decode::<records::Subscription>(key, value) {
                Ok(subscription) if self.lap.knows(&subscription.device) => self.subscribe(subscription).await?,
                Ok(_) => {}
                Err(error) => error!(%error, "a subscription cannot be read"),
            },
            (Kind::Subscription, None) => {
                let parsed = key.id.split_once('/').and_then(|(device, subscription)| {
                    DeviceId::parse(device).ok().zip(SubscriptionId::parse(subscription).ok())
                });
                if let Some((device, subscription)) = parsed {
                    self.lap.unsubscribe(&device, &subscription);
                }
            }
            (Kind::User, value) => {
                let Ok(user) = UserId::parse(&key.id) else { return Ok(()) };
                let record = value.and_then(|value| decode::<records::User>(key, value).ok());
                self.lap.know(&user, record.map(|user| user.facts).unwrap_or_default());
            }
            _ => {}
        }
        Ok(())
    }
}
