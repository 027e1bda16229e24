//! The change log as a stream of the journal.

pub mod codec;
