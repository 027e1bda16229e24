//! Who listens to one application: subscriptions, connections, and what rules know of the users, without I/O.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, LazyLock},
};

use nexxus_storage::{
    model::{DeviceId, Entry, Event, SubscriptionId, UserId, change::UserFacts},
    registry::records,
};
use tracing::{error, warn};

use super::Matcher;
use crate::domain::{Application, alteration::Alteration, view::View};

/// The channels of some devices.
pub type Channels = Vec<(DeviceId, Vec<Arc<str>>)>;

#[derive(Default)]
pub struct Crowd {
    /// As of the matched place in the log; none where there is none, or none that can be used.
    pub application: Option<Arc<Application>>,
    pub matcher: Matcher,
    users: HashMap<UserId, Known>,
    subscriptions: HashMap<SubscriptionId, Arc<records::Subscription>>,
}

/// A user that has subscriptions.
#[derive(Default)]
struct Known {
    /// As of the matched place in the log.
    facts: UserFacts,
    subscriptions: HashSet<SubscriptionId>,
}

impl Crowd {
    pub fn of(application: Option<Arc<Application>>) -> Self {
        Self { application, ..Self::default() }
    }

    /// What rules know of a user, if the user has subscriptions.
    pub fn facts_of(&self, user: &UserId) -> Option<&UserFacts> {
        self.users.get(user).map(|known| &known.facts)
    }

    /// `facts` of its user, where nothing is known of the user yet.
    pub fn subscribe(&mut self, subscription: records::Subscription, facts: Option<UserFacts>) {
        if let Some(user) = &subscription.user {
            let known = self
                .users
                .entry(user.clone())
                .or_insert_with(|| Known { facts: facts.unwrap_or_default(), ..Known::default() });
            known.subscriptions.insert(subscription.id.clone());
        }
        self.compile(&subscription);
        self.subscriptions.insert(subscription.id.clone(), Arc::new(subscription));
    }

    pub fn unsubscribe(&mut self, id: &SubscriptionId) {
        self.matcher.unsubscribe(id);
        let Some(subscription) = self.subscriptions.remove(id) else { return };
        let Some(user) = &subscription.user else { return };
        if let Some(known) = self.users.get_mut(user) {
            known.subscriptions.remove(id);
            if known.subscriptions.is_empty() {
                self.users.remove(user);
            }
        }
    }

    /// Brings a subscription into the matcher as application and user stand now. One that fits them no longer hears nothing.
    fn compile(&mut self, subscription: &records::Subscription) {
        let view = self.application.as_ref().and_then(|application| {
            View::compile(subscription, application, self.facts(subscription))
                .inspect_err(|error| warn!(app = %subscription.app, %error, "a subscription fits no longer"))
                .ok()
        });
        let (id, device) = (subscription.id.clone(), subscription.device.clone());
        match view {
            Some(view) => self.matcher.subscribe(id, device, subscription.since, view),
            None => self.matcher.unsubscribe(&id),
        }
    }

    fn facts(&self, subscription: &records::Subscription) -> &UserFacts {
        static NONE: LazyLock<UserFacts> = LazyLock::new(UserFacts::default);
        subscription.user.as_ref().and_then(|user| self.facts_of(user)).unwrap_or(&NONE)
    }

    /// Takes in an entry of the log. Gives the channels of connected devices that have to be asked for anew.
    pub fn follow(&mut self, entry: &Entry) -> Channels {
        let altered = match Alteration::of(entry) {
            Some(alteration) => self.channels_where(|subscription, facts| {
                alteration.alters(subscription, self.application.as_deref(), facts)
            }),
            None => Channels::new(),
        };
        match &entry.event {
            Event::Defined { definition, .. } => {
                let is_newer = |known: &Arc<Application>| known.record.offset < entry.offset;
                if self.application.as_ref().is_none_or(is_newer) {
                    self.define(defined_by(entry, definition));
                }
            }
            Event::UserChanged { user, after, .. } => {
                self.know(user, after.clone().unwrap_or_default());
            }
            _ => {}
        }
        altered
    }

    /// What rules know of a user from here on.
    pub fn know(&mut self, user: &UserId, facts: UserFacts) {
        let Some(known) = self.users.get_mut(user).filter(|known| known.facts != facts) else { return };
        known.facts = facts;
        let theirs: Vec<_> = known.subscriptions.iter().filter_map(|id| self.subscriptions.get(id)).cloned().collect();
        theirs.iter().for_each(|subscription| self.compile(subscription));
    }

    pub fn define(&mut self, application: Option<Arc<Application>>) {
        self.application = application;
        let all: Vec<_> = self.subscriptions.values().cloned().collect();
        all.iter().for_each(|subscription| self.compile(subscription));
    }

    /// The channels of connected devices whose subscriptions fulfil a condition.
    pub fn channels_where(&self, wanted: impl Fn(&records::Subscription, &UserFacts) -> bool) -> Channels {
        let mut channels: HashMap<&DeviceId, Vec<Arc<str>>> = HashMap::new();
        for subscription in self.subscriptions.values() {
            let is_connected = !self.matcher.queues_of(&subscription.device).is_empty();
            if is_connected && wanted(subscription, self.facts(subscription)) {
                channels.entry(&subscription.device).or_default().push(subscription.channel.as_str().into());
            }
        }
        let mut channels: Channels = channels.into_iter().map(|(device, keys)| (device.clone(), keys)).collect();
        channels.iter_mut().for_each(|(_, keys)| keys.sort_unstable());
        channels.sort_unstable();
        channels
    }

    pub fn n_subscriptions(&self) -> usize {
        self.subscriptions.len()
    }

    /// Nothing has to be kept of it.
    pub fn is_over(&self) -> bool {
        self.application.is_none() && self.subscriptions.is_empty() && self.matcher.is_empty()
    }
}

/// The application from an entry on; none when it is deleted, or cannot be used: then nobody is shown anything.
fn defined_by(entry: &Entry, definition: &serde_json::Value) -> Option<Arc<Application>> {
    let record: records::Application = serde_json::from_value(definition.clone())
        .inspect_err(|error| error!(offset = %entry.offset, %error, "a definition cannot be read"))
        .ok()?;
    if record.deleted {
        return None;
    }
    Application::compile(records::Application { offset: entry.offset, ..record })
        .inspect_err(|error| error!(offset = %entry.offset, %error, "an application cannot be used"))
        .ok()
        .map(Arc::new)
}
