//! How far the Agent DB is behind, in seconds (pitfall P42): zero only if it has provably caught up (also when there is
//! nothing to do), and growing while anything is stuck.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// Samples kept: one a second, so a backlog of up to an hour is measured to the second. For a longer one the commit
/// time of the oldest unapplied transaction is used.
const SAMPLES: usize = 3600;

/// The delay, computed from samples of where the Site DB's log ended at which time.
#[derive(Debug)]
pub(in crate::replication) struct Delay {
    samples: VecDeque<(Instant, Lsn, OffsetDateTime)>,
    /// The latest time as of which the Agent DB is known to have everything.
    caught_up_at: Instant,
    /// Whether this process has seen that itself.
    is_proved: bool,
    /// The Site DB's clock at the last sample that is settled.
    settled_at: Option<OffsetDateTime>,
}

impl Delay {
    /// Without samples yet: the delay grows from `now`.
    #[must_use]
    pub(in crate::replication) const fn new(now: Instant) -> Self {
        Self {
            samples: VecDeque::new(),
            caught_up_at: now,
            is_proved: false,
            settled_at: None,
        }
    }

    /// The Agent DB had everything at this time, as an earlier daemon has stored. What this process has seen counts more.
    pub(in crate::replication) const fn resume(&mut self, caught_up_at: Instant) {
        if !self.is_proved {
            self.caught_up_at = caught_up_at;
        }
    }

    /// Adds a sample: at this time, and at this one by the Site DB's clock, the Site DB's log ended here. It must be read from the Site DB itself: a stuck
    /// stream reports an old end.
    pub(in crate::replication) fn sample(&mut self, at: Instant, source_end: Lsn, clock: OffsetDateTime) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((at, source_end, clock));
    }

    /// As of when everything that was committed in the Site DB is known to be applied, by the Site DB's clock: never later than a
    /// sample. `None` while no sample is.
    pub(in crate::replication) const fn settled_at(&self) -> Option<OffsetDateTime> {
        self.settled_at
    }

    /// The age of the oldest transaction that may be committed in the Site DB and not in the Agent DB.
    ///
    /// `settled`: everything up to this position is applied or needs nothing. `oldest_unapplied`: the age of the oldest
    /// transaction that was received and is not durable in the Agent DB yet.
    pub(in crate::replication) fn measure(
        &mut self,
        now: Instant,
        settled: Lsn,
        oldest_unapplied: Option<Duration>,
    ) -> Duration {
        while let Some(&(at, end, clock)) = self.samples.front() {
            if end > settled {
                break;
            }
            self.caught_up_at = at;
            self.is_proved = true;
            self.settled_at = Some(clock);
            self.samples.pop_front();
        }
        let unproved = if self.samples.is_empty() && now.duration_since(self.caught_up_at) < Duration::from_secs(3) {
            // The last sample is settled and less than three intervals of the monitor old: caught up. An older sample
            // proves nothing, since the Site DB may be unreachable.
            Duration::ZERO
        } else {
            now.duration_since(self.caught_up_at)
        };
        unproved.max(oldest_unapplied.unwrap_or_default())
    }
}

/// The time between two readings of the Site DB's clock; zero if `then` is later than `now`.
#[must_use]
pub(in crate::replication) fn age(then: PgTimestamp, now: PgTimestamp) -> Duration {
    Duration::from_micros(u64::try_from(now.0.saturating_sub(then.0)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The Site DB's clock, a second a byte.
    fn clock(second: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(second).unwrap()
    }

    #[test]
    fn is_settled_as_of_the_last_settled_sample_and_no_later() {
        let start = Instant::now();
        let mut delay = Delay::new(start);
        delay.sample(start, Lsn(100), clock(100));
        assert_eq!(delay.settled_at(), None);
        delay.sample(start + SECOND, Lsn(200), clock(200));
        delay.measure(start + SECOND, Lsn(150), None);
        assert_eq!(delay.settled_at(), Some(clock(100)));
        let shown = delay.measure(start + 3 * SECOND, Lsn(200), None);
        assert_eq!((shown, delay.settled_at()), (Duration::ZERO, Some(clock(200))));
    }

    #[test]
    fn is_zero_only_when_the_latest_sample_is_settled() {
        let start = Instant::now();
        let mut delay = Delay::new(start);
        delay.sample(start, Lsn(100), clock(100));
        assert_eq!(delay.measure(start, Lsn(100), None), Duration::ZERO);
        delay.sample(start + SECOND, Lsn(200), clock(200));
        assert_eq!(delay.measure(start + SECOND, Lsn(100), None), SECOND);
        delay.sample(start + 2 * SECOND, Lsn(300), clock(300));
        assert_eq!(delay.measure(start + 2 * SECOND, Lsn(250), None), SECOND);
        assert_eq!(delay.measure(start + 2 * SECOND, Lsn(300), None), Duration::ZERO);
    }

    #[test]
    fn continues_where_an_earlier_daemon_has_stopped() {
        let start = Instant::now() + 100 * SECOND;
        let mut delay = Delay::new(start);
        delay.resume(start - 60 * SECOND);
        delay.sample(start, Lsn(200), clock(200));
        assert_eq!(delay.measure(start, Lsn(100), None), 60 * SECOND);
        assert_eq!(delay.measure(start, Lsn(200), None), Duration::ZERO);
        delay.resume(start - 60 * SECOND);
        delay.sample(start + SECOND, Lsn(300), clock(300));
        assert_eq!(delay.measure(start + SECOND, Lsn(200), None), SECOND);
    }

    #[test]
    fn grows_while_the_source_cannot_be_asked() {
        let start = Instant::now();
        let mut delay = Delay::new(start);
        delay.sample(start, Lsn(100), clock(100));
        assert_eq!(delay.measure(start, Lsn(100), None), Duration::ZERO);
        assert_eq!(delay.measure(start + 40 * SECOND, Lsn(100), None), 40 * SECOND);
    }

    #[test]
    fn a_received_transaction_that_waits_counts_by_its_own_age() {
        let start = Instant::now();
        let mut delay = Delay::new(start);
        delay.sample(start, Lsn(100), clock(100));
        assert_eq!(delay.measure(start, Lsn(100), Some(7 * SECOND)), 7 * SECOND);
    }
}
