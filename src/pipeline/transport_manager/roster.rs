//! What the matchers are fed from: the registry for subscriptions and connections, the change log for applications and users (so
//! that rules change at their place in the log, not before).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use nexxus_storage::{
    Result,
    model::{AppId, DeviceId, Entry, Event, SubscriptionId, UserId, change::UserFacts},
    registry::{
        Feed, Key, Kind, News,
        records::{self, decode},
    },
};
use tracing::{info, warn};

use super::{
    super::matcher::{Matcher, Matchers},
    matched::Matched,
};
use crate::domain::{Application, Domain, view::View};

const KINDS: [Kind; 2] = [Kind::Subscription, Kind::Connection];

pub(super) struct Roster {
    matchers: Matchers,
    applications: HashMap<AppId, Arc<Application>>,
    /// What the rules know of the users that have subscriptions, as of the matched place in the log.
    users: HashMap<(AppId, UserId), UserFacts>,
    records: HashMap<SubscriptionId, Arc<records::Subscription>>,
    feed: Box<dyn Feed>,
}

impl Roster {
    pub(super) async fn open(domain: &Domain) -> Result<Self> {
        let feed = domain.backends.registry.feed(&KINDS).await?;
        let mut roster = Self {
            matchers: Matchers::default(),
            applications: HashMap::new(),
            users: HashMap::new(),
            records: HashMap::new(),
            feed,
        };
        roster.reload(domain).await?;
        Ok(roster)
    }

    async fn reload(&mut self, domain: &Domain) -> Result<()> {
        self.matchers = Matchers::default();
        self.users.clear();
        self.records.clear();
        domain.catalog.refresh().await?;
        let applications = domain.catalog.list();
        let n_applications = applications.len();
        for application in applications {
            let app = application.id().clone();
            self.applications.insert(app.clone(), application);
            let registry = &domain.backends.registry;
            for subscription in registry.load_all(Kind::Subscription, Some(&app), "").await? {
                self.subscribe(domain, subscription).await?;
            }
            for connection in registry.load_all::<records::Connection>(Kind::Connection, Some(&app), "").await? {
                self.matchers.app(&app).connect(connection.device, &connection.queue);
            }
        }
        info!(applications = n_applications, subscriptions = self.records.len(), "the matcher is loaded");
        Ok(())
    }

    /// Takes in everything that was written to the registry before this call.
    pub(super) async fn refresh(&mut self, domain: &Domain) -> Result<()> {
        for news in self.feed.read().await? {
            match news {
                News::Reload => return self.reload(domain).await,
                News::Written { key, value } => match (key.kind, value) {
                    (Kind::Subscription, Some(value)) => self.subscribe(domain, decode(&key, &value)?).await?,
                    (Kind::Subscription, None) => self.unsubscribe(&key),
                    (Kind::Connection, value) => self.connection(&key, value.is_some()),
                    _ => {}
                },
            }
        }
        metrics::gauge!("nexxus_subscriptions").set(self.records.len() as f64);
        Ok(())
    }

    async fn subscribe(&mut self, domain: &Domain, subscription: records::Subscription) -> Result<()> {
        let app = subscription.app.clone();
        if !self.applications.contains_key(&app) {
            domain.catalog.refresh().await?;
            let Some(application) = domain.catalog.find(&app) else { return Ok(()) };
            self.applications.insert(app.clone(), application);
        }
        self.know_user(domain, &subscription).await?;
        self.records.insert(subscription.id.clone(), Arc::new(subscription.clone()));
        self.compile(&subscription);
        Ok(())
    }

    async fn know_user(&mut self, domain: &Domain, subscription: &records::Subscription) -> Result<()> {
        let Some(user) = &subscription.user else { return Ok(()) };
        let key = (subscription.app.clone(), user.clone());
        if self.users.contains_key(&key) {
            return Ok(());
        }
        let record: Option<(records::User, u64)> =
            domain.backends.registry.load(&Key::user(&subscription.app, user)).await?;
        self.users.insert(key, record.map(|(user, _)| user.facts).unwrap_or_default());
        Ok(())
    }

    /// Brings a subscription into its matcher as application and user stand now. One that fits them no longer hears nothing.
    fn compile(&mut self, subscription: &records::Subscription) {
        let view = self.view_of(subscription);
        let matcher = self.matchers.app(&subscription.app);
        match view {
            Some(view) => matcher.subscribe(subscription.id.clone(), subscription.device.clone(), view),
            None => matcher.unsubscribe(&subscription.id),
        }
    }

