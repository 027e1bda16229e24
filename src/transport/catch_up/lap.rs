//! One way along the log: who rides, what their subscriptions hear of each entry, and who cannot keep up. No I/O.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use nexxus_storage::model::{DeviceId, Entry, Event, Offset, SubscriptionId, UserId, change::UserFacts};
use nexxus_storage::registry::records;

use super::{super::connection::Close, passenger::Passenger};
use crate::{
    domain::{
        Application,
        alteration::Alteration,
        frame::{self, Frames},
    },
    matcher::crowd::{Channels, Crowd},
};

/// The matcher finds devices by the queue of their worker; here there is one.
const HERE: &str = "";

#[derive(Default)]
pub(super) struct Lap {
    crowd: Crowd,
    riders: HashMap<DeviceId, Rider>,
    /// Those that have to take frames before more is given.
    full: Vec<Passenger>,
}

/// A device with connections on board.
#[derive(Default)]
struct Rider {
    passengers: Vec<Passenger>,
    subscriptions: HashSet<SubscriptionId>,
}

impl Lap {
    pub(super) fn is_empty(&self) -> bool {
        self.riders.is_empty()
    }

    pub(super) fn n_subscriptions(&self) -> usize {
        self.crowd.n_subscriptions()
    }

    /// Whether something is known of a device: its subscriptions need not be loaded.
    pub(super) fn knows(&self, device: &DeviceId) -> bool {
        self.riders.contains_key(device)
    }

    pub(super) fn facts_of(&self, user: &UserId) -> Option<&UserFacts> {
        self.crowd.facts_of(user)
    }

    /// The rules of today.
    pub(super) fn define(&mut self, application: &Arc<Application>) {
        if self.crowd.application.as_ref().is_none_or(|known| !Arc::ptr_eq(known, application)) {
            self.crowd.define(Some(application.clone()));
        }
    }

    /// The facts of today.
    pub(super) fn know(&mut self, user: &UserId, facts: UserFacts) {
        self.crowd.know(user, facts);
    }

    pub(super) fn board(&mut self, passenger: Passenger) {
        let device = passenger.connection.device.clone();
        self.crowd.matcher.connect(&device, HERE);
        let passengers = &mut self.riders.entry(device).or_default().passengers;
        // An earlier ride of it is over, without this having been noticed here.
        passengers.retain(|known| !known.is_of(&passenger.connection));
        passengers.push(passenger);
    }

    /// A subscription of a device that rides; others are of no interest. `facts` of its user, where nothing is known of the user yet.
    pub(super) fn subscribe(&mut self, subscription: records::Subscription, facts: Option<UserFacts>) {
        let Some(rider) = self.riders.get_mut(&subscription.device) else { return };
        rider.subscriptions.insert(subscription.id.clone());
        self.crowd.subscribe(subscription, facts);
    }

    pub(super) fn unsubscribe(&mut self, device: &DeviceId, subscription: &SubscriptionId) {
        let Some(rider) = self.riders.get_mut(device) else { return };
        rider.subscriptions.remove(subscription);
        self.crowd.unsubscribe(subscription);
    }

    /// Everybody on board: to have their subscriptions loaded anew.
    pub(super) fn forget_subscriptions(&mut self) -> Vec<DeviceId> {
        for subscription in self.riders.values_mut().flat_map(|rider| rider.subscriptions.drain()) {
            self.crowd.unsubscribe(&subscription);
        }
        self.riders.keys().cloned().collect()
    }

    /// Where the log has to be read from; none when nobody rides. Those that ride no more leave.
    pub(super) fn begins_at(&mut self) -> Option<Offset> {
        let mut begins_at: Option<Offset> = None;
        self.remove_where(|passenger| {
            let Some(read) = passenger.read() else { return true };
            begins_at = Some(begins_at.map_or(read, |least| least.min(read)));
            false
        });
        begins_at
    }

