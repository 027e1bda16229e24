//! Who listens to one application: subscriptions, connections, and what rules know of the users, without I/O.
//!
//! There may be a million subscriptions, so their records are not kept: what they say stands in the matcher and is put together
//! again where it is needed, which is when rules, users or the schema change. A record that cannot be put together again (its
//! filter does not fit the schema any more, or means something else under it) is kept as it is.

mod turn;

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use nexxus_storage::{
    model::{DeviceId, Entry, ModelName, Offset, SubscriptionId, UserId, change::UserFacts},
    registry::records,
};
use tracing::{error, warn};

pub use self::turn::Progress;
use self::turn::Turn;
use super::{Matcher, Number, users::Users};
use crate::domain::{Application, alteration::Alteration, view::View};

/// The channels of some devices.
pub type Channels = Vec<(DeviceId, Vec<Arc<str>>)>;

#[derive(Default)]
pub struct Crowd {
    /// As of the matched place in the log; none where there is none, or none that can be used.
    pub application: Option<Arc<Application>>,
    pub matcher: Matcher,
    /// What the subscriptions were compiled for.
    compiled: Option<Arc<Application>>,
    users: Users,
    /// By the number of the subscription.
    kept: HashMap<Number, Box<records::Subscription>>,
    /// What is not done yet of the entry that was followed last.
    turn: Option<Box<Turn>>,
}

/// A subscription of a crowd.
#[derive(Clone, Copy)]
pub struct Listener<'c> {
    crowd: &'c Crowd,
    number: Number,
}

impl Listener<'_> {
    pub fn since(&self) -> Offset {
        self.crowd.matcher.since_of(self.number)
    }

    pub fn model(&self) -> Option<&ModelName> {
        self.crowd.matcher.model_of(self.number).or_else(|| Some(&self.crowd.kept.get(&self.number)?.model))
    }

    fn channel(&self) -> Option<Arc<str>> {
        match self.crowd.kept.get(&self.number) {
            Some(kept) => Some(kept.channel.as_str().into()),
            None => self.crowd.matcher.channel_of(self.number),
        }
    }

    fn facts(&self) -> &UserFacts {
        static NONE: LazyLock<UserFacts> = LazyLock::new(UserFacts::default);
        let users = &self.crowd.users;
        users.owner(self.number).and_then(|user| users.facts(user)).map_or(&NONE, |facts| facts)
    }

    /// Its record, as it stands in the registry.
    pub fn record(&self) -> Option<Cow<'_, records::Subscription>> {
        if let Some(kept) = self.crowd.kept.get(&self.number) {
            return Some(Cow::Borrowed(kept));
        }
        let matcher = &self.crowd.matcher;
        let listening = matcher.listening(self.number)?;
        let user = self.crowd.users.owner_id(self.number);
        Some(Cow::Owned(records::Subscription {
            app: listening.app.clone(),
            id: matcher.id_of(self.number)?,
            device: matcher.device_of(self.number)?.clone(),
            admin: listening.privileged && user.is_none(),
            user,
            model: listening.model.clone(),
            model_id: listening.id,
            user_id: listening.user,
            filter: listening.filter.and_then(|filter| serde_json::from_str(&filter.canonical()).ok()),
            channel: listening.key.to_string(),
            since: self.since(),
        }))
    }
}

/// A subscription, ready to be taken in. Many can be made at the same time.
pub struct Compiled {
    record: records::Subscription,
    view: Option<View>,
}

impl Compiled {
    /// As application and user stand now. A subscription that fits them no longer hears nothing.
    pub fn new(record: records::Subscription, application: Option<&Application>, facts: &UserFacts) -> Self {
        let view = application.and_then(|application| {
            View::compile(&record, application, facts)
                .inspect_err(|error| warn!(app = %record.app, %error, "a subscription fits no longer"))
                .ok()
        });
        Self { record, view }
    }
}

impl Crowd {
    pub fn of(application: Option<Arc<Application>>) -> Self {
        Self { compiled: application.clone(), application, ..Self::default() }
    }

    /// What rules know of a user, if the user has subscriptions.
    pub fn facts_of(&self, user: &UserId) -> Option<&UserFacts> {
        self.users.facts(self.users.find(user)?).map(|facts| &**facts)
    }

    /// The same, to be taken elsewhere.
    pub fn shared_facts_of(&self, user: &UserId) -> Option<Arc<UserFacts>> {
        self.users.facts(self.users.find(user)?).cloned()
    }

    /// Takes in what rules know of a user who may have subscriptions soon; what is known already stays.
    pub fn expect_user(&mut self, user: &UserId, facts: UserFacts) {
        self.users.add(user, facts);
    }

    /// Forgets the users that were expected and have none.
    pub fn forget_idle_users(&mut self) {
        self.users.forget_all_idle();
    }

    /// `facts` of its user, where nothing is known of the user yet.
    pub fn subscribe(&mut self, subscription: records::Subscription, facts: Option<UserFacts>) {
        let user = subscription.user.as_ref().map(|user| self.users.add(user, facts.unwrap_or_default()));
        let facts = user.and_then(|user| self.users.facts(user)).cloned().unwrap_or_default();
        self.take(Compiled::new(subscription, self.application.as_deref(), &facts));
    }

