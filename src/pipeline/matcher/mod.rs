//! Who hears of a change: an index over all subscriptions, in memory, without I/O.
//!
//! Subscriptions on the same channel with the same effective condition (filter AND read rule, bound to its user) form one
//! [`Group`] that is tested once. Groups are found through one of their conjuncts where that is an equality (the document's id,
//! its owner, any other field) and stand in a list per model otherwise. A change is looked up with the document before and
//! after, so that leaving is found as well as entering.

mod index;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use nexxus_storage::model::{AppId, DeviceId, Entry, ModelName, SubscriptionId};

use self::index::Index;
use crate::domain::{
    frame::Audience,
    view::{Step, View},
};

/// The subscriptions and connections of one application.
#[derive(Default)]
pub struct Matcher {
    models: HashMap<ModelName, Index>,
    subscriptions: HashMap<SubscriptionId, (DeviceId, Arc<View>)>,
    of_device: HashMap<DeviceId, HashSet<SubscriptionId>>,
    /// The queues of the transport workers that hold connections of a device.
    connections: HashMap<DeviceId, Vec<Arc<str>>>,
    /// How many connected devices each queue has.
    queues: HashMap<Arc<str>, usize>,
}

/// The same frame for some devices of one transport worker.
#[derive(Debug, PartialEq)]
pub struct Hit {
    pub queue: Arc<str>,
    pub devices: Vec<DeviceId>,
    pub audience: Arc<Audience>,
}

impl Matcher {
    pub fn subscribe(&mut self, id: SubscriptionId, device: DeviceId, view: View) {
        self.unsubscribe(&id);
        let view = Arc::new(view);
        self.models.entry(view.channel.model.clone()).or_default().insert(&view, &id, &device);
        self.of_device.entry(device.clone()).or_default().insert(id.clone());
        self.subscriptions.insert(id, (device, view));
    }

    pub fn unsubscribe(&mut self, id: &SubscriptionId) {
        let Some((device, view)) = self.subscriptions.remove(id) else { return };
        if let Some(index) = self.models.get_mut(&view.channel.model) {
            index.remove(&view, id, &device);
            if index.is_empty() {
                self.models.remove(&view.channel.model);
            }
        }
        if let Some(ids) = self.of_device.get_mut(&device) {
            ids.remove(id);
            if ids.is_empty() {
                self.of_device.remove(&device);
            }
        }
    }

    pub fn connect(&mut self, device: DeviceId, queue: &str) {
        let queues = self.connections.entry(device).or_default();
        if queues.iter().any(|known| **known == *queue) {
            return;
        }
        let shared = self.queues.get_key_value(queue).map_or_else(|| queue.into(), |(known, _)| known.clone());
        queues.push(shared.clone());
        *self.queues.entry(shared).or_default() += 1;
    }

    pub fn disconnect(&mut self, device: &DeviceId, queue: &str) {
        let Some(queues) = self.connections.get_mut(device) else { return };
        let n_before = queues.len();
        queues.retain(|known| **known != *queue);
        if queues.len() < n_before
            && let Some(n_devices) = self.queues.get_mut(queue)
        {
            *n_devices -= 1;
            if *n_devices == 0 {
                self.queues.remove(queue);
            }
        }
        if self.connections.get(device).is_some_and(Vec::is_empty) {
            self.connections.remove(device);
        }
    }

    /// The queues of transport workers that hold connections of this application.
    pub fn queues(&self) -> impl Iterator<Item = &Arc<str>> {
        self.queues.keys()
    }

    pub fn n_subscriptions(&self) -> usize {
        self.subscriptions.len()
    }

    pub fn subscription(&self, id: &SubscriptionId) -> Option<&Arc<View>> {
        self.subscriptions.get(id).map(|(_, view)| view)
    }

    pub fn is_empty(&self) -> bool {
        self.subscriptions.is_empty() && self.connections.is_empty()
    }

