//! How much of a core scans may use, so that live work goes on beside them.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Rests shorter than this are saved up: timers are coarse.
const SHORTEST_REST: Duration = Duration::from_millis(2);

pub(super) struct Pace {
    /// Rest for each second of work.
    rest: f64,
    /// From when on all work done so far has been rested for.
    rested: Mutex<Instant>,
}

impl Pace {
    /// `share`: of one core, above 0, up to 1.
    pub(super) fn new(share: f64) -> Self {
        Self { rest: 1.0 / share - 1.0, rested: Mutex::new(Instant::now()) }
    }

    /// To be called after some work, with how long it took.
    pub(super) async fn rest(&self, busy: Duration) {
        let rest = self.owed(busy, Instant::now());
        if rest >= SHORTEST_REST {
            tokio::time::sleep(rest).await;
        }
    }

    fn owed(&self, busy: Duration, now: Instant) -> Duration {
        let mut rested = self.rested.lock();
        *rested = (*rested).max(now) + busy.mul_f64(self.rest);
        rested.duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_rested_for_in_proportion_by_all_together() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let pace = Pace { rest: 3.0, rested: Mutex::new(now - ms(500)) };
        assert_eq!(pace.owed(ms(10), now), ms(30), "time without work is no credit");
        assert_eq!(pace.owed(ms(10), now), ms(60), "what others owe comes first");
        assert_eq!(pace.owed(ms(10), now + ms(50)), ms(40));
        assert_eq!(Pace::new(1.0).owed(ms(10), now + ms(50)), ms(0), "a whole core needs no rest");
    }
}
