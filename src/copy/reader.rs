//! A table's copy: chunk after chunk through the rows of the Site DB, then through the keys that only the Agent DB has.
//!
//! The target is never truncated and stays readable; each chunk takes effect in the stream's order (see
//! [`super::window`]) and its progress is committed with it, so a copy resumes where it stopped. The table counts as
//! copied in the very transaction that holds its last chunk.
//!
//! Rows that only the Agent DB has are found from its side, page by page: a key that the Site DB does not have is asked
//! for once more between fences, and deleted only there. (Comparing ranges would trust both databases to sort text
//! alike; collations differ between systems, and a key that sorts elsewhere would be deleted by mistake.)

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tracing::{debug, info};

use super::board::{Board, Delivery};
use super::window::{Asked, ChunkRead, Void};
use crate::agent_db::{AgentError, AgentKeys, CopyPhase, TableProgress, TableState};
use crate::change::{Key, Relation};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::postgres::Client;
use crate::postgres::error::not_of_a_row;
use crate::retry::{Disposition, backoff};
use crate::source::{Chunk, Columns, Fence, Source, SourceError, SourceTable};

/// First and longest wait before a void chunk is read again: the cause (a commit on its way, one large transaction)
/// passes in milliseconds or takes as long as it takes.
const VOID_WAIT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// Why a copy could not go on.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The Site DB could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The keys of the Agent DB could not be read.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The stream stopped; the copy resumes with it.
    #[error("the replication stream ended during a copy")]
    StreamEnded,
    /// The table's columns changed; it has to be described anew.
    #[error("the columns of table {0} changed while it was read")]
    RelationChanged(crate::change::TableName),
}

impl CopyError {
    /// What this means for the work that met it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Source(source) => source.disposition(),
            // Only keys are read there.
            Self::Agent(source) => not_of_a_row(source.disposition()),
            Self::StreamEnded | Self::RelationChanged(_) => Disposition::Transient,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Source(source) => source.hint(),
            Self::Agent(source) => source.hint(),
            Self::StreamEnded | Self::RelationChanged(_) => None,
        }
    }
}

/// Reads one table's chunks.
#[derive(Debug)]
pub struct Reader<'a> {
    /// Where chunks meet the stream.
    pub board: &'a Board,
    /// The connection to the Site DB.
    pub source: &'a Source,
    /// The table there.
    pub table: &'a SourceTable,
    /// The table as the sink knows it.
    pub relation: &'a Arc<Relation>,
}

