//! The typed messages between the stages, once for all queue backends (contract §8).
//!
//! `writer` takes [`Command`]s, `transport-manager` takes [`Change`]s, a transport's queue takes [`ToDevices`]. Each is JSON on the
//! wire; within one process the value itself is handed over.

#![warn(missing_docs)]

pub mod change;
pub mod command;
pub mod route;
pub mod to_devices;

use std::sync::Arc;

use bytes::Bytes;
use nexxus_storage::{
    Error, ErrorKind, Result,
    queue::{Encode, Message},
};

pub use change::Change;
pub use command::{Command, Expected, Intent};
pub use route::Routes;
pub use to_devices::{Covers, DeviceMessage, ToDevices};

/// A message type of a stage.
pub trait Typed: Encode + Sized {
    /// Reads the value from the payload of a message, as [`Encode::encode`] wrote it.
    fn decode(bytes: &Bytes) -> serde_json::Result<Self>;

    /// Takes the value out of a message. `Invalid` when it is no such thing: the message goes to the dead letters.
    fn from_message(message: &Message) -> Result<Arc<Self>> {
        if let Some(value) = message.payload.value::<Self>() {
            return Ok(value);
        }
        Self::decode(message.payload.bytes()).map(Arc::new).map_err(|error| {
            Error::new(ErrorKind::Invalid, "decode message", format!("message {}", message.id)).with_source(error)
        })
    }
}

/// The JSON of a value that always has one.
fn to_json<T: serde::Serialize>(value: &T) -> Bytes {
    // Maps with non-string keys and failing Serialize impls do not occur in messages; an empty payload would be refused by
    // whoever reads it, and kept as a dead letter.
    serde_json::to_vec(value).map(Bytes::from).unwrap_or_default()
}
