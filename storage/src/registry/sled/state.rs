//! What the registry holds in memory, in the order in which a record passes through: calls in the journal that are not
//! durable yet (`unsettled`), what is durable and for the store (`current`), what the store is taking in (`frozen`).
//!
//! Readers see `current` over `frozen` over the store. Conditions of writers are judged on `ahead` over all of that: the
//! records of the unsettled calls.

use std::{collections::VecDeque, sync::Arc};

use super::{
    codec::Change,
    feed::Inboxes,
    layer::{Layer, Range, Slot, merge},
};
use crate::registry::Kind;

#[derive(Default)]
pub(super) struct State {
    unsettled: VecDeque<Call>,
    unsettled_bytes: usize,
    ahead: Layer,
    current: Layer,
    frozen: Option<Frozen>,
    pub(super) volatile: Layer,
    pub(super) inboxes: Inboxes,
    /// Of volatile records.
    last_revision: u64,
}

/// A call in the journal.
struct Call {
    sequence: u64,
    changes: Vec<StoredChange>,
}

/// A change with its key in the store.
pub(super) struct StoredChange {
    pub(super) key: Vec<u8>,
    pub(super) change: Change,
}

/// Records that the store is to take in. With them it holds everything up to a sequence of the journal.
#[derive(Clone, Default)]
pub(super) struct Frozen {
    pub(super) layer: Arc<Layer>,
    pub(super) upto: u64,
}

impl State {
    /// What was written to a record last, durable or not, with the sequence to wait for before anybody may hear of it. None:
    /// the store knows.
    pub(super) fn latest(&self, kind: Kind, key: &[u8]) -> Option<&Slot> {
        self.ahead.get(kind, key).or_else(|| self.visible(kind, key))
    }

    /// The record as readers may see it. None: the store knows.
    pub(super) fn visible(&self, kind: Kind, key: &[u8]) -> Option<&Slot> {
        self.current.get(kind, key).or_else(|| self.frozen.as_ref()?.layer.get(kind, key))
    }

    /// What lies over the store in a range, as far as it matters for the first `live` records of it.
    pub(super) fn visible_range(&self, kind: Kind, range: &Range, live: usize) -> Vec<(Vec<u8>, Slot)> {
        let frozen = self.frozen.as_ref().map(|frozen| &*frozen.layer);
        let layers: Vec<&Layer> = [&self.current].into_iter().chain(frozen).collect();
        merge(&layers, kind, range, live)
    }

    /// Takes a call that was appended to the journal.
    pub(super) fn append(&mut self, sequence: u64, changes: Vec<StoredChange>) {
        for StoredChange { key, change } in &changes {
            let slot = Slot { revision: sequence, value: change.value.clone() };
            self.ahead.put(change.key.kind, key.clone(), slot);
        }
        self.unsettled_bytes += bytes_of(&changes);
        self.unsettled.push_back(Call { sequence, changes });
    }

    /// Shows the calls up to a durable sequence, and tells the feeds.
    pub(super) fn settle(&mut self, durable: u64) {
        while self.unsettled.front().is_some_and(|call| call.sequence <= durable) {
            let Some(Call { sequence, changes }) = self.unsettled.pop_front() else { break };
            self.unsettled_bytes -= bytes_of(&changes);
            let mut told = Vec::with_capacity(changes.len());
            for StoredChange { key, change } in changes {
                let kind = change.key.kind;
                if self.ahead.get(kind, &key).is_some_and(|slot| slot.revision == sequence) {
                    self.ahead.take(kind, &key);
                }
                self.current.put(kind, key, Slot { revision: sequence, value: change.value.clone() });
                told.push(change);
            }
            self.inboxes.tell(&told);
        }
    }

    /// The sequence of the oldest call that is not settled.
    pub(super) fn next_unsettled(&self) -> Option<u64> {
        self.unsettled.front().map(|call| call.sequence)
    }

    /// Writes volatile records.
    pub(super) fn write_volatile(&mut self, changes: Vec<StoredChange>) {
        let mut told = Vec::with_capacity(changes.len());
        for StoredChange { key, change } in changes {
            self.last_revision += 1;
            match &change.value {
                None => self.volatile.take(change.key.kind, &key),
                Some(value) => {
                    let slot = Slot { revision: self.last_revision, value: Some(value.clone()) };
                    self.volatile.put(change.key.kind, key, slot);
                }
            }
            told.push(change);
        }
        self.inboxes.tell(&told);
    }

    /// What the store is to take in next: what it has not finished yet, or else everything that was settled, which is
    /// everything up to `upto`.
    pub(super) fn freeze(&mut self, upto: u64) -> Frozen {
        let current = &mut self.current;
        self.frozen.get_or_insert_with(|| Frozen { layer: Arc::new(std::mem::take(current)), upto }).clone()
    }

    /// The store has taken in what was frozen. Gives it back, to be dropped outside of the lock.
    pub(super) fn thaw(&mut self) -> Option<Frozen> {
        self.frozen.take()
    }

    /// What the store has with what it is taking in; none when it takes in nothing.
    pub(super) fn frozen_upto(&self) -> Option<u64> {
        self.frozen.as_ref().map(|frozen| frozen.upto)
    }

    /// Whether there is something for the store, now or soon.
    pub(super) fn is_dirty(&self) -> bool {
        !self.unsettled.is_empty() || !self.current.is_empty() || self.frozen.is_some()
    }

    /// What waits for the store, in bytes.
    pub(super) fn pending_bytes(&self) -> usize {
        let frozen = self.frozen.as_ref().map_or(0, |frozen| frozen.layer.bytes());
        self.unsettled_bytes + self.current.bytes() + frozen
    }
}

fn bytes_of(changes: &[StoredChange]) -> usize {
    changes.iter().map(|change| change.change.bytes()).sum()
}
