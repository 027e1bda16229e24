//! The crowds of all applications of a queue, fed from the registry for subscriptions and connections, and from the change log for
//! applications and users (so that rules change at their place in the log, not before).

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use nexxus_storage::{
    Result,
    model::{AppId, DeviceId, Entry, Event, SubscriptionId, UserId},
    registry::{
        Feed, Key, Kind, News,
        records::{self, decode},
    },
};
use tracing::{error, info};

use super::loading::Loading;
use crate::{
    domain::{Application, Domain},
    matcher::{
        Matcher,
        crowd::{Channels, Crowd, Listener, Progress},
    },
};

const KINDS: [Kind; 2] = [Kind::Subscription, Kind::Connection];

pub(super) struct Roster {
    domain: Domain,
    /// Only applications whose changes come by this queue are of interest.
    queue: String,
    /// One for each application that there is, and each that somebody listens to.
    crowds: HashMap<AppId, Crowd>,
    feed: Box<dyn Feed>,
    /// Something that the feed told was not taken in.
    is_stale: bool,
    counted: Counts,
}

impl Roster {
    pub(super) async fn open(domain: Domain, queue: String) -> Result<Self> {
        let begun = Instant::now();
        let feed = domain.backends.registry.feed(&KINDS).await?;
        let mut roster =
            Self { domain, queue, crowds: HashMap::new(), feed, is_stale: true, counted: Counts::default() };
        roster.reload().await?;
        let (subscriptions, took) = (roster.counted.subscriptions, begun.elapsed());
        info!(applications = roster.crowds.len(), subscriptions, ?took, "the matcher is loaded");
        Ok(roster)
    }

    fn is_mine(&self, app: &AppId) -> bool {
        self.domain.routes.transport_manager.queue_of(app) == self.queue
    }

    /// Takes in everything that was written to the registry before this call.
    pub(super) async fn refresh(&mut self) -> Result<()> {
        let news = self.feed.read().await?;
        self.take_in(news).await
    }

    /// The same of these applications; of others a later call tells.
    pub(super) async fn refresh_about(&mut self, apps: &[&AppId]) -> Result<()> {
        let news = self.feed.read_about(apps).await?;
        self.take_in(news).await
    }

    async fn take_in(&mut self, news: Vec<News>) -> Result<()> {
        if news.is_empty() && !self.is_stale {
            return Ok(());
        }
        // What is read and not taken in, because of an error on the way, the feed does not tell again.
        let must_reload = std::mem::replace(&mut self.is_stale, true) || news.contains(&News::Reload);
        if must_reload {
            return self.reload().await;
        }
        for news in news {
            if let News::Written { key, value } = news {
                self.take(&key, value.as_deref()).await?;
            }
        }
        self.is_stale = false;
        self.count();
        Ok(())
    }

    /// Reads everything anew. Applications and users stay as of the matched place in the log, where they are known.
    async fn reload(&mut self) -> Result<()> {
        self.is_stale = true;
        self.domain.catalog.refresh().await?;
        let defined = self.domain.catalog.list().into_iter().map(|application| application.id().clone());
        let apps: BTreeSet<AppId> =
            defined.filter(|app| self.is_mine(app)).chain(self.crowds.keys().cloned()).collect();
        let mut crowds = HashMap::with_capacity(apps.len());
        for app in apps {
            let crowd = self.load(&app).await?;
            if !crowd.is_over() {
                crowds.insert(app, crowd);
            }
        }
        self.crowds = crowds;
        self.is_stale = false;
        self.count();
        Ok(())
    }

    /// As if the feed had told of a gap.
    #[cfg(test)]
    pub(super) async fn forget(&mut self) {
        self.reload().await.expect("read anew");
    }

    async fn load(&self, app: &AppId) -> Result<Crowd> {
        let before = self.crowds.get(app);
        let application = before.and_then(|before| before.application.clone());
        let crowd = Crowd::of(application.or_else(|| self.domain.catalog.find(app)));
        Loading::new(&self.domain, app, before, crowd).load().await
    }

