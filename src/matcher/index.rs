//! The groups of one model by what their documents have, and how to find those that a document may concern.
//!
//! Values stand there as their keyed hashes: a group that is found by an equal hash of another value is asked, and says no.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use nexxus_storage::model::{
    AppId, Document, ModelName, Timestamp,
    filter::{Condition, Field, Stored, packed::Fields},
};

use super::{
    Number,
    group::{self, PackedView},
    intervals::Intervals,
    places::Places,
    plan::{self, Entry, MOST_COUNTED},
    slab::Slab,
};
use crate::domain::view::View;

/// How a group says that it is in the list of those that are always asked; otherwise the choices of its plan follow.
const ALWAYS: u8 = 0;
const FOUND: u8 = 1;

#[derive(Default)]
pub(super) struct Index {
    pub(super) name: Option<(AppId, ModelName)>,
    pub(super) fields: Fields,
    /// By the field's number.
    uses: Vec<Use>,
    equal: Equal,
    /// Asked about every document.
    always: BTreeSet<Number>,
    n_groups: usize,
    /// How many of those that are always asked may say no.
    n_unindexed: usize,
}

/// What groups are found by in one field.
#[derive(Default)]
struct Use {
    n_equal: usize,
    bits: Option<Box<Intervals<u64>>>,
    texts: Option<Box<Intervals<Arc<[u8]>>>>,
    there: BTreeSet<Number>,
}

impl Use {
    fn is_none(&self) -> bool {
        self.n_equal == 0 && self.bits.is_none() && self.texts.is_none() && self.there.is_empty()
    }
}

impl Index {
    pub(super) fn of(app: AppId, model: ModelName) -> Self {
        Self { name: Some((app, model)), ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.n_groups == 0
    }

    pub(super) fn n_unindexed(&self) -> usize {
        self.n_unindexed
    }

    /// Appends the bytes of a view. [`insert`](Self::insert) needs the fields that get their numbers here.
    pub(super) fn pack(&mut self, view: &View, into: &mut Vec<u8>) {
        let channel = &view.channel;
        let named = [channel.id.as_ref().map(|_| "id"), channel.user.as_ref().map(|_| "userId")];
        for field in named.into_iter().flatten().filter_map(Field::universal) {
            self.fields.number_of(&field);
        }
        group::pack(view, &mut self.fields, into);
    }

    /// `condition`: everything that a document of the group has to fulfil. Gives what [`remove`](Self::remove) needs to find it again.
    pub(super) fn insert(&mut self, condition: &Condition, group: Number) -> Vec<u8> {
        self.n_groups += 1;
        let Some(plan) = plan::plan(condition, self) else {
            self.always.insert(group);
            self.n_unindexed += usize::from(*condition != Condition::All);
            return vec![ALWAYS];
        };
        for entry in plan.entries {
            self.put(entry, group);
        }
        std::iter::once(FOUND).chain(plan.choices).collect()
    }

    pub(super) fn remove(&mut self, view: &PackedView<'_>, found_by: &[u8], group: Number) {
        self.n_groups -= 1;
        let condition = view.effective(&self.fields);
        let Some((&FOUND, choices)) = found_by.split_first() else {
            self.always.remove(&group);
            self.n_unindexed -= usize::from(condition != Condition::All);
            return;
        };
        let hash = |field: &Field, value: Stored<'_>| self.hash(field, value);
        for entry in plan::again(&condition, &mut choices.iter().copied(), &self.fields, &hash) {
            self.take(&entry, group);
        }
    }

    fn put(&mut self, entry: Entry, group: Number) {
        match entry {
            Entry::Equal { field, hash } => {
                if self.equal.put(hash, group) {
                    self.at(field).n_equal += 1;
                }
            }
            Entry::Bits { field, low, high } => self.at(field).bits.get_or_insert_default().insert(low, high, group),
            Entry::Texts { field, low, high } => self.at(field).texts.get_or_insert_default().insert(low, high, group),
            Entry::There { field } => drop(self.at(field).there.insert(group)),
        }
    }

    fn take(&mut self, entry: &Entry, group: Number) {
        match entry {
            Entry::Equal { field, hash } => {
                if self.equal.take(*hash, group) {
                    self.at(*field).n_equal -= 1;
                }
            }
            Entry::Bits { field, low, .. } => take_interval(&mut self.at(*field).bits, low, group),
            Entry::Texts { field, low, .. } => take_interval(&mut self.at(*field).texts, low, group),
            Entry::There { field } => drop(self.at(*field).there.remove(&group)),
        }
    }

    fn at(&mut self, field: u32) -> &mut Use {
        let place = field as usize;
        if self.uses.len() <= place {
            self.uses.resize_with(place + 1, Use::default);
        }
        &mut self.uses[place]
    }

    /// The hash of a field's value.
    pub(super) fn hash(&self, field: &Field, value: Stored<'_>) -> u64 {
        self.fields.find(field).map_or(0, |number| self.equal.hash(number, value))
    }

    /// How many groups stand at, or around, an entry's value; counted up to a bound.
    pub(super) fn crowd_at(&self, entry: &Entry) -> usize {
        let used = |field: &u32| self.uses.get(*field as usize);
        let mut n_counted = 0;
        let mut count = |_| {
            n_counted += 1;
            n_counted < MOST_COUNTED
        };
        match entry {
            Entry::Equal { hash, .. } => return self.equal.n_at(*hash),
            Entry::There { field } => return used(field).map_or(0, |used| used.there.len()),
            Entry::Bits { field, low, high } => {
                // Of ranges with one end: around that.
                let value = if *low == 0 { high } else { low };
                if let Some(intervals) = used(field).and_then(|used| used.bits.as_ref()) {
                    intervals.each_around(value, &mut count);
                }
            }
            Entry::Texts { field, low, high } => {
                let value = if low.is_empty() { high } else { low };
                if let Some(intervals) = used(field).and_then(|used| used.texts.as_ref()) {
                    intervals.each_around(value, &mut count);
                }
            }
        }
        n_counted
    }

    /// The groups that these documents may concern, each once.
    pub(super) fn candidates(&self, before: Option<&Document>, after: Option<&Document>) -> Vec<Number> {
        let mut found = Vec::new();
        for (number, used) in (0..).zip(&self.uses) {
            let Some(field) = self.fields.get(number).filter(|_| !used.is_none()) else { continue };
            match (before, after) {
                (Some(before), Some(after)) if !field.is_same_in(before, after) => {
                    self.collect(number, field, used, before, &mut found);
                    self.collect(number, field, used, after, &mut found);
                }
                (Some(document), _) | (None, Some(document)) => {
                    self.collect(number, field, used, document, &mut found);
                }
                (None, None) => {}
            }
        }
        found.sort_unstable();
        found.dedup();
        found.extend(&self.always);
        found
    }

    fn collect(&self, number: u32, field: &Field, used: &Use, document: &Document, found: &mut Vec<Number>) {
        let mut is_there = false;
        field.any_value(document, |value| {
            is_there = true;
            if used.n_equal > 0 {
                self.equal.collect(self.equal.hash(number, value), found);
            }
            let mut add = |group| {
                found.push(group);
                true
            };
            if let (Some(intervals), Some(bits)) = (&used.bits, bits_of(value)) {
                intervals.each_around(&bits, &mut add);
            }
            if let (Some(intervals), Stored::String(text)) = (&used.texts, value) {
                intervals.each_around(text.as_bytes(), &mut add);
            }
            false
        });
        if is_there {
            found.extend(&used.there);
        }
    }
}

fn take_interval<K: Ord + Clone>(intervals: &mut Option<Box<Intervals<K>>>, low: &K, group: Number) {
    if let Some(some) = intervals {
        some.remove(low, group);
        if some.is_empty() {
            *intervals = None;
        }
    }
}

/// Groups by the hash of a value.
#[derive(Default)]
struct Equal {
    keys: RandomState,
    /// A group, or, with the highest bit set, the number of a set of groups.
    places: Places,
    /// Of values that several groups are found by.
    several: Slab<BTreeSet<Number>>,
}

const SEVERAL: u32 = 1 << 31;

/// The number of a set of groups.
fn several_at(place: u32) -> Option<Number> {
    (place & SEVERAL != 0).then_some(place & !SEVERAL)
}

impl Equal {
    fn hash(&self, field: u32, value: Stored<'_>) -> u64 {
        match value {
            Stored::String(text) => self.keys.hash_one((field, text)),
            Stored::Boolean(truth) => self.keys.hash_one((field, u64::from(truth))),
            other => self.keys.hash_one((field, bits_of(other))),
        }
    }

