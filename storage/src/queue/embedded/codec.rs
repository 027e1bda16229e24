//! How durable queues stand in the journal.
//!
//! ```text
//! QueueMessage  format: u8 = 1 | flags: u8 | queue: name | number: u64 | id: [u8; 16] | time: i64 | then, by the flags,
//!               1 application: name | 2 offset: u32, u64 | 4 trace: block | 8 death: json | and the payload, to the end
//! QueueState    format: u8 = 1 | queues: u32, for each:
//!               queue: name | next number: u64 | low: u64 | ranges: u32 × (first: varint | last − first: varint)
//! ```
//! The number of a message names it within its queue: it rises with the order of publishing and stays when the record is carried to
//! a newer segment, so of two records with one number the later one counts. All numbers below `low` and in the ranges are settled.
//! The newest state of a queue counts alone.

use bytes::Bytes;
use ulid::Ulid;

use super::settled::Settled;
use crate::{
    Result,
    embedded::wire::{Reader, Writer},
    model::ChangeId,
    queue::{Message, Payload},
};

const FORMAT: u8 = 1;
const APP: u8 = 1;
const OFFSET: u8 = 2;
const TRACE: u8 = 4;
const DEATH: u8 = 8;

/// A message as it is written, all but its number: that is known when its turn comes.
pub(super) struct Encoded {
    bytes: Vec<u8>,
    number_at: usize,
}

impl Encoded {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn numbered(mut self, number: u64) -> Vec<u8> {
        self.bytes[self.number_at..self.number_at + 8].copy_from_slice(&number.to_le_bytes());
        self.bytes
    }
}

/// `Invalid` when a name is over 255 bytes.
pub(super) fn encode(queue: &str, message: &Message) -> Result<Encoded> {
    let payload = message.payload.bytes();
    let mut out = Writer::with_capacity(96 + queue.len() + payload.len());
    let flag = |is_there: bool, flag: u8| if is_there { flag } else { 0 };
    out.u8(FORMAT);
    out.u8(flag(message.app.is_some(), APP)
        | flag(message.offset.is_some(), OFFSET)
        | flag(message.trace.is_some(), TRACE)
        | flag(message.dead.is_some(), DEATH));
    out.name(queue)?;
    let number_at = out.bytes.len();
    out.u64(0);
    out.bytes.extend(message.id.0.to_bytes());
    out.time(message.time);
    if let Some(app) = &message.app {
        out.name(app.as_str())?;
    }
    if let Some(offset) = message.offset {
        out.offset(offset);
    }
    if let Some(trace) = &message.trace {
        out.block(|out| {
            out.bytes.extend(trace.as_bytes());
            Ok(())
        })?;
    }
    if let Some(death) = &message.dead {
        out.json(death)?;
    }
    out.bytes.extend_from_slice(payload);
    Ok(Encoded { bytes: out.bytes, number_at })
}

/// The queue and the number of a message, without the rest.
pub(crate) fn peek(payload: &[u8]) -> Result<(&str, u64)> {
    let mut input = Reader::new(payload, "queued message");
    input.format(FORMAT)?;
    input.u8()?;
    Ok((input.name()?, input.u64()?))
}

/// Reads a message; its payload shares the record's bytes.
pub(super) fn decode(record: &Bytes) -> Result<(u64, Message)> {
    let mut input = Reader::new(record, "queued message");
    input.format(FORMAT)?;
    let flags = input.u8()?;
    input.name()?;
    let number = input.u64()?;
    let id = ChangeId(Ulid::from_bytes(input.array()?));
    let time = input.time()?;
    let app = if flags & APP != 0 { Some(input.id()?) } else { None };
    let offset = if flags & OFFSET != 0 { Some(input.offset()?) } else { None };
    let trace = if flags & TRACE != 0 {
        let text = input.block()?;
        Some(std::str::from_utf8(text).map_err(|error| input.damaged(error))?.to_owned())
    } else {
        None
    };
    let dead = if flags & DEATH != 0 { Some(input.json()?) } else { None };
    let payload = Payload::from(record.slice_ref(input.take_rest()));
    Ok((number, Message { id, app, offset, time, trace, dead, durable: true, payload }))
}

