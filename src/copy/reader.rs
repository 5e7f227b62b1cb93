//! A table's copy: chunk after chunk through the rows of the Site DB, then through the keys that only the Agent DB has.
//!
//! The target is never truncated and stays readable. Each chunk takes effect in the stream's order (see
//! [`super::window`]), and its progress is committed with it, so a copy resumes where it stopped. The table counts as
//! copied in the very transaction that holds its last chunk.
//!
//! Rows that only the Agent DB has are found from its side, page by page: a key that the Site DB does not have is asked
//! for once more between fences, and deleted only there. (Comparing ranges would trust both databases to sort text
//! alike; collations differ between systems, and a key that sorts elsewhere would be deleted by mistake.)

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tracing::{debug, info};

use super::chunk::{ChunkRead, Delivery, InvalidChunk, Purpose, RequestedKeys};
use super::error::CopyError;
use super::registry::ChunkRegistry;
use crate::agent_db::{AgentKeys, CopyPhase, TableProgress, TableState};
use crate::change::{ColumnValue, Key, Relation, Row};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::postgres::Client;
use crate::retry::backoff;
use crate::source::{Chunk, Columns, Fence, Source, SourceTable};

/// First and longest wait before an invalid chunk is read again: the cause (a commit that is not visible yet, one large
/// transaction) passes in milliseconds or takes as long as it takes.
const REREAD_WAIT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// Reads one table's chunks.
#[derive(Debug)]
pub struct ChunkReader<'a> {
    /// Where chunks meet the stream.
    pub chunks: &'a ChunkRegistry,
    /// The connection to the Site DB.
    pub source: &'a Source,
    /// The table there.
    pub table: &'a SourceTable,
    /// The table as the sink knows it.
    pub relation: &'a Arc<Relation>,
}

