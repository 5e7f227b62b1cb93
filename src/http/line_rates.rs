//! How many lines of a front end's log each client may write in a minute: a page in a loop must not fill the disk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Most lines of a client in a minute.
const LINES: usize = 100;
const MINUTE: Duration = Duration::from_secs(60);

/// What each client has written in its minute; bounded by the number of clients.
#[derive(Debug, Default)]
pub(super) struct LineRates(Mutex<HashMap<String, Minute>>);

#[derive(Debug)]
struct Minute {
    begun: Instant,
    written: usize,
}

impl LineRates {
    /// How many of these lines the client may write now.
    pub(super) fn take(&self, client: &str, lines: usize) -> usize {
        self.take_at(client, lines, Instant::now())
    }

    fn take_at(&self, client: &str, lines: usize, now: Instant) -> usize {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Minute { begun: now, written: 0 };
        let minute = clients.entry(client.to_owned()).or_insert(fresh);
        if now.duration_since(minute.begun) >= MINUTE {
            *minute = Minute { begun: now, written: 0 };
        }
        let taken = lines.min(LINES - minute.written);
        minute.written += taken;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_writes_so_many_lines_in_a_minute() {
        let rates = LineRates::default();
        let now = Instant::now();
        assert_eq!(rates.take_at("crm", 60, now), 60);
        assert_eq!(rates.take_at("crm", 60, now), 40);
        assert_eq!(rates.take_at("crm", 1, now + MINUTE / 2), 0);
        assert_eq!(rates.take_at("bot", 1, now), 1);
        assert_eq!(rates.take_at("crm", 200, now + MINUTE), 100);
    }
}
