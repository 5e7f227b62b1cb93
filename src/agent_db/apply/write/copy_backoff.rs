//! How long a table is written without `COPY` after it has refused one.
//!
//! An insert of the stream, or a row of a first copy, should meet nothing in the Agent DB. If it does (rows were there
//! before, or something else writes), the whole COPY is refused, and the segment is written again with upserts. So that
//! not every segment is written twice, COPY is then not used for a number of segments that doubles with each refusal.

use std::collections::HashMap;

use crate::change::TableName;

/// The tables that are not written by COPY for now.
#[derive(Debug, Default)]
pub(in crate::agent_db::apply) struct CopyBackoff {
    tables: HashMap<TableName, Pause>,
    /// A COPY was refused since [`CopyBackoff::take_refused`].
    refused: bool,
}

#[derive(Debug)]
struct Pause {
    /// Segments until COPY is used again.
    left: u32,
    /// Segments of the next pause.
    next: u32,
}

impl CopyBackoff {
    /// In segments: even if every COPY is refused, only one segment in a thousand is written twice.
    const LONGEST: u32 = 1024;

    /// Another segment begins.
    pub(super) fn next_segment(&mut self) {
        for pause in self.tables.values_mut() {
            pause.left = pause.left.saturating_sub(1);
        }
    }

    /// Whether COPY is not used for the table now.
    pub(super) fn contains(&self, table: &TableName) -> bool {
        self.tables.get(table).is_some_and(|pause| pause.left > 0)
    }

    /// The table has refused a COPY: none is used for the rest of this segment and some more.
    pub(super) fn refused(&mut self, table: &TableName) {
        self.refused = true;
        let pause = self.tables.entry(table.clone()).or_insert(Pause { left: 0, next: 1 });
        pause.left = pause.next + 1;
        pause.next = (pause.next * 2).min(Self::LONGEST);
    }

    /// A COPY succeeded.
    pub(super) fn accepted(&mut self, table: &TableName) {
        if let Some(pause) = self.tables.get_mut(table) {
            pause.next = (pause.next / 2).max(1);
        }
    }

    /// Whether a COPY was refused since this was last asked.
    pub(super) const fn take_refused(&mut self) -> bool {
        std::mem::replace(&mut self.refused, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_refuses_goes_without_copy_twice_as_long_each_time() {
        let (table, other) = (TableName::new("public", "a"), TableName::new("public", "b"));
        let mut backoff = CopyBackoff::default();
        for expected in [1, 2, 4, 8] {
            assert!(!backoff.contains(&table));
            backoff.refused(&table);
            assert!(backoff.take_refused() && !backoff.take_refused());
            assert!(backoff.contains(&table) && !backoff.contains(&other));
            let segments = (0..).take_while(|_| {
                backoff.next_segment();
                backoff.contains(&table)
            });
            assert_eq!(segments.count(), expected);
        }
        backoff.accepted(&table);
        backoff.refused(&table);
        assert_eq!(backoff.tables[&table].left, 9);
    }

    #[test]
    fn the_longest_pause_is_bounded() {
        let table = TableName::new("public", "a");
        let mut backoff = CopyBackoff::default();
        for _ in 0..100 {
            backoff.refused(&table);
        }
        assert_eq!(backoff.tables[&table].left, CopyBackoff::LONGEST + 1);
    }
}
