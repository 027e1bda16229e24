//! Where the entries of one application's log stand in the journal.

use std::collections::HashMap;

use crate::{journal::Place, model::ChangeId};

/// The entries of a log in one indexed segment; the index knows the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) segment: u64,
    pub(super) first: u64,
    pub(super) entries: u32,
}

impl Run {
    pub(super) fn last(&self) -> u64 {
        self.first + u64::from(self.entries) - 1
    }

    pub(super) fn holds(&self, position: u64) -> bool {
        (self.first..=self.last()).contains(&position)
    }
}

/// The entries of a log in one segment that is not indexed yet. Never empty once it is held.
pub(super) struct OpenRun {
    pub(super) segment: u64,
    pub(super) first: u64,
    offsets: Vec<u32>,
    changes: HashMap<ChangeId, u32>,
}

impl OpenRun {
    pub(super) fn new(segment: u64, first: u64) -> Self {
        Self { segment, first, offsets: Vec::new(), changes: HashMap::new() }
    }

    pub(super) fn push(&mut self, change: ChangeId, offset: u32) {
        self.changes.entry(change).or_insert(self.offsets.len() as u32);
        self.offsets.push(offset);
    }

    pub(super) fn last(&self) -> u64 {
        self.first + self.offsets.len() as u64 - 1
    }

    pub(super) fn holds(&self, position: u64) -> bool {
        (self.first..=self.last()).contains(&position)
    }

    pub(super) fn position(&self, change: ChangeId) -> Option<u64> {
        self.changes.get(&change).map(|index| self.first + u64::from(*index))
    }

    pub(super) fn places(&self, from: u64, limit: usize) -> Vec<Place> {
        let skip = from.saturating_sub(self.first) as usize;
        let offsets = self.offsets.iter().skip(skip).take(limit);
        offsets.map(|offset| Place { segment: self.segment, offset: *offset }).collect()
    }

    pub(super) fn sealed(&self) -> Run {
        Run { segment: self.segment, first: self.first, entries: self.offsets.len() as u32 }
    }
}

/// Where the next entries stand.
#[derive(Debug)]
pub(super) enum Stretch {
    Places(Vec<Place>),
    /// Ask the index of this segment.
    Sealed(u64),
    /// They are no longer held.
    Gone,
}