/// What is settled of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) next: u64,
    pub(super) settled: Settled,
}

impl State {
    pub(super) fn write(&self, out: &mut Writer) {
        out.u64(self.next);
        out.u64(self.settled.low());
        let ranges = self.settled.ranges();
        out.u32(ranges.len() as u32);
        for (first, last) in ranges {
            out.varint(first);
            out.varint(last - first);
        }
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self> {
        let next = input.u64()?;
        let mut settled = Settled::new(input.u64()?);
        for _ in 0..input.u32()? {
            let (first, length) = (input.varint()?, input.varint()?);
            settled.insert(first, first.saturating_add(length));
        }
        Ok(Self { next, settled })
    }
}

pub(super) fn encode_states(states: &[(String, State)]) -> Result<Vec<u8>> {
    let mut out = Writer::with_capacity(8 + states.len() * 64);
    out.u8(FORMAT);
    out.u32(states.len() as u32);
    for (queue, state) in states {
        out.name(queue)?;
        state.write(&mut out);
    }
    Ok(out.bytes)
}

pub(super) fn decode_states(payload: &[u8]) -> Result<Vec<(String, State)>> {
    let mut input = Reader::new(payload, "state of queues");
    input.format(FORMAT)?;
    let count = input.u32()?;
    let states = (0..count).map(|_| Ok((input.name()?.to_owned(), State::read(&mut input)?))).collect::<Result<_>>()?;
    input.end()?;
    Ok(states)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Offset, Timestamp},
        queue::Death,
    };

    fn message(whole: bool) -> Message {
        let time = Timestamp::from_ms(258).expect("a time");
        let death = Death { queue: "writer".into(), reason: "no".into(), tries: 5, time };
        Message {
            id: ChangeId(Ulid::from_bytes(*b"0123456789abcdef")),
            app: whole.then(|| "a1".parse().expect("an id")),
            offset: whole.then(|| Offset::new(1, 2)),
            time,
            trace: whole.then(|| "00-ab-cd-01".into()),
            dead: whole.then_some(death),
            durable: true,
            payload: Payload::from(Bytes::from_static(b"{}")),
        }
    }

    #[test]
    fn messages_come_back() {
        for whole in [false, true] {
            let record = Bytes::from(encode("writer.0", &message(whole)).expect("encodes").numbered(7));
            assert_eq!(peek(&record).expect("a head"), ("writer.0", 7));
            assert_eq!(decode(&record).expect("decodes"), (7, message(whole)));
            for length in 0..record.len() - 2 {
                assert!(decode(&record.slice(..length)).is_err(), "{length}");
            }
        }
    }

    /// The bytes of format 1. They are on disks: a change here needs a new format number.
    #[test]
    fn the_bytes_stay_as_they_are() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut settled = Settled::new(3);
        settled.insert(5, 300);
        let state = State { next: 301, settled };
        let states = vec![("writer.0".to_owned(), state)];
        let written = [
            hex(&encode("writer.0", &message(true)).expect("encodes").numbered(7)),
            hex(&encode("writer.0", &message(false)).expect("encodes").numbered(u64::MAX)),
            hex(&encode_states(&states).expect("encodes")),
        ];
        assert_eq!(written.join("\n") + "\n", include_str!("golden/records.format1.hex"));
        assert_eq!(decode_states(&encode_states(&states).expect("encodes")).expect("decodes"), states);
    }

    #[test]
    fn a_newer_format_is_refused() {
        let mut record = encode("q", &message(false)).expect("encodes").numbered(1);
        record[0] = 2;
        assert!(decode(&record.into()).expect_err("newer").message.contains("format 2"));
        assert!(decode_states(&[2, 0, 0, 0, 0]).is_err());
    }
}
