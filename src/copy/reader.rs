//! A table's copy: chunk after chunk through the rows of the Site DB, then through the keys that only the Agent DB has.
//!
//! The Agent DB's table is never truncated and stays readable. Each chunk takes effect in the stream's order (see
//! [`super::window`]), and its progress is committed with it, so a copy resumes where it stopped. The transaction of
//! the last chunk also marks the table as copied.
//!
//! Rows that only the Agent DB has are found by [`super::compare`]. Such a key is read in the Site DB once more, between
//! fences, and only then deleted.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use super::chunk::{Chunk, Delivery, InvalidChunk, Purpose, RequestedKeys};
use super::compare;
use super::error::CopyError;
use super::registry::ChunkRegistry;
use super::step::{CopyPlace, CopyStep};
use crate::agent_db::{AgentKeys, CopyPhase};
use crate::change::{Key, Relation};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::postgres::Client;
use crate::retry::backoff;
use crate::source::{ChunkRows, Columns, Fence, Source, SourceTable};

/// First and longest wait before an invalid chunk is read again. Some causes pass in milliseconds (a commit that is not
/// visible yet), others last for any time (one large transaction).
const REREAD_WAIT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// Reads one table's chunks.
#[derive(Debug)]
pub struct ChunkReader<'a> {
    /// The registry through which chunks are passed to the stream.
    pub chunks: &'a ChunkRegistry,
    /// The connection to the Site DB.
    pub source: &'a Source,
    /// The table in the Site DB.
    pub table: &'a SourceTable,
    /// The same table as the Agent DB's writer knows it.
    pub relation: &'a Arc<Relation>,
}

/// The next chunk to read.
enum NextChunk<'a> {
    /// The rows after a key.
    Rows {
        after: Option<&'a Key>,
        condition: Option<&'a str>,
        limit: u32,
        after_rows: AfterRows,
    },
    /// Keys of a page that the Site DB did not have a moment ago.
    Extras {
        keys: &'a [Key],
        /// The page's last key; `None` if the page was empty: the end.
        last: Option<&'a Key>,
    },
    /// Parked keys.
    Parked { keys: &'a [Key] },
}

/// What follows after the last rows of a copy.
#[derive(Debug, Clone, Copy)]
enum AfterRows {
    /// The Agent DB's table had rows: look for those that only it has.
    Extras,
    /// Nothing: the Agent DB's table was empty when the copy began, so it has no rows of its own.
    Done,
}

