//! The time by which segments age. It goes on as fast as the machine's clock does, but neither jumps with it nor ever goes back,
//! also from one start to the next: a clock that is set must not cost the history, nor keep it for ever.

use std::time::{Duration, Instant};

use crate::model::Timestamp;

pub(super) struct Clock {
    begun: Timestamp,
    at: Instant,
}

impl Clock {
    /// Begins with the machine's clock, or with the newest segment where that is later.
    pub(super) fn beginning(machine: Timestamp, newest: Option<Timestamp>) -> Self {
        Self { begun: newest.map_or(machine, |newest| newest.max(machine)), at: Instant::now() }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.after(self.at.elapsed())
    }

    fn after(&self, elapsed: Duration) -> Timestamp {
        let elapsed = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_ms(self.begun.as_ms().saturating_add(elapsed)).unwrap_or(self.begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_from_the_later_of_the_clock_and_what_is_there() {
        let at = |ms| Timestamp::from_ms(ms).expect("a time");
        for (machine, newest, expected) in [
            (5_000, None, 6_000),
            (5_000, Some(4_000), 6_000),
            // The machine's clock was set back.
            (5_000, Some(900_000), 901_000),
        ] {
            let clock = Clock::beginning(at(machine), newest.map(at));
            assert_eq!(clock.after(Duration::from_secs(1)), at(expected), "{machine} {newest:?}");
            assert!(clock.now() >= at(expected - 1_000));
        }
        let last = Clock::beginning(at(5_000), None).after(Duration::MAX);
        assert!(last >= at(5_000), "{last}");
    }
}
