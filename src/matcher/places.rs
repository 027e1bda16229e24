//! Where values stand: a number for each hash, so laid out that looking one up reads one line of the processor's cache.
//!
//! A million entries lie in memory that no cache holds, and each line of it that is read waits a tenth of a microsecond or two. So
//! entries are eight bytes, eight of them are a line, and one stands in the line of its hash, or in the next that is not full.
//! Of the hash 32 bits are kept: what is found can be another's, one time in thousands with a million entries. Like [`Table`]
//! it becomes many small ones, each of which grows by itself.
//!
//! [`Table`]: super::table::Table

const SHARDS: usize = 256;
/// Entries up to which it is one.
const UNDIVIDED: usize = 4_096;
const SLOTS: usize = 8;
/// No number of what stands here.
const FREE: u32 = u32::MAX;

#[derive(Default)]
pub(super) struct Places {
    /// One, or `SHARDS`.
    shards: Vec<Shard>,
    len: usize,
}

#[derive(Default)]
struct Shard {
    /// A power of two of them, or none.
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone)]
#[repr(align(64))]
struct Line([Slot; SLOTS]);

#[derive(Clone, Copy)]
struct Slot {
    /// Half of the hash.
    print: u32,
    number: u32,
}

const EMPTY: Line = Line([Slot { print: 0, number: FREE }; SLOTS]);

impl Places {
    pub(super) fn get(&self, hash: u64) -> Option<u32> {
        let print = hash as u32;
        let shard = self.shards.get(self.shard_of(print))?;
        let (line, slot) = shard.find(print)?;
        Some(shard.lines[line].0[slot].number)
    }

    pub(super) fn get_mut(&mut self, hash: u64) -> Option<&mut u32> {
        let print = hash as u32;
        let shard = self.shard_of(print);
        let shard = self.shards.get_mut(shard)?;
        let (line, slot) = shard.find(print)?;
        Some(&mut shard.lines[line].0[slot].number)
    }

    /// Adds what is not there yet.
    pub(super) fn insert(&mut self, hash: u64, number: u32) {
        if self.shards.is_empty() {
            self.shards.push(Shard::default());
        }
        if self.len == UNDIVIDED && self.shards.len() == 1 {
            self.divide();
        }
        let slot = Slot { print: hash as u32, number };
        let shard = self.shard_of(slot.print);
        self.shards[shard].insert(slot);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, hash: u64) -> Option<u32> {
        let print = hash as u32;
        let shard = self.shard_of(print);
        let removed = self.shards.get_mut(shard)?.remove(print)?;
        self.len -= 1;
        if self.len == 0 {
            self.shards.clear();
        }
        Some(removed)
    }

    /// The bits that a shard does not use itself, before it has millions.
    fn shard_of(&self, print: u32) -> usize {
        if self.shards.len() == SHARDS { (print >> 24) as usize } else { 0 }
    }

    fn divide(&mut self) {
        let undivided = std::mem::replace(&mut self.shards, (0..SHARDS).map(|_| Shard::default()).collect());
        for slot in undivided.into_iter().flat_map(Shard::into_slots) {
            let shard = self.shard_of(slot.print);
            self.shards[shard].insert(slot);
        }
    }
}

impl Shard {
    fn home(&self, print: u32) -> usize {
        print as usize & (self.lines.len() - 1)
    }

    fn after(&self, line: usize) -> usize {
        (line + 1) & (self.lines.len() - 1)
    }

    fn find(&self, print: u32) -> Option<(usize, usize)> {
        if self.len == 0 {
            return None;
        }
        let mut line = self.home(print);
        loop {
            let slots = &self.lines[line].0;
            if let Some(slot) = slots.iter().position(|slot| slot.print == print && slot.number != FREE) {
                return Some((line, slot));
            }
            if self.lines[line].free().is_some() {
                return None;
            }
            line = self.after(line);
        }
    }

    fn insert(&mut self, slot: Slot) {
        // A fifth stays free, so nearly all stand in their own line.
        if (self.len + 1) * 5 > self.lines.len() * SLOTS * 4 {
            self.grow();
        }
        self.len += 1;
        let mut line = self.home(slot.print);
        loop {
            if let Some(free) = self.lines[line].free() {
                self.lines[line].0[free] = slot;
                return;
            }
            line = self.after(line);
        }
    }

