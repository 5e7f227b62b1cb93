//! What to do after a run has ended with an error: pure decisions.

use std::time::{Duration, Instant};

use crate::agent_db::AgentError;
use crate::retry::backoff;

use super::error::SyncError;
use super::status::state::Setback;

/// How often a held pipeline looks whether its fault is repaired: often enough that a repair shows at once, rarely enough
/// for the logs of both databases.
const HELD: Duration = Duration::from_secs(2);

/// How often one that stands by tries to take over.
const STANDBY: Duration = Duration::from_secs(1);

/// A run that lasted this long was a good one: the next failure starts the backoff anew.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// An error that lasts is logged again this often.
const REMIND: Duration = Duration::from_secs(60);

/// What an error makes of the pipeline.
#[must_use]
pub(super) fn setback(error: &SyncError) -> Setback {
    match error {
        SyncError::Agent(AgentError::Busy { .. }) => Setback::Standby,
        SyncError::Gap(_) => Setback::Gap,
        other => other.disposition().into(),
    }
}

/// How long to wait before the next run, which is the `attempt`th since the last good one.
#[must_use]
pub(super) fn wait(setback: Setback, attempt: u32, reconnect: (Duration, Duration)) -> Duration {
    match setback {
        Setback::Standby => STANDBY,
        Setback::Gap | Setback::Held => HELD,
        Setback::Interrupted => backoff(attempt, reconnect.0, reconnect.1),
    }
}

/// Counts failures in a row, and says which of them are news.
#[derive(Debug, Default)]
pub(super) struct Failures {
    attempt: u32,
    last_logged: Option<(String, Instant)>,
}

impl Failures {
    /// A run that lasted this long has failed for this reason. Returns the number of failures in a row, and whether this
    /// one has to be logged: it is another one than before, or it was logged long ago.
    pub(super) fn count(&mut self, reason: &str, lasted: Duration, now: Instant) -> (u32, bool) {
        if lasted >= GOOD_RUN {
            self.attempt = 0;
        }
        self.attempt = self.attempt.saturating_add(1);
        let is_news = self
            .last_logged
            .as_ref()
            .is_none_or(|(logged, at)| logged != reason || now.duration_since(*at) >= REMIND);
        if is_news {
            self.last_logged = Some((reason.to_owned(), now));
        }
        (self.attempt, is_news)
    }
}

#[cfg(test)]
mod tests {
    use super::super::slot::GapReason;
    use super::*;

    #[test]
    fn an_error_makes_the_pipeline_wait_in_its_own_way() {
        let busy = AgentError::Busy {
            slot: "twinlog".to_owned(),
            holder: None,
        };
        for (error, expected) in [
            (SyncError::Agent(busy), Setback::Standby),
            (SyncError::Gap(GapReason::SlotMissing), Setback::Gap),
            (SyncError::StreamEnded, Setback::Interrupted),
            (
                SyncError::WrongPlugin {
                    slot: "s".to_owned(),
                    plugin: "wal2json".to_owned(),
                },
                Setback::Held,
            ),
        ] {
            assert_eq!(setback(&error), expected, "{error}");
        }
        let reconnect = (Duration::from_millis(100), Duration::from_secs(10));
        assert!(wait(Setback::Interrupted, 1, reconnect) <= reconnect.0);
        assert!(wait(Setback::Interrupted, 30, reconnect) >= reconnect.1 / 2);
        assert_eq!(wait(Setback::Held, 30, reconnect), HELD, "a repair shows at once");
    }

    #[test]
    fn a_good_run_starts_the_count_anew_and_an_error_that_lasts_is_logged_now_and_then() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let short = Duration::from_secs(1);
        assert_eq!(failures.count("a", short, start), (1, true));
        assert_eq!(failures.count("a", short, start + short), (2, false));
        assert_eq!(
            failures.count("b", short, start + short),
            (3, true),
            "another one is news"
        );
        assert_eq!(failures.count("b", short, start + short + REMIND), (4, true));
        assert_eq!(failures.count("b", GOOD_RUN, start + short + REMIND), (1, false));
    }
}
