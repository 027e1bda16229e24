//! The registry in sled, behind the journal.
