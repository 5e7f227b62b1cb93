//! How far behind the Agent DB is, in seconds, without lying (pitfall P42): zero only when provably caught up, growing when
//! anything is stuck, quiet when there is simply nothing to do.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// Samples kept: one a second, so an hour of backlog is dated to the second; beyond that the oldest commit's own time
/// (which a backlog always has) speaks.
const SAMPLES: usize = 3600;

/// The source's end of log as it was seen from time to time.
#[derive(Debug)]
pub(in crate::replication) struct Delay {
    samples: VecDeque<(Instant, Lsn)>,
    /// When everything that the source had was last known to be settled.
    caught_up_at: Instant,
}

impl Delay {
    /// Starts the clock: nothing is proved yet.
    #[must_use]
    pub(in crate::replication) const fn new(now: Instant) -> Self {
        Self {
            samples: VecDeque::new(),
            caught_up_at: now,
        }
    }

    /// The source's log ended here at this time, read from the source itself and not from the stream.
    pub(in crate::replication) fn sample(&mut self, at: Instant, source_end: Lsn) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((at, source_end));
    }

    /// The age of the oldest transaction that may be committed on the source and not in the Agent DB.
    ///
    /// `settled` is the position up to which everything is done, `oldest_unapplied` the age of the oldest transaction
    /// that was received and is not durable yet.
    pub(in crate::replication) fn measure(
        &mut self,
        now: Instant,
        settled: Lsn,
        oldest_unapplied: Option<Duration>,
    ) -> Duration {
        while let Some(&(at, end)) = self.samples.front() {
            if end > settled {
                break;
            }
            self.caught_up_at = at;
            self.samples.pop_front();
        }
        let unproved = if self.samples.is_empty() && now.duration_since(self.caught_up_at) < Duration::from_secs(3) {
            // The last sample is covered and fresh: that is the proof. (A stale one proves nothing: the source may be
            // out of reach.) Three seconds: three rounds of the measuring loop.
            Duration::ZERO
        } else {
            now.duration_since(self.caught_up_at)
        };
        unproved.max(oldest_unapplied.unwrap_or_default())
    }
}

/// How long ago something happened by the source's clock, whose offset to ours is known; never negative.
#[must_use]
pub(in crate::replication) fn age(then: PgTimestamp, now: PgTimestamp) -> Duration {
    Duration::from_micros(u64::try_from(now.0.saturating_sub(then.0)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn is_zero_only_when_the_latest_sample_is_settled() {
        let start = Instant::now();
        let mut delay = Delay::new(start);
        delay.sample(start, Lsn(100));
        assert_eq!(delay.measure(start, Lsn(100), None), Duration::ZERO);
        delay.sample(start + SECOND, Lsn(200));
        assert_eq!(delay.measure(start + SECOND, Lsn(100), None), SECOND);
        delay.sample(start + 2 * SECOND, Lsn(300));
        assert_eq!(delay.measure(start + 2 * SECOND, Lsn(250), None), SECOND);
        assert_eq!(delay.measure(start + 2 * SECOND, Lsn(300), None), Duration::ZERO);
    }

    #[test]
    fn grows_while_the_source_cannot_be_asked() {
        let start = Instant::now();
        let mut delay = Delay::new(start);
        delay.sample(start, Lsn(100));
        assert_eq!(delay.measure(start, Lsn(100), None), Duration::ZERO);
        assert_eq!(delay.measure(start + 40 * SECOND, Lsn(100), None), 40 * SECOND);
    }

    #[test]
    fn a_received_transaction_that_waits_counts_by_its_own_age() {
        let start = Instant::now();
        let mut delay = Delay::new(start);
        delay.sample(start, Lsn(100));
        assert_eq!(delay.measure(start, Lsn(100), Some(7 * SECOND)), 7 * SECOND);
    }
}
