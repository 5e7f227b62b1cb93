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

use super::chunk::{Chunk, ChunkResult, Delivery, InvalidChunk, Purpose, RequestedKeys, Wanted};
use super::compare;
use super::error::CopyError;
use super::registry::ChunkRegistry;
use super::step::{CopyPlace, CopyStep};
use crate::agent_db::{AgentKeys, AgentRows, Comparison, CopyPhase};
use crate::change::{Key, Relation, Row};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::postgres::{Client, Condition};
use crate::retry::backoff;
use crate::source::{ChunkRows, CountedRows, Fence, Source, SourceTable};

/// First and longest wait before an invalid chunk is read again. Some causes pass in milliseconds (a commit that is not
/// visible yet), others last for any time (one large transaction).
pub(super) const REREAD_WAIT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

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
    /// What becomes of rows that only the Agent DB has.
    pub foreign_rows: ForeignRows,
}

/// What a copy does with rows that only the Agent DB has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignRows {
    /// It deletes them.
    Delete,
    /// It leaves them: another pipeline may have written them.
    Keep,
}

/// The next chunk to read.
enum NextChunk<'a> {
    /// The rows after a key.
    Rows {
        after: Option<&'a Key>,
        condition: Option<&'a Condition>,
        limit: u32,
        after_rows: AfterRows,
    },
    /// Keys of a page that the Site DB did not have a moment ago; or, where rows are counted, a page of rows.
    Extras {
        wanted: Wanted<'a>,
        /// The progress that the chunk makes if it answers for all that is wanted.
        step: CopyStep,
    },
    /// Parked rows that are counted.
    Parked { wanted: Wanted<'a> },
    /// What is suspected to differ: it is compared at the high fence.
    Compared { wanted: Wanted<'a> },
    /// The next rows that are counted: the same.
    ComparedCounts { after: Option<&'a Key>, limit: u32 },
    /// Keys of rows that differ: they are written as the Site DB has them.
    Repaired { wanted: Wanted<'a> },
}

/// What the Agent DB has of the table, page by page.
enum AgentPages<'a> {
    Keys(AgentKeys<'a>),
    Rows(AgentRows<'a>),
}

/// Most distinct rows of a page, where rows are counted. No index gives their order, so each page reads the whole table;
/// larger pages are fewer. (The rows' bytes limit a page as well.)
pub(super) const COUNTED_PAGE: u32 = 50_000;

/// A chunk that is durable in the Agent DB.
struct ReadChunk {
    /// The progress that it made; `None` for parked keys.
    step: Option<CopyStep>,
    /// How many of the requested keys it answered for.
    keys: usize,
    /// What the comparison has found; nothing where the chunk was written.
    comparison: Comparison,
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
    /// rows of a chunk. `condition`: only rows that meet it are copied.
    ///
    /// # Errors
    /// The copy was interrupted. The chunks that were merged, and the copy's progress, are durable.
    pub async fn copy(
        &self,
        from: CopyPlace,
        condition: Option<&Condition>,
        agent: &Client,
        limit: u32,
    ) -> Result<(), CopyError> {
        let (pages, limit) = if self.relation.counts_rows() {
            let rows = AgentRows::of(agent, self.relation, condition).await?;
            (AgentPages::Rows(rows), limit.max(COUNTED_PAGE))
        } else {
            (
                AgentPages::Keys(AgentKeys::of(agent, self.relation, condition).await?),
                limit,
            )
        };
        let CopyPlace { phase, last_key } = from;
        if phase == CopyPhase::Extras {
            if self.foreign_rows == ForeignRows::Keep {
                return self.finish(&pages).await;
            }
            return self.remove_extras(last_key, &pages, limit).await;
        }
        let has_rows = match &pages {
            _ if self.foreign_rows == ForeignRows::Keep => false,
            _ if last_key.is_some() => true,
            AgentPages::Keys(keys) => !keys.page(None, 1).await?.is_empty(),
            AgentPages::Rows(rows) => rows.page(None, 1).await?.last.is_some(),
        };
        let after_rows = if has_rows { AfterRows::Extras } else { AfterRows::Done };
        self.read_all_rows(last_key, condition, limit, after_rows).await?;
        match after_rows {
            AfterRows::Extras => self.remove_extras(None, &pages, limit).await,
            AfterRows::Done => Ok(()),
        }
    }

    /// Reads the rows of the Site DB after a key, chunk after chunk.
    async fn read_all_rows(
        &self,
        mut after: Option<Key>,
        condition: Option<&Condition>,
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
            match Box::pin(self.read_until_valid(next)).await?.step {
                Some(CopyStep::Chunk { last_key, .. }) => after = last_key.or(after),
                Some(CopyStep::PhaseFinished { .. } | CopyStep::Finished { .. }) | None => return Ok(()),
            }
        }
    }

    /// Ends a copy that had already begun to look for rows that only the Agent DB has.
    async fn finish(&self, pages: &AgentPages<'_>) -> Result<(), CopyError> {
        let wanted = match pages {
            AgentPages::Keys(keys) => Wanted::Keys(keys, &[]),
            AgentPages::Rows(_) => Wanted::Rows(&[]),
        };
        let step = step_of_page(None);
        Box::pin(self.read_until_valid(NextChunk::Extras { wanted, step })).await?;
        Ok(())
    }

    /// Deletes the rows after a key that only the Agent DB has, page by page.
    async fn remove_extras(&self, mut after: Option<Key>, pages: &AgentPages<'_>, limit: u32) -> Result<(), CopyError> {
        loop {
            let last = match pages {
                AgentPages::Keys(keys) => {
                    let page = keys.page(after.as_ref(), limit).await?;
                    let missing = compare::only_in_agent(self.source, self.table, self.relation, &page).await?;
                    // A page without extras needs no chunk. Its place is kept only in memory, so a restart reads it again.
                    if !missing.is_empty() || page.is_empty() {
                        let step = step_of_page(page.last());
                        self.read_all_keys(&missing, |some| NextChunk::Extras {
                            wanted: Wanted::Keys(keys, some),
                            step: step.clone(),
                        })
                        .await?;
                    }
                    page.last().cloned()
                }
                AgentPages::Rows(rows) => {
                    // Every page is counted between fences: equal numbers would prove nothing while changes are on their way.
                    let page = rows.page(after.as_ref(), limit).await?;
                    let (wanted, step) = (Wanted::Rows(&page.rows), step_of_page(page.last.as_ref()));
                    Box::pin(self.read_until_valid(NextChunk::Extras { wanted, step })).await?;
                    page.last
                }
            };
            match last {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    /// Counts the rows that equal parked ones, and applies their numbers.
    ///
    /// # Errors
    /// A read failed, or the stream ended.
    pub async fn heal_counted(&self, rows: &[Row]) -> Result<(), CopyError> {
        let wanted = Wanted::Rows(rows);
        Box::pin(self.read_until_valid(NextChunk::Parked { wanted })).await?;
        Ok(())
    }

    /// Compares the rows of these keys at one place of the stream: what differs there is different. Without
    /// keys it only waits until the stream has come there.
    ///
    /// # Errors
    /// A read failed, or the stream ended.
    pub(super) async fn compare_keys(&self, agent: &AgentKeys<'_>, mut keys: &[Key]) -> Result<Comparison, CopyError> {
        let mut whole = Comparison::default();
        loop {
            let wanted = Wanted::Keys(agent, keys);
            let read = Box::pin(self.read_until_valid(NextChunk::Compared { wanted })).await?;
            whole.differences.extend(read.comparison.differences);
            whole.parked += read.comparison.parked;
            keys = match keys.get(read.keys..) {
                Some(rest) if !rest.is_empty() && read.keys > 0 => rest,
                _ => return Ok(whole),
            };
        }
    }

    /// Compares the next rows that are counted in the same way. Returns as well how many they are, and the place of the last one unless no row
    /// follows.
    ///
    /// # Errors
    /// A read failed, or the stream ended.
    pub(super) async fn compare_counts(
        &self,
        after: Option<&Key>,
        limit: u32,
    ) -> Result<(Comparison, u64, Option<Key>), CopyError> {
        let read = Box::pin(self.read_until_valid(NextChunk::ComparedCounts { after, limit })).await?;
        let (rows, last) = match read.step {
            Some(CopyStep::Chunk { rows, last_key }) => (rows, last_key),
            Some(CopyStep::PhaseFinished { rows } | CopyStep::Finished { rows }) => (rows, None),
            None => (0, None),
        };
        Ok((read.comparison, rows, last))
    }

    /// The same for rows that are counted, and given.
    ///
    /// # Errors
    /// A read failed, or the stream ended.
    pub(super) async fn compare_rows(&self, rows: &[Row]) -> Result<Comparison, CopyError> {
        let wanted = Wanted::Rows(rows);
        let read = Box::pin(self.read_until_valid(NextChunk::Compared { wanted })).await?;
        Ok(read.comparison)
    }

    /// Writes the rows of these keys as the Site DB has them, and deletes those that it does not have. Returns once that is
    /// durable.
    ///
    /// # Errors
    /// A read failed, or the stream ended.
    pub(super) async fn repair_keys(&self, agent: &AgentKeys<'_>, keys: &[Key]) -> Result<(), CopyError> {
        self.read_all_keys(keys, |keys| NextChunk::Repaired {
            wanted: Wanted::Keys(agent, keys),
        })
        .await
    }

    /// Reads the rows of some keys, in several chunks if they are too large for one.
    async fn read_all_keys<'k>(
        &self,
        mut keys: &'k [Key],
        next: impl Fn(&'k [Key]) -> NextChunk<'k>,
    ) -> Result<(), CopyError> {
        loop {
            let read = Box::pin(self.read_until_valid(next(keys))).await?;
            match keys.get(read.keys..) {
                Some(rest) if !rest.is_empty() && read.keys > 0 => keys = rest,
                _ => return Ok(()),
            }
        }
    }

    /// Reads a chunk between fences, repeatedly until it is valid, and waits until it is durable.
    async fn read_until_valid(&self, next: NextChunk<'_>) -> Result<ReadChunk, CopyError> {
        let mut attempt = 0;
        loop {
            let mut chunk = self.chunks.register(&[self.relation.id]);
            // If any of this fails, the chunk is dropped, and with it the stream's window.
            self.source.fence(Fence::Low(chunk.id)).await?;
            let mut delivery = self.read(&next).await?;
            let mut read = ReadChunk {
                comparison: Comparison::default(),
                step: delivery.step.clone(),
                keys: delivery
                    .reads
                    .iter()
                    .filter_map(|read| read.purpose.keys())
                    .map(|requested| requested.keys.len())
                    .sum(),
            };
            failpoint::reach(failpoint::name::COPY_BEFORE_HIGH_FENCE);
            if delivery.reads.iter().any(|read| read.purpose.compares()) {
                // A comparison is no progress of a copy.
                delivery.step = None;
            }
            self.chunks.deliver(chunk.id, delivery);
            let high: Lsn = self.source.fence(Fence::High(chunk.id)).await?;
            debug!(table = %self.relation.table, %high, "chunk read");
            match (&mut chunk.outcome).await {
                Ok(Ok(ChunkResult::Durable)) => return Ok(read),
                Ok(Ok(ChunkResult::Compared(comparison))) => {
                    read.comparison = comparison?;
                    return Ok(read);
                }
                Ok(Err(InvalidChunk::RelationChanged)) => {
                    return Err(CopyError::RelationChanged(self.relation.table.clone()));
                }
                Ok(Err(InvalidChunk::TableHeld)) => {
                    return Err(CopyError::TableHeld(self.relation.table.clone()));
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
                if self.relation.counts_rows() {
                    return self.read_counts(*after, *condition, *limit, *after_rows).await;
                }
                let chunk = self
                    .source
                    .read_range(self.table, self.relation, *after, *condition, *limit)
                    .await?;
                let last = chunk.rows.last().and_then(|row| self.relation.key_of(row));
                // Kept until the next chunk, so without the row that it was read with.
                let last = last.map(|key| key.compact());
                let step = step(chunk.rows.len() as u64, chunk.finished, last, *after_rows);
                Ok(self.delivery(chunk, Purpose::Rows, Some(step)))
            }
            NextChunk::Extras { wanted, step } => self.read_wanted(*wanted, Purpose::Extras, Some(step.clone())).await,
            NextChunk::Compared { wanted } => Ok(compared(self.read_wanted(*wanted, Purpose::Compared, None).await?)),
            NextChunk::ComparedCounts { after, limit } => Ok(compared(
                self.read_counts(*after, None, *limit, AfterRows::Extras).await?,
            )),
            NextChunk::Repaired { wanted } => {
                let delivery = self.read_wanted(*wanted, Purpose::Extras, None).await?;
                failpoint::reach(failpoint::name::REPAIR_AFTER_READ);
                Ok(delivery)
            }
            NextChunk::Parked { wanted } => {
                let delivery = self.read_wanted(*wanted, Purpose::Parked, None).await?;
                failpoint::reach(failpoint::name::HEAL_AFTER_READ);
                Ok(delivery)
            }
        }
    }

    /// Reads the next rows that are counted.
    async fn read_counts(
        &self,
        after: Option<&Key>,
        condition: Option<&Condition>,
        limit: u32,
        after_rows: AfterRows,
    ) -> Result<Delivery, CopyError> {
        let read = self.source.read_distinct(self.table, after, condition, limit).await?;
        let step = step(
            read.rows.iter().map(|(_, rows)| rows).sum(),
            read.finished,
            read.last.clone(),
            after_rows,
        );
        Ok(self.counted(read, Some(step)))
    }

    async fn read_wanted(
        &self,
        wanted: Wanted<'_>,
        purpose: fn(RequestedKeys) -> Purpose,
        step: Option<CopyStep>,
    ) -> Result<Delivery, CopyError> {
        match wanted {
            Wanted::Keys(agent, keys) => {
                let (chunk, requested) =
                    compare::read_keys(self.source, self.table, self.relation, agent, keys).await?;
                let step = match step {
                    // It answers for some of the keys; the progress comes with the last ones.
                    Some(_) if requested.keys.len() < keys.len() => Some(CopyStep::Chunk {
                        rows: 0,
                        last_key: None,
                    }),
                    step => step,
                };
                Ok(self.delivery(chunk, purpose(requested), step))
            }
            Wanted::Rows(rows) => Ok(self.counted(self.source.count_rows(self.table, rows.to_vec()).await?, step)),
        }
    }

    fn counted(&self, read: CountedRows, step: Option<CopyStep>) -> Delivery {
        let (rows, counts) = read.rows.into_iter().unzip();
        Delivery {
            reads: vec![Chunk {
                relation: Arc::clone(self.relation),
                snapshot: read.snapshot,
                rows,
                purpose: Purpose::Counts(counts),
            }],
            step,
        }
    }

    fn delivery(&self, chunk: ChunkRows, purpose: Purpose, step: Option<CopyStep>) -> Delivery {
        let read = Chunk {
            relation: Arc::clone(self.relation),
            snapshot: chunk.snapshot,
            rows: chunk.rows,
            purpose,
        };
        Delivery {
            reads: vec![read],
            step,
        }
    }
}

/// What was read, to be compared instead of written.
fn compared(mut delivery: Delivery) -> Delivery {
    for read in &mut delivery.reads {
        if let Purpose::Counts(counts) = &mut read.purpose {
            read.purpose = Purpose::ComparedCounts(std::mem::take(counts));
        }
    }
    delivery
}

/// The progress that a page of the Agent DB's rows makes. `last`: its last key; `None` if it was empty: the end.
fn step_of_page(last: Option<&Key>) -> CopyStep {
    match last {
        Some(last) => CopyStep::Chunk {
            rows: 0,
            last_key: Some(last.compact()),
        },
        None => CopyStep::Finished { rows: 0 },
    }
}

/// The progress that some rows of the Site DB make.
fn step(rows: u64, finished: bool, last_key: Option<Key>, after_rows: AfterRows) -> CopyStep {
    match (finished, after_rows) {
        (false, _) => CopyStep::Chunk { rows, last_key },
        (true, AfterRows::Extras) => CopyStep::PhaseFinished { rows },
        (true, AfterRows::Done) => CopyStep::Finished { rows },
    }
}