    /// Gives an entry to whom it concerns.
    pub(super) fn give(&mut self, entry: &Entry) {
        match &entry.event {
            Event::Rejected { document, device: Some(device), problem } => {
                if self.riders.contains_key(device) {
                    let text = frame::change_rejected(entry.change_id, document.as_ref(), problem, entry.offset);
                    self.give_to(device, entry.offset, &text);
                }
            }
            Event::Defined { .. } | Event::UserChanged { .. } => {
                for (device, channels) in self.altered_by(entry) {
                    let text = frame::resync_required(&channels, Some("rules"), Some(0), Some(entry.offset));
                    self.give_to(&device, entry.offset, &text);
                }
            }
            Event::Created { .. } | Event::Updated { .. } | Event::Deleted { .. } => self.give_change(entry),
            Event::Imported { .. } | Event::Unchanged { .. } | Event::Rejected { device: None, .. } => {}
        }
    }

    fn altered_by(&self, entry: &Entry) -> Channels {
        let Some(alteration) = Alteration::of(entry) else { return Channels::new() };
        self.crowd.altered_by(&alteration)
    }

    fn give_change(&mut self, entry: &Entry) {
        let Some(application) = self.crowd.application.clone() else { return };
        let frames = Frames::of(&application, entry);
        for hit in self.crowd.matcher.matching(entry) {
            let Some(frame) = frames.change(&hit.audience) else { continue };
            for device in hit.devices.iter().flat_map(|(_, devices)| devices) {
                self.give_to(device, entry.offset, &frame);
            }
        }
    }

    fn give_to(&mut self, device: &DeviceId, offset: Offset, frame: &Bytes) {
        let Some(rider) = self.riders.get(device) else { return };
        for passenger in &rider.passengers {
            passenger.replay(offset, frame);
            if passenger.connection.is_full() {
                self.full.push(passenger.clone());
            }
        }
    }

    /// Who has to take frames before more is given.
    pub(super) fn take_full(&mut self) -> Vec<Passenger> {
        std::mem::take(&mut self.full)
    }

    /// Goes on without a connection that has read everything up to here.
    pub(super) fn let_go(&mut self, passenger: &Passenger, position: Offset) {
        passenger.read_to(position);
        passenger.leave();
        self.remove_where(|other| other.is_of(&passenger.connection) && other.ride == passenger.ride);
    }

    /// Everything up to here was given. Those that are live, or gone, leave.
    pub(super) fn read_to(&mut self, position: Offset) {
        self.remove_where(|passenger| !passenger.read_to(position));
    }

    /// Tries to make everybody live. `join` does that where it can.
    pub(super) fn join(&mut self, position: Offset, join: impl FnMut(&Passenger)) {
        self.passengers().for_each(join);
        self.read_to(position);
    }

    /// What is before an offset, or of another epoch, cannot be read any more: whoever needs it has to ask anew. Gives whether there
    /// was anybody.
    pub(super) fn leap(&mut self, reaches_back: impl Fn(Offset) -> bool, position: Offset) -> bool {
        let mut channels: HashMap<_, _> = self.crowd.channels_where(|_| true).into_iter().collect();
        let mut has_leapt = false;
        for (device, rider) in &self.riders {
            let channels = channels.remove(device).unwrap_or_default();
            let is_behind = |passenger: &&Passenger| passenger.read().is_some_and(|read| !reaches_back(read));
            for passenger in rider.passengers.iter().filter(is_behind) {
                has_leapt = true;
                let frame =
                    (!channels.is_empty()).then(|| frame::resync_required(&channels, None, None, Some(position)));
                passenger.leap(position, frame.as_ref());
            }
        }
        has_leapt
    }

    /// The application is gone, and everything in it.
    pub(super) fn revoke(&mut self) {
        self.passengers().for_each(|passenger| passenger.connection.close(Close::Revoked));
        self.remove_where(|_| true);
    }

    fn passengers(&self) -> impl Iterator<Item = &Passenger> {
        self.riders.values().flat_map(|rider| &rider.passengers)
    }

    fn remove_where(&mut self, mut leaves: impl FnMut(&Passenger) -> bool) {
        let crowd = &mut self.crowd;
        self.riders.retain(|device, rider| {
            rider.passengers.retain(|passenger| !leaves(passenger));
            if !rider.passengers.is_empty() {
                return true;
            }
            crowd.matcher.disconnect(device, HERE);
            rider.subscriptions.iter().for_each(|subscription| crowd.unsubscribe(subscription));
            false
        });
    }
}

/// However a lap ends: whoever is still on board is told to come back.
impl Drop for Lap {
    fn drop(&mut self) {
        self.passengers().for_each(Passenger::send_away);
    }
}