    /// The channels of each connected device that fulfil a condition, and the queues it is reached by.
    pub fn channels_where(&self, wanted: impl Fn(&SubscriptionId, &View) -> bool) -> Vec<(DeviceId, Vec<Arc<str>>)> {
        let mut found = Vec::new();
        for (device, ids) in &self.of_device {
            if !self.connections.contains_key(device) {
                continue;
            }
            let mut channels: Vec<_> = ids
                .iter()
                .filter_map(|id| self.subscriptions.get(id).map(|(_, view)| (id, view)))
                .filter(|(id, view)| wanted(id, view))
                .map(|(_, view)| view.key.clone())
                .collect();
            if !channels.is_empty() {
                channels.sort_unstable();
                found.push((device.clone(), channels));
            }
        }
        found.sort_unstable();
        found
    }

    pub fn queues_of(&self, device: &DeviceId) -> &[Arc<str>] {
        self.connections.get(device).map_or(&[], Vec::as_slice)
    }

    /// Who hears of a change, and what.
    pub fn matching(&self, entry: &Entry) -> Vec<Hit> {
        let Some(index) = entry.model().and_then(|model| self.models.get(model)) else { return Vec::new() };
        let before = entry.before();
        let steps = index.steps(before.as_ref(), entry.after());
        match steps.as_slice() {
            [] => Vec::new(),
            [(group, step)] => self.hits_of_one(group, *step),
            several => self.hits_of_several(several),
        }
    }

    /// The usual case, and the one with the largest fan-outs: all devices of the group hear the same.
    fn hits_of_one(&self, group: &index::Group, step: Step) -> Vec<Hit> {
        let audience = Arc::new(Audience::of([(&group.view.key, step, group.view.privileged)]));
        let mut hits = Hits::default();
        for (_, device) in &group.members {
            hits.add(device, self.queues_of(device), &audience);
        }
        hits.list
    }

    fn hits_of_several(&self, steps: &[(&index::Group, Step)]) -> Vec<Hit> {
        let mut of_device: HashMap<&DeviceId, Vec<usize>> = HashMap::new();
        for (place, (group, _)) in steps.iter().enumerate() {
            for (_, device) in &group.members {
                if self.connections.contains_key(device) {
                    of_device.entry(device).or_default().push(place);
                }
            }
        }
        let mut audiences: HashMap<Vec<usize>, Arc<Audience>> = HashMap::new();
        let mut hits = Hits::default();
        let mut devices: Vec<_> = of_device.into_iter().collect();
        devices.sort_unstable();
        for (device, places) in devices {
            let audience = audiences.entry(places).or_insert_with_key(|places| {
                let steps = places.iter().map(|place| {
                    let (group, step) = &steps[*place];
                    (&group.view.key, *step, group.view.privileged)
                });
                Arc::new(Audience::of(steps))
            });
            hits.add(device, self.queues_of(device), audience);
        }
        hits.list
    }
}

/// Hits under construction: one for each pair of queue and audience.
#[derive(Default)]
struct Hits {
    list: Vec<Hit>,
}

impl Hits {
    fn add(&mut self, device: &DeviceId, queues: &[Arc<str>], audience: &Arc<Audience>) {
        for queue in queues {
            // A change has few audiences and a device few queues: a search from the end finds them at once.
            let same = |hit: &&mut Hit| Arc::ptr_eq(&hit.audience, audience) && hit.queue == *queue;
            match self.list.iter_mut().rev().find(same) {
                Some(hit) => hit.devices.push(device.clone()),
                None => self.list.push(Hit {
                    queue: queue.clone(),
                    devices: vec![device.clone()],
                    audience: audience.clone(),
                }),
            }
        }
    }
}

/// The matchers of all applications.
#[derive(Default)]
pub struct Matchers {
    pub of: HashMap<AppId, Matcher>,
}

impl Matchers {
    pub fn app(&mut self, app: &AppId) -> &mut Matcher {
        if !self.of.contains_key(app) {
            self.of.insert(app.clone(), Matcher::default());
        }
        self.of.entry(app.clone()).or_default()
    }
}
