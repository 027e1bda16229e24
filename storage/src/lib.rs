//! The storage seams of Nexxus and their embedded engine.
//!
//! Four traits hide every backend: [`Queues`], [`ChangeLog`], [`Registry`] and [`Documents`]. Everything above them is the
//! same code in every deployment; [`open`] is the only place that knows which adapter stands behind which seam.
//!
//! Read in this order: [`model`] (the vocabulary, no I/O), the four traits, [`journal`] (the file under the embedded
//! engine), then the adapters.

pub mod backup;
pub mod changelog;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod documents;
pub mod embedded;
pub mod error;
pub mod failpoint;
pub mod journal;
pub mod model;
pub mod open;
pub mod queue;
#[cfg(feature = "redis")]
pub mod redis_servers;
pub mod registry;

pub use changelog::ChangeLog;
pub use documents::Documents;
pub use error::{Error, ErrorKind, Result};
pub use open::{Backends, open};
pub use queue::{Consumer, Queues};
pub use registry::Registry;