    fn grow(&mut self) {
        let lines = vec![EMPTY; (self.lines.len() * 2).max(1)];
        let before = std::mem::replace(self, Self { lines, len: 0 });
        before.into_slots().for_each(|slot| self.insert(slot));
    }

    fn into_slots(self) -> impl Iterator<Item = Slot> {
        self.lines.into_iter().flat_map(|line| line.0).filter(|slot| slot.number != FREE)
    }

    fn remove(&mut self, print: u32) -> Option<u32> {
        let (mut line, mut slot) = self.find(print)?;
        let removed = self.lines[line].0[slot].number;
        self.len -= 1;
        // What is searched for goes past lines that are full: into one that no longer is, the next that went past it comes back.
        while self.lines[line].free().is_none()
            && let Some((from, moved)) = self.next_past(line)
        {
            self.lines[line].0[slot] = self.lines[from].0[moved];
            (line, slot) = (from, moved);
        }
        self.lines[line].0[slot].number = FREE;
        Some(removed)
    }

    /// The next that stands behind a line although it would rather stand there, or before.
    fn next_past(&self, line: usize) -> Option<(usize, usize)> {
        let mut next = self.after(line);
        while next != line {
            let from_line = next.wrapping_sub(line) & (self.lines.len() - 1);
            let went_past = |slot: &Slot| {
                let from_home = next.wrapping_sub(self.home(slot.print)) & (self.lines.len() - 1);
                slot.number != FREE && from_home >= from_line
            };
            if let Some(slot) = self.lines[next].0.iter().position(went_past) {
                return Some((next, slot));
            }
            if self.lines[next].free().is_some() {
                return None;
            }
            next = self.after(next);
        }
        None
    }
}

impl Line {
    fn free(&self) -> Option<usize> {
        self.0.iter().position(|slot| slot.number == FREE)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn check(places: &Places, expected: &HashMap<u32, u32>) {
        assert_eq!(places.len, expected.len());
        assert_eq!(places.shards.iter().map(|shard| shard.len).sum::<usize>(), expected.len());
        for (print, number) in expected {
            assert_eq!(places.get(u64::from(*print)), Some(*number), "{print}");
        }
    }

    proptest! {
        /// Few different lines, so that they are full and entries stand behind them.
        #[test]
        fn it_holds_what_a_map_holds(
            steps in proptest::collection::vec((0_u32..64, 0_u32..4, 0_u32..1_000, any::<bool>()), 0..600),
        ) {
            let (mut places, mut expected) = (Places::default(), HashMap::new());
            for (line, high, number, removes) in steps {
                // All at the ends of what there is, around which it goes.
                let print = (high << 20 | line.pow(2)).wrapping_sub(3);
                if removes {
                    prop_assert_eq!(places.remove(u64::from(print)), expected.remove(&print));
                } else if let Some(known) = expected.get_mut(&print) {
                    *known = number;
                    *places.get_mut(u64::from(print)).expect("it is there") = number;
                } else {
                    places.insert(u64::from(print), number);
                    expected.insert(print, number);
                }
                check(&places, &expected);
            }
            for print in expected.into_keys() {
                prop_assert!(places.remove(u64::from(print)).is_some());
            }
            prop_assert!(places.shards.is_empty());
        }
    }

    #[test]
    fn it_finds_the_same_whether_divided_or_not() {
        let hash = |number: u32| u64::from(number.wrapping_mul(0x9e37_79b9));
        let (mut places, mut expected) = (Places::default(), HashMap::new());
        for number in 0..20_000 {
            places.insert(hash(number), number);
            expected.insert(hash(number) as u32, number);
        }
        assert_eq!(places.shards.len(), SHARDS);
        for number in (0..20_000).step_by(2) {
            assert_eq!(places.remove(hash(number)), Some(number));
            assert_eq!(places.remove(hash(number)), None);
            expected.remove(&(hash(number) as u32));
        }
        check(&places, &expected);
        assert_eq!(places.get(hash(20_001)), None);
    }
}
