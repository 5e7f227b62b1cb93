//! Counting what becomes of each change, by table and operation, until it is committed and may be told.

use std::collections::BTreeMap;

use super::segment::Applied;
use crate::agent_db::bookkeeping::Tally;
use crate::change::{Change, Operation, Origin, TableName};
use crate::metrics;

/// What a change was, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Insert,
    Update,
    Delete,
    Truncate,
    /// A chunk's row.
    Copy,
    /// Counted before the sink saw it.
    Any,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Insert,
        Self::Update,
        Self::Delete,
        Self::Truncate,
        Self::Copy,
        Self::Any,
    ];

    pub(super) const fn of(change: &Change) -> Self {
        match (change.origin, &change.operation) {
            (Origin::Chunk, _) => Self::Copy,
            (Origin::Stream, Operation::Insert(_)) => Self::Insert,
            (Origin::Stream, Operation::Update { .. }) => Self::Update,
            (Origin::Stream, Operation::Delete) => Self::Delete,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Copy => "copy",
            Self::Any => "any",
        }
    }
}

/// Tallies by table and operation.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    tables: BTreeMap<TableName, [Tally; Kind::ALL.len()]>,
}

impl Ledger {
    /// A table's tally of an operation.
    pub(super) fn of(&mut self, table: &TableName, kind: Kind) -> &mut Tally {
        // Cloning the name is two reference counts.
        &mut self.tables.entry(table.clone()).or_default()[kind as usize]
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (table, tallies) in &other.tables {
            let ours = self.tables.entry(table.clone()).or_default();
            for (ours, theirs) in ours.iter_mut().zip(tallies) {
                ours.add(theirs);
            }
        }
    }

    /// The sums over the operations.
    pub(super) fn tables(&self) -> BTreeMap<TableName, Tally> {
        self.tables
            .iter()
            .map(|(table, tallies)| {
                let mut sum = Tally::default();
                for tally in tallies {
                    sum.add(tally);
                }
                (table.clone(), sum)
            })
            .collect()
    }

    /// The table whose sum does not come out, which would be a bug.
    pub(super) fn unbalanced(&self) -> Option<TableName> {
        self.tables()
            .into_iter()
            .find_map(|(table, tally)| (!tally.balances()).then_some(table))
    }

    /// Tells the metrics, once it is committed.
    pub(super) fn export(&self, applied: &Applied) {
        for (table, tallies) in &self.tables {
            for (kind, tally) in Kind::ALL.iter().zip(tallies) {
                for (result, rows) in [
                    ("applied", tally.applied),
                    ("unchanged", tally.unchanged),
                    ("superseded", tally.superseded),
                    ("filtered", tally.filtered),
                    ("parked", tally.parked),
                    ("copied", tally.copied),
                    ("healed", tally.healed),
                ] {
                    metrics::count_rows(table, kind.as_str(), result, rows);
                }
            }
        }
        for (table, &rows) in &applied.parked_now {
            metrics::set_failed_rows(table, rows);
        }
        let healed: u64 = applied.tables.values().map(|tally| tally.healed).sum();
        if healed > 0 {
            metrics::count_retries("healed", healed);
        }
    }
}
