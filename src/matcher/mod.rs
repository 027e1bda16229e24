//! Who hears of a change: an index over all subscriptions, in memory, without I/O.
//!
//! Subscriptions on the same channel with the same effective condition (filter AND read rule, bound to its user) form one
//! [`Group`] that is tested once. Groups are found through one of their conjuncts where that is an equality (the document's id,
//! its owner, any other field) and stand in a list per model otherwise. A change is looked up with the document before and
//! after, so that leaving is found as well as entering.

pub mod crowd;
mod index;
#[cfg(test)]
mod tests;
mod values;

use std::{collections::HashMap, sync::Arc};

use nexxus_storage::model::{DeviceId, Entry, ModelName, Offset, SubscriptionId};

use self::index::{Group, Index};
use crate::domain::{
    frame::Audience,
    view::{Step, View},
};

/// The subscriptions and connections of one application.
#[derive(Default)]
pub struct Matcher {
    models: HashMap<ModelName, Index>,
    subscriptions: HashMap<SubscriptionId, Arc<View>>,
    /// The queues of the transport workers that hold connections of a device.
    connections: HashMap<DeviceId, Vec<Arc<str>>>,
    /// How many connected devices each queue has.
    queues: HashMap<Arc<str>, usize>,
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
    /// `since`: changes at or below it are not told to it.
    pub fn subscribe(&mut self, id: SubscriptionId, device: DeviceId, since: Offset, view: View) {
        self.unsubscribe(&id);
        let index = self.models.entry(view.channel.model.clone()).or_default();
        let view = index.insert(view, &id, device, since);
        self.subscriptions.insert(id, view);
    }

    pub fn unsubscribe(&mut self, id: &SubscriptionId) {
        let Some(view) = self.subscriptions.remove(id) else { return };
        if let Some(index) = self.models.get_mut(&view.channel.model) {
            index.remove(&view, id);
            if index.is_empty() {
                self.models.remove(&view.channel.model);
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

    pub fn has_connections(&self) -> bool {
        !self.queues.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.subscriptions.is_empty() && self.connections.is_empty()
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
            [(group, step)] => self.hits_of_one(group, *step, entry.offset),
            several => self.hits_of_several(several, entry.offset),
        }
    }

    /// The usual case, and the one with the largest fan-outs: all devices of the group hear the same.
    fn hits_of_one(&self, group: &Group, step: Step, offset: Offset) -> Vec<Hit> {
        let mut hit = Hit::of(Audience::of([(&group.view.key, step, group.view.privileged)]));
        for device in group.devices(offset) {
            hit.add(device, self.queues_of(device));
        }
        if hit.devices.is_empty() { Vec::new() } else { vec![hit] }
    }

    fn hits_of_several(&self, steps: &[(&Group, Step)], offset: Offset) -> Vec<Hit> {
        let mut of_device: HashMap<&DeviceId, Vec<usize>> = HashMap::new();
        for (place, (group, _)) in steps.iter().enumerate() {
            for device in group.devices(offset).filter(|device| self.connections.contains_key(*device)) {
                of_device.entry(device).or_default().push(place);
            }
        }
        let mut hits: HashMap<Vec<usize>, Hit> = HashMap::new();
        for (device, places) in of_device {
            let hit = hits.entry(places).or_insert_with_key(|places| {
                let steps = places.iter().filter_map(|place| steps.get(*place));
                Hit::of(Audience::of(steps.map(|(group, step)| (&group.view.key, *step, group.view.privileged))))
            });
            hit.add(device, self.queues_of(device));
        }
        hits.into_values().collect()
    }
}
