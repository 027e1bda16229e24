//! Transports: from the queue of this worker to the devices that are connected to it.
//!
//! The [`hub`] knows every connection of this worker and how far the log was covered for each application ([`rooms`]). A [`session`] is one
//! connection from `hello` to its close: live while its buffer takes what comes, in [`catch_up`] when it resumes, has just
//! joined, or was too slow: a scan of the change log serves all that are. [`websocket`] is the wire.

pub mod catch_up;
pub mod connection;
pub mod hub;
pub mod rooms;
pub mod session;
pub mod websocket;

use std::sync::Arc;

use nexxus_storage::{model::ChangeId, queue::Durability};

pub use hub::Hub;

use crate::{
    domain::Domain,
    messages::route::WEBSOCKET,
    service::{Failure, Services},
    worker::runner::{self, Input},
};

/// Begins the transport `websocket`: its hub, fed from a queue of its own. The queue is named anew at each start, for what is in
/// it is never precious; it is there before anybody can connect and be sent to.
pub async fn run_websocket(domain: &Domain, services: &mut Services) -> Result<Arc<Hub>, Failure> {
    let worker = ChangeId::generate().to_string().to_ascii_lowercase();
    let queue = format!("websockets-transport_{worker}");
    let hub = Hub::new(domain.clone(), &queue);
    let (queues, receiver, domain) = (domain.backends.queues.clone(), hub.clone(), domain.clone());
    queues.declare(&queue, Durability::Transient).await?;
    services.spawn("transport", queue.clone(), move |stop| async move {
        let prefetch = domain.config.now().workers.websocket.prefetch;
        let input = Input { stage: WEBSOCKET, queue: queue.clone(), durability: Durability::Transient, prefetch };
        let outcome = runner::run(queues.clone(), input, hub::Receiver::new(receiver), stop).await;
        queues.delete(&queue).await?;
        outcome
    });
    let closing = hub.clone();
    services.spawn("transport", "sessions", move |stop| async move { closing.watch(stop).await });
    Ok(hub)
}
