//! Records in memory, by kind and key: what the store does not have yet, and what it never gets (volatile kinds).

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;

use crate::registry::Kind;

/// What stands under a key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slot {
    pub(super) revision: u64,
    /// None: it was removed.
    pub(super) value: Option<Bytes>,
}

#[derive(Debug, Default)]
pub(super) struct Layer {
    records: [BTreeMap<Vec<u8>, Slot>; Kind::ALL.len()],
    bytes: usize,
}

impl Layer {
    pub(super) fn get(&self, kind: Kind, key: &[u8]) -> Option<&Slot> {
        self.records[kind as usize].get(key)
    }

    pub(super) fn put(&mut self, kind: Kind, key: Vec<u8>, slot: Slot) {
        let key_bytes = key.len();
        self.bytes += weight(key_bytes, &slot);
        if let Some(before) = self.records[kind as usize].insert(key, slot) {
            self.bytes -= weight(key_bytes, &before);
        }
    }

    pub(super) fn take(&mut self, kind: Kind, key: &[u8]) {
        if let Some(before) = self.records[kind as usize].remove(key) {
            self.bytes -= weight(key.len(), &before);
        }
    }

    pub(super) fn range(&self, kind: Kind, range: &Range) -> impl Iterator<Item = (&[u8], &Slot)> {
        self.records[kind as usize]
            .range::<[u8], _>(range.bounds())
            .map(|(key, slot)| (key.as_slice(), slot))
            .take_while(|(key, _)| range.covers(key))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Kind, &[u8], &Slot)> {
        Kind::ALL
            .into_iter()
            .flat_map(|kind| self.records[kind as usize].iter().map(move |(key, slot)| (kind, key.as_slice(), slot)))
    }

    /// What it weighs in memory, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

fn weight(key: usize, slot: &Slot) -> usize {
    key + slot.value.as_ref().map_or(0, Bytes::len) + 96
}

/// The keys that begin with a prefix, after a key.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub(super) prefix: Vec<u8>,
    pub(super) after: Option<Vec<u8>>,
}

impl Range {
    pub(super) const ALL: Self = Self { prefix: Vec::new(), after: None };

    /// Where to begin; the end is where [`Range::covers`] says so.
    pub(super) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let start = match &self.after {
            Some(after) if *after >= self.prefix => Bound::Excluded(after.as_slice()),
            _ => Bound::Included(self.prefix.as_slice()),
        };
        (start, Bound::Unbounded)
    }

    pub(super) fn covers(&self, key: &[u8]) -> bool {
        key.starts_with(&self.prefix)
    }
}

/// The first entries of layers that lie over one another (the uppermost first), in the order of keys: as many as hold `live`
/// records that are there, with the removed ones among them.
pub(super) fn merge(layers: &[&Layer], kind: Kind, range: &Range, live: usize) -> Vec<(Vec<u8>, Slot)> {
    let mut sources: Vec<_> = layers.iter().map(|layer| layer.range(kind, range).peekable()).collect();
    let mut merged = Vec::new();
    let mut found = 0;
    while found < live {
        let Some(key) = sources.iter_mut().filter_map(|source| source.peek().map(|(key, _)| *key)).min() else { break };
        let mut uppermost = None;
        for source in &mut sources {
            if let Some((_, slot)) = source.next_if(|(candidate, _)| *candidate == key) {
                uppermost = uppermost.or(Some(slot));
            }
        }
        if let Some(slot) = uppermost {
            found += usize::from(slot.value.is_some());
            merged.push((key.to_vec(), slot.clone()));
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(revision: u64, value: Option<&'static str>) -> Slot {
        Slot { revision, value: value.map(Bytes::from) }
    }

    fn layer(entries: &[(&str, u64, Option<&'static str>)]) -> Layer {
        let mut layer = Layer::default();
        for (key, revision, value) in entries {
            layer.put(Kind::User, key.as_bytes().to_vec(), slot(*revision, *value));
        }
        layer
    }

    #[test]
    fn the_upper_layer_wins_and_removed_records_are_told() {
        let upper = layer(&[("b", 5, None), ("c", 6, Some("new")), ("e", 7, Some("e"))]);
        let lower = layer(&[("a", 1, Some("a")), ("b", 2, Some("b")), ("c", 3, Some("old")), ("d", 4, Some("d"))]);
        let keys = |live| {
            let merged = merge(&[&upper, &lower], Kind::User, &Range::ALL, live);
            merged.into_iter().map(|(key, slot)| format!("{}{}", key[0] as char, slot.revision)).collect::<Vec<_>>()
        };
        assert_eq!(keys(10), ["a1", "b5", "c6", "d4", "e7"]);
        assert_eq!(keys(2), ["a1", "b5", "c6"]);
        assert_eq!(keys(0), [""; 0]);
    }

    #[test]
    fn its_weight_returns_to_nothing() {
        let mut layer = layer(&[("a", 1, Some("value"))]);
        let once = layer.bytes();
        layer.put(Kind::User, b"a".to_vec(), slot(2, Some("value")));
        assert_eq!(layer.bytes(), once);
        layer.take(Kind::User, b"nothing");
        layer.take(Kind::User, b"a");
        assert!(layer.is_empty());
    }
}