    fn view_of(&self, subscription: &records::Subscription) -> Option<View> {
        let application = self.applications.get(&subscription.app)?;
        let no_facts = UserFacts::default();
        let user = subscription.user.as_ref().map(|user| (subscription.app.clone(), user.clone()));
        let facts = user.and_then(|user| self.users.get(&user)).unwrap_or(&no_facts);
        View::compile(subscription, application, facts)
            .inspect_err(|error| warn!(app = %subscription.app, %error, "a subscription fits no longer"))
            .ok()
    }

    fn unsubscribe(&mut self, key: &Key) {
        let Some((app, id)) = key.app.as_ref().zip(second_part(&key.id).and_then(|id| SubscriptionId::parse(id).ok()))
        else {
            return;
        };
        self.records.remove(&id);
        self.matchers.app(app).unsubscribe(&id);
        self.forget_if_empty(app);
    }

    fn connection(&mut self, key: &Key, is_there: bool) {
        let parts = key.id.split_once('/').and_then(|(device, queue)| Some((DeviceId::parse(device).ok()?, queue)));
        let Some((app, (device, queue))) = key.app.as_ref().zip(parts) else { return };
        let matcher = self.matchers.app(app);
        if is_there {
            matcher.connect(device, queue);
        } else {
            matcher.disconnect(&device, queue);
            self.forget_if_empty(app);
        }
    }

    fn forget_if_empty(&mut self, app: &AppId) {
        if self.matchers.of.get(app).is_some_and(Matcher::is_empty) {
            self.matchers.of.remove(app);
            self.users.retain(|(of, _), _| of != app);
        }
    }

    /// Applications and users change at their place in the log. Connected devices whose channels this may alter ask anew.
    pub(super) fn follow_log(&mut self, app: &AppId, entry: &Entry, matched: &mut Matched) -> Result<()> {
        let concerned: Vec<Arc<records::Subscription>> = match &entry.event {
            Event::Defined { definition, .. } => {
                let Ok(record) = serde_json::from_value::<records::Application>(definition.clone()) else {
                    return Ok(());
                };
                if record.deleted {
                    self.applications.remove(app);
                } else {
                    self.applications.insert(app.clone(), Arc::new(Application::compile(record)?));
                }
                self.records.values().filter(|record| record.app == *app).cloned().collect()
            }
            Event::UserChanged { user, after, .. } => {
                self.users.insert((app.clone(), user.clone()), after.clone().unwrap_or_default());
                let is_theirs =
                    |record: &&Arc<records::Subscription>| record.app == *app && record.user.as_ref() == Some(user);
                self.records.values().filter(is_theirs).cloned().collect()
            }
            _ => return Ok(()),
        };
        let mut altered = HashSet::new();
        for subscription in concerned {
            let before = self.matchers.app(app).subscription(&subscription.id).cloned();
            self.compile(&subscription);
            let after = self.matchers.app(app).subscription(&subscription.id);
            if before.as_deref() != after.map(|view| &**view) {
                altered.insert(subscription.id.clone());
            }
        }
        if !altered.is_empty() {
            let channels = self.altered_channels(app, &altered);
            matched.resync(self, app, channels, Some("rules"), entry.offset);
        }
        Ok(())
    }

    /// The channels of altered subscriptions, by connected device; also of those that fit no longer and so left the matcher.
    fn altered_channels(&self, app: &AppId, altered: &HashSet<SubscriptionId>) -> Vec<(DeviceId, Vec<Arc<str>>)> {
        let mut channels: HashMap<DeviceId, Vec<Arc<str>>> = HashMap::new();
        for id in altered {
            let Some(record) = self.records.get(id) else { continue };
            if self.matcher(app).is_some_and(|matcher| !matcher.queues_of(&record.device).is_empty()) {
                channels.entry(record.device.clone()).or_default().push(record.channel.as_str().into());
            }
        }
        let mut channels: Vec<_> = channels.into_iter().collect();
        channels.iter_mut().for_each(|(_, keys)| keys.sort_unstable());
        channels.sort_unstable();
        channels
    }

    pub(super) fn matcher(&self, app: &AppId) -> Option<&Matcher> {
        self.matchers.of.get(app)
    }

    pub(super) fn application(&self, app: &AppId) -> Option<&Application> {
        self.applications.get(app).map(|application| &**application)
    }

    /// Every application that somebody is connected to.
    pub(super) fn applications(&self) -> Vec<AppId> {
        let connected = |(app, matcher): (&AppId, &Matcher)| matcher.queues().next().map(|_| app.clone());
        self.matchers.of.iter().filter_map(connected).collect()
    }
}

/// `SUBSCRIPTION` of `DEVICE/SUBSCRIPTION`.
fn second_part(id: &str) -> Option<&str> {
    id.split_once('/').map(|(_, second)| second)
}
