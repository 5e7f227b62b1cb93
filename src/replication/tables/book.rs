//! Every table's state, and the one place where it changes: takes events in the order of the stream, and says what is to
//! be written to `twinlog.tables`.
//!
//! It goes with the connection that writes the rows (at the start `start`, then `stream::apply_task`), which writes what
//! comes out: a copy's progress is committed with the rows that it speaks of, and a state that was decided after a chunk
//! can't be overtaken by that chunk. Others see the committed states only.

use std::sync::Arc;

use tokio::sync::watch;

use crate::agent_db::{TableChange, TableRecord, TableRecords};
use crate::change::TableName;

use super::life::{TableEvent, TransitionError, next};

/// Every table's state, as the open transaction of the Agent DB has it.
#[derive(Debug)]
pub(in crate::replication) struct TableBook {
    records: TableRecords,
    /// Something was taken since the last publication.
    changed: bool,
    committed: watch::Sender<Arc<TableRecords>>,
}

impl TableBook {
    /// The book as it is stored.
    pub(in crate::replication) fn new(stored: Vec<TableRecord>) -> Self {
        let records: TableRecords = stored
            .into_iter()
            .map(|record| (record.table.clone(), record))
            .collect();
        let (committed, _) = watch::channel(Arc::new(records.clone()));
        Self {
            records,
            changed: false,
            committed,
        }
    }

    /// The tables' states, with what is not committed yet.
    pub(in crate::replication) const fn records(&self) -> &TableRecords {
        &self.records
    }

    /// The committed states, and word of each change.
    pub(in crate::replication) fn committed(&self) -> watch::Receiver<Arc<TableRecords>> {
        self.committed.subscribe()
    }

    /// Whether rows that only a copy brings are still missing.
    pub(in crate::replication) fn is_first_copy(&self, table: &TableName) -> bool {
        self.records
            .get(table)
            .is_some_and(|record| record.state.is_first_copy())
    }

    /// Takes an event. What it returns has to be written: for a merged chunk in the transaction that holds its rows.
    /// `None` where the event changes nothing.
    ///
    /// # Errors
    /// The table's state does not take it: nothing changes, and nothing is to be written.
    pub(in crate::replication) fn take(
        &mut self,
        table: &TableName,
        event: TableEvent,
    ) -> Result<Option<TableChange>, TransitionError> {
        let before = self.records.get(table);
        let after = next(table, before, event)?;
        if before == after.as_ref() {
            return Ok(None);
        }
        self.changed = true;
        Ok(Some(match after {
            Some(record) => {
                self.records.insert(table.clone(), record.clone());
                TableChange::Saved(record)
            }
            None => {
                self.records.remove(table);
                TableChange::Forgotten(table.clone())
            }
        }))
    }

    /// Shows the states to others. Call it when what was taken is committed.
    pub(in crate::replication) fn publish(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.committed.send_replace(Arc::new(self.records.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn others_see_a_state_when_it_is_committed_and_not_before() {
        let table = TableName::new("public", "t");
        let mut book = TableBook::new(Vec::new());
        let seen = book.committed();
        book.take(&table, TableEvent::SeenFirst).unwrap();
        assert!(book.is_first_copy(&table));
        assert!(seen.borrow().is_empty());
        book.publish();
        assert_eq!(seen.borrow().len(), 1);
        let chunk = TableEvent::ChunkDone {
            rows: 1,
            last_key: None,
        };
        book.take(&table, chunk).unwrap_err();
        book.publish();
        assert_eq!(
            seen.borrow().get(&table),
            book.records().get(&table),
            "a refused event changes nothing"
        );
        let started = TableEvent::CopyStarted {
            at: OffsetDateTime::UNIX_EPOCH,
            estimated: None,
        };
        book.take(&table, started).unwrap();
        book.take(&table, TableEvent::LeftPublication).unwrap();
        book.publish();
        assert!(seen.borrow().is_empty());
    }
}
