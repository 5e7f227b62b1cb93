//! What the copies and the healing ask of the stream, and their end of it.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::agent_db::AgentError;
use crate::change::{Relation, TableDescription, TableName};
use crate::copy::CopyError;
use crate::replication::error::SyncError;
use crate::replication::tables::life::{TableEvent, TransitionError};

/// Requests that wait for the stream's loop: its askers are few, and wait for each answer.
const WAITING: usize = 16;

/// What is asked.
#[derive(Debug)]
pub(in crate::replication) enum StreamRequest {
    /// How a table's rows look in the Agent DB.
    Describe(TableDescription, oneshot::Sender<Result<Arc<Relation>, AgentError>>),
    /// Something happened to a table.
    Table(TableName, TableEvent, oneshot::Sender<Result<(), TransitionError>>),
    /// A full resync has shown that nothing is missing.
    ClearGap(oneshot::Sender<()>),
}

/// The askers' end. Every call fails with [`CopyError::StreamEnded`] once the stream does.
#[derive(Debug, Clone)]
pub(in crate::replication) struct StreamRequests(mpsc::Sender<StreamRequest>);

impl StreamRequests {
    /// Both ends.
    pub(in crate::replication) fn channel() -> (Self, mpsc::Receiver<StreamRequest>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// How a table's rows look in the Agent DB, after everything that the stream brought before.
    pub(in crate::replication) async fn describe(&self, table: TableDescription) -> Result<Arc<Relation>, SyncError> {
        Ok(self.ask(|reply| StreamRequest::Describe(table, reply)).await??)
    }

    /// Something happened to a table. Returns once the state that follows is committed.
    ///
    /// # Errors
    /// The inner one: the table's state does not take the event.
    pub(in crate::replication) async fn table(
        &self,
        table: &TableName,
        event: TableEvent,
    ) -> Result<Result<(), TransitionError>, SyncError> {
        self.ask(|reply| StreamRequest::Table(table.clone(), event, reply))
            .await
    }

    /// A full resync has shown that nothing is missing. Returns once that is committed.
    pub(in crate::replication) async fn clear_gap(&self) -> Result<(), SyncError> {
        self.ask(StreamRequest::ClearGap).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> StreamRequest) -> Result<T, SyncError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.map_err(|_| CopyError::StreamEnded)?;
        Ok(answer.await.map_err(|_| CopyError::StreamEnded)?)
    }
}
