//! The seam that holds the truth: what was decided, per application, in one total order.

use async_trait::async_trait;

use crate::{
    Error, ErrorKind, Result,
    model::{AppId, ChangeId, Entry, Offset},
};

pub mod embedded;
#[cfg(feature = "redis")]
pub mod redis;
mod waiters;

/// Where the log of an application stands. An application without a log has all marks at the default (epoch 0): appending
/// after that begins epoch 1. After a restore it has them at position 0 of an epoch that nobody knows offsets of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// The last entry.
    pub head: Offset,
    /// Everything up to here is in the documents.
    pub applied: Offset,
    /// Everything up to here was published to the next stage.
    pub told: Offset,
    /// Everything at or below this is no longer held.
    pub trimmed: Offset,
}

impl Marks {
    /// Whether everything above an offset can be read.
    pub fn reach_back_to(&self, since: Offset) -> bool {
        since.epoch == self.applied.epoch && since >= self.trimmed || since == self.applied
    }
}

/// Some entries, in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// In the order of their offsets, without a hole.
    pub entries: Vec<LogEntry>,
    /// Read on after this.
    pub next: Offset,
    /// True when there was nothing more up to the applied mark.
    pub end: bool,
}

/// An entry and its place in the engine: what the documents store needs to know how far it has come. 0 where the engine has
/// no such thing.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEntry {
    /// Shared: whoever reads the newest entries gets the same one.
    pub entry: std::sync::Arc<Entry>,
    /// Rises with the offsets of an application, also across epochs.
    pub place: u64,
}

/// The change log. Readers never see an entry that is not durable and applied.
#[async_trait]
pub trait ChangeLog: Send + Sync {
    /// Where the log stands; of an application that has none, the default marks.
    async fn marks(&self, app: &AppId) -> Result<Marks>;

    /// Appends entries whose offsets follow `tail` densely (`tail.next()`, …; after the default tail, epoch 1 position 1).
    /// Returns when they are durable, with their places. `Invalid` when they do not follow; `Fenced` when the tail is another one: somebody else writes this
    /// application.
    async fn append(&self, app: &AppId, tail: Offset, entries: Vec<Entry>) -> Result<Vec<LogEntry>>;

    /// Says that everything up to `upto` is in the documents. Never goes back; `Invalid` above the head. Wakes who waits in
    /// `wait_applied`.
    async fn mark_applied(&self, app: &AppId, upto: Offset) -> Result<()>;

    /// Says that everything up to `upto` was published to the next stage. Never goes back; `Invalid` above the head. After a crash it
    /// may be a moment old: what was told is told again.
    async fn mark_told(&self, app: &AppId, upto: Offset) -> Result<()>;

    /// Reads entries above `since`, up to the applied mark, at most `limit` and about 1 MiB. `Gone` when `since` is below what
    /// is held or of another epoch; `Invalid` when it is above the head.
    async fn read(&self, app: &AppId, since: Offset, limit: usize) -> Result<Page>;

    /// The same without the applied mark: for the writer that takes over and for the transport manager's holes.
    async fn read_logged(&self, app: &AppId, since: Offset, limit: usize) -> Result<Page>;

    /// The entries of these changes, where the log holds them, applied or not.
    async fn find(&self, app: &AppId, changes: &[ChangeId]) -> Result<Vec<Option<LogEntry>>>;

    /// Waits until the applied mark is at or above `upto`; cancel it to give up.
    async fn wait_applied(&self, app: &AppId, upto: Offset) -> Result<()>;

    /// Waits until the change is in the log and applied, and gives its entry; cancel it to give up. `Gone` when the entry is no
    /// longer held by then.
    async fn wait_change(&self, app: &AppId, change: ChangeId) -> Result<LogEntry>;

    /// The writer says that it has passed a barrier: every command published before it was decided and applied. Not durable.
    async fn pass(&self, app: &AppId, barrier: ChangeId) -> Result<()>;

    /// Waits until the writer has passed the barrier, also when it did so shortly before; cancel it to give up.
    async fn wait_passed(&self, app: &AppId, barrier: ChangeId) -> Result<()>;

    /// Every application that has a log.
    async fn applications(&self) -> Result<Vec<AppId>>;

    /// Begins a new epoch: what was held is gone, devices get `resync_required`. Used when an application is made, also again, or
    /// entries that were once shown may be lost. It is later than the one before, and at least
    /// [`Offset::first_epoch_of`] the application.
    async fn begin_epoch(&self, app: &AppId) -> Result<Offset>;
}

/// Entries follow the tail without a hole; after the default tail, they begin epoch 1.
pub(crate) fn check_dense(app: &AppId, tail: Offset, entries: &[Entry]) -> Result<()> {
    let mut expected = if tail == Offset::default() { Offset::new(1, 1) } else { tail.next() };
    for entry in entries {
        if entry.offset != expected {
            let message = format!("entry {:?} of {app} where {expected:?} has to follow", entry.offset);
            return Err(Error::new(ErrorKind::Invalid, "append", message));
        }
        expected = expected.next();
    }
    Ok(())
}
