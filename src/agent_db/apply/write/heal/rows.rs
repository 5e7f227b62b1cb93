//! Rows that are healed together, and why one was refused: pure.

use std::sync::Arc;

use crate::agent_db::bookkeeping::failed_rows::reason::ParkReason;
use crate::agent_db::catalog::ForeignKeys;
use crate::change::{Change, Key, Operation, Relation, Row};
use crate::postgres::Refusal;

/// Why some rows were refused.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) reason: ParkReason,
    pub(super) cause: Cause,
}

/// Whose fault a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Another row is not there, or still there: a foreign key.
    Reference,
    /// Another row has the value: a unique or an exclusion constraint.
    Value,
    /// The row's own: it would be refused without any other row.
    Own,
}

impl Refused {
    pub(super) fn by(refusal: &Refusal) -> Self {
        Self {
            reason: ParkReason::from(refusal),
            cause: match refusal.sqlstate.as_str() {
                "23503" | "23001" => Cause::Reference,
                "23505" | "23P01" => Cause::Value,
                _ => Cause::Own,
            },
        }
    }

    pub(super) fn too_slow(seconds: u64) -> Self {
        Self {
            reason: ParkReason::too_slow(seconds),
            cause: Cause::Own,
        }
    }

    pub(super) const fn by_reference(reason: ParkReason) -> Self {
        Self {
            reason,
            cause: Cause::Reference,
        }
    }

    pub(super) fn is_own(&self) -> bool {
        self.cause == Cause::Own
    }
}

/// One table's rows.
pub(super) struct RowsOfTable<'e> {
    pub(super) relation: &'e Arc<Relation>,
    /// Keys whose rows are gone.
    pub(super) deletes: Vec<&'e Change>,
    /// Rows to be written.
    pub(super) upserts: Vec<&'e Change>,
}

impl<'e> RowsOfTable<'e> {
    /// All keys.
    pub(super) fn keys(&self) -> Vec<&'e Key> {
        self.deletes
            .iter()
            .chain(&self.upserts)
            .map(|change| &change.key)
            .collect()
    }
}

/// The rows by table, in the order of their first rows.
pub(super) fn by_table<'e>(rows: &[&'e Change]) -> Vec<RowsOfTable<'e>> {
    let mut tables: Vec<RowsOfTable<'e>> = Vec::new();
    for &row in rows {
        let position = tables
            .iter()
            .position(|table| Arc::ptr_eq(table.relation, &row.relation) || *table.relation == row.relation)
            .unwrap_or_else(|| {
                tables.push(RowsOfTable {
                    relation: &row.relation,
                    deletes: Vec::new(),
                    upserts: Vec::new(),
                });
                tables.len() - 1
            });
        match row.operation {
            Operation::Insert(_) | Operation::Update { .. } => tables[position].upserts.push(row),
            // The last three are of tables whose rows are counted, and are not read together.
            Operation::Delete | Operation::DeleteOne(_) | Operation::Count { .. } | Operation::ReplaceOne(_) => {
                tables[position].deletes.push(row);
            }
        }
    }
    tables
}

/// The image of a row that is to be written.
pub(super) const fn image(change: &Change) -> Option<&Row> {
    match &change.operation {
        Operation::Insert(row) | Operation::Update { row, .. } => Some(row),
        Operation::Delete | Operation::DeleteOne(_) | Operation::Count { .. } | Operation::ReplaceOne(_) => None,
    }
}

/// Parents before their children.
pub(super) fn by_depth(rows: &mut [&Change], foreign_keys: &ForeignKeys) {
    rows.sort_by_cached_key(|row| foreign_keys.depth(&row.relation.table));
}
