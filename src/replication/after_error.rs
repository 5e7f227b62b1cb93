//! What to do after a run has ended with an error: pure decisions.

use std::time::{Duration, Instant};

use crate::agent_db::AgentError;
use crate::change::TableName;
use crate::lsn::Lsn;
use crate::retry::backoff;

use super::error::SyncError;
use super::status::state::Setback;

/// Wait before a held pipeline tries again: short, so that a repair takes effect at once, but not so short that the
/// failed attempts fill the logs of both databases.
const HELD_RETRY: Duration = Duration::from_secs(2);

/// Wait before a daemon in standby tries again to take over.
const STANDBY_RETRY: Duration = Duration::from_secs(1);

/// A run that lasted at least this long resets the backoff; so does one that has committed changes.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// An error that repeats without change is logged again after this time.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// The kind of interruption that an error causes.
#[must_use]
pub(super) fn setback(error: &SyncError) -> Setback {
    match error {
        SyncError::Agent(AgentError::Busy { .. }) => Setback::SlotTaken,
        SyncError::Gap(_) => Setback::RowsMissing,
        SyncError::SlotOfAnother { .. } => Setback::SlotOfAnother,
        other => other.disposition().into(),
    }
}

/// How long to wait before the next run. `attempt` counts the failures in a row, from 1.
#[must_use]
pub(super) fn wait(setback: Setback, attempt: u32, reconnect: (Duration, Duration)) -> Duration {
    match setback {
        Setback::SlotTaken => STANDBY_RETRY,
        Setback::RowsMissing | Setback::NeedsRepair | Setback::SlotOfAnother => HELD_RETRY,
        Setback::Temporary => backoff(attempt, reconnect.0, reconnect.1),
    }
}

/// Counts failures in a row, and decides which of them are logged.
#[derive(Debug, Default)]
pub(super) struct Failures {
    attempt: u32,
    last_logged: Option<(String, Instant)>,
}

impl Failures {
    /// Records that a run failed for this `reason` after it had `lasted` so long. `progressed`: it has committed changes.
    /// Returns the number of failures in a row, and whether this one has to be logged: its reason is new, or was last
    /// logged at least [`LOG_AGAIN`] ago.
    pub(super) fn count(&mut self, reason: &str, lasted: Duration, progressed: bool, now: Instant) -> (u32, bool) {
        if lasted >= GOOD_RUN || progressed {
            self.attempt = 0;
        }
        self.attempt = self.attempt.saturating_add(1);
        let is_news = self
            .last_logged
            .as_ref()
            .is_none_or(|(logged, at)| logged != reason || now.duration_since(*at) >= LOG_AGAIN);
        if is_news {
            self.last_logged = Some((reason.to_owned(), now));
        }
        (self.attempt, is_news)
    }
}

/// Notices a table that ends one run after the other.
#[derive(Debug, Default)]
pub(super) struct LoopGuard(Option<(TableName, Lsn)>);

impl LoopGuard {
    /// The error of a run, or, if the run before ended for the same table at the same position, the one that holds this
    /// table. `settled`: how far the stream has come.
    pub(super) fn check(&mut self, error: SyncError, settled: Lsn) -> SyncError {
        let SyncError::TableChanged(table) = error else {
            self.0 = None;
            return error;
        };
        let now = Some((table.clone(), settled));
        if self.0 == now {
            return SyncError::TableKeepsChanging(table);
        }
        self.0 = now;
        SyncError::TableChanged(table)
    }
}

#[cfg(test)]
mod tests {
    use super::super::continuity::GapReason;
    use super::*;

    #[test]
    fn an_error_makes_the_pipeline_wait_in_its_own_way() {
        let busy = AgentError::Busy {
            slot: "twinlog".to_owned(),
            holder: None,
        };
        for (error, expected) in [
            (SyncError::Agent(busy), Setback::SlotTaken),
            (SyncError::Gap(GapReason::SlotMissing), Setback::RowsMissing),
            (SyncError::StreamEnded, Setback::Temporary),
            (
                SyncError::WrongPlugin {
                    slot: "s".to_owned(),
                    plugin: "wal2json".to_owned(),
                },
                Setback::NeedsRepair,
            ),
        ] {
            assert_eq!(setback(&error), expected, "{error}");
        }
        let reconnect = (Duration::from_millis(100), Duration::from_secs(10));
        assert!(wait(Setback::Temporary, 1, reconnect) <= reconnect.0);
        assert!(wait(Setback::Temporary, 30, reconnect) >= reconnect.1 / 2);
        assert_eq!(
            wait(Setback::NeedsRepair, 30, reconnect),
            HELD_RETRY,
            "no backoff: a repair takes effect at once"
        );
    }

    #[test]
    fn a_table_that_ends_two_runs_at_one_position_is_held() {
        let mut guard = LoopGuard::default();
        let changed = |name: &str| SyncError::TableChanged(TableName::new("public", name));
        let mut holds = |error, position| guard.check(error, Lsn(position)).table_fault().is_some();
        assert!(!holds(changed("t"), 10));
        assert!(!holds(changed("t"), 20), "something was written");
        assert!(!holds(changed("other"), 20));
        assert!(!holds(changed("t"), 20));
        assert!(holds(changed("t"), 20));
        assert!(!holds(SyncError::StreamEnded, 20));
        assert!(!holds(changed("t"), 20));
    }

    #[test]
    fn a_good_run_starts_the_count_anew_and_an_error_that_lasts_is_logged_now_and_then() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let short = Duration::from_secs(1);
        assert_eq!(failures.count("a", short, false, start), (1, true));
        assert_eq!(failures.count("a", short, false, start + short), (2, false));
        assert_eq!(
            failures.count("b", short, false, start + short),
            (3, true),
            "another one is news"
        );
        assert_eq!(failures.count("b", short, false, start + short + LOG_AGAIN), (4, true));
        assert_eq!(
            failures.count("b", GOOD_RUN, false, start + short + LOG_AGAIN),
            (1, false)
        );
        assert_eq!(failures.count("b", short, false, start + short + LOG_AGAIN), (2, false));
        assert_eq!(
            failures.count("b", short, true, start + short + LOG_AGAIN),
            (1, false),
            "and so does one that has committed changes"
        );
    }
}
