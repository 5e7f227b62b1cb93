//! Passing over the transactions up to one that has a row which the Site DB can't send as text.
//!
//! The text of a row may be longer than the gigabyte that a message of Postgres can have (a `bytea` is printed at twice its
//! size), and then the stream can't get past the row. In binary form it can. Binary values are not read (promise 7: values
//! pass as text): the changes are counted and passed over, and each of their tables is read again. So only the table with
//! the large row waits, until its copy can read it.

use super::StreamLoop;
use crate::agent_db::PassedOver;
use crate::change::RelationId;
use crate::lsn::Lsn;
use crate::replication::error::SyncError;
use crate::replication::stream::assemble::Event;
use crate::wire::{ServerFault, WireError};

impl StreamLoop {
    /// Counts a change whose row is not read, and has its table read again.
    pub(super) async fn pass_change(&mut self, id: RelationId) -> Result<(), SyncError> {
        let event = self.assembler.passed_over(id)?;
        let is_first = self.passing.as_mut().is_some_and(|passing| passing.meets(id));
        if let Event::PassedOver(relation, PassedOver::Held) = &event {
            // Chunks that are being read lack the change.
            self.windows.table_held(relation.id);
            if is_first {
                let table = relation.table.clone();
                let why = "a transaction with a row that is too large to be sent was passed over";
                self.may_differ(&table, why).await?;
            }
        }
        self.event(event).await
    }

    /// Ends the run once the last transaction that has to be passed over is durable: the next one reads text again.
    pub(super) async fn end_passing(&mut self) -> Result<(), SyncError> {
        let is_over = self
            .passing
            .as_ref()
            .is_some_and(|passing| passing.is_over_at(self.open_lsn));
        if !is_over || self.assembler.open_xid().is_some() {
            return Ok(());
        }
        self.commit_whole().await?;
        self.until_applied().await?;
        Err(SyncError::PassedOver)
    }

    /// Why the connection ended the stream.
    pub(super) fn ended_by(&self, error: WireError) -> SyncError {
        if error.fault() != Some(ServerFault::RowTooLarge) {
            return error.into();
        }
        if self.passing.is_some() {
            return SyncError::NeverSent(error);
        }
        // The server announces a transaction before it sends the first row.
        let commit = match self.assembler.open_xid() {
            Some(_) => self.open_lsn,
            None => Lsn(self.open_lsn.0.saturating_add(1)),
        };
        SyncError::RowTooLarge { commit, source: error }
    }
}
