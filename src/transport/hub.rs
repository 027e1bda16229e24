//! Every connection of this worker, by application and device, and how far the log was covered for them.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use nexxus_storage::{
    Error,
    model::{AppId, DeviceId, Offset},
};
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, info};

use super::connection::{Close, Connection};
use crate::{
    domain::{Domain, identity::Revoked},
    messages::ToDevices,
    service::{Failure, Stop},
    worker::{Outbox, Received, Worker},
};

pub struct Hub {
    pub(super) domain: Domain,
    /// The queue that the transport manager reaches this worker by.
    pub(super) queue: Arc<str>,
    apps: Mutex<HashMap<AppId, Arc<Room>>>,
}

/// The connections of one application.
#[derive(Default)]
struct Room {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Everything up to here was covered by what the transport manager sent; none before its first message.
    upto: Option<Offset>,
    devices: HashMap<DeviceId, Held>,
    closing: bool,
}

/// The connections of one device.
#[derive(Default)]
struct Held {
    connections: Vec<Arc<Connection>>,
    /// The highest generation that the device had with one of them.
    generation: u64,
}

impl State {
    fn connections(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.devices.values().flat_map(|held| &held.connections)
    }
}

impl Hub {
    pub fn new(domain: Domain, queue: &str) -> Arc<Self> {
        Arc::new(Self { domain, queue: queue.into(), apps: Mutex::default() })
    }

    fn room(&self, app: &AppId) -> Arc<Room> {
        self.apps.lock().entry(app.clone()).or_default().clone()
    }

    /// Takes a connection in, before it is registered: so that whoever lets another connection of the device go knows of this
    /// one. It catches up first; [`Hub::try_join`] makes it live.
    pub fn attach(&self, app: &AppId, connection: &Arc<Connection>) {
        let room = self.room(app);
        let mut state = room.state.lock();
        if state.closing {
            connection.close(Close::GoingAway);
        }
        state.devices.entry(connection.device.clone()).or_default().connections.push(connection.clone());
        metrics::gauge!("nexxus_connections", "transport" => "websocket").increment(1.0);
    }

    /// The connection was registered: its device has this generation now.
    pub fn registered(&self, app: &AppId, device: &DeviceId, generation: u64) {
        if let Some(held) = self.room(app).state.lock().devices.get_mut(device) {
            held.generation = held.generation.max(generation);
        }
    }

    /// Lets a connection go. When it was the last one of its device: the highest generation that the device had here.
    pub fn detach(&self, app: &AppId, connection: &Arc<Connection>) -> Option<u64> {
        let room = self.room(app);
        let mut state = room.state.lock();
        let held = state.devices.get_mut(&connection.device)?;
        let n_before = held.connections.len();
        held.connections.retain(|other| !Arc::ptr_eq(other, connection));
        if held.connections.len() < n_before {
            metrics::gauge!("nexxus_connections", "transport" => "websocket").decrement(1.0);
        }
        let is_last = held.connections.is_empty();
        if is_last { state.devices.remove(&connection.device).map(|held| held.generation) } else { None }
    }

    /// Makes a connection live that has read the log up to `position`, if live frames go on from there: the transport manager
    /// must have matched everything above with this connection known (`attached_at`), and nothing covered may be unread.
    pub fn try_join(&self, app: &AppId, connection: &Arc<Connection>, position: Offset, attached_at: Offset) -> bool {
        let room = self.room(app);
        let state = room.state.lock();
        let Some(upto) = state.upto else { return false };
        let joins = position >= upto && position >= attached_at && position.epoch == upto.epoch;
        if joins {
            connection.go_live(position);
        }
        joins
    }

    /// How far the log was covered for an application.
    pub fn covered(&self, app: &AppId) -> Option<Offset> {
        self.room(app).state.lock().upto
    }

    fn deliver(&self, message: &ToDevices) {
        let covers = &message.covers;
        let room = self.room(&covers.app);
        let mut state = room.state.lock();
        let upto = state.upto.replace(covers.upto);
        match upto {
            // The same or an older stretch again: everybody has it.
            Some(upto) if covers.upto < upto => {
                state.upto = Some(upto);
                return;
            }
            Some(upto) if covers.after > upto => {
                debug!(app = %covers.app, after = %covers.after, %upto, "missed a stretch of the log, reading it");
                state.connections().for_each(|connection| connection.fall_back(upto));
                return;
            }
            Some(_) => {}
            // Now those that wait know where to join.
            None => state.connections().for_each(|connection| connection.wake()),
        }
        let mut n_deliveries = 0;
        for message in &message.messages {
            for device in &message.devices {
                for connection in state.devices.get(device).into_iter().flat_map(|held| &held.connections) {
                    connection.offer(message.offset, &message.frame);
                    n_deliveries += 1;
                }
            }
        }
        metrics::counter!("nexxus_deliveries_total", "transport" => "websocket").increment(n_deliveries);
    }

    /// Closes what is revoked; at the stop, closes everything and waits until all sessions have ended.
    pub async fn watch(self: Arc<Self>, stop: Stop) -> Result<(), Failure> {
        let mut revocations = self.domain.identity.revocations();
        loop {
            let revoked = tokio::select! {
                () = stop.cancelled() => break,
                revoked = revocations.recv() => revoked,
            };
            match revoked {
                Ok(Revoked::Unknown) | Err(RecvError::Lagged(_)) => self.each(|_, connection| connection.recheck()),
                Ok(revoked) => self.revoke(&revoked),
                Err(RecvError::Closed) => return Err("the source of revocations has ended".into()),
            }
        }
        let n_connections = self.close_all();
        if n_connections > 0 {
            info!(connections = n_connections, "closing");
        }
        while self.n_connections() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn revoke(&self, revoked: &Revoked) {
        self.each(|app, connection| {
            let is_hit = match revoked {
                Revoked::Application(of) => app == of,
                Revoked::User(of, user) => app == of && connection.user.as_ref() == Some(user),
                Revoked::Device(of, device) => app == of && connection.device == *device,
                Revoked::Session(of, session) => app == of && connection.session.as_ref() == Some(session),
                Revoked::Unknown => false,
            };
            if is_hit {
                connection.close(Close::Revoked);
            }
        });
    }

    fn each(&self, mut act: impl FnMut(&AppId, &Connection)) {
        for (app, room) in self.apps.lock().iter() {
            for connection in room.state.lock().connections() {
                act(app, connection);
            }
        }
    }

    fn close_all(&self) -> usize {
        for room in self.apps.lock().values() {
            room.state.lock().closing = true;
        }
        self.each(|_, connection| connection.close(Close::GoingAway));
        self.n_connections()
    }

    fn n_connections(&self) -> usize {
        let mut n_connections = 0;
        self.each(|_, _| n_connections += 1);
        n_connections
    }
}

/// The worker on the hub's queue.
pub struct Receiver {
    hub: Arc<Hub>,
}

impl Receiver {
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

#[async_trait]
impl Worker for Receiver {
    type Input = ToDevices;

    async fn handle(&mut self, batch: &[Received<ToDevices>], _out: &mut Outbox) -> Result<(), Error> {
        for message in batch {
            self.hub.deliver(&message.body);
        }
        Ok(())
    }
}
