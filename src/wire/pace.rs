//! When to read at once and when in quanta: a pure decision over what the reads bring.
//!
//! Eager reading is the rule: a lone change is passed on as it comes. A **backlog** shows as many small reads in a row,
//! because the walsender sends each row separately: [`MANY_READS`] within each of [`ENTER_AFTER`] windows. From then on the
//! pump waits a quantum before each read, while the kernel collects what the walsender sends. It reads eagerly again after
//! the first wait that brings little.
//!
//! The wait grows while the socket has room, up to [`Capacity::longest`], and shrinks when the socket fills, because then
//! the walsender would wait for us. What fills a socket differs: TCP counts bytes, a Unix socket counts the sender's pieces
//! with their overhead, see [`Capacity`].
//!
//! A machine without a free core wakes a sleeping thread late: with two busy loops running, a fixed wait of 500 µs fell to
//! half of the eager rate (80,000 on TCP, 38,000 on a Unix socket), the adaptive wait stayed near it (190,000 and 104,000,
//! eager 164,000 and 115,000). So a late wake-up ends the waiting too.
//!
//! Measured by `benches/read.rs` on Postgres 15, two cores, a backlog of pgbench's transactions (four frames each), frames
//! a second, our side built without optimisation:
//!
//! | | eager | 100 µs | 200 µs | 300 µs | 500 µs | 1 ms | adaptive |
//! |---|---|---|---|---|---|---|---|
//! | TCP | 184,000 | 200,000 | 400,000 | 426,000 | 451,000 | 454,000 | 446,000 |
//! | Unix socket | 363,000 | 238,000 | 408,000 | 382,000 | 365,000 | 205,000 | 406,000 |
//!
//! The table does not show the cost on the sender's side: if the walsender is the limit (over TCP on one machine), a
//! longer wait makes each send cheaper. `benches/drain.rs`, TCP, two cores, rows a second with a longest wait of 0.5, 4 and 8 ms:
//! bulk insert 156,000, 174,000, 185,000; chat 230,000, 221,000, 229,000 (at 8.3, 7.6, 6.8 µs of CPU a row); pgbench 217,000,
//! 205,000, 226,000. Fixed at 1 or 2 ms, which is too short for the window to grow and long enough to fill it, chat fell to
//! 165,000 and 153,000: the wait must pass that range fast, so it doubles with each read.

use std::time::Duration;

use tokio::time::Instant;

/// The first wait. Half a millisecond: the walsender then fills several segments per wake-up of ours.
pub(super) const QUANTUM: Duration = Duration::from_micros(500);
/// The shortest wait: below it, going to sleep and waking up late (by about 60 µs) cost more than is saved, see the table.
const SHORTEST: Duration = Duration::from_micros(200);
/// Reads within one quantum, which a wait would have made one read. With fewer, the saving is not worth the latency.
const MANY_READS: u32 = 8;
/// Busy windows in a row before the first wait: 2 ms. A transaction of some dozen rows has passed by then, so an interactive
/// one is never delayed.
const ENTER_AFTER: u32 = 4;
/// A wait of a quantum that brings fewer bytes was useless: about [`MANY_READS`] small rows in frames of some 150 bytes.
const LITTLE: usize = 1024;
/// If a read ends this long after its quantum, the stream is quiet or the thread had to wait for a core; on a busy machine
/// waiting costs more than it saves. Several quanta, because a read of a well-filled socket itself takes a part of one.
const QUIET: Duration = Duration::from_millis(2);

/// What a read may bring before the socket counts as full, and how long a wait may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capacity {
    /// Bytes of one read.
    bytes: usize,
    /// Frames of one read, each of which the walsender sent separately.
    frames: usize,
    /// The longest wait before a read.
    longest: Duration,
}

