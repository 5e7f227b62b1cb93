//! Every table's state, and the one place where it changes: it applies events in the order of the stream, and returns
//! what has to be written to `twinlog.tables`.
//!
//! The owner of the connection that writes rows also owns the book, and writes what it returns: first `start`, then
//! `stream::apply_task`. So a copy's progress is committed together with its rows, and a state that was decided after a
//! chunk is never overwritten by that chunk. Other tasks see only committed states.

use std::sync::Arc;

use tokio::sync::watch;

use crate::agent_db::{TableChange, TableMode, TableRecord, TableRecords};
use crate::change::TableName;

use super::life::{TableEvent, TransitionError, next};

/// Every table's state, including what the open transaction of the Agent DB has not committed yet.
#[derive(Debug)]
pub(in crate::replication) struct TableBook {
    records: TableRecords,
    /// A state has changed since the last [`publish`](Self::publish).
    changed: bool,
    committed: watch::Sender<Arc<TableRecords>>,
}

impl TableBook {
    /// Starts with the stored rows of `twinlog.tables`.
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

    /// The tables' states, including uncommitted changes.
    pub(in crate::replication) const fn records(&self) -> &TableRecords {
        &self.records
    }

    /// A receiver of the committed states, notified at each change.
    pub(in crate::replication) fn committed(&self) -> watch::Receiver<Arc<TableRecords>> {
        self.committed.subscribe()
    }

    /// How a table's changes are treated.
    pub(in crate::replication) fn mode(&self, table: &TableName) -> TableMode {
        self.records.get(table).map_or(TableMode::Complete, TableRecord::mode)
    }

    /// Applies an event. The caller must write the returned change; for a merged chunk, in the transaction that holds
    /// the chunk's rows. `None` if the event changes nothing.
    ///
    /// # Errors
    /// The table's state does not accept the event: nothing changes, and nothing has to be written.
    pub(in crate::replication) fn apply(
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

    /// Shows the states to other tasks. Call it once the changes are committed.
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
    use crate::copy::CopyStep;
    use crate::lsn::Lsn;

    #[test]
    fn others_see_a_state_when_it_is_committed_and_not_before() {
        let table = TableName::new("public", "t");
        let mut book = TableBook::new(Vec::new());
        let seen = book.committed();
        book.apply(&table, TableEvent::SeenFirst).unwrap();
        assert_eq!(book.mode(&table), TableMode::LacksRows);
        assert!(seen.borrow().is_empty());
        book.publish();
        assert_eq!(seen.borrow().len(), 1);
        let chunk = TableEvent::ChunkMerged {
            step: CopyStep::Chunk {
                rows: 1,
                last_key: None,
            },
            at: OffsetDateTime::UNIX_EPOCH,
            lsn: Lsn(1),
        };
        book.apply(&table, chunk).unwrap_err();
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
        book.apply(&table, started).unwrap();
        book.apply(&table, TableEvent::LeftPublication).unwrap();
        book.publish();
        assert!(seen.borrow().is_empty());
    }
}
