//! Which segments of the journal may go: those that nobody needs any more and that the history is too long with.

use std::time::Duration;

use crate::{journal::Segment, model::Timestamp};

/// How much of the past is kept, whichever ends first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct History {
    pub(crate) age: Duration,
    pub(crate) bytes: u64,
}

/// How far those are that read from the journal after a crash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    /// Everything up to this sequence is safe without the journal.
    pub(crate) settled: u64,
    /// The first segment with an entry that was not told to the next stage; it is kept, up to twice the history's bytes: an application
    /// that nobody writes any more must not hold the whole journal.
    pub(crate) untold: Option<u64>,
}

/// Everything below the sequence may be released; none when nothing may. The newest segment always stays: it knows the next sequence.
pub(crate) fn releasable(segments: &[Segment], history: History, progress: Progress, now: Timestamp) -> Option<u64> {
    let age = i64::try_from(history.age.as_millis()).unwrap_or(i64::MAX);
    let oldest = now.as_ms().saturating_sub(age);
    let mut held: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let mut below = None;
    for segment in &segments[..segments.len().saturating_sub(1)] {
        let is_past = held > history.bytes || segment.newest.as_ms() < oldest;
        let is_free = segment.sealed && segment.indexed && segment.last <= progress.settled;
        let is_told = progress.untold.is_none_or(|untold| segment.first < untold) || held / 2 > history.bytes;
        if !(is_past && is_free && is_told) {
            break;
        }
        held -= segment.bytes;
        below = Some(segment.last + 1);
    }
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    /// Ten segments of 100 records and 10 bytes, one each second up to now; the last one is open.
    fn segments() -> Vec<Segment> {
        (0..10_u64)
            .map(|number| Segment {
                first: number * 100 + 1,
                last: number * 100 + 100,
                bytes: 10,
                sealed: number < 9,
                indexed: number < 9,
                newest: Timestamp::from_ms(NOW - 9_000 + number as i64 * 1_000).expect("a time"),
            })
            .collect()
    }

    fn check(age_ms: u64, bytes: u64, settled: u64, untold: Option<u64>, expected: Option<u64>) {
        let history = History { age: Duration::from_millis(age_ms), bytes };
        let now = Timestamp::from_ms(NOW).expect("a time");
        let found = releasable(&segments(), history, Progress { settled, untold }, now);
        assert_eq!(found, expected, "age {age_ms} bytes {bytes} settled {settled} untold {untold:?}");
    }

    #[test]
    fn goes_by_age_and_by_bytes_whichever_ends_first() {
        check(3_600_000, 1_000, 1_000, None, None);
        check(3_600_000, 100, 1_000, None, None);
        check(3_600_000, 95, 1_000, None, Some(101));
        check(3_600_000, 50, 1_000, None, Some(501));
        check(6_500, 1_000, 1_000, None, Some(301));
        check(6_500, 50, 1_000, None, Some(501));
        check(u64::MAX, u64::MAX, 1_000, None, None);
    }

    #[test]
    fn keeps_what_is_needed() {
        check(0, 0, 399, None, Some(301));
        check(0, 0, 400, None, Some(401));
        check(0, 0, 0, None, None);
        check(3_600_000, 50, 1_000, Some(301), Some(301));
        check(3_600_000, 50, 1_000, Some(1), None);
        check(3_600_000, 20, 1_000, Some(301), Some(601));
        check(3_600_000, 20, 1_000, Some(1), Some(601));
    }

    #[test]
    fn the_newest_segment_stays() {
        check(0, 0, 1_000, None, Some(901));
        let last =
            segments().split_off(9).into_iter().map(|segment| Segment { sealed: true, indexed: true, ..segment });
        let history = History { age: Duration::ZERO, bytes: 0 };
        let progress = Progress { settled: u64::MAX, untold: None };
        assert_eq!(releasable(&last.collect::<Vec<_>>(), history, progress, Timestamp::now()), None);
        assert_eq!(releasable(&[], history, progress, Timestamp::now()), None);
    }
}