impl ChunkReader<'_> {
    /// Copies the table, from `from` to the end. `agent`: a session for reading keys of the Agent DB. `limit`: most
    /// rows of a chunk. `condition`: SQL; only rows that meet it are copied.
    ///
    /// # Errors
    /// The copy was interrupted. The chunks that were merged, and the copy's progress, are durable.
    pub async fn copy(
        &self,
        from: CopyPlace,
        condition: Option<&str>,
        agent: &Client,
        limit: u32,
    ) -> Result<(), CopyError> {
        let keys = AgentKeys::of(agent, self.relation).await?;
        let CopyPlace { phase, last_key } = from;
        if phase == CopyPhase::Extras {
            return self.remove_extras(last_key, condition, &keys, limit).await;
        }
        let after_rows = match last_key {
            None if keys.page(None, condition, 1).await?.is_empty() => AfterRows::Done,
            _ => AfterRows::Extras,
        };
        self.read_all_rows(last_key, condition, limit, after_rows).await?;
        match after_rows {
            AfterRows::Extras => self.remove_extras(None, condition, &keys, limit).await,
            AfterRows::Done => Ok(()),
        }
    }

    /// Reads the rows of the Site DB after a key, chunk after chunk.
    async fn read_all_rows(
        &self,
        mut after: Option<Key>,
        condition: Option<&str>,
        limit: u32,
        after_rows: AfterRows,
    ) -> Result<(), CopyError> {
        loop {
            let next = NextChunk::Rows {
                after: after.as_ref(),
                condition,
                limit,
                after_rows,
            };
            match Box::pin(self.read_until_valid(next)).await? {
                Some(CopyStep::Chunk { last_key, .. }) => after = last_key.or(after),
                Some(CopyStep::PhaseFinished { .. } | CopyStep::Finished { .. }) | None => return Ok(()),
            }
        }
    }

    /// Deletes the rows after a key that only the Agent DB has, page by page of its keys.
    async fn remove_extras(
        &self,
        mut after: Option<Key>,
        condition: Option<&str>,
        keys: &AgentKeys<'_>,
        limit: u32,
    ) -> Result<(), CopyError> {
        loop {
            let page = keys.page(after.as_ref(), condition, limit).await?;
            let missing = compare::only_in_agent(self.source, self.table, self.relation, &page).await?;
            let last = page.last();
            // A page without extras needs no chunk. Its place is kept only in memory, so a restart reads it again.
            if !missing.is_empty() || last.is_none() {
                let next = NextChunk::Extras { keys: &missing, last };
                Box::pin(self.read_until_valid(next)).await?;
            }
            match last {
                Some(last) => after = Some(last.clone()),
                None => return Ok(()),
            }
        }
    }

    /// Reads the present rows of parked keys and applies them.
    ///
    /// # Errors
    /// A read failed, or the stream ended.
    pub async fn heal(&self, keys: &[Key]) -> Result<(), CopyError> {
        Box::pin(self.read_until_valid(NextChunk::Parked { keys })).await?;
        Ok(())
    }

    /// Reads a chunk between fences, repeatedly until it is valid, and waits until it is durable. Returns its progress.
    async fn read_until_valid(&self, next: NextChunk<'_>) -> Result<Option<CopyStep>, CopyError> {
        let mut attempt = 0;
        loop {
            let (id, outcome) = self.chunks.register(self.relation.id);
            let delivered = async {
                self.source.fence(Fence::Low(id)).await?;
                let delivery = self.read(&next).await?;
                let step = delivery.step.clone();
                failpoint::reach(failpoint::name::COPY_BEFORE_HIGH_FENCE);
                self.chunks.deliver(id, delivery);
                let high: Lsn = self.source.fence(Fence::High(id)).await?;
                debug!(table = %self.relation.table, %high, "chunk read");
                Ok::<_, CopyError>(step)
            }
            .await;
            let step = match delivered {
                Ok(step) => step,
                Err(error) => {
                    self.chunks.withdraw(id);
                    return Err(error);
                }
            };
            match outcome.await {
                Ok(Ok(())) => return Ok(step),
                Ok(Err(InvalidChunk::RelationChanged)) => {
                    return Err(CopyError::RelationChanged(self.relation.table.clone()));
                }
                Ok(Err(invalid)) => {
                    attempt += 1;
                    debug!(table = %self.relation.table, attempt, reason = invalid.as_str(), "chunk read again");
                    tokio::time::sleep(backoff(attempt, REREAD_WAIT.0, REREAD_WAIT.1)).await;
                }
                Err(_) => return Err(CopyError::StreamEnded),
            }
        }
    }

    /// Reads a chunk once.
    async fn read(&self, next: &NextChunk<'_>) -> Result<Delivery, CopyError> {
        match next {
            NextChunk::Rows {
                after,
                condition,
                limit,
                after_rows,
            } => {
                let chunk = self
                    .source
                    .read_range(self.table, self.relation, *after, *condition, *limit)
                    .await?;
                let step = self.step_of_rows(&chunk, *after_rows);
                Ok(self.delivery(chunk, Purpose::Rows, Some(step)))
            }
            NextChunk::Extras { keys, last } => {
                let (chunk, requested) = self.read_keys(keys).await?;
                let step = match last {
                    Some(last) => CopyStep::Chunk {
                        rows: 0,
                        last_key: Some((*last).clone()),
                    },
                    None => CopyStep::Finished { rows: 0 },
                };
                Ok(self.delivery(chunk, Purpose::Extras(requested), Some(step)))
            }
            NextChunk::Parked { keys } => {
                let (chunk, requested) = self.read_keys(keys).await?;
                failpoint::reach(failpoint::name::HEAL_AFTER_READ);
                Ok(self.delivery(chunk, Purpose::Parked(requested), None))
            }
        }
    }

    fn step_of_rows(&self, chunk: &ChunkRows, after_rows: AfterRows) -> CopyStep {
        let rows = chunk.rows.len() as u64;
        match (chunk.finished, after_rows) {
            (false, _) => CopyStep::Chunk {
                rows,
                last_key: chunk.rows.last().and_then(|row| self.relation.key_of(row)),
            },
            (true, AfterRows::Extras) => CopyStep::PhaseFinished { rows },
            (true, AfterRows::Done) => CopyStep::Finished { rows },
        }
    }

    async fn read_keys(&self, keys: &[Key]) -> Result<(ChunkRows, RequestedKeys), CopyError> {
        let mut chunk = self
            .source
            .read_keys(self.table, self.relation, keys, Columns::All)
            .await?;
        let requested = RequestedKeys {
            keys: keys.to_vec(),
            found_by: std::mem::take(&mut chunk.found_by),
            spelled_alike: self.table.spells_keys_alike(self.relation),
        };
        Ok((chunk, requested))
    }

    fn delivery(&self, chunk: ChunkRows, purpose: Purpose, step: Option<CopyStep>) -> Delivery {
        let read = Chunk {
            relation: Arc::clone(self.relation),
            snapshot: chunk.snapshot,
            rows: chunk.rows,
            purpose,
        };
        Delivery { read, step }
    }
}