impl Capacity {
    /// Linux starts a TCP connection with 64 KiB of window (`tcp_rmem` has 128 KiB, half of it for bookkeeping) and lets
    /// it grow with what is read per round trip. Three quarters of that, in any number of pieces: the kernel joins them.
    pub(super) const TCP: Self = Self {
        bytes: 48 * 1024,
        frames: usize::MAX,
        longest: QUANTUM,
    };
    /// A server on this machine. A send that is delivered costs the walsender twice as much as one that is queued because the
    /// window is full. So wait longer, for as much as the window (which has grown by then) and the sender's own queue hold;
    /// what is queued comes within the same read, as there is no network between.
    pub(super) const LOCAL_TCP: Self = Self {
        bytes: 512 * 1024,
        frames: usize::MAX,
        longest: Duration::from_millis(8),
    };
    /// A Unix socket joins nothing: a small piece costs the sender 768 bytes of its 208 KiB (`wmem_default`), so that 277
    /// fill it. A bit more than half of that.
    pub(super) const UNIX: Self = Self {
        bytes: 96 * 1024,
        frames: 150,
        longest: QUANTUM,
    };
}

/// Decides before each read whether to wait.
#[derive(Debug)]
pub(super) struct Pace {
    capacity: Capacity,
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    /// Read as soon as there are bytes.
    Eager {
        /// When the current window began.
        window: Instant,
        /// Reads in the current window.
        reads: u32,
        /// Busy windows in a row before it.
        busy: u32,
    },
    /// Wait so long before each read.
    Quanta(Duration),
}

impl Mode {
    fn eager(now: Instant, busy: u32) -> Self {
        Self::Eager {
            window: now,
            reads: 0,
            busy,
        }
    }
}

impl Pace {
    /// Eager, as every stream begins.
    pub(super) fn new(capacity: Capacity, now: Instant) -> Self {
        Self {
            capacity,
            mode: Mode::eager(now, 0),
        }
    }

    /// How long to let the socket fill before the next read.
    pub(super) fn wait(&self) -> Option<Duration> {
        match self.mode {
            Mode::Eager { .. } => None,
            Mode::Quanta(wait) => Some(wait),
        }
    }

