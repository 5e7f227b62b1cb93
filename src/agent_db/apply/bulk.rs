//! New rows by `COPY`, and how long a table is spared it after it has refused one.
//!
//! An insert of the stream, or a row of a first copy, should meet nothing in the Agent DB; where it does (rows were there
//! before, somebody else writes), the whole COPY is refused. The sink then goes back to its savepoint and writes the segment
//! with upserts; so as not to do everything twice for ever, the table goes without COPY for a number of segments that
//! doubles with each refusal.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, Statement};

use super::copy_text;
use crate::change::{Row, TableName};

/// Which tables are not to be written by COPY for now.
#[derive(Debug, Default)]
pub(super) struct Spared {
    tables: HashMap<TableName, Pause>,
    /// A COPY was refused since this was last asked.
    refused: bool,
}

#[derive(Debug)]
struct Pause {
    /// Segments that are still to pass.
    left: u32,
    /// Segments of the next pause.
    next: u32,
}

impl Spared {
    /// One segment in a thousand is written twice at worst, where every COPY is refused.
    const LONGEST: u32 = 1024;

    /// Another segment begins.
    pub(super) fn next_segment(&mut self) {
        for pause in self.tables.values_mut() {
            pause.left = pause.left.saturating_sub(1);
        }
    }

    pub(super) fn contains(&self, table: &TableName) -> bool {
        self.tables.get(table).is_some_and(|pause| pause.left > 0)
    }

    /// The table has refused a COPY: leave it alone for the rest of this segment and for some further ones.
    pub(super) fn refused(&mut self, table: &TableName) {
        self.refused = true;
        let pause = self.tables.entry(table.clone()).or_insert(Pause { left: 0, next: 1 });
        pause.left = pause.next + 1;
        pause.next = (pause.next * 2).min(Self::LONGEST);
    }

    /// A COPY went through.
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

/// Sends the rows; returns how many were written. `started` tells whether the server took the COPY up at all.
///
/// Where it did not, the driver still sends a CopyFail and a second Sync, whose answer would be taken for that of the next
/// request: the connection is then of no more use.
pub(super) async fn copy(
    client: &Client,
    statement: &Statement,
    rows: &[&Row],
    started: &AtomicBool,
) -> Result<u64, tokio_postgres::Error> {
    let mut sink = pin!(client.copy_in::<_, Bytes>(statement).await?);
    started.store(true, Ordering::Relaxed);
    for piece in copy_text::pieces(rows) {
        sink.feed(piece).await?;
    }
    sink.finish().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_refuses_is_spared_twice_as_long_each_time() {
        let (table, other) = (TableName::new("public", "a"), TableName::new("public", "b"));
        let mut spared = Spared::default();
        for expected in [1, 2, 4, 8] {
            assert!(!spared.contains(&table));
            spared.refused(&table);
            assert!(spared.take_refused() && !spared.take_refused());
            assert!(spared.contains(&table) && !spared.contains(&other));
            let segments = (0..).take_while(|_| {
                spared.next_segment();
                spared.contains(&table)
            });
            assert_eq!(segments.count(), expected);
        }
        spared.accepted(&table);
        spared.refused(&table);
        assert_eq!(spared.tables[&table].left, 9);
    }

    #[test]
    fn the_longest_pause_is_bounded() {
        let table = TableName::new("public", "a");
        let mut spared = Spared::default();
        for _ in 0..100 {
            spared.refused(&table);
        }
        assert_eq!(spared.tables[&table].left, Spared::LONGEST + 1);
    }
}
