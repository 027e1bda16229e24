//! Who hears of a change: an index over all subscriptions, in memory, without I/O.
//!
//! Subscriptions on the same channel with the same effective condition (filter AND read rule, bound to its user) form one
//! [`Group`] that is tested once. A group is found by the most telling part of its condition: values by their hashes, ranges and
//! prefixes by a tree of intervals; what has no such part stands in a list that is asked about every document of the model
//! ([`plan`]). Whatever is found is tested whole, so the index never decides. A change is looked up with the document before and
//! after, so that leaving is found as well as entering.
//!
//! Everything is kept by number and in few bytes ([`group`], [`slab`], [`table`]): a million subscriptions fit, and adding one to
//! them moves no more than adding one to a thousand.

pub mod crowd;
mod devices;
mod group;
mod index;
mod intervals;
mod places;
mod plan;
mod since;
mod slab;
mod table;
#[cfg(test)]
mod tests;
mod users;

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use nexxus_storage::model::{
    AppId, DeviceId, DocumentId, Entry, ModelName, Offset, SubscriptionId, UserId, filter::Condition,
};
use sha2::{Digest, Sha256};

use self::{
    devices::Devices,
    group::{Group, Member, PackedView, from_hex, to_hex},
    index::Index,
    since::Since,
    slab::Slab,
    table::Table,
};
use crate::domain::{
    frame::Audience,
    view::{Step, View},
};

/// The number of a subscription, device, group or index.
pub type Number = u32;

/// Stands for no group: of a subscription that hears nothing.
const NONE: Number = Number::MAX;

/// The subscriptions and connections of one application.
#[derive(Default)]
pub struct Matcher {
    subscriptions: Slab<Subscription>,
    by_id: Table<Number>,
    devices: Devices,
    groups: Slab<Group>,
    by_view: Table<Number>,
    indexes: Slab<Index>,
    models: HashMap<ModelName, Number>,
    keys: RandomState,
}

struct Subscription {
    id: [u8; 16],
    device: Number,
    group: Number,
    /// Its place among the group's members.
    place: u32,
    since: Since,
}

/// What is at a number that none has.
impl Default for Subscription {
    fn default() -> Self {
        Self { id: [0; 16], device: NONE, group: NONE, place: 0, since: Since::default() }
    }
}

/// What a subscription listens to, as [`View`] says it.
#[derive(Debug, PartialEq)]
pub struct Listening<'m> {
    pub app: &'m AppId,
    pub model: &'m ModelName,
    pub key: Arc<str>,
    pub id: Option<DocumentId>,
    pub user: Option<UserId>,
    pub filter: Option<Condition>,
    pub privileged: bool,
}

/// What some devices hear of a change: one frame for all of them.
#[derive(Debug, PartialEq)]
pub struct Hit {
    pub audience: Audience,
    /// The devices, by the queue of the worker that holds their connections.
    pub devices: Vec<(Arc<str>, Vec<DeviceId>)>,
}

impl Hit {
    fn of(audience: Audience) -> Self {
        Self { audience, devices: Vec::new() }
    }

    fn add(&mut self, device: &DeviceId, queues: &[Arc<str>]) {
        // There are few queues: one for each worker.
        for queue in queues {
            match self.devices.iter_mut().find(|(known, _)| known == queue) {
                Some((_, devices)) => devices.push(device.clone()),
                None => self.devices.push((queue.clone(), vec![device.clone()])),
            }
        }
    }
}

impl Matcher {
    /// Gives the number that the subscription has until it ends; the one it has already, where it is known. `since`: changes at
    /// or below it are not told to it. Without a view it hears nothing.
    pub fn subscribe(&mut self, id: &SubscriptionId, device: &DeviceId, since: Offset, view: Option<&View>) -> Number {
        let known = self.find(id);
        let device = self.devices.subscribe(device);
        let subscription = Subscription { id: to_bytes(id), device, group: NONE, place: 0, since: since.into() };
        let number = match known {
            Some(number) => {
                self.leave(number);
                if let Some(place) = self.subscriptions.get_mut(number) {
                    let before = std::mem::replace(place, subscription);
                    self.devices.unsubscribe(before.device);
                }
                number
            }
            None => self.add(subscription),
        };
        self.join(number, view);
        number
    }

    fn add(&mut self, subscription: Subscription) -> Number {
        let hash = self.keys.hash_one(subscription.id);
        let number = self.subscriptions.insert(subscription);
        let (subscriptions, keys) = (&self.subscriptions, &self.keys);
        let hash_of = |number: &Number| subscriptions.get(*number).map_or(0, |it| keys.hash_one(it.id));
        self.by_id.insert(hash, number, hash_of);
        number
    }

