//! How long the syncs take: what the disk costs every write.

use std::time::Duration;

/// The upper bounds of the classes that syncs are counted in; one more class holds what takes longer.
pub const FSYNC_BOUNDS: [Duration; 12] = [
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
];

/// Syncs so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FsyncStatistics {
    pub count: u64,
    pub total: Duration,
    pub longest: Duration,
    /// How many took at most the bound of the same place in [`FSYNC_BOUNDS`] and more than the one before.
    pub classes: [u64; FSYNC_BOUNDS.len() + 1],
}

impl FsyncStatistics {
    pub(super) fn count(&mut self, took: Duration) {
        self.count += 1;
        self.total += took;
        self.longest = self.longest.max(took);
        self.classes[FSYNC_BOUNDS.partition_point(|bound| *bound < took)] += 1;
    }

    pub fn mean(&self) -> Duration {
        self.total.checked_div(u32::try_from(self.count).unwrap_or(u32::MAX)).unwrap_or_default()
    }

    /// A bound that a share of the syncs (0.99: all but one of a hundred) keep; the longest one when they are in the last class.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut n_seen = 0;
        for (bound, n) in FSYNC_BOUNDS.iter().zip(self.classes) {
            n_seen += n;
            if n_seen >= wanted {
                return (*bound).min(self.longest);
            }
        }
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_are_counted_by_how_long_they_took() {
        let mut statistics = FsyncStatistics::default();
        assert_eq!((statistics.mean(), statistics.quantile(0.99)), (Duration::ZERO, Duration::ZERO));
        for micros in [40, 50, 60, 2_000_000] {
            statistics.count(Duration::from_micros(micros));
        }
        assert_eq!(statistics.classes[..3], [2, 1, 0]);
        assert_eq!(statistics.classes[FSYNC_BOUNDS.len()], 1);
        assert_eq!(statistics.quantile(0.5), Duration::from_micros(50));
        assert_eq!(statistics.quantile(0.75), Duration::from_micros(100));
        assert_eq!(statistics.quantile(0.99), Duration::from_secs(2));
        assert_eq!(statistics.mean(), Duration::from_nanos(500_037_500));
    }
}
