//! Counts what becomes of each change, by table and operation. The counts reach the metrics after the commit.

use std::collections::BTreeMap;

use strum::VariantArray;

use super::segment::{Applied, PassedOver};
use crate::agent_db::bookkeeping::Tally;
use crate::change::{Change, Operation, Origin, TableName};
use crate::metrics;

/// What a change was, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "lowercase")]
pub(super) enum ChangeKind {
    Insert,
    Update,
    Delete,
    Truncate,
    /// A row that was read from the Site DB.
    Copy,
    /// The change was filtered or passed over before it was decoded this far, so its kind is not known.
    Any,
}

impl ChangeKind {
    /// What a change is.
    pub(super) const fn of(change: &Change) -> Self {
        match (change.origin, &change.operation) {
            (Origin::Chunk, _) => Self::Copy,
            (Origin::Stream, Operation::Insert(_)) => Self::Insert,
            (Origin::Stream, Operation::Update { .. } | Operation::ReplaceOne(_)) => Self::Update,
            (Origin::Stream, Operation::Delete | Operation::DeleteOne(_)) => Self::Delete,
            (Origin::Stream, Operation::Count { .. }) => Self::Any,
        }
    }
}

/// Tallies by table and operation.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    tables: BTreeMap<TableName, [Tally; ChangeKind::VARIANTS.len()]>,
}

impl Ledger {
    /// A table's tally of an operation.
    pub(super) fn of(&mut self, table: &TableName, kind: ChangeKind) -> &mut Tally {
        // Cloning the name is two reference counts.
        &mut self.tables.entry(table.clone()).or_default()[kind as usize]
    }

    /// The tally of a change's table and kind.
    pub(super) fn tally(&mut self, change: &Change) -> &mut Tally {
        self.of(&change.relation.table, ChangeKind::of(change))
    }

    /// Counts a received change. One that was read from the Site DB (a chunk's) is not part of the sum.
    pub(super) fn receive(&mut self, change: &Change) {
        if change.origin == Origin::Stream {
            self.tally(change).received += 1;
        }
    }

    /// Counts received changes that are not applied.
    pub(super) fn pass_over(&mut self, table: &TableName, changes: u64, why: PassedOver) {
        let tally = self.of(table, ChangeKind::Any);
        tally.received += changes;
        match why {
            PassedOver::NotSelected => tally.filtered += changes,
            PassedOver::Held => tally.held += changes,
        }
    }

    /// Adds another ledger's tallies to this one's.
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

    /// A table whose counts do not add up, which would be a bug.
    pub(super) fn unbalanced(&self) -> Option<TableName> {
        self.tables()
            .into_iter()
            .find_map(|(table, tally)| (!tally.balances()).then_some(table))
    }

    /// Adds the counts to the metrics. Call it after the commit.
    pub(super) fn export(&self, applied: &Applied) {
        for (table, tallies) in &self.tables {
            for (kind, tally) in ChangeKind::VARIANTS.iter().zip(tallies) {
                for (result, rows) in [
                    ("applied", tally.applied),
                    ("unchanged", tally.unchanged),
                    ("superseded", tally.superseded),
                    ("filtered", tally.filtered),
                    ("parked", tally.parked),
                    ("held", tally.held),
                    ("copied", tally.copied),
                    ("healed", tally.healed),
                ] {
                    metrics::count_rows(table, kind.into(), result, rows);
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