impl Reader<'_> {
    /// Copies the table, from where `progress` says to the end. `agent` reads keys of the Agent DB.
    ///
    /// # Errors
    /// It can't go on now. What was merged is durable, and so is how far it is.
    pub async fn copy(&self, mut progress: TableProgress, agent: &Client, chunk_rows: u32) -> Result<(), CopyError> {
        if progress.started_at.is_none() {
            progress.started_at = Some(OffsetDateTime::now_utc());
        }
        if progress.phase.is_none() {
            // An empty target has nothing to take away, and the stream keeps it so.
            let keys = AgentKeys::of(agent, self.relation).await?;
            let occupied = !keys.page(None, progress.condition.as_deref(), 1).await?.is_empty();
            progress.phase = Some(CopyPhase::Rows);
            progress.rows_estimated = Some(self.table.estimated_rows).filter(|&rows| rows >= 0);
            return Box::pin(self.rows(progress, agent, chunk_rows, occupied)).await;
        }
        Box::pin(self.rows(progress, agent, chunk_rows, true)).await
    }

    async fn rows(
        &self,
        mut progress: TableProgress,
        agent: &Client,
        chunk_rows: u32,
        extras: bool,
    ) -> Result<(), CopyError> {
        while progress.phase == Some(CopyPhase::Rows) {
            progress = self
                .merged(
                    |attempt: TableProgress| async move {
                        let after = attempt.last_key.as_ref();
                        let condition = attempt.condition.as_deref();
                        let chunk = self
                            .source
                            .read_range(self.table, self.relation, after, condition, chunk_rows)
                            .await?;
                        let mut next = attempt.clone();
                        next.rows_copied += i64::try_from(chunk.rows.len()).unwrap_or(i64::MAX);
                        next.last_key = chunk
                            .rows
                            .last()
                            .and_then(|row| self.relation.key_of(row))
                            .or_else(|| attempt.last_key.clone());
                        if chunk.finished && extras {
                            next.phase = Some(CopyPhase::Extras);
                            next.last_key = None;
                        } else if chunk.finished {
                            finish(&mut next);
                        }
                        Ok((chunk, None, next))
                    },
                    progress,
                )
                .await?;
        }
        if progress.phase == Some(CopyPhase::Extras) {
            self.extras(progress, agent, chunk_rows).await?;
        }
        Ok(())
    }

    async fn extras(&self, mut progress: TableProgress, agent: &Client, chunk_rows: u32) -> Result<(), CopyError> {
        let keys = AgentKeys::of(agent, self.relation).await?;
        loop {
            let condition = progress.condition.as_deref();
            let after = progress.last_key.clone();
            let page = keys.page(after.as_ref(), condition, chunk_rows).await?;
            let last = page.last().cloned();
            let missing = self.missing(&page).await?;
            if missing.is_empty()
                && let Some(last) = last
            {
                // Nothing to write: the page's place is kept in memory, and read again after a restart.
                progress.last_key = Some(last);
                continue;
            }
            let done = last.is_none();
            progress = self
                .merged(
                    |attempt: TableProgress| {
                        let (missing, last) = (missing.clone(), last.clone());
                        async move {
                            let chunk = self
                                .source
                                .read_keys(self.table, self.relation, &missing, Columns::All)
                                .await?;
                            let mut next = attempt;
                            if done {
                                finish(&mut next);
                            } else {
                                next.last_key = last;
                            }
                            Ok((chunk, Some(missing), next))
                        }
                    },
                    progress,
                )
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
        let nothing = TableProgress::new(self.relation.table.clone());
        self.chunk_until_valid(
            |progress: TableProgress| async move {
                let chunk = self
                    .source
                    .read_keys(self.table, self.relation, keys, Columns::All)
                    .await?;
                failpoint::reach(failpoint::name::HEAL_AFTER_READ);
                Ok((chunk, Some(keys.to_vec()), progress))
            },
            nothing,
            false,
        )
        .await?;
        Ok(())
    }

    /// A chunk that moves the table on.
    async fn merged<F, R>(&self, read: F, progress: TableProgress) -> Result<TableProgress, CopyError>
    where
        F: Fn(TableProgress) -> R,
        R: Future<Output = Result<(Chunk, Option<Vec<Key>>, TableProgress), CopyError>>,
    {
        let next = self.chunk_until_valid(read, progress, true).await?;
        if next.state == TableState::Streaming {
            info!(table = %next.table, rows = next.rows_copied, "table copied");
        }
        Ok(next)
    }

    /// Reads between fences until the chunk is valid, and waits until it is durable.
    async fn chunk_until_valid<F, R>(
        &self,
        read: F,
        progress: TableProgress,
        keep: bool,
    ) -> Result<TableProgress, CopyError>
    where
        F: Fn(TableProgress) -> R,
        R: Future<Output = Result<(Chunk, Option<Vec<Key>>, TableProgress), CopyError>>,
    {
        let mut attempt = 0;
        loop {
            let (id, outcome) = self.board.register(self.relation.id);
            let delivered = async {
                self.source.fence(Fence::Low(id)).await?;
                let (chunk, keys, next) = read(progress.clone()).await?;
                let asked = keys.map(|keys| Asked {
                    keys,
                    found_by: chunk.asked,
                    alike: self.table.spells_keys_alike(self.relation),
                    parked: !keep,
                });
                failpoint::reach(failpoint::name::COPY_BEFORE_HIGH_FENCE);
                let read = ChunkRead {
                    relation: Arc::clone(self.relation),
                    snapshot: chunk.snapshot,
                    rows: chunk.rows,
                    asked,
                };
                self.board.deliver(
                    id,
                    Delivery {
                        read,
                        progress: keep.then(|| next.clone()),
                    },
                );
                let high: Lsn = self.source.fence(Fence::High(id)).await?;
                debug!(table = %self.relation.table, %high, "chunk read");
                Ok::<_, CopyError>(next)
            }
            .await;
            let next = match delivered {
                Ok(next) => next,
                Err(error) => {
                    self.board.withdraw(id);
                    return Err(error);
                }
            };
            match outcome.await {
                Ok(Ok(())) => return Ok(next),
                Ok(Err(Void::RelationChanged)) => {
                    return Err(CopyError::RelationChanged(self.relation.table.clone()));
                }
                Ok(Err(void)) => {
                    attempt += 1;
                    debug!(table = %self.relation.table, attempt, reason = void.as_str(), "chunk read again");
                    tokio::time::sleep(backoff(attempt, VOID_WAIT.0, VOID_WAIT.1)).await;
                }
                Err(_) => return Err(CopyError::StreamEnded),
            }
        }
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
        let there: std::collections::HashSet<Key> = there.rows.iter().filter_map(key_row).collect();
        Ok(page.iter().filter(|key| !there.contains(*key)).cloned().collect())
    }
}

/// A row that was read with only its key's columns, in key order.
fn key_row(row: &crate::change::Row) -> Option<Key> {
    row.0
        .iter()
        .map(|value| match value {
            crate::change::ColumnValue::Text(text) => Some(text.clone()),
            _ => None,
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