/// The next chunk to read.
enum NextChunk<'a> {
    /// The rows behind the progress's last key.
    Rows {
        progress: &'a TableProgress,
        limit: u32,
        after_rows: AfterRows,
    },
    /// Keys that the Site DB did not have a moment ago.
    Extras { keys: &'a [Key], next: TableProgress },
    /// Parked keys.
    Parked { keys: &'a [Key] },
}

/// What follows on the last rows of a copy.
#[derive(Debug, Clone, Copy)]
enum AfterRows {
    /// The Agent DB's table had rows: look for those that only it has.
    Extras,
    /// It was empty when the copy began, and the stream keeps both alike: nothing.
    Done,
}

impl ChunkReader<'_> {
    /// Copies the table, from where `progress` says to the end. `agent` reads keys of the Agent DB, `limit` is the most
    /// rows of a chunk.
    ///
    /// # Errors
    /// It can't go on now. What was merged is durable, and so is how far it is.
    pub async fn copy(&self, mut progress: TableProgress, agent: &Client, limit: u32) -> Result<(), CopyError> {
        if progress.started_at.is_none() {
            progress.started_at = Some(OffsetDateTime::now_utc());
        }
        let mut after_rows = AfterRows::Extras;
        if progress.phase.is_none() {
            let keys = AgentKeys::of(agent, self.relation).await?;
            if keys.page(None, progress.condition.as_deref(), 1).await?.is_empty() {
                after_rows = AfterRows::Done;
            }
            progress.phase = Some(CopyPhase::Rows);
            progress.rows_estimated = Some(self.table.estimated_rows).filter(|&rows| rows >= 0);
        }
        while progress.phase == Some(CopyPhase::Rows) {
            let next = NextChunk::Rows {
                progress: &progress,
                limit,
                after_rows,
            };
            progress = self.merged(next, &progress).await?;
        }
        if progress.phase == Some(CopyPhase::Extras) {
            self.remove_extras(progress, agent, limit).await?;
        }
        Ok(())
    }

    /// Deletes the rows that only the Agent DB has, page by page of its keys.
    async fn remove_extras(&self, mut progress: TableProgress, agent: &Client, limit: u32) -> Result<(), CopyError> {
        let keys = AgentKeys::of(agent, self.relation).await?;
        loop {
            let page = keys
                .page(progress.last_key.as_ref(), progress.condition.as_deref(), limit)
                .await?;
            let missing = self.missing(&page).await?;
            let last = page.last().cloned();
            if missing.is_empty() && last.is_some() {
                // Nothing to write: the place is kept in memory, and the page read again after a restart.
                progress.last_key = last;
                continue;
            }
            let mut next = progress.clone();
            let done = last.is_none();
            if done {
                finish(&mut next);
            } else {
                next.last_key = last;
            }
            progress = self
                .merged(NextChunk::Extras { keys: &missing, next }, &progress)
                .await?;
            if done {
                return Ok(());
            }
        }
    }

    /// Reads the present state of single keys, which heals them where they were parked.
    ///
    /// # Errors
    /// It can't be done now.
    pub async fn heal(&self, keys: &[Key]) -> Result<(), CopyError> {
        Box::pin(self.read_until_valid(NextChunk::Parked { keys })).await?;
        Ok(())
    }

    /// Reads and merges a chunk that moves the table on; returns how far it is then.
    async fn merged(&self, next: NextChunk<'_>, before: &TableProgress) -> Result<TableProgress, CopyError> {
        let progress = Box::pin(self.read_until_valid(next)).await?;
        let progress = progress.unwrap_or_else(|| before.clone());
        if progress.state == TableState::Streaming {
            info!(table = %progress.table, rows = progress.rows_copied, "table copied");
        }
        Ok(progress)
    }

    /// Reads a chunk between fences, again until it is valid, and waits until it is durable.
    async fn read_until_valid(&self, next: NextChunk<'_>) -> Result<Option<TableProgress>, CopyError> {
        let mut attempt = 0;
        loop {
            let (id, outcome) = self.chunks.register(self.relation.id);
            let delivered = async {
                self.source.fence(Fence::Low(id)).await?;
                let delivery = self.read(&next).await?;
                let progress = delivery.progress.clone();
                failpoint::reach(failpoint::name::COPY_BEFORE_HIGH_FENCE);
                self.chunks.deliver(id, delivery);
                let high: Lsn = self.source.fence(Fence::High(id)).await?;
                debug!(table = %self.relation.table, %high, "chunk read");
                Ok::<_, CopyError>(progress)
            }
            .await;
            let progress = match delivered {
                Ok(progress) => progress,
                Err(error) => {
                    self.chunks.withdraw(id);
                    return Err(error);
                }
            };
            match outcome.await {
                Ok(Ok(())) => return Ok(progress),
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
                progress,
                limit,
                after_rows,
            } => self.read_rows(progress, *limit, *after_rows).await,
            NextChunk::Extras { keys, next } => {
                let (chunk, requested) = self.read_keys(keys).await?;
                Ok(self.delivery(chunk, Purpose::Extras(requested), Some(next.clone())))
            }
            NextChunk::Parked { keys } => {
                let (chunk, requested) = self.read_keys(keys).await?;
                failpoint::reach(failpoint::name::HEAL_AFTER_READ);
                Ok(self.delivery(chunk, Purpose::Parked(requested), None))
            }
        }
    }

    async fn read_rows(
        &self,
        progress: &TableProgress,
        limit: u32,
        after_rows: AfterRows,
    ) -> Result<Delivery, CopyError> {
        let after = progress.last_key.as_ref();
        let condition = progress.condition.as_deref();
        let chunk = self
            .source
            .read_range(self.table, self.relation, after, condition, limit)
            .await?;
        let mut next = progress.clone();
        next.rows_copied += i64::try_from(chunk.rows.len()).unwrap_or(i64::MAX);
        if let Some(last) = chunk.rows.last().and_then(|row| self.relation.key_of(row)) {
            next.last_key = Some(last);
        }
        match (chunk.finished, after_rows) {
            (false, _) => {}
            (true, AfterRows::Extras) => {
                next.phase = Some(CopyPhase::Extras);
                next.last_key = None;
            }
            (true, AfterRows::Done) => finish(&mut next),
        }
        Ok(self.delivery(chunk, Purpose::Rows, Some(next)))
    }

    async fn read_keys(&self, keys: &[Key]) -> Result<(Chunk, RequestedKeys), CopyError> {
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

    fn delivery(&self, chunk: Chunk, purpose: Purpose, progress: Option<TableProgress>) -> Delivery {
        let read = ChunkRead {
            relation: Arc::clone(self.relation),
            snapshot: chunk.snapshot,
            rows: chunk.rows,
            purpose,
        };
        Delivery { read, progress }
    }

    /// Which of the keys the Site DB does not have, as far as a plain read can tell. One that it has now is no extra: if
    /// it goes later, the stream says so.
    async fn missing(&self, page: &[Key]) -> Result<Vec<Key>, CopyError> {
        if page.is_empty() {
            return Ok(Vec::new());
        }
        let there = self
            .source
            .read_keys(self.table, self.relation, page, Columns::Key)
            .await?;
        let there: HashSet<Key> = there.rows.iter().filter_map(key_of_columns).collect();
        Ok(page.iter().filter(|key| !there.contains(*key)).cloned().collect())
    }
}

/// The key of a row that was read with only its key's columns, in key order.
fn key_of_columns(row: &Row) -> Option<Key> {
    row.0
        .iter()
        .map(|value| match value {
            ColumnValue::Text(text) => Some(text.clone()),
            ColumnValue::Null | ColumnValue::Unchanged => None,
        })
        .collect::<Option<_>>()
        .map(Key)
}

fn finish(progress: &mut TableProgress) {
    progress.state = TableState::Streaming;
    progress.phase = None;
    progress.last_key = None;
    progress.condition = None;
    progress.detail = None;
    progress.finished_at = Some(OffsetDateTime::now_utc());
}
