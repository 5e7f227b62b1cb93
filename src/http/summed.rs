//! Log lines that strangers or a failing database can cause at any rate: the first is written at once, the further ones of the
//! next minute as one line with their number.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often a line is written at most.
const EVERY: Duration = Duration::from_secs(60);

/// What is summed up: a line of its own for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Line {
    /// A webhook was refused, for this reason.
    Webhook(&'static str),
    /// Meta's handshake was refused.
    Handshake,
    /// The Site DB did not take a request's message.
    Unavailable,
    /// The public keys of JSON Web Tokens could not be read.
    JwtKeys,
    /// A request was answered with this status.
    Answered(u16),
}

/// Writes a line; its argument says how often it happened since the line before.
type Write = Box<dyn Fn(u64) + Send>;

/// The lines of a process.
static LINES: LazyLock<Summed<Line>> = LazyLock::new(Summed::default);

/// Writes the line now, or with the others of its kind.
pub(super) fn write(line: Line, write: impl Fn(u64) + Send + 'static) {
    if LINES.count(line, Box::new(write)) {
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                if !LINES.write_sum(line) {
                    return;
                }
            }
        });
    }
}

/// What is not written yet.
struct Unwritten {
    since: Instant,
    times: u64,
    /// The last one's, which has the newest fields.
    write: Option<Write>,
}

struct Summed<K>(Mutex<HashMap<K, Unwritten>>);

impl<K> Default for Summed<K> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Eq + Hash> Summed<K> {
    /// True if the line was written; then [`Self::write_sum`] is due every [`EVERY`] until it says no.
    fn count(&self, line: K, write: Write) -> bool {
        let now = Instant::now();
        let mut unwritten = self.lock();
        // Nobody sums up what is older: the runtime has ended in which that was due.
        if let Some(known) = unwritten.get_mut(&line).filter(|known| now - known.since < EVERY * 2) {
            known.times += 1;
            known.write = Some(write);
            return false;
        }
        let fresh = Unwritten {
            since: now,
            times: 0,
            write: None,
        };
        unwritten.insert(line, fresh);
        drop(unwritten);
        write(1);
        true
    }

    /// Writes one line for what came since the last one. False if nothing did.
    fn write_sum(&self, line: K) -> bool {
        let mut unwritten = self.lock();
        let Some(known) = unwritten.get_mut(&line) else {
            return false;
        };
        let Some(write) = known.write.take() else {
            unwritten.remove(&line);
            return false;
        };
        let times = std::mem::take(&mut known.times);
        known.since = Instant::now();
        drop(unwritten);
        write(times);
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Unwritten>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_written_at_once_and_the_others_as_one_line() {
        let (summed, written) = (Summed::default(), Arc::new(Mutex::new(Vec::new())));
        let note = || -> Write {
            let written = Arc::clone(&written);
            Box::new(move |times| written.lock().unwrap().push(times))
        };
        assert!(summed.count("wrong", note()));
        for _ in 0..49 {
            assert!(!summed.count("wrong", note()));
        }
        assert!(summed.count("missing", note()));
        assert_eq!(*written.lock().unwrap(), [1, 1]);
        assert!(summed.write_sum("wrong") && !summed.write_sum("wrong"));
        assert_eq!(*written.lock().unwrap(), [1, 1, 49]);
        // After a quiet minute the next is written at once again.
        assert!(summed.count("wrong", note()));
    }
}
