//! What the journal holds of queues: read from the indexes of its segments, without reading the segments.

use std::collections::BTreeMap;

use super::{
    Limits,
    codec::{self, State},
    index,
    queue::{Queue, Waiting},
    settled::Settled,
};
use crate::{
    Error, ErrorKind, Result,
    embedded::indexer::{Sections, visit_segment},
    journal::{Appended, Journal, Kind, Place, Record},
};

/// What was found of one queue.
#[derive(Default)]
struct Found {
    state: Option<State>,
    highest: u64,
    /// Indexed segments with messages, and the highest number in each.
    segments: Vec<(u64, u64)>,
    /// Messages in segments that are not indexed.
    messages: Vec<(u64, Place)>,
}

/// Finds the durable queues. Blocking. `Corrupt` when there are records of a newer format.
pub(super) fn recover(journal: &Journal, limits: Limits) -> Result<Vec<Queue>> {
    let mut found = BTreeMap::<String, Found>::new();
    for segment in journal.segments() {
        if segment.sealed && segment.indexed {
            look_into_index(journal, segment.first, &mut found)?;
        } else {
            visit_segment(journal, segment.first, &mut |record| look_at(&record, &mut found))?;
        }
    }
    found.into_iter().map(|(name, found)| reopen(journal, limits, name, found)).collect()
}

fn look_into_index(journal: &Journal, segment: u64, found: &mut BTreeMap<String, Found>) -> Result<()> {
    let sections = Sections::of_segment(journal, segment)?;
    let (unreadable, queues) = index::read(&sections.queues)?;
    if unreadable > 0 {
        let message = format!("journal segment {segment} has {unreadable} records of a newer format");
        return Err(Error::new(ErrorKind::Corrupt, "open queues", message));
    }
    for of in queues {
        let found = found.entry(of.queue.to_owned()).or_default();
        found.state = of.state.or(found.state.take());
        if of.highest > 0 {
            found.segments.push((segment, of.highest));
            found.highest = found.highest.max(of.highest);
        }
    }
    Ok(())
}

fn look_at(record: &Record, found: &mut BTreeMap<String, Found>) -> Result<()> {
    match record.kind {
        Kind::QueueMessage => {
            let (queue, number) = codec::peek(&record.payload)?;
            let found = found.entry(queue.to_owned()).or_default();
            found.messages.push((number, record.place));
            found.highest = found.highest.max(number);
        }
        Kind::QueueState => {
            for (queue, state) in codec::decode_states(&record.payload)? {
                found.entry(queue).or_default().state = Some(state);
            }
        }
        Kind::LogEntry | Kind::LogState | Kind::Registry => {}
    }
    Ok(())
}

fn reopen(journal: &Journal, limits: Limits, name: String, found: Found) -> Result<Queue> {
    let known = found.state.unwrap_or(State { next: 1, settled: Settled::new(1) });
    let next = known.next.max(found.highest + 1);
    // By number; of a message that was carried, the later place.
    let mut places = BTreeMap::new();
    for (segment, highest) in found.segments {
        if highest >= known.settled.low() {
            let sections = Sections::of_segment(journal, segment)?;
            let (_, queues) = index::read(&sections.queues)?;
            let of = queues.into_iter().find(|of| of.queue == name);
            let messages = of.map(|of| of.messages(segment)).transpose()?.unwrap_or_default();
            places.extend(messages.into_iter().filter(|(number, _)| !known.settled.contains(*number)));
        }
    }
    places.extend(found.messages.into_iter().filter(|(number, _)| !known.settled.contains(*number)));

    let mut settled = Settled::new(1);
    let mut waiting = Vec::with_capacity(places.len());
    let mut memory = 0;
    let mut expected = 1;
    for (number, place) in places {
        settled.insert(expected, number - 1);
        expected = number + 1;
        let mut message = read_back(journal, number, place)?;
        memory += message.bytes;
        if memory > limits.memory_bytes {
            message.message = None;
        }
        waiting.push(message);
    }
    settled.insert(expected, next - 1);
    Ok(Queue::recovered(name, limits, State { next, settled }, waiting))
}

fn read_back(journal: &Journal, number: u64, place: Place) -> Result<Waiting> {
    let record = journal.read(place)?;
    let (found, message) = codec::decode(&record.payload)?;
    if found != number {
        let message = format!("message {number} is not where the index of segment {} says", place.segment);
        return Err(Error::new(ErrorKind::Corrupt, "open queues", message));
    }
    let at = Appended { sequence: record.sequence, place };
    Ok(Waiting::recovered(number, message, record.payload.len(), at))
}
