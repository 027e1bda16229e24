//! The contracts of the seams as named tests: one function for each promise, expanded for each backend by a macro.
//!
//! They are part of the crate's interface (feature `conformance`), so that adapters elsewhere can be held to the same promises.

pub mod change_log;
pub mod documents;
pub mod queues;
pub mod registry;