    /// Gives a subscription another view, or none.
    pub fn change(&mut self, subscription: Number, view: Option<&View>) {
        self.leave(subscription);
        self.join(subscription, view);
    }

    pub fn unsubscribe(&mut self, subscription: Number) {
        self.leave(subscription);
        let Subscription { id, device, .. } = self.subscriptions.remove(subscription);
        self.by_id.remove(self.keys.hash_one(id), |number| *number == subscription);
        self.devices.unsubscribe(device);
    }

    pub fn find(&self, id: &SubscriptionId) -> Option<Number> {
        let id = to_bytes(id);
        let is_meant = |number: &Number| self.subscriptions.get(*number).is_some_and(|known| known.id == id);
        self.by_id.find(self.keys.hash_one(id), is_meant).copied()
    }

    /// Puts a subscription that is in no group into the one of a view.
    fn join(&mut self, subscription: Number, view: Option<&View>) {
        let Some(view) = view else { return };
        let group = self.group_of(view);
        self.put(subscription, group);
    }

    fn put(&mut self, subscription: Number, group: Number) {
        let Some(members) = self.groups.get_mut(group).map(|group| &mut group.members) else { return };
        if let Some(its) = self.subscriptions.get_mut(subscription) {
            let member = Member { subscription, device: its.device, since: its.since };
            (its.group, its.place) = (group, members.push(member));
        }
    }

    /// Gives a subscription another read rule, and leaves the rest of its view. None when it has that one already; otherwise
    /// everything that a document had to fulfil before, and has to now.
    pub fn rule(&mut self, subscription: Number, readable: &Condition) -> Option<(Condition, Condition)> {
        let group = self.groups.get(self.subscriptions.get(subscription)?.group)?;
        let (index_number, view) = (group.index, group.view()?);
        let index = self.indexes.get_mut(index_number)?;
        let bytes = view.ruled(group.view_bytes(), readable, &mut index.fields);
        if bytes == group.view_bytes() {
            return None;
        }
        let before = view.effective(&index.fields);
        let after = PackedView::read(&bytes)?.effective(&index.fields);
        // Its place first: a model without groups is forgotten.
        let group = self.group_with(index_number, &bytes, || after.clone());
        self.leave(subscription);
        self.put(subscription, group);
        Some((before, after))
    }

    /// Puts a subscription into a group that is there.
    pub fn move_to(&mut self, subscription: Number, group: Number) {
        if self.group_of_one(subscription) != Some(group) && self.groups.get(group).is_some() {
            self.leave(subscription);
            self.put(subscription, group);
        }
    }

    /// The number of the group of a subscription, which others that hear the same have too.
    pub fn group_of_one(&self, subscription: Number) -> Option<Number> {
        self.subscriptions.get(subscription).map(|it| it.group).filter(|group| *group != NONE)
    }

    /// Whether others hear the same.
    pub fn is_in_company(&self, subscription: Number) -> bool {
        let group = self.group_of_one(subscription).and_then(|group| self.groups.get(group));
        group.is_some_and(|group| group.members.as_slice().len() > 1)
    }

    fn leave(&mut self, subscription: Number) {
        let Some(it) = self.subscriptions.get_mut(subscription) else { return };
        let (number, place) = (std::mem::replace(&mut it.group, NONE), it.place);
        let Some(group) = self.groups.get_mut(number) else { return };
        let moved = group.members.remove(place);
        let is_left_empty = group.members.as_slice().is_empty();
        if let Some(moved) = moved.and_then(|moved| self.subscriptions.get_mut(moved)) {
            moved.place = place;
        }
        if is_left_empty {
            self.remove_group(number);
        }
    }

    /// The group of a view, which is made where there is none.
    fn group_of(&mut self, view: &View) -> Number {
        let (app, model) = (&view.channel.app, &view.channel.model);
        let index_number = match self.models.get(model) {
            Some(number) => *number,
            None => {
                let number = self.indexes.insert(Index::of(app.clone(), model.clone()));
                self.models.insert(model.clone(), number);
                number
            }
        };
        let Some(index) = self.indexes.get_mut(index_number) else { return NONE };
        let mut bytes = Vec::with_capacity(128);
        index.pack(view, &mut bytes);
        self.group_with(index_number, &bytes, || view.effective())
    }