    async fn take(&mut self, key: &Key, value: Option<&[u8]>) -> Result<()> {
        let Some(app) = key.app.as_ref().filter(|app| self.is_mine(app)) else { return Ok(()) };
        let Some((first, second)) = key.id.split_once('/') else { return Ok(()) };
        match (key.kind, value) {
            (Kind::Subscription, Some(value)) => match decode(key, value) {
                Ok(subscription) => self.subscribe(subscription).await?,
                // The others go on.
                Err(error) => error!(%app, %error, "a subscription cannot be read"),
            },
            (Kind::Subscription, None) => {
                if let (Some(crowd), Ok(id)) = (self.crowds.get_mut(app), SubscriptionId::parse(second)) {
                    crowd.unsubscribe(&id);
                }
            }
            (Kind::Connection, value) => {
                let Ok(device) = DeviceId::parse(first) else { return Ok(()) };
                match value {
                    Some(_) => self.crowd(app).await?.matcher.connect(&device, second),
                    None => {
                        if let Some(crowd) = self.crowds.get_mut(app) {
                            crowd.matcher.disconnect(&device, second);
                        }
                    }
                }
            }
            _ => {}
        }
        if self.crowds.get(app).is_some_and(Crowd::is_over) {
            self.crowds.remove(app);
        }
        Ok(())
    }

    async fn subscribe(&mut self, subscription: records::Subscription) -> Result<()> {
        let app = subscription.app.clone();
        let is_known = |user: &UserId| self.crowds.get(&app).is_some_and(|crowd| crowd.facts_of(user).is_some());
        let facts = match &subscription.user {
            Some(user) if !is_known(user) => Some(self.domain.facts_of(&app, user).await?),
            _ => None,
        };
        self.crowd(&app).await?.subscribe(subscription, facts);
        Ok(())
    }

    async fn crowd(&mut self, app: &AppId) -> Result<&mut Crowd> {
        if !self.crowds.contains_key(app) {
            self.domain.catalog.refresh().await?;
            self.crowds.insert(app.clone(), Crowd::of(self.domain.catalog.find(app)));
        }
        Ok(self.crowds.entry(app.clone()).or_default())
    }

    /// Applications and users change at their place in the log. Says whether [`go_on`](Self::go_on) has to be called for that.
    pub(super) fn follow(&mut self, app: &AppId, entry: &Entry) -> bool {
        matches!(entry.event, Event::Defined { .. } | Event::UserChanged { .. })
            && self.crowds.entry(app.clone()).or_default().follow(entry)
    }

    /// Goes on with the entry that was followed, for about so long.
    pub(super) fn go_on(&mut self, app: &AppId, slice: Duration) -> Progress {
        let Some(crowd) = self.crowds.get_mut(app) else { return Progress::Lost };
        let progress = crowd.go_on(slice);
        if crowd.is_over() && !matches!(progress, Progress::More) {
            self.crowds.remove(app);
        }
        progress
    }

    /// The log no longer has what lies before: the application counts as it is defined today.
    pub(super) async fn leap(&mut self, app: &AppId) -> Result<()> {
        self.domain.catalog.refresh().await?;
        let today = self.domain.catalog.find(app);
        if let Some(crowd) = self.crowds.get_mut(app) {
            crowd.define(today);
        }
        Ok(())
    }

    /// The channels of an application's connected devices that fulfil a condition.
    pub(super) fn channels_where(&self, app: &AppId, wanted: impl Fn(Listener<'_>) -> bool) -> Channels {
        let crowd = self.crowds.get(app);
        crowd.map(|crowd| crowd.channels_where(wanted)).unwrap_or_default()
    }

    pub(super) fn matcher(&self, app: &AppId) -> Option<&Matcher> {
        self.crowds.get(app).map(|crowd| &crowd.matcher)
    }

    pub(super) fn application(&self, app: &AppId) -> Option<&Application> {
        self.crowds.get(app)?.application.as_deref()
    }

    /// Every application that somebody is connected to.
    pub(super) fn connected(&self) -> Vec<AppId> {
        let is_connected = |(_, crowd): &(&AppId, &Crowd)| crowd.matcher.has_connections();
        self.crowds.iter().filter(is_connected).map(|(app, _)| app.clone()).collect()
    }

    fn count(&mut self) {
        let now = self.crowds.values().fold(Counts::default(), |counts, crowd| Counts {
            subscriptions: counts.subscriptions + crowd.n_subscriptions(),
            unindexed: counts.unindexed + crowd.matcher.n_unindexed(),
        });
        let before = std::mem::replace(&mut self.counted, now);
        // Other queues have rosters of their own.
        let more = |now: usize, before: usize| now as f64 - before as f64;
        metrics::gauge!("nexxus_subscriptions").increment(more(now.subscriptions, before.subscriptions));
        metrics::gauge!("nexxus_matcher_unindexed").increment(more(now.unindexed, before.unindexed));
    }
}

/// What the gauges were told.
#[derive(Default, Clone, Copy)]
struct Counts {
    subscriptions: usize,
    /// Groups of subscriptions that are tested against every change of their model.
    unindexed: usize,
}
