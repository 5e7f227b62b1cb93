//! Tables whose statements take too long: how many of their rows are written by one statement.
//!
//! A statement that was cancelled is tried again in pieces of a sixteenth of its rows, then of a sixteenth of these, so a table
//! whose rows are merely slow is written in pieces that end in time. One row that does not end in time holds its table.

use std::collections::HashMap;
use std::time::Duration;

use crate::agent_db::apply::plan::Group;
use crate::change::{Change, TableName};

/// Into how many pieces a statement is divided that took too long.
const PIECES: usize = 16;

/// A table that takes this many rows at a time is slow no more.
const ENOUGH: usize = 4096;

/// What is known of slow tables. Lives as long as the session.
#[derive(Debug, Default)]
pub(in crate::agent_db::apply) struct SlowTables {
    /// Rows of one statement at most.
    rows: HashMap<TableName, usize>,
    /// The row that took too long in this segment, by itself.
    pub row: Option<Change>,
}

impl SlowTables {
    /// Whether a table has to be written in pieces.
    pub(super) fn contains(&self, table: &TableName) -> bool {
        !self.rows.is_empty() && self.rows.contains_key(table)
    }

    /// Whether there is any.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A statement with `rows` rows took too long.
    pub(super) fn cancelled(&mut self, table: &TableName, rows: usize) {
        let limit = self.rows.entry(table.clone()).or_insert(usize::MAX);
        *limit = (*limit).min((rows / PIECES).max(1));
    }

    /// A statement with `rows` rows has ended in time: if it was quick, the next may have twice as many.
    pub(super) fn written(&mut self, table: &TableName, rows: usize, took: Duration, limit: Duration) {
        if self.rows.is_empty() {
            return;
        }
        let Some(most) = self.rows.get_mut(table) else { return };
        if rows < *most || took > limit / 8 {
            return;
        }
        *most *= 2;
        if *most >= ENOUGH {
            self.rows.remove(table);
        }
    }

    /// Divides a group into pieces of as many rows as its table can take; the last one first.
    pub(super) fn pieces<'e>(&self, group: Group<'e>) -> Vec<Group<'e>> {
        let most = self.rows.get(&group.relation.table).copied().unwrap_or(usize::MAX);
        let mut pieces = Vec::new();
        let mut rest = group;
        while rest.rows.len() > most {
            let last = match rest.rows.len() % most {
                0 => most,
                last => last,
            };
            let at = rest.rows.len() - last;
            let (before, piece) = rest.split_at(at);
            pieces.push(piece);
            rest = before;
        }
        pieces.push(rest);
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_table_is_written_in_smaller_pieces_until_it_is_quick_again() {
        let (table, limit) = (TableName::new("public", "a"), Duration::from_secs(8));
        let mut slow = SlowTables::default();
        slow.cancelled(&table, 1000);
        assert_eq!(slow.rows[&table], 62);
        slow.cancelled(&table, 62);
        assert_eq!(slow.rows[&table], 3);
        slow.cancelled(&table, 3);
        slow.written(&table, 1, Duration::from_secs(2), limit);
        assert_eq!(slow.rows[&table], 1);
        for rows in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] {
            assert!(slow.contains(&table));
            slow.written(&table, rows, Duration::ZERO, limit);
        }
        slow.written(&table, 2048, Duration::ZERO, limit);
        assert!(slow.is_empty());
    }
}
