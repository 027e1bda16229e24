//! Which numbers of a queue are settled: all below a low-water mark, and ranges above it. Numbers are dense, so settling in order
//! keeps it at one number, and settling out of order at one range for each hole.

use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    /// Everything below it is settled.
    low: u64,
    /// First and last of each further range. None touches another, or the mark.
    ranges: BTreeMap<u64, u64>,
}

impl Settled {
    /// Numbers begin at 1.
    pub(super) fn new(low: u64) -> Self {
        Self { low: low.max(1), ranges: BTreeMap::new() }
    }

    pub(super) fn low(&self) -> u64 {
        self.low
    }

    pub(super) fn ranges(&self) -> impl ExactSizeIterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(first, last)| (*first, *last))
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        number < self.low || self.ranges.range(..=number).next_back().is_some_and(|(_, last)| number <= *last)
    }

    pub(super) fn insert(&mut self, first: u64, last: u64) {
        let (mut first, mut last) = (first.max(self.low), last);
        if first > last {
            return;
        }
        // Ranges that overlap or touch become one.
        while let Some((start, end)) = self.ranges.range(..=last.saturating_add(1)).next_back().map(|(s, e)| (*s, *e)) {
            if end.saturating_add(1) < first {
                break;
            }
            self.ranges.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        if first == self.low {
            self.low = last + 1;
        } else {
            self.ranges.insert(first, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn settling_in_order_leaves_no_ranges() {
        let mut settled = Settled::new(1);
        (1..=1_000).for_each(|number| settled.insert(number, number));
        assert_eq!(settled, Settled::new(1_001));
    }

    proptest::proptest! {
        #[test]
        fn is_a_set_of_numbers(spans in proptest::collection::vec((1..60_u64, 0..6_u64), 0..40)) {
            let mut settled = Settled::new(1);
            let mut model = BTreeSet::new();
            for (first, length) in spans {
                settled.insert(first, first + length);
                model.extend(first..=first + length);
                for number in 1..80 {
                    proptest::prop_assert_eq!(settled.contains(number), model.contains(&number), "{}", number);
                }
                let low = (1..).find(|number| !model.contains(number)).expect("a hole");
                proptest::prop_assert_eq!(settled.low(), low);
                let ranges: Vec<_> = settled.ranges().collect();
                proptest::prop_assert!(ranges.iter().all(|(first, last)| *first > low && first <= last));
                proptest::prop_assert!(ranges.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", ranges);
            }
        }
    }
}
