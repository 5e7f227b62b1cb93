//! The comparison of a chunk with what the Agent DB holds, at its place between two batches.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::agent_db::{TableMode, Transaction};
use crate::change::{Change, Relation};
use crate::copy::{ChunkOutcome, ChunkResult, InvalidChunk};
use crate::replication::tables::book::TableBook;

/// A chunk that is compared.
#[derive(Debug)]
pub(in crate::replication) struct ComparedChunk {
    /// Its table.
    pub(in crate::replication) relation: Arc<Relation>,
    /// What the Agent DB should hold.
    pub(in crate::replication) expected: Vec<Change>,
    /// The reader, which waits for the result.
    pub(in crate::replication) reader: oneshot::Sender<ChunkOutcome>,
}

impl ComparedChunk {
    /// Compares it and tells the reader, also what goes wrong: if the connection is lost, the next order meets that too. `tables`:
    /// how each table's changes are treated now.
    pub(super) async fn compare(self, transaction: &mut Transaction, tables: &TableBook) {
        let outcome = if tables.mode(&self.relation.table) == TableMode::Complete {
            let compared = Box::pin(transaction.compare(&self.relation, &self.expected)).await;
            Ok(ChunkResult::Compared(compared))
        } else {
            // Its changes are passed over, or its rows are not all there yet.
            Err(InvalidChunk::TableHeld)
        };
        // A reader that no longer waits has been stopped.
        let _ = self.reader.send(outcome);
    }
}