    /// Takes in a subscription that was compiled for the application and the facts as they are here.
    pub fn take(&mut self, Compiled { record, view }: Compiled) {
        let user = record.user.as_ref().map(|user| self.users.add(user, UserFacts::default()));
        let number = self.matcher.subscribe(&record.id, &record.device, record.since, view.as_ref());
        self.users.own(number, user);
        self.keep(number, Cow::Owned(record), view.as_ref());
    }

    pub fn unsubscribe(&mut self, id: &SubscriptionId) {
        let Some(number) = self.matcher.find(id) else { return };
        self.matcher.unsubscribe(number);
        self.users.disown(number);
        self.kept.remove(&number);
    }

    /// Keeps a record that could not be put together again from its view.
    fn keep(&mut self, number: Number, subscription: Cow<'_, records::Subscription>, view: Option<&View>) {
        let is_usual = view.is_some_and(|view| {
            // Where the hashes are the same, so are the filters.
            view.channel.to_string() == subscription.channel
                && self.matcher.id_of(number).as_ref() == Some(&subscription.id)
                && subscription.admin == (view.privileged && subscription.user.is_none())
        });
        if is_usual {
            self.kept.remove(&number);
        } else {
            self.kept.insert(number, Box::new(subscription.into_owned()));
        }
    }

    /// Compiles subscriptions anew.
    fn compile_again(&mut self, numbers: impl Iterator<Item = Number>) {
        for number in numbers {
            let listener = Listener { crowd: self, number };
            let Some(record) = listener.record().map(Cow::into_owned) else { continue };
            let Compiled { record, view } = Compiled::new(record, self.application.as_deref(), listener.facts());
            self.matcher.change(number, view.as_ref());
            self.keep(number, Cow::Owned(record), view.as_ref());
        }
    }

    /// What rules know of a user from here on.
    pub fn know(&mut self, user: &UserId, facts: UserFacts) {
        let Some(user) = self.users.find(user) else { return };
        if self.users.facts(user).is_some_and(|known| **known == facts) {
            return;
        }
        self.users.set_facts(user, facts);
        let theirs: Vec<_> = self.users.subscriptions(user).collect();
        self.compile_again(theirs.into_iter());
    }

    /// The channels of connected devices that have to be asked for anew.
    pub fn altered_by(&self, alteration: &Alteration) -> Channels {
        let is_altered = |listener: Listener<'_>| {
            listener.model().is_some_and(|model| alteration.may_alter(model, listener.since()))
                && listener
                    .record()
                    .is_some_and(|record| alteration.alters(&record, self.application.as_deref(), listener.facts()))
        };
        match alteration.user() {
            Some(user) => match self.users.find(user) {
                Some(user) => self.channels_among(self.users.subscriptions(user), is_altered),
                None => Channels::new(),
            },
            None => self.channels_where(is_altered),
        }
    }

    /// Without an application the subscriptions stay as they are: nobody is shown anything then.
    pub fn define(&mut self, application: Option<Arc<Application>>) {
        self.application = application;
        let Some(application) = self.application.clone() else { return };
        // What was compiled for, unless for some this and for others that.
        let before = self.compiled.replace(application.clone()).filter(|_| self.turn.is_none());
        self.turn = None;
        let is_alike = |model: &ModelName| before.as_ref().is_some_and(|it| it.is_alike_for(&application, model));
        let affected = self
            .matcher
            .subscriptions()
            .filter(|number| self.kept.contains_key(number) || !self.matcher.model_of(*number).is_some_and(is_alike));
        let affected: Vec<_> = affected.collect();
        self.compile_again(affected.into_iter());
    }

    /// The channels of connected devices whose subscriptions fulfil a condition.
    pub fn channels_where(&self, wanted: impl Fn(Listener<'_>) -> bool) -> Channels {
        self.channels_among(self.matcher.subscriptions(), wanted)
    }

    fn channels_among(&self, numbers: impl Iterator<Item = Number>, wanted: impl Fn(Listener<'_>) -> bool) -> Channels {
        let mut channels: HashMap<&DeviceId, Vec<Arc<str>>> = HashMap::new();
        for number in numbers.filter(|number| self.matcher.is_connected(*number)) {
            let listener = Listener { crowd: self, number };
            if wanted(listener)
                && let (Some(device), Some(channel)) = (self.matcher.device_of(number), listener.channel())
            {
                channels.entry(device).or_default().push(channel);
            }
        }
        sorted(channels.into_iter().map(|(device, keys)| (device.clone(), keys)))
    }

    pub fn n_subscriptions(&self) -> usize {
        self.matcher.n_subscriptions()
    }

    /// Nothing has to be kept of it.
    pub fn is_over(&self) -> bool {
        self.application.is_none() && self.matcher.is_empty()
    }
}

fn sorted(channels: impl IntoIterator<Item = (DeviceId, Vec<Arc<str>>)>) -> Channels {
    let mut channels: Channels = channels.into_iter().collect();
    channels.iter_mut().for_each(|(_, keys)| keys.sort_unstable());
    channels.sort_unstable();
    channels
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

#[cfg(test)]
mod tests;
