//! What is kept of a sealed segment about queues: their newest state in it, and where each message stands.
//!
//! ```text
//! format: u8 = 1 | unreadable: u32 | queues: u32, for each, by name:
//! name | has a state: u8 [state] | highest number: u64 | messages: block of (number: varint | record offset − the one before: varint)
//! ```
//! Messages are in the order of the journal: a few bytes each, read at open only, and only where one is not settled.

use std::collections::BTreeMap;

use super::codec::{self, State};
use crate::{
    Result,
    embedded::wire::{Reader, Writer},
    journal::{Kind, Place, Record},
};

const FORMAT: u8 = 1;

/// Collects the index of one segment from its records.
#[derive(Default)]
pub(crate) struct Builder {
    queues: BTreeMap<String, Building>,
    /// Records that this build cannot read: opening refuses to go on with them.
    unreadable: u32,
}

#[derive(Default)]
struct Building {
    state: Option<State>,
    highest: u64,
    last_offset: u32,
    messages: Writer,
}

impl Builder {
    pub(crate) fn add(&mut self, record: &Record) {
        let added = match record.kind {
            Kind::QueueMessage => self.add_message(record),
            Kind::QueueState => self.add_states(record),
            _ => Ok(()),
        };
        if added.is_err() {
            self.unreadable = self.unreadable.saturating_add(1);
        }
    }

    fn add_message(&mut self, record: &Record) -> Result<()> {
        let (queue, number) = codec::peek(&record.payload)?;
        let building = match self.queues.get_mut(queue) {
            Some(building) => building,
            None => self.queues.entry(queue.to_owned()).or_default(),
        };
        building.messages.varint(number);
        building.messages.varint(record.place.offset.wrapping_sub(building.last_offset).into());
        building.last_offset = record.place.offset;
        building.highest = building.highest.max(number);
        Ok(())
    }

    fn add_states(&mut self, record: &Record) -> Result<()> {
        for (queue, state) in codec::decode_states(&record.payload)? {
            self.queues.entry(queue).or_default().state = Some(state);
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        let mut out = Writer::default();
        out.u8(FORMAT);
        out.u32(self.unreadable);
        out.u32(self.queues.len() as u32);
        for (queue, building) in self.queues {
            out.name(&queue)?;
            out.u8(building.state.is_some().into());
            if let Some(state) = &building.state {
                state.write(&mut out);
            }
            out.u64(building.highest);
            out.block(|out| {
                out.bytes.extend(building.messages.bytes);
                Ok(())
            })?;
        }
        Ok(out.bytes)
    }
}

/// What a segment holds of one queue.
pub(super) struct QueueIndex<'a> {
    pub(super) queue: &'a str,
    pub(super) state: Option<State>,
    /// The highest number of a message in it; 0: there is none.
    pub(super) highest: u64,
    messages: &'a [u8],
}

impl QueueIndex<'_> {
    /// Number and place of each message, in the order of the journal.
    pub(super) fn messages(&self, segment: u64) -> Result<Vec<(u64, Place)>> {
        let mut input = Reader::new(self.messages, "index of a queue");
        let mut messages = Vec::new();
        let mut offset = 0_u32;
        while !input.rest.is_empty() {
            let number = input.varint()?;
            offset = offset.wrapping_add(input.varint()? as u32);
            messages.push((number, Place { segment, offset }));
        }
        Ok(messages)
    }
}

/// Reads the index of one segment: how many records could not be read, and each queue.
pub(super) fn read(bytes: &[u8]) -> Result<(u32, Vec<QueueIndex<'_>>)> {
    let mut input = Reader::new(bytes, "index of queues");
    input.format(FORMAT)?;
    let unreadable = input.u32()?;
    let mut queues = Vec::new();
    for _ in 0..input.u32()? {
        let queue = input.name()?;
        let state = if input.u8()? == 1 { Some(State::read(&mut input)?) } else { None };
        queues.push(QueueIndex { queue, state, highest: input.u64()?, messages: input.block()? });
    }
    input.end()?;
    Ok((unreadable, queues))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{ChangeId, Timestamp},
        queue::{Message, Payload, embedded::settled::Settled},
    };

    fn record(kind: Kind, payload: Vec<u8>, offset: u32) -> Record {
        Record { sequence: 0, place: Place { segment: 7, offset }, kind, payload: payload.into() }
    }

    fn message(queue: &str, number: u64, offset: u32) -> Record {
        let message = Message {
            id: ChangeId::generate(),
            app: None,
            offset: None,
            time: Timestamp::from_ms(0).expect("a time"),
            trace: None,
            dead: None,
            durable: true,
            payload: Payload::from(bytes::Bytes::new()),
        };
        record(Kind::QueueMessage, codec::encode(queue, &message).expect("encodes").numbered(number), offset)
    }

    #[test]
    fn keeps_the_places_and_the_newest_state() {
        let states = |low| {
            let states = [("b".to_owned(), State { next: 99, settled: Settled::new(low) })];
            record(Kind::QueueState, codec::encode_states(&states).expect("encodes"), 0)
        };
        let records = [message("b", 5, 100), states(2), message("a", 1, 70_000), message("b", 4, 1 << 30), states(3)];
        let mut builder = Builder::default();
        records.iter().for_each(|record| builder.add(record));
        builder.add(&record(Kind::QueueMessage, vec![9], 0));
        let bytes = builder.finish().expect("writes");
        let (unreadable, queues) = read(&bytes).expect("reads");
        assert_eq!(unreadable, 1);
        let place = |offset| Place { segment: 7, offset };
        let found: Vec<_> = queues
            .iter()
            .map(|index| {
                let low = index.state.as_ref().map(|state| state.settled.low());
                (index.queue, low, index.highest, index.messages(7).expect("reads"))
            })
            .collect();
        assert_eq!(
            found,
            [("a", None, 1, vec![(1, place(70_000))]), ("b", Some(3), 5, vec![(5, place(100)), (4, place(1 << 30))])]
        );
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
    }
}