    /// Takes note of a read that brought `bytes` with so many whole `frames` and ended at `now`, `waited` after the quantum
    /// should have ended.
    pub(super) fn took(&mut self, bytes: usize, frames: usize, waited: Duration, now: Instant) {
        match &mut self.mode {
            Mode::Eager { window, reads, busy } => {
                *reads += 1;
                let length = now.duration_since(*window);
                if length < QUANTUM {
                    return;
                }
                // A window that a quiet time made longer is judged by its rate, not by its count.
                let quanta = (length.as_micros() / QUANTUM.as_micros()).max(1);
                *busy = if u128::from(*reads) >= u128::from(MANY_READS) * quanta {
                    *busy + 1
                } else {
                    0
                };
                *reads = 0;
                *window = now;
                if *busy >= ENTER_AFTER {
                    self.mode = Mode::Quanta(QUANTUM);
                }
            }
            Mode::Quanta(wait) => {
                // A longer wait must bring more: a backlog is a rate, at least 2 MB/s.
                let little = LITTLE as f64 * wait.div_duration_f64(QUANTUM);
                if (bytes as f64) < little || waited >= QUIET {
                    // The walsender may have lost its core only for a moment: one busy window is enough to wait again.
                    self.mode = Mode::eager(now, ENTER_AFTER - 1);
                    return;
                }
                let fill = (bytes as f64 / self.capacity.bytes as f64).max(frames as f64 / self.capacity.frames as f64);
                // Twice as long at most: one read that brought little says nothing about the next.
                *wait = wait.div_f64(fill.max(0.5)).clamp(SHORTEST, self.capacity.longest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eager(now: Instant) -> Pace {
        Pace::new(Capacity::TCP, now)
    }

    fn in_quanta(capacity: Capacity) -> Pace {
        Pace {
            capacity,
            mode: Mode::Quanta(QUANTUM),
        }
    }

    /// Small reads, `every` apart, for `span`.
    fn trickle(pace: &mut Pace, now: &mut Instant, every: Duration, span: Duration) {
        let end = *now + span;
        while *now < end && pace.wait().is_none() {
            *now += every;
            pace.took(150, 1, every, *now);
        }
    }

    #[test]
    fn a_quiet_stream_is_read_at_once() {
        let mut now = Instant::now();
        let mut pace = eager(now);
        trickle(&mut pace, &mut now, Duration::from_millis(1), Duration::from_secs(1));
        assert_eq!(pace.wait(), None);
    }

    #[test]
    fn a_short_burst_never_waits() {
        let mut now = Instant::now();
        let mut pace = eager(now);
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
        let mut pace = eager(now);
        trickle(
            &mut pace,
            &mut now,
            Duration::from_micros(10),
            QUANTUM * (ENTER_AFTER + 1),
        );
        assert_eq!(pace.wait(), Some(QUANTUM));
    }

    #[test]
    fn a_wait_that_brings_little_is_the_last() {
        let now = Instant::now();
        let mut pace = in_quanta(Capacity::TCP);
        pace.took(20_000, 200, Duration::ZERO, now);
        assert_eq!(pace.wait(), Some(QUANTUM));
        pace.took(LITTLE - 1, 1, Duration::ZERO, now);
        assert_eq!(pace.wait(), None);

        // The read had to wait although the quantum was over: the stream is quiet, however much came then.
        let mut pace = in_quanta(Capacity::TCP);
        pace.took(20_000, 200, QUIET, now);
        assert_eq!(pace.wait(), None);
    }

    #[test]
    fn a_backlog_that_paused_is_soon_read_in_quanta_again() {
        let mut now = Instant::now();
        let mut pace = in_quanta(Capacity::TCP);
        pace.took(20_000, 200, QUIET, now);
        trickle(
            &mut pace,
            &mut now,
            Duration::from_micros(10),
            QUANTUM + Duration::from_micros(20),
        );
        assert_eq!(pace.wait(), Some(QUANTUM));

        // But not for a lone change after it.
        pace.took(150, 1, Duration::ZERO, now);
        now += Duration::from_millis(20);
        pace.took(150, 1, Duration::ZERO, now);
        trickle(
            &mut pace,
            &mut now,
            Duration::from_micros(10),
            QUANTUM + Duration::from_micros(20),
        );
        assert_eq!(pace.wait(), None);
    }

    #[test]
    fn a_long_wait_must_bring_as_much_a_second_as_a_short_one() {
        let now = Instant::now();
        let mut pace = in_quanta(Capacity::LOCAL_TCP);
        for _ in 0..10 {
            pace.took(20_000, 200, Duration::ZERO, now);
        }
        assert_eq!(pace.wait(), Some(Capacity::LOCAL_TCP.longest));
        // 900 small rows a second are no backlog: none of them may be delayed.
        pace.took(1_200, 8, Duration::ZERO, now);
        assert_eq!(pace.wait(), None);
    }

    #[test]
    fn a_full_socket_shortens_the_wait_and_never_to_nothing() {
        let now = Instant::now();
        let mut pace = in_quanta(Capacity::TCP);
        pace.took(2 * Capacity::TCP.bytes, 1_000, Duration::ZERO, now);
        assert_eq!(pace.wait(), Some(QUANTUM / 2));
        for _ in 0..10 {
            pace.took(1 << 20, 10_000, Duration::ZERO, now);
        }
        assert_eq!(pace.wait(), Some(SHORTEST));
        for _ in 0..10 {
            pace.took(10_000, 100, Duration::ZERO, now);
        }
        assert_eq!(pace.wait(), Some(QUANTUM));
    }

    #[test]
    fn a_unix_socket_is_full_of_pieces_before_it_is_full_of_bytes() {
        let mut pace = in_quanta(Capacity::UNIX);
        pace.took(20_000, 2 * Capacity::UNIX.frames, Duration::ZERO, Instant::now());
        assert_eq!(pace.wait(), Some(QUANTUM / 2));
    }
}
