//! What is kept of a sealed segment about change logs: where each entry stands, and which change is which.
//!
//! ```text
//! format: u8 = 1 | unreadable: u32 | lowest and highest change id: 2 × [u8; 16] | applications: u32
//! for each, by name: name | has a state: u8 [state] | epoch: u32 | first position: u64 | entries: u32
//! then for each:     record offsets by position: entries × u32 | by change id: entries × (id: [u8; 16] | position − first: u32)
//! ```
//! Only the newest epoch of an application in the segment is indexed: entries of earlier ones are no longer held. 24 bytes an
//! entry; looked at in place, never decoded whole.

use std::collections::BTreeMap;

use bytes::Bytes;
use ulid::Ulid;

use super::{
    codec,
    state::{self, State},
};
use crate::{
    Result,
    embedded::wire::{Reader, Writer},
    journal::{Kind, Place, Record},
    model::{AppId, ChangeId},
};

const FORMAT: u8 = 1;
const ENTRY_BYTES: usize = 4 + 16 + 4;

/// Collects the index of one segment from its records.
#[derive(Default)]
pub(crate) struct Builder {
    apps: BTreeMap<String, Building>,
    /// Records that this build cannot read: opening refuses to go on with them.
    unreadable: u32,
}

#[derive(Default)]
struct Building {
    state: Option<State>,
    epoch: u32,
    first: u64,
    offsets: Vec<u32>,
    changes: Vec<(u128, u32)>,
}

impl Building {
    fn begin(&mut self, epoch: u32, first: u64) {
        *self = Self { state: self.state, epoch, first, ..Self::default() };
    }
}

impl Builder {
    pub(crate) fn add(&mut self, record: &Record) {
        let added = match record.kind {
            Kind::LogEntry => self.add_entry(record),
            Kind::LogState => self.add_states(record),
            _ => Ok(()),
        };
        if added.is_err() {
            self.unreadable = self.unreadable.saturating_add(1);
        }
    }

    fn add_entry(&mut self, record: &Record) -> Result<()> {
        let head = codec::peek(&record.payload)?;
        let building = match self.apps.get_mut(head.app) {
            Some(building) => building,
            None => self.apps.entry(head.app.to_owned()).or_default(),
        };
        if head.offset.epoch < building.epoch {
            return Ok(());
        }
        let follows = building.first + building.offsets.len() as u64 == head.offset.position;
        if head.offset.epoch > building.epoch || building.offsets.is_empty() || !follows {
            building.begin(head.offset.epoch, head.offset.position);
        }
        building.changes.push((u128::from(head.change_id.0), building.offsets.len() as u32));
        building.offsets.push(record.place.offset);
        Ok(())
    }

