//! What is said about parked rows: one line for each cause and kind of event, not more often than every few seconds, and
//! counters. With what the rows have in common, never with their keys or values.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::agent_db::bookkeeping::failed_rows::Fingerprint;
use crate::metrics;

/// Shortest time between two lines about one cause.
const INTERVAL: Duration = Duration::from_secs(10);

/// Causes that are remembered. Each is a constraint or a type of error of one table.
const MOST_CAUSES: usize = 1000;

/// What happened to parked rows, by cause.
#[derive(Debug, Default)]
pub(super) struct ParkingCounts(BTreeMap<Arc<Fingerprint>, Counts>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Keys that were parked.
    pub parked: u64,
    /// Changes of keys that were parked before.
    pub folded: u64,
    /// Keys whose rows are right again.
    pub healed: u64,
    /// Attempts to heal that were refused.
    pub refused: u64,
}

impl Counts {
    const fn add(&mut self, other: Self) {
        self.parked += other.parked;
        self.folded += other.folded;
        self.healed += other.healed;
        self.refused += other.refused;
    }
}

impl ParkingCounts {
    /// The counts of a cause.
    pub(super) fn of(&mut self, fingerprint: &Arc<Fingerprint>) -> &mut Counts {
        self.0.entry(Arc::clone(fingerprint)).or_default()
    }

    pub(super) fn add(&mut self, other: Self) {
        for (fingerprint, counts) in other.0 {
            self.0.entry(fingerprint).or_default().add(counts);
        }
    }

    /// Over all causes.
    pub(super) fn total(&self) -> Counts {
        let mut total = Counts::default();
        for counts in self.0.values() {
            total.add(*counts);
        }
        total
    }

    fn export(&self) {
        for (fingerprint, counts) in &self.0 {
            for (event, rows) in [
                ("parked", counts.parked),
                ("folded", counts.folded),
                ("healed", counts.healed),
                ("refused", counts.refused),
            ] {
                metrics::count_failed_row_events(&fingerprint.table, event, &fingerprint.sqlstate, rows);
            }
        }
    }
}

/// What was not said yet.
#[derive(Debug, Default)]
pub(super) struct ParkingLog {
    causes: BTreeMap<Arc<Fingerprint>, Cause>,
}

#[derive(Debug, Default)]
struct Cause {
    counts: Counts,
    /// When something was said about it last.
    said: Option<Instant>,
}

impl ParkingLog {
    /// To be called after a commit with what it has changed: counts it, and says what is due to be said.
    pub(super) fn committed(&mut self, counts: ParkingCounts, now: Instant) {
        counts.export();
        for (fingerprint, counts) in self.due(counts, now) {
            say(&fingerprint, counts);
        }
    }

    fn due(&mut self, counts: ParkingCounts, now: Instant) -> Vec<(Arc<Fingerprint>, Counts)> {
        for (fingerprint, counts) in counts.0 {
            self.causes.entry(fingerprint).or_default().counts.add(counts);
        }
        let mut due = Vec::new();
        for (fingerprint, cause) in &mut self.causes {
            let is_due = cause.said.is_none_or(|said| now.duration_since(said) >= INTERVAL);
            if is_due && cause.counts != Counts::default() {
                due.push((Arc::clone(fingerprint), std::mem::take(&mut cause.counts)));
                cause.said = Some(now);
            }
        }
        if self.causes.len() > MOST_CAUSES {
            self.causes.retain(|_, cause| cause.counts != Counts::default());
        }
        due
    }
}

fn say(fingerprint: &Fingerprint, counts: Counts) {
    let Fingerprint { table, sqlstate, .. } = fingerprint;
    let constraint = fingerprint.constraint.as_deref().unwrap_or_default();
    if counts.parked > 0 {
        let rows = counts.parked;
        warn!(%table, %sqlstate, constraint, rows, "the Agent DB refused rows: they are parked and tried again; why: twinlog failed list {table}");
    }
    if counts.folded > 0 {
        let changes = counts.folded;
        info!(%table, %sqlstate, constraint, changes, "changes of parked rows are kept with them");
    }
    if counts.healed > 0 {
        let rows = counts.healed;
        info!(%table, %sqlstate, constraint, rows, "parked rows are healed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::TableName;

    #[test]
    fn a_cause_is_spoken_of_once_in_a_while_and_nothing_is_left_out() {
        let fingerprint = Arc::new(Fingerprint::new(
            &TableName::new("public", "t"),
            "23503",
            Some("t_fkey"),
        ));
        let parked = |rows| {
            let mut counts = ParkingCounts::default();
            counts.of(&fingerprint).parked = rows;
            counts
        };
        let mut log = ParkingLog::default();
        let start = Instant::now();
        let mut said = |counts, after| -> Vec<u64> {
            let due = log.due(counts, start + after);
            due.iter().map(|(_, counts)| counts.parked).collect()
        };
        assert_eq!(said(parked(1), Duration::ZERO), [1]);
        assert_eq!(said(parked(2), Duration::from_secs(1)), Vec::<u64>::new());
        assert_eq!(said(parked(3), Duration::from_secs(2)), Vec::<u64>::new());
        assert_eq!(said(ParkingCounts::default(), INTERVAL), [5]);
        assert_eq!(said(ParkingCounts::default(), 2 * INTERVAL), Vec::<u64>::new());
        assert_eq!(fingerprint.to_string(), "23503 t_fkey public.t");
    }
}
