//! The connections of this worker ([`Rooms`]), fed from its queue, and closed when they are revoked or the server goes away.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use nexxus_storage::{Error, model::AppId};
use tokio::sync::broadcast::error::RecvError;
use tracing::info;

use super::{
    catch_up::CatchUp,
    connection::{Close, Connection},
    rooms::Rooms,
};
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
    pub(super) rooms: Arc<Rooms>,
    pub(super) catch_up: Arc<CatchUp>,
}

impl Hub {
    pub fn new(domain: Domain, queue: &str) -> Arc<Self> {
        let rooms = Arc::<Rooms>::default();
        let catch_up = CatchUp::new(domain.clone(), rooms.clone());
        Arc::new(Self { domain, queue: queue.into(), rooms, catch_up })
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
                Ok(Revoked::Unknown) | Err(RecvError::Lagged(_)) => {
                    self.rooms.each(|_, connection| connection.recheck())
                }
                Ok(revoked) => self.revoke(&revoked),
                Err(RecvError::Closed) => return Err("the source of revocations has ended".into()),
            }
        }
        self.rooms.close_all();
        let n_connections = self.rooms.n_connections();
        if n_connections > 0 {
            info!(connections = n_connections, "closing");
        }
        while self.rooms.n_connections() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn revoke(&self, revoked: &Revoked) {
        let is_hit = |app: &AppId, connection: &Connection| match revoked {
            Revoked::Application(of) => app == of,
            Revoked::User(of, user) => app == of && connection.user.as_ref() == Some(user),
            Revoked::Device(of, device) => app == of && connection.device == *device,
            Revoked::Session(of, session) => app == of && connection.is_of_session(session),
            Revoked::Unknown => false,
        };
        self.rooms.each(|app, connection| {
            if is_hit(app, connection) {
                connection.close(Close::Revoked);
            }
        });
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
        let n_deliveries = batch.iter().map(|message| self.hub.rooms.deliver(&message.body)).sum();
        metrics::counter!("nexxus_deliveries_total", "transport" => "websocket").increment(n_deliveries);
        Ok(())
    }

    async fn tick(&mut self, _out: &mut Outbox) -> Result<(), Error> {
        for app in self.hub.rooms.covered_applications() {
            let marks = self.hub.domain.backends.change_log.marks(&app).await?;
            self.hub.rooms.look_after(&app, marks.applied, Instant::now());
        }
        Ok(())
    }
}
