//! Proves that a table is equal in both databases, or finds where it is not: while both are written and read.
//!
//! Two passes, as for a copy: the rows of the Site DB in key order, then the keys that the Agent DB has. Each page is compared
//! in two steps:
//!
//! 1. **Without fences**: a page of the Site DB is read, then compared with the Agent DB as it is just then, over a session of
//!    its own. What is equal now is proved: both reads saw the same, the stream's changes between the two places set the same
//!    values on either side, so both are equal where the stream has reached the later place. What differs may only be on its
//!    way, or newer, so it is suspected. (Rows without a key are counted, and numbers add up instead: all are suspected.)
//! 2. **Between fences**: the suspects are read once more in the Site DB, as a chunk (see [`super::window`]), merged with the
//!    stream, and compared by the session that writes, at the high fence: after everything that came before and before what
//!    comes next. What differs there is different, and nothing else is reported.
//!
//! So the stream waits only for the few rows that changed just then. A key that is parked is not compared but counted, as its
//! entry says what it lacks.

use std::sync::Arc;

use super::compare::only_in_agent;
use super::error::CopyError;
use super::reader::{COUNTED_PAGE, ChunkReader, ForeignRows};
use super::step::CopyPlace;
use crate::agent_db::{AgentKeys, AgentRows, Comparer, Comparison, CopyPhase, Difference, DifferenceKind};
use crate::change::{Change, Key, Operation, Origin, Row};

/// Verifies one table, page by page.
#[derive(Debug)]
pub struct TableVerifier<'a> {
    reader: ChunkReader<'a>,
    agent: &'a Comparer,
    pages: AgentPages<'a>,
    /// Most rows of a page.
    limit: u32,
}

