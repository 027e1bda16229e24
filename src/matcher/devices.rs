//! The devices that have subscriptions or connections, and the queues of the transport workers that hold those.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use nexxus_storage::model::DeviceId;

use super::{Number, slab::Slab, table::Table};

/// The set of queues of devices that are not connected.
const NO_QUEUES: Number = 0;

#[derive(Default)]
pub(super) struct Devices {
    known: Slab<Device>,
    by_id: Table<Number>,
    keys: RandomState,
    sets: QueueSets,
}

/// What a match reads of a device lies in it, so that a device costs one line of the processor's cache.
#[derive(Default)]
struct Device {
    /// None at free places only.
    id: Option<DeviceId>,
    /// A set of queues: most devices share one of a few.
    queues: Number,
    n_subscriptions: u32,
}

impl Devices {
    pub(super) fn find(&self, id: &DeviceId) -> Option<Number> {
        let is_meant = |number: &Number| self.id(*number) == Some(id);
        self.by_id.find(self.keys.hash_one(id), is_meant).copied()
    }

    pub(super) fn id(&self, device: Number) -> Option<&DeviceId> {
        self.known.get(device)?.id.as_ref()
    }

    /// None where it is not connected: for the devices that hear of something.
    pub(super) fn id_and_queues(&self, device: Number) -> Option<(&DeviceId, &[Arc<str>])> {
        let device = self.known.get(device).filter(|device| device.queues != NO_QUEUES)?;
        Some((device.id.as_ref()?, self.sets.get(device.queues)))
    }

    pub(super) fn queues(&self, device: Number) -> &[Arc<str>] {
        self.known.get(device).map_or(&[], |device| self.sets.get(device.queues))
    }

    pub(super) fn is_connected(&self, device: Number) -> bool {
        self.known.get(device).is_some_and(|device| device.queues != NO_QUEUES)
    }

    /// Every queue that a device is connected by.
    pub(super) fn all_queues(&self) -> impl Iterator<Item = &Arc<str>> {
        self.sets.n_devices.keys()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Counts one more subscription of a device.
    pub(super) fn subscribe(&mut self, id: &DeviceId) -> Number {
        let device = self.number_of(id);
        if let Some(device) = self.known.get_mut(device) {
            device.n_subscriptions += 1;
        }
        device
    }

    /// Counts one less.
    pub(super) fn unsubscribe(&mut self, device: Number) {
        if let Some(device) = self.known.get_mut(device) {
            device.n_subscriptions = device.n_subscriptions.saturating_sub(1);
        }
        self.forget_idle(device);
    }

    pub(super) fn connect(&mut self, id: &DeviceId, queue: &str) {
        let device = self.number_of(id);
        self.change_queues(device, queue, |queues, queue| queues.push(queue));
    }

    pub(super) fn disconnect(&mut self, id: &DeviceId, queue: &str) {
        let Some(device) = self.find(id) else { return };
        self.change_queues(device, queue, |_, _| {});
        self.forget_idle(device);
    }

    /// `change` gets the queues of the device without the one that this is about.
    fn change_queues(&mut self, device: Number, queue: &str, change: impl FnOnce(&mut Vec<Arc<str>>, Arc<str>)) {
        let Some(device) = self.known.get_mut(device) else { return };
        let mut queues = self.sets.get(device.queues).to_vec();
        queues.retain(|known| **known != *queue);
        change(&mut queues, self.sets.shared(queue));
        queues.sort_unstable();
        // The new one first: sets that are in use stay.
        let before = std::mem::replace(&mut device.queues, self.sets.take(queues));
        self.sets.give_back(before);
    }

    fn number_of(&mut self, id: &DeviceId) -> Number {
        if let Some(known) = self.find(id) {
            return known;
        }
        let device = self.known.insert(Device { id: Some(id.clone()), queues: NO_QUEUES, n_subscriptions: 0 });
        let (known, keys) = (&self.known, &self.keys);
        let id_of = |number: &Number| known.get(*number).and_then(|device| device.id.as_ref());
        let hash_of = |number: &Number| id_of(number).map_or(0, |id| keys.hash_one(id));
        self.by_id.insert(keys.hash_one(id), device, hash_of);
        device
    }

    fn forget_idle(&mut self, device: Number) {
        let is_idle = |device: &Device| device.n_subscriptions == 0 && device.queues == NO_QUEUES;
        if !self.known.get(device).is_some_and(is_idle) {
            return;
        }
        if let Some(id) = self.known.remove(device).id {
            self.by_id.remove(self.keys.hash_one(&id), |number| *number == device);
        }
    }
}

/// Sets of queues by number, and how many devices have each.
struct QueueSets {
    /// Who has none is not counted.
    sets: Vec<(Arc<[Arc<str>]>, usize)>,
    numbers: HashMap<Arc<[Arc<str>]>, Number>,
    free: Vec<Number>,
    /// How many devices are connected by each queue.
    n_devices: HashMap<Arc<str>, usize>,
}

impl Default for QueueSets {
    fn default() -> Self {
        Self { sets: vec![(Arc::new([]), 0)], numbers: HashMap::new(), free: Vec::new(), n_devices: HashMap::new() }
    }
}

impl QueueSets {
    fn get(&self, set: Number) -> &[Arc<str>] {
        self.sets.get(set as usize).map_or(&[], |(queues, _)| queues)
    }

