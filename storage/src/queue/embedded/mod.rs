//! Queues over the journal, for stages in one process.
