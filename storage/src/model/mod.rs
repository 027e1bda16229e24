//! The vocabulary of Nexxus: pure data and pure functions, no I/O.
//!
//! Read in this order: what things are called ([`id`], [`time`]), what is stored ([`schema`], [`document`]), what may be
//! asked ([`filter`]), who may ([`rules`]), how it changes ([`patch`], [`change`]) and who hears of it ([`channel`]).

pub mod id;
pub mod time;

pub mod document;
pub mod schema;

pub mod filter;
pub mod rules;

pub mod change;
pub mod patch;

pub mod channel;
pub mod problem;

pub(crate) mod pointer;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod text;

pub use change::{Entry, Event};
pub use channel::Channel;
pub use document::Document;
pub use filter::Filter;
pub use id::{AppId, ChangeId, DeviceId, DocumentId, ModelName, Offset, SubscriptionId, UserId};
pub use patch::{Patch, PatchSet};
pub use problem::{FieldError, Problem};
pub use rules::{Caller, Rules};
pub use schema::{Model, Schema};
pub use time::Timestamp;