    /// The same of a packed view. `effective`: everything that a document of it has to fulfil.
    fn group_with(&mut self, index_number: Number, bytes: &[u8], effective: impl FnOnce() -> Condition) -> Number {
        let Some(index) = self.indexes.get_mut(index_number) else { return NONE };
        let hash = self.keys.hash_one((index_number, bytes));
        let is_same = |group: &Group| group.index == index_number && group.view_bytes() == bytes;
        if let Some(known) = self.by_view.find(hash, |number| self.groups.get(*number).is_some_and(is_same)) {
            return *known;
        }
        let number = self.groups.insert(Group::default());
        let found_by = index.insert(&effective(), number);
        if let Some(place) = self.groups.get_mut(number) {
            *place = Group::new(bytes, &found_by, index_number);
        }
        let (groups, keys) = (&self.groups, &self.keys);
        let hash_of = |number: &Number| groups.get(*number).map_or(0, |it| keys.hash_one((it.index, it.view_bytes())));
        self.by_view.insert(hash, number, hash_of);
        number
    }

    fn remove_group(&mut self, number: Number) {
        let group = self.groups.remove(number);
        self.by_view.remove(self.keys.hash_one((group.index, group.view_bytes())), |other| *other == number);
        let Some(index) = self.indexes.get_mut(group.index) else { return };
        if let Some(view) = group.view() {
            index.remove(&view, group.found_by(), number);
        }
        if index.is_empty()
            && let Some((_, model)) = self.indexes.remove(group.index).name
        {
            self.models.remove(&model);
        }
    }

    pub fn connect(&mut self, device: &DeviceId, queue: &str) {
        self.devices.connect(device, queue);
    }

    pub fn disconnect(&mut self, device: &DeviceId, queue: &str) {
        self.devices.disconnect(device, queue);
    }

    /// The queues of transport workers that hold connections of this application.
    pub fn queues(&self) -> impl Iterator<Item = &Arc<str>> {
        self.devices.all_queues()
    }

    pub fn has_connections(&self) -> bool {
        self.devices.all_queues().next().is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.subscriptions.is_empty() && self.devices.is_empty()
    }

    pub fn n_subscriptions(&self) -> usize {
        self.subscriptions.len()
    }

    /// The numbers of all subscriptions. Some may be of none: those have no device.
    pub fn subscriptions(&self) -> std::ops::Range<Number> {
        self.subscriptions.numbers()
    }

    /// How many groups are asked about every document of their model although they do not hear of every one.
    pub fn n_unindexed(&self) -> usize {
        self.models.values().filter_map(|number| self.indexes.get(*number)).map(Index::n_unindexed).sum()
    }

    pub fn queues_of(&self, device: &DeviceId) -> &[Arc<str>] {
        self.devices.find(device).map_or(&[], |device| self.devices.queues(device))
    }

    /// The id of a subscription, where it can be told from what is kept of it: of all that the server makes.
    pub fn id_of(&self, subscription: Number) -> Option<SubscriptionId> {
        SubscriptionId::parse(&to_hex(&self.subscriptions.get(subscription)?.id)).ok()
    }

    pub fn device_of(&self, subscription: Number) -> Option<&DeviceId> {
        let subscription = self.subscriptions.get(subscription).filter(|it| it.device != NONE)?;
        self.devices.id(subscription.device)
    }

    pub fn is_connected(&self, subscription: Number) -> bool {
        self.subscriptions.get(subscription).is_some_and(|it| self.devices.is_connected(it.device))
    }

    pub fn since_of(&self, subscription: Number) -> Offset {
        self.subscriptions.get(subscription).map(|it| it.since.into()).unwrap_or_default()
    }

    /// None when it hears nothing.
    pub fn model_of(&self, subscription: Number) -> Option<&ModelName> {
        let group = self.groups.get(self.subscriptions.get(subscription)?.group)?;
        self.indexes.get(group.index)?.name.as_ref().map(|(_, model)| model)
    }

    /// The channel key; none when it hears nothing.
    pub fn channel_of(&self, subscription: Number) -> Option<Arc<str>> {
        let group = self.groups.get(self.subscriptions.get(subscription)?.group)?;
        let (app, model) = self.indexes.get(group.index)?.name.as_ref()?;
        Some(group.view()?.key(app, model))
    }

