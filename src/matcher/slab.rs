//! Values by number, in blocks: growing moves nothing, so it takes as long with a million values as with none.

/// Values of a block. The first one grows as it is filled, so that little takes little.
const BLOCK: usize = 512;

/// A value for each number, the default where none was set.
pub(super) struct Column<T> {
    blocks: Vec<Vec<T>>,
}

impl<T> Default for Column<T> {
    fn default() -> Self {
        Self { blocks: Vec::new() }
    }
}

impl<T: Default> Column<T> {
    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.blocks.get(number as usize / BLOCK)?.get(number as usize % BLOCK)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.blocks.get_mut(number as usize / BLOCK)?.get_mut(number as usize % BLOCK)
    }

    pub(super) fn set(&mut self, number: u32, value: T) {
        while self.get(number).is_none() {
            self.push(T::default());
        }
        if let Some(place) = self.get_mut(number) {
            *place = value;
        }
    }

    fn push(&mut self, value: T) {
        match self.blocks.last_mut() {
            Some(last) if last.len() < BLOCK => last.push(value),
            Some(_) => {
                let mut block = Vec::with_capacity(BLOCK);
                block.push(value);
                self.blocks.push(block);
            }
            None => self.blocks.push(vec![value]),
        }
    }
}

/// Values that get their numbers here. Free numbers are given again; what is at a free number is the default.
pub(super) struct Slab<T> {
    values: Column<T>,
    free: Vec<u32>,
    n_used: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { values: Column::default(), free: Vec::new(), n_used: 0 }
    }
}

impl<T: Default> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.n_used += 1;
        let number = self.free.pop().unwrap_or((self.n_used - 1) as u32);
        self.values.set(number, value);
        number
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.values.get(number)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.values.get_mut(number)
    }

    /// `number` has to be one that is in use.
    pub(super) fn remove(&mut self, number: u32) -> T {
        let value = self.get_mut(number).map(std::mem::take).unwrap_or_default();
        self.n_used -= 1;
        self.free.push(number);
        if self.n_used == 0 {
            *self = Self::default();
        }
        value
    }

    pub(super) fn is_empty(&self) -> bool {
        self.n_used == 0
    }

    pub(super) fn len(&self) -> usize {
        self.n_used
    }

    /// The numbers of all values, the defaults at free numbers among them.
    pub(super) fn numbers(&self) -> std::ops::Range<u32> {
        0..(self.n_used + self.free.len()) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_again() {
        let mut slab = Slab::default();
        let numbers: Vec<u32> = (0..2_000).map(|value: usize| slab.insert(value)).collect();
        assert_eq!(numbers, (0..2_000).collect::<Vec<_>>());
        assert_eq!((slab.remove(700), slab.remove(5), slab.len()), (700, 5, 1_998));
        assert_eq!((slab.insert(1), slab.insert(2), slab.insert(3)), (5, 700, 2_000));
        assert_eq!(
            (slab.get(5), slab.get(700), slab.get(1_999), slab.get(2_001)),
            (Some(&1), Some(&2), Some(&1_999), None)
        );
        for number in 0..=2_000 {
            slab.remove(number);
        }
        assert!(slab.is_empty() && slab.values.blocks.is_empty());
    }
}
