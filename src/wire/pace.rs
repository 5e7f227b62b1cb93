//! When to read at once and when in quanta: a pure decision over what the reads bring.
//!
//! Eager is the rule: a lone change is handed on as it comes. A **backlog** shows as many small reads in a row, because
//! the walsender sends every row by itself: [`MANY_READS`] within each of [`ENTER_AFTER`] windows. From then on the pump
//! waits a quantum before each read, and the kernel collects what the walsender sends. The first read after a wait that
//! brings little, or that has to wait again, ends it at once.
//!
//! The wait shortens where a quantum brings more than [`FULL_READ`], so that a socket buffer is not full for long, which
//! would make the walsender wait for us.

use std::time::Duration;

use tokio::time::Instant;

/// The wait. Half a millisecond: the walsender then fills several segments per wake-up of ours; 2 ms was measured worse,
/// because the socket's buffer is full before and the walsender idles.
pub(super) const QUANTUM: Duration = Duration::from_micros(500);
/// The shortest wait: below, the sleep's own inaccuracy (about 60 µs) is most of it.
const SHORTEST: Duration = Duration::from_micros(100);
/// Reads within one quantum that a wait would have made into one. Below, the saving is not worth its latency.
const MANY_READS: u32 = 8;
/// Busy windows in a row before the first wait: 2 ms of it. A transaction of some dozen rows is through by then, so an
/// interactive one never pays for the wait.
const ENTER_AFTER: u32 = 4;
/// A wait that brought less was for nothing: about [`MANY_READS`] small rows in their frames of some 150 bytes.
const LITTLE: usize = 1024;
/// A read that brought more came from a well-filled buffer. Linux starts a TCP connection with 64 KiB of window
/// (`tcp_rmem` 128 KiB, half of it for bookkeeping) and lets it grow with what is read per round.
const FULL_READ: usize = 48 * 1024;
/// A read that had to wait this long after a quantum found the stream quiet.
const QUIET: Duration = Duration::from_micros(200);

/// The pace of reading.
#[derive(Debug)]
pub(super) enum Pace {
    /// Read as soon as there is something.
    Eager {
        /// When the present window began.
        window: Instant,
        /// Reads in it.
        reads: u32,
        /// Busy windows in a row before it.
        busy: u32,
    },
    /// Wait before each read.
    Quanta {
        /// For so long.
        wait: Duration,
    },
}

impl Pace {
    /// Eager, as every stream begins.
    pub(super) fn new(now: Instant) -> Self {
        Self::Eager {
            window: now,
            reads: 0,
            busy: 0,
        }
    }

    /// How long to let the socket fill before the next read.
    pub(super) fn wait(&self) -> Option<Duration> {
        match *self {
            Self::Eager { .. } => None,
            Self::Quanta { wait } => Some(wait),
        }
    }

    /// A read brought `bytes` at `now`, after it waited for the first of them for `waited` (beyond the quantum).
    pub(super) fn took(&mut self, bytes: usize, waited: Duration, now: Instant) {
        match self {
            Self::Eager { window, reads, busy } => {
                *reads += 1;
                let length = now.duration_since(*window);
                if length < QUANTUM {
                    return;
                }
                // A window that a quiet time stretched is judged by its rate, not by its count.
                let quanta = (length.as_micros() / QUANTUM.as_micros()).max(1);
                *busy = if u128::from(*reads) >= u128::from(MANY_READS) * quanta {
                    *busy + 1
                } else {
                    0
                };
                *reads = 0;
                *window = now;
                if *busy >= ENTER_AFTER {
                    *self = Self::Quanta { wait: QUANTUM };
                }
            }
            Self::Quanta { wait } => {
                if bytes < LITTLE || waited >= QUIET {
                    *self = Self::new(now);
                } else {
                    // Aim at a well-filled buffer, not at a full one.
                    let ratio = FULL_READ as f64 / bytes as f64;
                    *wait = wait.mul_f64(ratio).clamp(SHORTEST, QUANTUM);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small reads, `every` apart, for `span`.
    fn trickle(pace: &mut Pace, now: &mut Instant, every: Duration, span: Duration) {
        let end = *now + span;
        while *now < end && pace.wait().is_none() {
            *now += every;
            pace.took(150, every, *now);
        }
    }

    #[test]
    fn a_quiet_stream_is_read_at_once() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        trickle(&mut pace, &mut now, Duration::from_millis(1), Duration::from_secs(1));
        assert_eq!(pace.wait(), None);
    }

    #[test]
    fn a_short_burst_never_waits() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..10 {
            // 50 rows at full speed, then nothing for a while.
            trickle(
                &mut pace,
                &mut now,
                Duration::from_micros(10),
                Duration::from_micros(500),
            );
            assert_eq!(pace.wait(), None);
            now += Duration::from_millis(5);
        }
    }

    #[test]
    fn a_backlog_is_read_in_quanta() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        trickle(
            &mut pace,
            &mut now,
            Duration::from_micros(10),
            QUANTUM * (ENTER_AFTER + 1),
        );
        assert_eq!(pace.wait(), Some(QUANTUM));
    }

    #[test]
    fn the_first_wait_that_brings_little_is_the_last() {
        let now = Instant::now();
        let mut pace = Pace::Quanta { wait: QUANTUM };
        pace.took(20_000, Duration::ZERO, now);
        assert_eq!(pace.wait(), Some(QUANTUM));
        pace.took(LITTLE - 1, Duration::ZERO, now);
        assert_eq!(pace.wait(), None);

        // The read had to wait although the quantum was over: the stream is quiet, however much came then.
        let mut pace = Pace::Quanta { wait: QUANTUM };
        pace.took(20_000, QUIET, now);
        assert_eq!(pace.wait(), None);
    }

    #[test]
    fn a_full_socket_shortens_the_wait_and_never_to_nothing() {
        let now = Instant::now();
        let mut pace = Pace::Quanta { wait: QUANTUM };
        pace.took(2 * FULL_READ, Duration::ZERO, now);
        assert_eq!(pace.wait(), Some(QUANTUM / 2));
        for _ in 0..10 {
            pace.took(1 << 20, Duration::ZERO, now);
        }
        assert_eq!(pace.wait(), Some(SHORTEST));
        for _ in 0..10 {
            pace.took(10_000, Duration::ZERO, now);
        }
        assert_eq!(pace.wait(), Some(QUANTUM));
    }
}
