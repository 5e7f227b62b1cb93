//! The ways to write a segment, from the fastest to the most exact: all at once, again without COPY, in stream order, in
//! stream order with each piece checked.

use super::in_order::Checks;
use super::writer::{LockWait, Writer};
use crate::agent_db::apply::ledger::Ledger;
use crate::agent_db::apply::segment::Segment;
use crate::agent_db::error::AgentError;
use crate::change::TableName;
use crate::postgres::sqlstate::LOCK_NOT_AVAILABLE;

/// How often a segment is begun anew because a table was changed meanwhile. Once for each table would do; who changes tables
/// faster than this waits for the next connection.
const MOST_ANEW: u32 = 5;

/// The table whose statement waited too long for a lock, if that is the error.
fn waited_for_a_lock(error: &AgentError) -> Option<&TableName> {
    match error {
        AgentError::Refused {
            table: Some(table),
            refusal,
            ..
        } if refusal.sqlstate == LOCK_NOT_AVAILABLE => Some(table),
        _ => None,
    }
}

impl Writer {
    /// Writes a segment's rows, and parks those that are refused (in memory: the caller flushes the parked keys). Where a
    /// table turns out to have been changed in the Agent DB, it is looked up again, and the segment begun anew.
    pub(in crate::agent_db::apply) async fn write(&mut self, segment: &Segment) -> Result<Ledger, AgentError> {
        self.locked_rows = None;
        match Box::pin(self.write_anew(segment)).await {
            Err(error) if waited_for_a_lock(&error).is_some() => {
                Box::pin(self.without_locked_rows(segment, error)).await
            }
            other => other,
        }
    }

    /// Writes a segment in which a lock was waited for in vain. A table that is locked is the error's; single rows that are
    /// locked are parked.
    async fn without_locked_rows(&mut self, segment: &Segment, error: AgentError) -> Result<Ledger, AgentError> {
        let Some(table) = waited_for_a_lock(&error).cloned() else {
            return Err(error);
        };
        if self.rewind().await.is_err() || self.is_locked(&table).await? {
            return Err(error);
        }
        // The rows that are found by halving must not wait as long again.
        self.lock_wait = LockWait::Short;
        self.locked_rows = Some(0);
        self.parked.begin_segment();
        let written = Box::pin(self.replay(segment)).await;
        self.locked_rows = None;
        written
    }

    /// Whether somebody holds a lock on the whole table that keeps us from writing.
    async fn is_locked(&mut self, table: &TableName) -> Result<bool, AgentError> {
        self.session.open().await?;
        let lock = format!(
            "SAVEPOINT look; LOCK TABLE {} IN ROW EXCLUSIVE MODE NOWAIT",
            table.quoted()
        );
        let locked = self.session.command(&lock).await.is_err();
        self.session
            .command("ROLLBACK TO SAVEPOINT look; RELEASE SAVEPOINT look")
            .await?;
        Ok(locked)
    }

    async fn write_anew(&mut self, segment: &Segment) -> Result<Ledger, AgentError> {
        self.parked.begin_segment();
        self.late.clear();
        self.copy_backoff.next_segment();
        for _ in 0..MOST_ANEW {
            match Box::pin(self.write_once(segment)).await {
                Err(AgentError::TableChanged { table }) => {
                    tracing::info!(%table, "the table was changed in the Agent DB: looking it up again");
                    self.targets.doubt(&table);
                    self.rewind().await?;
                }
                result => return result,
            }
        }
        match Box::pin(self.write_once(segment)).await {
            Err(AgentError::TableChanged { table }) => Err(AgentError::RowsSwallowed { table }),
            result => result,
        }
    }

    async fn write_once(&mut self, segment: &Segment) -> Result<Ledger, AgentError> {
        if self.must_keep_order(segment).await? {
            return Box::pin(self.replay(segment)).await;
        }
        let error = loop {
            let mut ledger = Ledger::default();
            match Box::pin(self.at_once(segment, &mut ledger)).await {
                Ok(()) => return Ok(ledger),
                // Each refusal excludes one more table from COPY, so this ends.
                Err(error) if error.may_be_of_a_row() && self.copy_backoff.take_refused() => {
                    tracing::debug!(%error, "a COPY was refused; writing the batch with upserts");
                    self.rewind().await?;
                }
                Err(error) if error.may_be_of_a_row() => break error,
                Err(error) => return Err(error),
            }
        };
        if let AgentError::TooSlow {
            table: Some(table),
            rows,
            ..
        } = &error
        {
            self.slow.cancelled(table, *rows);
        }
        tracing::debug!(%error, items = segment.items.len(), "a batch was refused; replaying it in order");
        Box::pin(self.replay(segment)).await
    }

    /// Writes a segment in its order.
    async fn replay(&mut self, segment: &Segment) -> Result<Ledger, AgentError> {
        let mut ledger = Ledger::default();
        match Box::pin(self.in_order(segment, &mut ledger, Checks::Deferred)).await {
            Ok(()) => return Ok(ledger),
            Err(error) if error.may_be_of_a_row() => {}
            Err(error) => return Err(error),
        }
        // A deferred constraint was violated at the segment's end: find the row.
        let mut ledger = Ledger::default();
        Box::pin(self.in_order(segment, &mut ledger, Checks::EachPiece)).await?;
        Ok(ledger)
    }
}
