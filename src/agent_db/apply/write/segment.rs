//! The ways to write a segment, from the fastest to the most exact: all at once, again without COPY, in stream order, in
//! stream order with each piece checked.

use super::in_order::Checks;
use super::writer::Writer;
use crate::agent_db::apply::ledger::Ledger;
use crate::agent_db::apply::segment::Segment;
use crate::agent_db::error::AgentError;
use crate::retry::Disposition;

fn is_row_error(error: &AgentError) -> bool {
    matches!(error, AgentError::Refused { refusal, .. } if refusal.disposition() == Disposition::Row)
}

impl Writer {
    /// Writes a segment's rows, and parks those that are refused (in memory: the caller flushes the parked keys).
    pub(in crate::agent_db::apply) async fn write(&mut self, segment: &Segment) -> Result<Ledger, AgentError> {
        self.parked.begin_segment();
        self.copy_backoff.next_segment();
        if self.must_keep_order(segment).await? {
            return Box::pin(self.replay(segment)).await;
        }
        let error = loop {
            let mut ledger = Ledger::default();
            match Box::pin(self.at_once(segment, &mut ledger)).await {
                Ok(()) => return Ok(ledger),
                // Each refusal excludes one more table from COPY, so this ends.
                Err(error) if is_row_error(&error) && self.copy_backoff.take_refused() => {
                    tracing::debug!(%error, "a COPY was refused; writing the batch with upserts");
                    self.rewind().await?;
                }
                Err(error) if is_row_error(&error) => break error,
                Err(error) => return Err(error),
            }
        };
        tracing::debug!(%error, items = segment.items.len(), "a batch was refused; replaying it in order");
        Box::pin(self.replay(segment)).await
    }

    /// Writes a segment in its order.
    async fn replay(&mut self, segment: &Segment) -> Result<Ledger, AgentError> {
        let mut ledger = Ledger::default();
        match Box::pin(self.in_order(segment, &mut ledger, Checks::Deferred)).await {
            Ok(()) => return Ok(ledger),
            Err(error) if is_row_error(&error) => {}
            Err(error) => return Err(error),
        }
        // A deferred constraint was violated at the segment's end: find the row.
        let mut ledger = Ledger::default();
        Box::pin(self.in_order(segment, &mut ledger, Checks::EachPiece)).await?;
        Ok(ledger)
    }
}
