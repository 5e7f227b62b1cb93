//! Holding one table and releasing it, at a place of the stream.
//!
//! What is received before that place and not applied yet counts as received while the table was held: it is passed over,
//! and read again after the release. So neither has to wait for a commit.

use tokio::sync::oneshot;

use crate::agent_db::AgentError;
use crate::change::{Hold, TableName};
use crate::replication::error::SyncError;
use crate::replication::stream::requests::StoreRequest;
use crate::replication::tables::life::TableEvent;
use crate::source::SourceTable;

use super::StreamLoop;

impl StreamLoop {
    /// Holds a table.
    pub(super) async fn hold(&mut self, table: &TableName, hold: Hold) -> Result<(), SyncError> {
        // Every state accepts this event, so nobody waits for the answer.
        let (reply, _) = oneshot::channel();
        self.store(StoreRequest::Table(table.clone(), TableEvent::Held(hold), reply))
            .await
    }

    /// Releases a table, if it can be looked up in the Agent DB.
    pub(super) async fn release(&mut self, table: &SourceTable) -> Result<Result<(), AgentError>, SyncError> {
        // Chunks that were merged while it was held lack the changes that were passed over.
        self.commit_whole().await?;
        self.apply_open().await?;
        self.windows.table_held(table.id);
        if let Some(message) = self.assembler.held_message(table.id) {
            match self.resolve(self.description(&message, table.table.clone())).await? {
                Ok(resolved) => {
                    let relation = self.canonical(message.id, resolved).await?;
                    self.assembler.resolved(message, relation);
                }
                // The stream described the table before its columns became what they are now, and describes it again only
                // with its next change. A new run has forgotten that description.
                Err(error) if error.table_fault().is_some() && !self.columns.are_those_of(&message) => {
                    return Err(SyncError::TableChanged(table.table.clone()));
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        let (reply, _) = oneshot::channel();
        self.store(StoreRequest::Table(table.table.clone(), TableEvent::Released, reply))
            .await?;
        let (reply, _) = oneshot::channel();
        self.store(StoreRequest::Shape(table.table.clone(), table.shape(), reply))
            .await?;
        Ok(Ok(()))
    }

    pub(super) async fn store(&mut self, request: StoreRequest) -> Result<(), SyncError> {
        let sent = self.apply.store(request).await;
        self.check_sent(sent).await
    }
}