    /// None when it hears nothing.
    pub fn listening(&self, subscription: Number) -> Option<Listening<'_>> {
        let group = self.groups.get(self.subscriptions.get(subscription)?.group)?;
        let index = self.indexes.get(group.index)?;
        let (app, model) = index.name.as_ref()?;
        let view = group.view()?;
        Some(Listening {
            app,
            model,
            key: view.key(app, model),
            id: view.id.and_then(|id| DocumentId::parse(id).ok()),
            user: view.user.and_then(|user| UserId::parse(user).ok()),
            filter: view.filter(&index.fields),
            privileged: view.privileged,
        })
    }

    /// Everything that a document of its model has to fulfil for it. None when it hears nothing.
    pub fn effective(&self, subscription: Number) -> Option<Condition> {
        let group = self.groups.get(self.group_of_one(subscription)?)?;
        Some(group.view()?.effective(&self.indexes.get(group.index)?.fields))
    }

    /// Whether it sees hidden fields, past all rules.
    pub fn is_privileged(&self, subscription: Number) -> bool {
        let group = self.group_of_one(subscription).and_then(|group| self.groups.get(group));
        group.and_then(Group::view).is_some_and(|view| view.privileged)
    }

    /// Who hears of a change, and what.
    pub fn matching(&self, entry: &Entry) -> Vec<Hit> {
        let index = entry.model().and_then(|model| self.models.get(model)).and_then(|number| self.indexes.get(*number));
        let Some(index) = index else { return Vec::new() };
        let before = entry.before();
        let (before, after) = (before.as_ref(), entry.after());
        let step = |number: Number| {
            let group = self.groups.get(number)?;
            let view = group.view()?;
            let step = view.step(&index.fields, before, after)?;
            let (app, model) = index.name.as_ref()?;
            Some(Hearing { group, step, privileged: view.privileged, key: view.key(app, model) })
        };
        let hearing: Vec<_> = index.candidates(before, after).into_iter().filter_map(step).collect();
        match hearing.as_slice() {
            [] => Vec::new(),
            [one] => self.hits_of_one(one, entry.offset),
            several => self.hits_of_several(several, entry.offset),
        }
    }

    /// The devices of a group that hear of a change at an offset.
    fn devices_of(group: &Group, offset: Offset) -> impl Iterator<Item = Number> {
        let members = group.members.as_slice().iter();
        members.filter(move |member| Offset::from(member.since) < offset).map(|member| member.device)
    }

    /// The usual case, and the one with the largest fan-outs: all devices of the group hear the same.
    fn hits_of_one(&self, hearing: &Hearing<'_>, offset: Offset) -> Vec<Hit> {
        let mut hit = Hit::of(Audience::of([hearing.step()]));
        for device in Self::devices_of(hearing.group, offset) {
            if let Some((id, queues)) = self.devices.id_and_queues(device) {
                hit.add(id, queues);
            }
        }
        if hit.devices.is_empty() { Vec::new() } else { vec![hit] }
    }

    fn hits_of_several(&self, hearing: &[Hearing<'_>], offset: Offset) -> Vec<Hit> {
        let mut pairs: Vec<(Number, usize)> = Vec::new();
        for (place, hearing) in hearing.iter().enumerate() {
            let connected = Self::devices_of(hearing.group, offset).filter(|device| self.devices.is_connected(*device));
            pairs.extend(connected.map(|device| (device, place)));
        }
        pairs.sort_unstable();
        let mut hits: HashMap<Vec<usize>, Hit> = HashMap::new();
        for of_device in pairs.chunk_by(|one, other| one.0 == other.0) {
            let Some((device, _)) = of_device.first() else { continue };
            let places = of_device.iter().map(|(_, place)| *place).collect();
            let hit = hits.entry(places).or_insert_with_key(|places| {
                Hit::of(Audience::of(places.iter().filter_map(|place| hearing.get(*place)).map(Hearing::step)))
            });
            if let Some((id, queues)) = self.devices.id_and_queues(*device) {
                hit.add(id, queues);
            }
        }
        hits.into_values().collect()
    }
}

/// A group that hears of a change.
struct Hearing<'m> {
    group: &'m Group,
    step: Step,
    privileged: bool,
    /// The channel key.
    key: Arc<str>,
}

impl Hearing<'_> {
    fn step(&self) -> (&Arc<str>, Step, bool) {
        (&self.key, self.step, self.privileged)
    }
}

/// The server names subscriptions by 16 bytes in hex. Of other names the hash stands for them.
fn to_bytes(id: &SubscriptionId) -> [u8; 16] {
    from_hex(id.as_str()).unwrap_or_else(|| {
        let hash: [u8; 32] = Sha256::digest(id.as_str()).into();
        hash.first_chunk().copied().unwrap_or_default()
    })
}