    fn shared(&self, queue: &str) -> Arc<str> {
        self.n_devices.get_key_value(queue).map_or_else(|| queue.into(), |(known, _)| known.clone())
    }

    /// The set of these queues, for one device more. They are sorted.
    fn take(&mut self, queues: Vec<Arc<str>>) -> Number {
        if queues.is_empty() {
            return NO_QUEUES;
        }
        for queue in &queues {
            *self.n_devices.entry(queue.clone()).or_default() += 1;
        }
        if let Some(number) = self.numbers.get(&*queues) {
            if let Some((_, n_devices)) = self.sets.get_mut(*number as usize) {
                *n_devices += 1;
            }
            return *number;
        }
        let queues: Arc<[Arc<str>]> = queues.into();
        let number = self.free.pop().unwrap_or(self.sets.len() as Number);
        match self.sets.get_mut(number as usize) {
            Some(place) => *place = (queues.clone(), 1),
            None => self.sets.push((queues.clone(), 1)),
        }
        self.numbers.insert(queues, number);
        number
    }

    fn give_back(&mut self, set: Number) {
        let Some((queues, n_devices)) = self.sets.get_mut(set as usize).filter(|_| set != NO_QUEUES) else { return };
        *n_devices -= 1;
        for queue in queues.iter() {
            if let Some(n_devices) = self.n_devices.get_mut(queue) {
                *n_devices -= 1;
                if *n_devices == 0 {
                    self.n_devices.remove(queue);
                }
            }
        }
        if *n_devices == 0 {
            self.numbers.remove(queues);
            *queues = Arc::new([]);
            self.free.push(set);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> DeviceId {
        DeviceId::parse(&format!("device-{number}")).expect("an id")
    }

    #[test]
    fn devices_share_sets_of_queues_and_leave_nothing_behind() {
        let mut devices = Devices::default();
        for number in 0..100 {
            devices.subscribe(&id(number));
            devices.connect(&id(number), "q1");
            devices.connect(&id(number), "q1");
            if number % 2 == 0 {
                devices.connect(&id(number), "q2");
            }
        }
        assert_eq!(devices.sets.sets.len(), 3, "none, q1, both");
        let queues = |devices: &Devices, number| {
            let device = devices.find(&id(number)).expect("it is known");
            devices.queues(device).iter().map(|queue| queue.to_string()).collect::<Vec<_>>()
        };
        assert_eq!((queues(&devices, 0), queues(&devices, 1)), (vec!["q1".into(), "q2".into()], vec!["q1".into()]));
        for number in 0..100 {
            devices.disconnect(&id(number), "q1");
            devices.disconnect(&id(number), "q1");
            devices.disconnect(&id(number), "nothing");
        }
        assert_eq!(devices.all_queues().map(|queue| queue.to_string()).collect::<Vec<_>>(), ["q2"]);
        let device = devices.find(&id(1)).expect("it has a subscription");
        assert!(!devices.is_connected(device));
        for number in 0..100 {
            let device = devices.find(&id(number)).expect("it is known");
            devices.unsubscribe(device);
            devices.disconnect(&id(number), "q2");
            assert_eq!(devices.find(&id(number)), None);
        }
        assert!(devices.is_empty() && devices.by_id.len() == 0 && devices.sets.n_devices.is_empty());
    }
}