    fn add_states(&mut self, record: &Record) -> Result<()> {
        for (app, state) in state::decode(&record.payload)? {
            let building = self.apps.entry(app.as_str().to_owned()).or_default();
            if state.epoch > building.epoch {
                building.begin(state.epoch, 0);
            }
            building.state = Some(building.state.unwrap_or_default().joined(state));
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        let mut out = Writer::default();
        out.u8(FORMAT);
        out.u32(self.unreadable);
        for building in self.apps.values_mut() {
            building.changes.sort_unstable();
        }
        let ends = |building: &Building| Some((building.changes.first()?.0, building.changes.last()?.0));
        let ranges: Vec<_> = self.apps.values().filter_map(ends).collect();
        let lowest = ranges.iter().map(|range| range.0).min().unwrap_or(u128::MAX);
        let highest = ranges.iter().map(|range| range.1).max().unwrap_or(0);
        out.bytes.extend(lowest.to_be_bytes());
        out.bytes.extend(highest.to_be_bytes());
        out.u32(self.apps.len() as u32);
        for (app, building) in &self.apps {
            out.name(app)?;
            out.u8(building.state.is_some().into());
            if let Some(state) = &building.state {
                state.write(&mut out);
            }
            out.u32(building.epoch);
            out.u64(building.first);
            out.u32(building.offsets.len() as u32);
        }
        for building in self.apps.values() {
            building.offsets.iter().for_each(|offset| out.u32(*offset));
            for (change, place) in &building.changes {
                out.bytes.extend(change.to_be_bytes());
                out.u32(*place);
            }
        }
        Ok(out.bytes)
    }
}

/// The index of one segment.
pub(super) struct SegmentIndex {
    pub(super) segment: u64,
    bytes: Bytes,
    /// By name.
    pub(super) apps: Vec<AppIndex>,
    pub(super) unreadable: u32,
    /// No change of the segment is below or above these.
    pub(super) changes: (ChangeId, ChangeId),
}

/// What a segment holds of one application.
pub(super) struct AppIndex {
    pub(super) app: AppId,
    pub(super) state: Option<State>,
    pub(super) epoch: u32,
    pub(super) first: u64,
    pub(super) entries: u32,
    /// Where its offsets begin in the bytes.
    start: usize,
}

impl SegmentIndex {
    /// Reads the directory; the rest is looked up in place.
    pub(super) fn read(segment: u64, bytes: Bytes) -> Result<Self> {
        let mut input = Reader::new(&bytes, "index of change logs");
        input.format(FORMAT)?;
        let unreadable = input.u32()?;
        let changes = (ChangeId(Ulid::from_bytes(input.array()?)), ChangeId(Ulid::from_bytes(input.array()?)));
        let count = input.u32()?;
        let mut apps = Vec::new();
        let mut start = 0;
        for _ in 0..count {
            let app = input.id()?;
            let state = if input.u8()? == 1 { Some(State::read(&mut input)?) } else { None };
            let (epoch, first, entries) = (input.u32()?, input.u64()?, input.u32()?);
            apps.push(AppIndex { app, state, epoch, first, entries, start });
            start += entries as usize * ENTRY_BYTES;
        }
        let body = bytes.len() - input.rest.len();
        if input.rest.len() != start {
            return Err(input.corrupt("its parts do not fit together"));
        }
        apps.iter_mut().for_each(|app| app.start += body);
        Ok(Self { segment, bytes, apps, unreadable, changes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn of(&self, app: &AppId, epoch: u32) -> Option<&AppIndex> {
        let found = self.apps.binary_search_by(|index| index.app.cmp(app)).ok()?;
        self.apps.get(found).filter(|index| index.epoch == epoch)
    }

    /// The places of up to `limit` entries from a position on; none when the position is not here.
    pub(super) fn places(&self, app: &AppId, epoch: u32, from: u64, limit: usize) -> Vec<Place> {
        let Some(index) = self.of(app, epoch) else { return Vec::new() };
        let Some(skip) = from.checked_sub(index.first) else { return Vec::new() };
        (skip..u64::from(index.entries))
            .take(limit)
            .filter_map(|number| {
                let at = index.start + number as usize * 4;
                let offset = u32::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?);
                Some(Place { segment: self.segment, offset })
            })
            .collect()
    }

    /// The position of a change.
    pub(super) fn position(&self, app: &AppId, epoch: u32, change: ChangeId) -> Option<u64> {
        let index = self.of(app, epoch)?;
        let wanted = change.0.to_bytes();
        let start = index.start + index.entries as usize * 4;
        let entry = |number: usize| self.bytes.get(start + number * 20..start + (number + 1) * 20);
        let (mut low, mut high) = (0, index.entries as usize);
        while low < high {
            let middle = low + (high - low) / 2;
            if entry(middle)?.get(..16)? < &wanted[..] {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let found = entry(low).filter(|_| low < index.entries as usize)?;
        let (id, number) = found.split_first_chunk::<16>()?;
        (*id == wanted).then_some(index.first + u64::from(u32::from_le_bytes(*number.first_chunk()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Entry, Event, Offset, Timestamp};

    fn app(name: &str) -> AppId {
        AppId::parse(name).expect("an id")
    }

    fn entry(app_name: &str, offset: Offset, change: u128, at: u32) -> Record {
        let event = Event::Unchanged { document: None };
        let time = Timestamp::from_ms(0).expect("a time");
        let entry = Entry { offset, change_id: ChangeId(Ulid(change)), time, event };
        record(Kind::LogEntry, codec::encode(&app(app_name), &entry).expect("encodes"), at)
    }

    fn record(kind: Kind, payload: Vec<u8>, offset: u32) -> Record {
        Record { sequence: 0, place: Place { segment: 7, offset }, kind, payload: payload.into() }
    }

    fn index(records: &[Record]) -> SegmentIndex {
        let mut builder = Builder::default();
        records.iter().for_each(|record| builder.add(record));
        SegmentIndex::read(7, builder.finish().expect("writes").into()).expect("reads")
    }

    #[test]
    fn finds_entries_by_position_and_by_change() {
        let mut records = Vec::new();
        for number in 0..100_u32 {
            let offset = Offset::new(1, 500 + u64::from(number));
            records.push(entry("b", offset, u128::from(1_000 - number * 3), number * 10));
            records.push(record(Kind::QueueMessage, vec![0], number * 10 + 5));
        }
        records.push(entry("a", Offset::new(3, 1), 5, 9_000));
        let index = index(&records);
        assert_eq!(index.unreadable, 0);
        assert_eq!(index.changes, (ChangeId(Ulid(5)), ChangeId(Ulid(1_000))));
        for number in 0..100_u32 {
            let change = ChangeId(Ulid(u128::from(1_000 - number * 3)));
            assert_eq!(index.position(&app("b"), 1, change), Some(500 + u64::from(number)));
            let missing = ChangeId(Ulid(u128::from(1_000 - number * 3 - 1)));
            assert_eq!(index.position(&app("b"), 1, missing), None);
        }
        let places = index.places(&app("b"), 1, 598, 10);
        assert_eq!(places.iter().map(|place| place.offset).collect::<Vec<_>>(), [980, 990]);
        assert_eq!(index.places(&app("b"), 1, 500, 1).len(), 1);
        for (name, epoch, from) in [("b", 2, 500), ("b", 1, 499), ("b", 1, 600), ("c", 1, 500)] {
            assert!(index.places(&app(name), epoch, from, 10).is_empty(), "{name} {epoch} {from}");
        }
        assert_eq!(index.position(&app("a"), 3, ChangeId(Ulid(5))), Some(1));
    }

    #[test]
    fn holds_the_newest_epoch_and_the_latest_state() {
        let old = State { epoch: 1, head: 2, applied: 2, told: 1 };
        let new = State { epoch: 2, head: 0, applied: 0, told: 0 };
        let states = |state| record(Kind::LogState, state::encode([(&app("a"), state)].into_iter()).expect("ok"), 0);
        let records =
            [entry("a", Offset::new(1, 1), 1, 1), states(old), states(new), entry("a", Offset::new(2, 1), 2, 2)];
        let whole = index(&records);
        assert_eq!(
            (whole.apps[0].state, whole.apps[0].epoch, whole.apps[0].first, whole.apps[0].entries),
            (Some(new), 2, 1, 1)
        );
        assert_eq!(index(&records[..3]).apps[0].entries, 0);
        assert_eq!(index(&records[..2]).apps[0].state, Some(old));
    }

    #[test]
    fn tells_what_it_could_not_read() {
        let index = index(&[record(Kind::LogEntry, vec![9, 9], 0), record(Kind::LogState, vec![], 0)]);
        assert_eq!(index.unreadable, 2);
    }

    #[test]
    fn a_cut_index_is_refused() {
        let mut builder = Builder::default();
        builder.add(&entry("a", Offset::new(1, 1), 1, 1));
        let bytes = Bytes::from(builder.finish().expect("writes"));
        for length in 0..bytes.len() {
            assert!(SegmentIndex::read(1, bytes.slice(..length)).is_err(), "{length}");
        }
    }
}
