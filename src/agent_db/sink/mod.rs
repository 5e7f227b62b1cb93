//! The one connection that writes.

use std::sync::Arc;
use std::time::Duration;

use super::checkpoint::{Checkpoint, StoredCheckpoint};
use super::error::AgentError;
use super::rights::Rights;
use super::segment::{Applied, Committed, Segment, TableDescription};
use crate::change::{Relation, TableName};
use crate::config::DatabaseUrl;

/// What the sink must be told.
#[derive(Debug, Clone)]
pub struct SinkSettings {
    /// The session's `application_name`, by which a second daemon names the first one.
    pub application_name: String,
    /// Parked rows in one table beyond which the table is at fault.
    pub max_failed_rows: usize,
    /// First wait before a parked row is tried again.
    pub retry_initial: Duration,
    /// Longest wait.
    pub retry_max: Duration,
}

/// The one connection that writes rows, failed rows, accounting and checkpoint.
#[derive(Debug)]
pub struct Sink;

#[expect(clippy::unused_async, reason = "signatures first")]
impl Sink {
    /// Opens the session and takes the slot's lock.
    ///
    /// # Errors
    /// [`AgentError::Busy`] while another daemon has the lock; otherwise the connection's.
    pub async fn connect(_url: &DatabaseUrl, _slot: &str, _settings: SinkSettings) -> Result<Self, AgentError> {
        Err(AgentError::Internal("follows".into()))
    }
    /// What the role may do.
    #[must_use]
    pub fn rights(&self) -> &Rights {
        unreachable!()
    }
    /// The checkpoint, made durable before it is returned (pitfall P43); `None` before the first.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn durable_checkpoint(&mut self) -> Result<Option<StoredCheckpoint>, AgentError> {
        Err(AgentError::Internal("follows".into()))
    }
    /// Writes the slot's first checkpoint, or replaces it after a gap was accepted.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn initialise_checkpoint(&mut self, _checkpoint: &Checkpoint) -> Result<(), AgentError> {
        Err(AgentError::Internal("follows".into()))
    }
    /// Remembers that rows may be missing. The first reason stays.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn set_gap(&mut self, _reason: &str) -> Result<(), AgentError> {
        Err(AgentError::Internal("follows".into()))
    }
    /// A full resync has shown that nothing is missing.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn clear_gap(&mut self) -> Result<(), AgentError> {
        Err(AgentError::Internal("follows".into()))
    }
    /// Matches a table of the stream with the Agent DB's.
    ///
    /// # Errors
    /// What is wrong with the table, with the statement to paste as hint.
    pub async fn resolve(&mut self, _description: &TableDescription) -> Result<Arc<Relation>, AgentError> {
        Err(AgentError::Internal("follows".into()))
    }
    /// Whether the table's first copy is reading rows: a partial update whose row is missing is then superseded by the
    /// chunk that will bring the row, not parked.
    pub fn set_copying(&mut self, _table: &TableName, _copying: bool) {}
    /// Reads the parked keys again, after somebody else changed `twinlog.failed_rows`.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn reload_parked(&mut self) -> Result<(), AgentError> {
        Err(AgentError::Internal("follows".into()))
    }
    /// Applies a segment inside of the open transaction, which is begun where there is none.
    ///
    /// # Errors
    /// Transient and systemic ones only: the transaction must then be rolled back, nothing is lost.
    pub async fn apply(&mut self, _segment: Segment) -> Result<Applied, AgentError> {
        Err(AgentError::Internal("follows".into()))
    }
    /// Commits everything applied since the last commit together with the checkpoint; durable when it returns.
    ///
    /// # Errors
    /// [`AgentError::CommitUnknown`] and connection errors leave the outcome open: reconnect and read the checkpoint.
    pub async fn commit(&mut self, _checkpoint: Checkpoint) -> Result<Committed, AgentError> {
        Err(AgentError::Internal("follows".into()))
    }
    /// Takes everything back that was applied since the last commit.
    ///
    /// # Errors
    /// The connection's.
    pub async fn rollback(&mut self) -> Result<(), AgentError> {
        Err(AgentError::Internal("follows".into()))
    }
}
