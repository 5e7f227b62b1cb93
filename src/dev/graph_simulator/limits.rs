//! Meta's two rate limits as token buckets: per number, and per number and recipient.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How fast a number may send.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Messages per second and number; Meta's default is 80.
    pub messages_per_second: u32,
    /// One message to the same user in this time; Meta's is 6 s.
    pub pair_interval: Duration,
    /// Messages to the same user that may go at once; Meta's is 45.
    pub pair_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            messages_per_second: 80,
            pair_interval: Duration::from_secs(6),
            pair_burst: 45,
        }
    }
}

/// The buckets of one number.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    number: Option<Bucket>,
    pairs: HashMap<String, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl Buckets {
    /// Takes a token of each kind, or names Meta's code for the one that is missing.
    pub(super) fn take(&mut self, limits: &Limits, to: &str, now: Instant) -> Result<(), i64> {
        let capacity = f64::from(limits.messages_per_second);
        let number = self.number.get_or_insert(Bucket::full(capacity, now));
        number.fill(capacity, capacity, now);
        if number.tokens < 1.0 {
            return Err(130_429);
        }
        let burst = f64::from(limits.pair_burst);
        let rate = 1.0 / limits.pair_interval.as_secs_f64().max(1e-9);
        let pair = self.pairs.entry(to.to_owned()).or_insert(Bucket::full(burst, now));
        pair.fill(burst, rate, now);
        if pair.tokens < 1.0 {
            return Err(131_056);
        }
        number.tokens -= 1.0;
        pair.tokens -= 1.0;
        Ok(())
    }
}

impl Bucket {
    const fn full(capacity: f64, now: Instant) -> Self {
        Self {
            tokens: capacity,
            filled_at: now,
        }
    }

    fn fill(&mut self, capacity: f64, per_second: f64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = per_second.mul_add(elapsed, self.tokens).min(capacity);
        self.filled_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_ends_and_comes_back_with_time() {
        let limits = Limits::default();
        let mut buckets = Buckets::default();
        let start = Instant::now();
        for _ in 0..45 {
            assert_eq!(buckets.take(&limits, "a", start), Ok(()));
        }
        assert_eq!(buckets.take(&limits, "a", start), Err(131_056));
        for _ in 0..35 {
            assert_eq!(buckets.take(&limits, "b", start), Ok(()));
        }
        assert_eq!(buckets.take(&limits, "c", start), Err(130_429));
        let later = start + Duration::from_secs(6);
        assert_eq!(buckets.take(&limits, "a", later), Ok(()));
        assert_eq!(buckets.take(&limits, "a", later), Err(131_056));
    }
}
