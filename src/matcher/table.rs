//! A hash table that never stops to grow all at once: past a size it is many small ones, each of which grows by itself.
//!
//! It keeps no keys: entries are numbers of what has the key, or short. So a caller brings the hash, and says what is meant.

use hashbrown::HashTable;

const SHARDS: usize = 256;
/// Entries up to which it is one table; dividing that many takes less than a millisecond.
const UNDIVIDED: usize = 4_096;

pub(super) struct Table<T> {
    /// One, or `SHARDS`.
    shards: Vec<HashTable<T>>,
    len: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { shards: Vec::new(), len: 0 }
    }
}

impl<T> Table<T> {
    /// The bits of the hash that a shard does not use itself.
    fn shard(&self, hash: u64) -> usize {
        if self.shards.len() == SHARDS { (hash >> 40) as usize % SHARDS } else { 0 }
    }

    pub(super) fn find(&self, hash: u64, is_meant: impl FnMut(&T) -> bool) -> Option<&T> {
        self.shards.get(self.shard(hash))?.find(hash, is_meant)
    }

    /// Adds what is not there yet. `hash_of`: of the other entries.
    pub(super) fn insert(&mut self, hash: u64, entry: T, hash_of: impl Fn(&T) -> u64) {
        if self.shards.is_empty() {
            self.shards.push(HashTable::new());
        }
        if self.len == UNDIVIDED && self.shards.len() == 1 {
            self.divide(&hash_of);
        }
        let shard = self.shard(hash);
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.insert_unique(hash, entry, hash_of);
            self.len += 1;
        }
    }

    fn divide(&mut self, hash_of: &impl Fn(&T) -> u64) {
        let undivided = std::mem::replace(&mut self.shards, (0..SHARDS).map(|_| HashTable::new()).collect());
        for entry in undivided.into_iter().flatten() {
            let hash = hash_of(&entry);
            let shard = self.shard(hash);
            if let Some(shard) = self.shards.get_mut(shard) {
                shard.insert_unique(hash, entry, hash_of);
            }
        }
    }

    pub(super) fn remove(&mut self, hash: u64, is_meant: impl FnMut(&T) -> bool) -> Option<T> {
        let shard = self.shard(hash);
        let (entry, _) = self.shards.get_mut(shard)?.find_entry(hash, is_meant).ok()?.remove();
        self.len -= 1;
        if self.len == 0 {
            self.shards.clear();
        }
        Some(entry)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;

    #[test]
    fn it_finds_the_same_whether_divided_or_not() {
        let (keys, mut table) = (RandomState::new(), Table::default());
        let hash = |number: &u32| keys.hash_one(number);
        for number in 0..20_000_u32 {
            table.insert(hash(&number), number, hash);
        }
        assert_eq!(table.shards.len(), SHARDS);
        for number in (0..20_000).step_by(2) {
            assert_eq!(table.remove(hash(&number), |other| *other == number), Some(number));
            assert_eq!(table.remove(hash(&number), |other| *other == number), None);
        }
        for number in 0..20_001 {
            let is_there = number % 2 == 1 && number < 20_000;
            assert_eq!(table.find(hash(&number), |other| *other == number).is_some(), is_there);
        }
        assert_eq!(table.len(), 10_000);
    }
}
