//! What the API, the pipeline and the transports share: applications, who is who, what may be read, and what devices
//! subscribed to. Everything here stands on the four storage seams and knows neither HTTP nor sockets nor queues' workers.

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

use std::sync::Arc;

use nexxus_storage::Backends;

pub use catalog::{Application, Catalog};
pub use identity::{Identified, Identity};

use crate::{config::Config, messages::Routes, service::Readiness};

/// Everything that a service needs, opened. Cheap to clone.
#[derive(Clone)]
pub struct Domain {
    pub config: Arc<Config>,
    pub backends: Backends,
    pub catalog: Arc<Catalog>,
    pub identity: Arc<Identity>,
    pub routes: Arc<Routes>,
    pub readiness: Readiness,
    pub cursors: Arc<devices::Cursors>,
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
