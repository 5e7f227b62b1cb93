//! Requests of the copies, the healing and the catalog watch to the stream's loop.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::agent_db::AgentError;
use crate::change::{Relation, Shape, TableDescription, TableName};
use crate::copy::CopyError;
use crate::replication::error::SyncError;
use crate::replication::tables::life::{TableEvent, TransitionError};
use crate::source::SourceTable;

use super::comparing::ComparedChunk;

/// Capacity of the channel. A few tasks send requests, and each waits for its answer before it sends another.
const CAPACITY: usize = 16;

/// A request, with the sender for its answer.
#[derive(Debug)]
pub(in crate::replication) enum StreamRequest {
    /// Look up how a table's rows are written in the Agent DB.
    Resolve(TableDescription, oneshot::Sender<Result<Arc<Relation>, AgentError>>),
    /// The reason why the table was held is gone: look it up again, and go on with it.
    Release(Box<SourceTable>, oneshot::Sender<Result<(), AgentError>>),
    /// Store a fact in the Agent DB. The loop only passes it on to the apply task.
    Store(StoreRequest),
}

/// A fact to store in the Agent DB, between what the stream sent before and after. Answered once it is committed.
#[derive(Debug)]
pub(in crate::replication) enum StoreRequest {
    /// Something happened to a table.
    Table(TableName, TableEvent, oneshot::Sender<Result<(), TransitionError>>),
    /// Store the present shape of a table.
    Shape(TableName, Shape, oneshot::Sender<()>),
    /// Remove the stored gap and end this command, the full resync after which no row is missing.
    ClearGap(i64, oneshot::Sender<bool>),
    /// A table was changed in the Agent DB: look it up again.
    AgentChanged(TableName, oneshot::Sender<()>),
    /// Stores nothing, but has the same place: compare what a table should hold here with what it holds.
    Compare(ComparedChunk),
}

/// The sending end of the channel. Every call fails with [`CopyError::StreamEnded`] once the stream has ended.
#[derive(Debug, Clone)]
pub(in crate::replication) struct StreamRequests(mpsc::Sender<StreamRequest>);

impl StreamRequests {
    /// Creates both ends of the channel.
    pub(in crate::replication) fn channel() -> (Self, mpsc::Receiver<StreamRequest>) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        (Self(sender), receiver)
    }

    /// Looks up how a table's rows are written in the Agent DB, after everything that the stream has sent so far.
    pub(in crate::replication) async fn resolve(&self, table: TableDescription) -> Result<Arc<Relation>, SyncError> {
        Ok(self.ask(|reply| StreamRequest::Resolve(table, reply)).await??)
    }

    /// Sends an event of a table. Returns once the table's new state is committed.
    ///
    /// # Errors
    /// The inner error: the table's state does not accept the event.
    pub(in crate::replication) async fn table(
        &self,
        table: &TableName,
        event: TableEvent,
    ) -> Result<Result<(), TransitionError>, SyncError> {
        self.ask(|reply| StreamRequest::Store(StoreRequest::Table(table.clone(), event, reply)))
            .await
    }

    /// Stores the present shape of a table. Returns once that is committed.
    pub(in crate::replication) async fn shape(&self, table: &TableName, shape: Shape) -> Result<(), SyncError> {
        self.ask(|reply| StreamRequest::Store(StoreRequest::Shape(table.clone(), shape, reply)))
            .await
    }

    /// Releases a held table.
    ///
    /// # Errors
    /// The inner error: it has to stay held, for this reason.
    pub(in crate::replication) async fn release(
        &self,
        table: SourceTable,
    ) -> Result<Result<(), AgentError>, SyncError> {
        self.ask(|reply| StreamRequest::Release(Box::new(table), reply)).await
    }

    /// Removes the stored gap and ends the full resync, if the Agent DB itself says that every table is read. Returns once
    /// that is committed, and whether it was so.
    pub(in crate::replication) async fn clear_gap(&self, command: i64) -> Result<bool, SyncError> {
        self.ask(|reply| StreamRequest::Store(StoreRequest::ClearGap(command, reply)))
            .await
    }

    /// Has a table looked up again before it is written the next time.
    pub(in crate::replication) async fn agent_changed(&self, table: &TableName) -> Result<(), SyncError> {
        self.ask(|reply| StreamRequest::Store(StoreRequest::AgentChanged(table.clone(), reply)))
            .await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> StreamRequest) -> Result<T, SyncError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.map_err(|_| CopyError::StreamEnded)?;
        Ok(answer.await.map_err(|_| CopyError::StreamEnded)?)
    }
}
