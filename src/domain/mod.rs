//! What the API, the pipeline and the transports share: applications, who is who, what may be read, and what devices
//! subscribed to. Everything here stands on the four storage seams and knows neither HTTP nor sockets nor queues' workers.

#![warn(missing_docs)]

pub mod backups;
pub mod catalog;
pub mod devices;
pub mod identity;
pub mod passwords;
pub mod read;
pub mod subscriptions;
pub mod users;

pub mod judge;

pub mod alteration;
pub mod frame;
pub mod view;

pub mod form;
pub mod problem;

use std::{sync::Arc, time::Duration};

use nexxus_storage::{Backends, Error};
use tracing::warn;

pub use catalog::{Application, Catalog};
pub use identity::{Identified, Identity};

use crate::{
    config::Running,
    messages::Routes,
    service::{Failure, Readiness, Stop},
};

/// The rest before another try while an engine is away.
const REST: Duration = Duration::from_millis(500);

/// Waits a moment after an error that passes by itself, so that a service outlasts an engine that is away; any other error ends it.
async fn outlast(what: &str, error: Error) -> Result<(), Failure> {
    if !error.is_transient() {
        return Err(error.into());
    }
    warn!(%error, "{what} waits for an engine that is away");
    tokio::time::sleep(REST).await;
    Ok(())
}

/// Everything that a service needs, opened. Cheap to clone.
#[derive(Clone)]
pub struct Domain {
    /// The settings; some change while it runs.
    pub config: Arc<Running>,
    /// The engines, behind their traits.
    pub backends: Backends,
    /// The applications.
    pub catalog: Arc<Catalog>,
    /// Tokens, sessions, and who they stand for.
    pub identity: Arc<Identity>,
    /// Which queue an application's messages go to.
    pub routes: Arc<Routes>,
    /// What this node still waits for before it is ready.
    pub readiness: Readiness,
    /// Acknowledgements on their way to the registry.
    pub cursors: Arc<devices::Cursors>,
    /// Cancelled when the node stops: what takes long breaks off.
    pub stopping: Stop,
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