    /// False when it was there.
    fn put(&mut self, hash: u64, group: Number) -> bool {
        let Some(place) = self.places.get_mut(hash) else {
            self.places.insert(hash, group);
            return true;
        };
        match several_at(*place) {
            Some(several) => self.several.get_mut(several).is_some_and(|several| several.insert(group)),
            None if *place == group => false,
            None => {
                *place = self.several.insert(BTreeSet::from([*place, group])) | SEVERAL;
                true
            }
        }
    }

    /// False when it was not there.
    fn take(&mut self, hash: u64, group: Number) -> bool {
        let Some(place) = self.places.get_mut(hash) else { return false };
        let Some(number) = several_at(*place) else {
            return *place == group && self.places.remove(hash).is_some();
        };
        let Some(several) = self.several.get_mut(number) else { return false };
        let was_there = several.remove(&group);
        if several.len() == 1 {
            *place = several.pop_first().unwrap_or_default();
            self.several.remove(number);
        }
        was_there
    }

    fn n_at(&self, hash: u64) -> usize {
        let several = |number| self.several.get(number).map_or(0, BTreeSet::len);
        self.places.get(hash).map_or(0, |place| several_at(place).map_or(1, several))
    }

    fn collect(&self, hash: u64, found: &mut Vec<Number>) {
        let Some(place) = self.places.get(hash) else { return };
        match several_at(place) {
            Some(several) => found.extend(self.several.get(several).into_iter().flatten()),
            None => found.push(place),
        }
    }
}

fn bits_of(value: Stored<'_>) -> Option<u64> {
    match value {
        Stored::Number(number) => Some(number_bits(number)),
        Stored::Date(time) => Some(date_bits(time)),
        Stored::String(_) | Stored::Boolean(_) => None,
    }
}

/// Bits that are in the order of the numbers. Adding zero turns negative zero into zero: they are one value.
pub(super) fn number_bits(number: f64) -> u64 {
    let bits = (number + 0.0).to_bits();
    if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
}

/// Bits that are in the order of the times.
pub(super) fn date_bits(time: Timestamp) -> u64 {
    time.as_ms().cast_unsigned() ^ 1 << 63
}
