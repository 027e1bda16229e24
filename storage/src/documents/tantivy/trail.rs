//! How far the index has come in the journal.
//!
//! The index is said to be *at* a sequence when every log entry at or below it is in it. Applications are written side by side, so
//! entries are not applied in the order of the journal: the highest place applied says nothing about the ones below. The trail
//! therefore walks the journal itself behind the applied places, and stops at the first log entry that was not applied.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    Error, ErrorKind, Result,
    journal::{Journal, Kind, Place, Record},
};

pub(super) struct Trail {
    /// Every log entry at or below it was applied.
    position: u64,
    /// Where the record at the position stands, once the trail has walked.
    place: Option<Place>,
    /// Places above it that were applied.
    ahead: BTreeSet<u64>,
    /// The entry that holds it up, and since when.
    held_up: Option<(u64, Instant)>,
}

impl Trail {
    pub(super) fn at(position: u64) -> Self {
        Self { position, place: None, ahead: BTreeSet::new(), held_up: None }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Takes in places that were applied.
    pub(super) fn add(&mut self, places: Vec<u64>) {
        self.ahead.extend(places.into_iter().filter(|place| *place > self.position));
    }

    /// Walks on, at most to `upto`; gives the position reached. Blocking.
    ///
    /// An entry that holds it up for longer than `patience` is given out: it is decided and durable, but whoever wrote it is in no
    /// hurry to apply it, or gone. It is to be applied, so that the journal is not held for ever and `ahead` stays small.
    pub(super) fn advance(
        &mut self,
        journal: &Journal,
        upto: u64,
        patience: Duration,
    ) -> Result<(u64, Option<Record>)> {
        if self.position >= upto {
            return Ok((self.position, None));
        }
        let mut stopped_at = None;
        let (mut position, mut place, ahead) = (self.position, self.place, &self.ahead);
        let mut visit = |record: Record| {
            let is_unapplied = record.kind == Kind::LogEntry && !ahead.contains(&record.sequence);
            if record.sequence > upto || is_unapplied {
                stopped_at = is_unapplied.then_some(record);
                return Err(Error::new(ErrorKind::Internal, "walk journal", "far enough"));
            }
            (position, place) = (record.sequence, Some(record.place));
            Ok(())
        };
        let walked = match self.place {
            Some(place) => journal.replay_after(self.position, place, &mut visit),
            None => journal.replay(self.position + 1, &mut visit),
        };
        // The walk ends with our own error in the middle of the journal, with success at its end.
        if let Err(error) = walked
            && position < upto
            && stopped_at.is_none()
        {
            return Err(error);
        }
        (self.position, self.place) = (position, place);
        self.ahead = self.ahead.split_off(&(position + 1));
        let late = stopped_at.filter(|record| self.is_overdue(record.sequence, patience));
        Ok((position, late))
    }

    fn is_overdue(&mut self, sequence: u64, patience: Duration) -> bool {
        match self.held_up {
            Some((held_up, since)) if held_up == sequence => since.elapsed() >= patience,
            _ => {
                self.held_up = Some((sequence, Instant::now()));
                patience.is_zero()
            }
        }
    }
}
