//! The path of a change, on one page.
//!
//! ```text
//! client ─HTTP─► API ─► [writer] ─► Writer ─► [transport-manager] ─► Transport manager ─► [websockets-transport_N] ─► device
//!                 │      queue       decide       queue                match before and        (crate::transport)
//!                 │ 202 {changeId}   log, apply,                       after, in memory
//!                 │                  tell, ack
//! ```
//!
//! Messages flow down, nothing flows up, no stage asks another: a message carries what the next one needs. Each stage is a
//! [`Worker`](crate::worker::Worker) and the [`runner`] is the only loop around it. Stage = module = queue = role = metric label.

#![warn(missing_docs)]

pub mod transport_manager;
pub mod writer;

use nexxus_storage::queue::Durability;

use self::{transport_manager::TransportManager, writer::Writer};
use crate::{
    domain::Domain,
    messages::route::{TRANSPORT_MANAGER, WRITER},
    service::{Failure, Services},
    worker::runner::{self, Input},
};

/// Runs the stage `writer`: one worker for each of its queues.
pub fn run_writer(domain: &Domain, services: &mut Services) {
    for queue in domain.routes.writer.queues() {
        let (queues, domain) = (domain.backends.queues.clone(), domain.clone());
        services.spawn("writer", queue.clone(), move |stop| async move {
            let prefetch = domain.config.now().workers.writer.prefetch;
            let writer = Writer::new(domain.clone(), queue.clone());
            let input = Input { stage: WRITER, queue, durability: Durability::Durable, prefetch };
            runner::run(queues, input, writer, stop).await
        });
    }
}

/// Runs the stage `transport-manager`: one worker for each of its queues. Loading its matcher takes seconds where there are
/// millions of subscriptions; until then the node is not ready, and connections live on the change log.
pub async fn run_transport_manager(domain: &Domain, services: &mut Services) -> Result<(), Failure> {
    for queue in domain.routes.transport_manager.queues() {
        let (queues, domain) = (domain.backends.queues.clone(), domain.clone());
        // Before anything is published to it.
        queues.declare(&queue, Durability::FromLog).await?;
        let loading = domain.readiness.latch("matcher");
        services.spawn("transport-manager", queue.clone(), move |stop| async move {
            let worker = tokio::select! {
                worker = TransportManager::open(domain.clone(), queue.clone()) => worker?,
                () = stop.cancelled() => return Ok(()),
            };
            drop(loading);
            let prefetch = domain.config.now().workers.transport_manager.prefetch;
            let input = Input { stage: TRANSPORT_MANAGER, queue, durability: Durability::FromLog, prefetch };
            runner::run(queues, input, worker, stop).await
        });
    }
    Ok(())
}
