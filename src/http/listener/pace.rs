//! The least rate at which a peer must move bytes, over the whole of a body or an answer.
//!
//! A time-out since the last byte is not enough: a peer that moves one byte before each of its ends holds us for ever.

use std::time::Duration;

/// The least rate. Meta, proxies and clients in data centers are a thousand times as fast; the slowest mobile networks
/// reach it.
const BYTES_PER_SECOND: u32 = 32 * 1024;

/// How long we wait for a peer in all: [`GRACE`](Self::GRACE) at first; waiting uses it up, and bytes bring it back, as
/// much as they would take at the least rate.
#[derive(Debug)]
pub(in crate::http) struct Pace {
    left: Duration,
}

impl Pace {
    /// Long enough for lost packets, which TCP sends again after 0.2, 0.6, 1.4 and 3 s.
    pub(in crate::http) const GRACE: Duration = Duration::from_secs(5);

    pub(in crate::http) const fn new() -> Self {
        Self { left: Self::GRACE }
    }

    /// How long the peer may still take.
    pub(in crate::http) const fn left(&self) -> Duration {
        self.left
    }

    /// We waited for it.
    pub(in crate::http) fn waited(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }

    /// It moved bytes.
    pub(in crate::http) fn moved(&mut self, bytes: usize) {
        let seconds = bytes as f64 / f64::from(BYTES_PER_SECOND);
        self.left = (self.left + Duration::from_secs_f64(seconds)).min(Self::GRACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_at_a_time_gains_nothing_and_the_least_rate_lasts() {
        let (mut dripping, mut steady) = (Pace::new(), Pace::new());
        for _ in 0..100 {
            dripping.waited(Duration::from_millis(100));
            dripping.moved(1);
            steady.waited(Duration::from_millis(100));
            steady.moved(4096);
        }
        assert!(dripping.left() < Duration::from_millis(1), "{dripping:?}");
        assert_eq!(steady.left(), Pace::GRACE);
    }
}
