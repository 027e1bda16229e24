//! How the marks of logs stand in the journal: the payload of a record of kind `LogState`.
//!
//! `format: u8 = 1 | logs: u32`, then for each: `application: name | epoch: u32 | head: u64 | applied: u64 | told: u64`. Positions are
//! of that epoch. The record of a log with the highest epoch counts, in it the highest of each mark.

use crate::{
    Result,
    embedded::wire::{Reader, Writer},
    model::AppId,
};

const FORMAT: u8 = 1;

/// Where a log stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct State {
    pub(super) epoch: u32,
    pub(super) head: u64,
    pub(super) applied: u64,
    pub(super) told: u64,
}

impl State {
    /// What is known after another record of the same log: nothing goes back.
    pub(super) fn joined(self, other: Self) -> Self {
        match self.epoch.cmp(&other.epoch) {
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Equal => Self {
                epoch: self.epoch,
                head: self.head.max(other.head),
                applied: self.applied.max(other.applied),
                told: self.told.max(other.told),
            },
        }
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.u32(self.epoch);
        out.u64(self.head);
        out.u64(self.applied);
        out.u64(self.told);
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { epoch: input.u32()?, head: input.u64()?, applied: input.u64()?, told: input.u64()? })
    }
}

pub(super) fn encode<'a>(states: impl ExactSizeIterator<Item = (&'a AppId, State)>) -> Result<Vec<u8>> {
    let mut out = Writer::with_capacity(8 + states.len() * 64);
    out.u8(FORMAT);
    out.u32(states.len() as u32);
    for (app, state) in states {
        out.name(app.as_str())?;
        state.write(&mut out);
    }
    Ok(out.bytes)
}

pub(super) fn decode(payload: &[u8]) -> Result<Vec<(AppId, State)>> {
    let mut input = Reader::new(payload, "marks of change logs");
    input.format(FORMAT)?;
    let count = input.u32()?;
    let states = (0..count).map(|_| Ok((input.id()?, State::read(&mut input)?))).collect::<Result<_>>()?;
    input.end()?;
    Ok(states)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_stay_as_they_are() {
        let state = State { epoch: 2, head: 9, applied: 8, told: 7 };
        let app = AppId::parse("a1").expect("an id");
        let bytes = encode([(&app, state)].into_iter()).expect("encodes");
        let golden = [
            &[1, 1, 0, 0, 0, 2, b'a', b'1', 2, 0, 0, 0][..],
            &[9, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(bytes, golden);
        assert_eq!(decode(&bytes).expect("decodes"), vec![(app, state)]);
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn joining_never_goes_back() {
        let check = |a: State, b: State, expected: State| {
            assert_eq!((a.joined(b), b.joined(a)), (expected, expected));
        };
        let old = State { epoch: 1, head: 9, applied: 9, told: 5 };
        check(old, State { epoch: 1, head: 7, applied: 7, told: 7 }, State { epoch: 1, head: 9, applied: 9, told: 7 });
        check(old, State { epoch: 2, ..State::default() }, State { epoch: 2, ..State::default() });
    }
}
