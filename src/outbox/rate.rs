//! A number's rate: never more calls than the provider allows in any second, and evenly over it. Pure.
//!
//! Two rules. **The window**: at most `per_second` calls in any [`WINDOW`], by the time at which they were made. **The pace**:
//! a tenth of that may go at once, and then one for each part of a second, so that an even load does not come in bursts.
//!
//! Between the claim of a message and its call lies a round trip to the Site DB, which may take long. So a caller reserves
//! places before the claim, and says when it makes the calls; a reserved place counts as a call that is just being made.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The provider counts what arrives within a second. A little more, because calls that are made at different times may
/// arrive a little closer to each other.
const WINDOW: Duration = Duration::from_millis(1005);
/// The part of a second's calls that may go at once.
const BURST: u32 = 10;

/// Which calls were made, and how many more may be.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: usize,
    /// Time from one call to the next at an even pace.
    interval: Duration,
    /// How many may go at once.
    burst: u32,
    /// When the pace allows a call again that comes after all those that were reserved.
    paced_until: Option<Instant>,
    /// When the calls of the last window were made; at most `per_second`.
    calls: VecDeque<Instant>,
    reserved: usize,
}

impl Rate {
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = per_second.max(1);
        Self {
            per_second: usize::try_from(per_second).unwrap_or(usize::MAX),
            interval: Duration::from_secs(1) / per_second,
            burst: (per_second / BURST).max(1),
            paced_until: None,
            calls: VecDeque::new(),
            reserved: 0,
        }
    }

    /// Reserves up to `wanted` calls; returns how many.
    pub(super) fn reserve(&mut self, wanted: usize, now: Instant) -> usize {
        while self.calls.front().is_some_and(|&call| call + WINDOW <= now) {
            self.calls.pop_front();
        }
        let in_window = self.per_second.saturating_sub(self.calls.len() + self.reserved);
        let taken = wanted.min(in_window).min(self.pace_allows(now));
        self.reserved += taken;
        self.paced_until = Some(self.paced_until.map_or(now, |until| until.max(now)) + self.length(taken));
        taken
    }

    /// Of the reserved calls, `made` are made now and `unused` will not be made.
    pub(super) fn settle(&mut self, made: usize, unused: usize, now: Instant) {
        self.reserved = self.reserved.saturating_sub(made + unused);
        self.calls.extend(std::iter::repeat_n(now, made));
        self.paced_until = self
            .paced_until
            .map(|until| until.checked_sub(self.length(unused)).unwrap_or(now));
    }

    /// When a call may be reserved again, if nothing is settled until then; `now` if one may be.
    pub(super) fn next(&self, now: Instant) -> Instant {
        let paced = match self.paced_until {
            Some(until) if self.pace_allows(now) == 0 => until
                .checked_sub(self.interval * (self.burst - 1))
                .unwrap_or(now)
                .max(now),
            _ => now,
        };
        let windowed = if self.calls.len() + self.reserved >= self.per_second {
            self.calls.front().map_or(now, |&call| call + WINDOW)
        } else {
            now
        };
        paced.max(windowed)
    }

    fn pace_allows(&self, now: Instant) -> usize {
        let ahead = self
            .paced_until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let room = (self.interval * self.burst).saturating_sub(ahead);
        usize::try_from(room.as_nanos() / self.interval.as_nanos().max(1)).unwrap_or(usize::MAX)
    }

    fn length(&self, calls: usize) -> Duration {
        self.interval * u32::try_from(calls).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Takes what is allowed, every millisecond; the calls are made `late` after they were reserved. Returns when each was
    /// made.
    fn drain(per_second: u32, milliseconds: u32, late: impl Fn(u32) -> u32) -> Vec<Instant> {
        let (start, mut rate, mut made) = (Instant::now(), Rate::new(per_second), Vec::new());
        let mut waiting: Vec<(Instant, usize)> = Vec::new();
        for tick in 0..milliseconds {
            let now = start + MILLISECOND * tick;
            waiting.retain(|&(at, count)| {
                if at > now {
                    return true;
                }
                rate.settle(count, 0, now);
                made.extend(std::iter::repeat_n(now, count));
                false
            });
            let taken = rate.reserve(1000, now);
            if taken > 0 {
                waiting.push((now + MILLISECOND * late(tick), taken));
            }
        }
        made
    }

    fn most_in_a_second(made: &[Instant]) -> usize {
        let within = |first: usize| {
            made[first..]
                .iter()
                .take_while(|&&at| at < made[first] + Duration::from_secs(1))
                .count()
        };
        (0..made.len()).map(within).max().unwrap_or(0)
    }

    #[test]
    fn the_whole_rate_is_used_and_no_second_has_more() {
        for per_second in [1, 20, 80, 250, 1000] {
            let made = drain(per_second, 10_000, |_| 0);
            let least = usize::try_from(per_second).unwrap() * 98 / 10;
            assert!(made.len() >= least, "{} at {per_second}", made.len());
            assert_eq!(most_in_a_second(&made), usize::try_from(per_second).unwrap());
        }
    }

    #[test]
    fn the_pace_is_even_after_a_small_burst() {
        let made = drain(80, 500, |_| 0);
        assert_eq!(made.iter().filter(|&&at| at == made[0]).count(), 8);
        assert!(
            made[8..].windows(2).all(|two| two[1] - two[0] >= MILLISECOND * 12),
            "{made:?}"
        );
    }

    #[test]
    fn what_was_reserved_and_not_used_is_free_again() {
        let (mut rate, now) = (Rate::new(20), Instant::now());
        assert_eq!(rate.reserve(5, now), 2);
        assert_eq!(rate.reserve(5, now), 0);
        assert!(rate.next(now) > now);
        rate.settle(0, 2, now);
        assert_eq!(rate.next(now), now);
        assert_eq!(rate.reserve(5, now), 2);
    }

    #[test]
    fn the_next_call_is_possible_when_it_is_promised() {
        for per_second in [1, 3, 80, 1000] {
            let (mut rate, mut now) = (Rate::new(per_second), Instant::now());
            for _ in 0..3000 {
                let taken = rate.reserve(1, now);
                assert_eq!(taken, 1, "at {per_second}");
                rate.settle(1, 0, now);
                now = rate.next(now);
            }
        }
    }

    proptest! {
        #[test]
        fn no_second_has_more_however_late_the_calls_are(
            per_second in 1_u32..300,
            late in prop::collection::vec(0_u32..700, 1..20),
        ) {
            let at = |tick: u32| late[usize::try_from(tick).unwrap() % late.len()];
            let made = drain(per_second, 4000, at);
            prop_assert!(most_in_a_second(&made) <= usize::try_from(per_second).unwrap());
        }
    }
}