/// What the Agent DB has of the table, page by page.
#[derive(Debug)]
enum AgentPages<'a> {
    Keys(AgentKeys<'a>),
    Rows(AgentRows<'a>),
}

/// A page that was verified.
#[derive(Debug, Default)]
pub struct VerifiedPage {
    /// Rows of the Site DB that it has.
    pub rows: u64,
    /// Where the Agent DB differs.
    pub differences: Vec<Difference>,
    /// Suspected keys that are parked: what they lack, their entries say.
    pub parked: u64,
    /// Where the next page begins; `None`: it was the last one.
    pub next: Option<CopyPlace>,
}

impl<'a> TableVerifier<'a> {
    /// Reads how the table's keys are compared. `limit`: most rows of a page.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn new(reader: ChunkReader<'a>, agent: &'a Comparer, limit: u32) -> Result<Self, CopyError> {
        let relation = reader.relation;
        let (pages, limit) = if relation.counts_rows() {
            let rows = AgentRows::of(agent.client(), relation, None).await?;
            (AgentPages::Rows(rows), limit.max(COUNTED_PAGE))
        } else {
            (
                AgentPages::Keys(AgentKeys::of(agent.client(), relation, None).await?),
                limit,
            )
        };
        Ok(Self {
            reader,
            agent,
            pages,
            limit,
        })
    }

    /// Verifies the page that begins at a place.
    ///
    /// # Errors
    /// A read failed, or the stream ended. Pages before it are proved.
    pub async fn page(&self, place: &CopyPlace) -> Result<VerifiedPage, CopyError> {
        let after = place.last_key.as_ref();
        match (place.phase, &self.pages) {
            (CopyPhase::Rows, AgentPages::Keys(_)) => self.rows(after).await,
            (CopyPhase::Rows, AgentPages::Rows(_)) => self.counted_rows(after).await,
            (CopyPhase::Extras, AgentPages::Keys(keys)) => self.extras(keys, after).await,
            (CopyPhase::Extras, AgentPages::Rows(rows)) => self.counted_extras(rows, after).await,
        }
    }

    /// Writes what differs as the Site DB has it, in the stream's order. Returns once that is durable.
    ///
    /// # Errors
    /// A read failed, or the stream ended: some of it may be written.
    pub async fn repair(&self, differences: &[Difference]) -> Result<(), CopyError> {
        let rows: Vec<Row> = differences
            .iter()
            .filter_map(|difference| difference.row.clone())
            .collect();
        if !rows.is_empty() {
            self.reader.heal_counted(&rows).await?;
        }
        let keys: Vec<Key> = differences
            .iter()
            .filter(|difference| difference.row.is_none())
            .map(|difference| difference.key.clone())
            .collect();
        if keys.is_empty() {
            return Ok(());
        }
        self.reader.repair_keys(&keys).await
    }

    async fn rows(&self, after: Option<&Key>) -> Result<VerifiedPage, CopyError> {
        let ChunkReader {
            source,
            table,
            relation,
            ..
        } = self.reader;
        let read = source.read_range(table, relation, after, None, self.limit).await?;
        let last = read.rows.last().and_then(|row| relation.key_of(row));
        let rows = read.rows.len() as u64;
        // A primary key is never NULL, so every row that was read has a key.
        let expected: Vec<Change> = (read.rows.into_iter())
            .filter_map(|row| Some(self.change(relation.key_of(&row)?, Operation::Insert(row))))
            .collect();
        let suspects = self.agent.compare(&expected).await?;
        drop(expected);
        let suspects: Vec<Key> = suspects.into_iter().map(|suspect| suspect.key).collect();
        let mut page = page(self.reader.compare_keys(&suspects).await?);
        // The second pass meets those.
        page.differences
            .retain(|difference| !matches!(difference.kind, DifferenceKind::Extra(_)));
        Ok(VerifiedPage {
            rows,
            next: self.after_rows(read.finished, last),
            ..page
        })
    }

    /// All of them are counted between fences: equal numbers prove nothing while changes are on their way.
    async fn counted_rows(&self, after: Option<&Key>) -> Result<VerifiedPage, CopyError> {
        let (comparison, rows, last) = self.reader.compare_counts(after, self.limit).await?;
        Ok(VerifiedPage {
            rows,
            next: self.after_rows(last.is_none(), last),
            ..page(comparison)
        })
    }

    /// Where the page after some rows begins.
    fn after_rows(&self, finished: bool, last: Option<Key>) -> Option<CopyPlace> {
        let (phase, last_key) = if finished {
            (CopyPhase::Extras, None)
        } else {
            (CopyPhase::Rows, last.map(|key| key.compact()))
        };
        let is_over = finished && self.reader.foreign_rows == ForeignRows::Keep;
        (!is_over).then_some(CopyPlace { phase, last_key })
    }

    async fn extras(&self, keys: &AgentKeys<'_>, after: Option<&Key>) -> Result<VerifiedPage, CopyError> {
        let ChunkReader {
            source,
            table,
            relation,
            ..
        } = self.reader;
        let keys = keys.page(after, self.limit).await?;
        let suspects = only_in_agent(source, table, relation, &keys).await?;
        let page = page(self.reader.compare_keys(&suspects).await?);
        Ok(VerifiedPage {
            next: after_extras(keys.last()),
            ..page
        })
    }

    async fn counted_extras(&self, rows: &AgentRows<'_>, after: Option<&Key>) -> Result<VerifiedPage, CopyError> {
        let ChunkReader { source, table, .. } = self.reader;
        let agent = rows.page(after, self.limit).await?;
        let next = after_extras(agent.last.as_ref());
        // Those that the Site DB has as well were compared with the Site DB's rows.
        let counted = source.count_rows(table, agent.rows).await?;
        let gone = counted.rows.into_iter().filter(|(_, rows)| *rows == 0);
        let gone: Vec<Row> = gone.map(|(row, _)| row).collect();
        if gone.is_empty() {
            return Ok(VerifiedPage {
                next,
                ..VerifiedPage::default()
            });
        }
        let page = page(self.reader.compare_rows(&gone).await?);
        Ok(VerifiedPage { next, ..page })
    }

    fn change(&self, key: Key, operation: Operation) -> Change {
        Change {
            relation: Arc::clone(self.reader.relation),
            key,
            operation,
            origin: Origin::Chunk,
        }
    }
}

fn page(comparison: Comparison) -> VerifiedPage {
    VerifiedPage {
        differences: comparison.differences,
        parked: comparison.parked,
        ..VerifiedPage::default()
    }
}

/// Where the page of the Agent DB's keys after this one begins.
fn after_extras(last: Option<&Key>) -> Option<CopyPlace> {
    let last = last?.compact();
    Some(CopyPlace {
        phase: CopyPhase::Extras,
        last_key: Some(last),
    })
}
