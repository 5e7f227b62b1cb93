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
//! Where both databases sort the keys alike (integers, uuids, times) and store texts in the same encoding, whole ranges come before that: both compute a digest of a
//! range (see [`row_digest`](crate::postgres::row_digest)), and where the digests are the same, no row has to be moved. The same
//! reasoning as in the first step makes that a proof. Where they differ, the range is divided, down to a few rows, which are
//! compared as above, together with the keys that the Agent DB has in that range. So there is one pass instead of two.
//!
//! So the stream waits only for the few rows that changed just then. A key that is parked is not compared but counted, as its
//! entry says what it lacks.

mod both_sides;
mod ranges;

use std::sync::Arc;

use both_sides::Ranges;

use super::compare::only_in_agent;
use super::error::CopyError;
use super::reader::{COUNTED_PAGE, ChunkReader, ForeignRows};
use super::step::CopyPlace;
use crate::agent_db::{AgentKeys, AgentRows, Comparer, Comparison, CopyPhase, Difference, DifferenceKind};
use crate::change::{Change, Key, Operation, Origin, Row};
use crate::failpoint;

/// Verifies one table, page by page.
#[derive(Debug)]
pub struct TableVerifier<'a> {
    reader: ChunkReader<'a>,
    agent: &'a Comparer,
    pages: AgentPages<'a>,
    /// Most rows of a page whose rows are compared one by one.
    limit: u32,
    /// How ranges are digested; `None` where both databases may sort keys in another way.
    ranges: Option<Ranges>,
    /// Rows of a range that is a page.
    range_rows: u32,
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
    /// Rows and keys that were read in the Site DB for it, some of them several times.
    pub read: u64,
    /// Where the Agent DB differs.
    pub differences: Vec<Difference>,
    /// Suspected keys that are parked: what they lack, their entries say.
    pub parked: u64,
    /// Where the next page begins; `None`: it was the last one.
    pub next: Option<CopyPlace>,
}

impl<'a> TableVerifier<'a> {
    /// Reads how the table's keys are compared. `limit`: most rows of a page that are compared one by one; `range_rows`: rows
    /// of a page of which digests are compared.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn new(
        reader: ChunkReader<'a>,
        agent: &'a Comparer,
        limit: u32,
        range_rows: u32,
    ) -> Result<Self, CopyError> {
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
            ranges: Ranges::of(&reader, agent).await?,
            range_rows,
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
        if let (CopyPhase::Rows, AgentPages::Keys(keys), Some(ranges)) = (place.phase, &self.pages, &self.ranges) {
            return self.range_page(ranges, keys, after).await;
        }
        match (place.phase, &self.pages) {
            (CopyPhase::Rows, AgentPages::Keys(_)) => self.rows(after).await,
            (CopyPhase::Rows, AgentPages::Rows(_)) => self.counted_rows(after).await,
            // The other pipelines' rows.
            (CopyPhase::Extras, _) if self.reader.foreign_rows == ForeignRows::Keep => Ok(VerifiedPage::default()),
            (CopyPhase::Extras, AgentPages::Keys(keys)) => self.extras(keys, after).await,
            (CopyPhase::Extras, AgentPages::Rows(rows)) => self.counted_extras(rows, after).await,
        }
    }

    /// Returns once the stream has come to what was read: what was equal then is proved, unless the table was held before.
    ///
    /// # Errors
    /// A read failed, the stream ended, or the table was held or altered.
    pub async fn settle(&self) -> Result<(), CopyError> {
        match &self.pages {
            AgentPages::Keys(agent) => self.reader.compare_keys(agent, &[]).await.map(|_| ()),
            // Each page was compared in the stream.
            AgentPages::Rows(_) => Ok(()),
        }
    }

    /// Writes what differs as the Site DB has it, in the stream's order. Once that is durable, compares it again and returns what
    /// still differs: the Agent DB may refuse the rows, or change them.
    ///
    /// # Errors
    /// A read failed, or the stream ended: some of it may be written.
    pub async fn repair(&self, differences: &[Difference]) -> Result<Comparison, CopyError> {
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
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX).max(1);
        if let AgentPages::Keys(agent) = &self.pages {
            for keys in keys.chunks(limit) {
                self.reader.repair_keys(agent, keys).await?;
            }
        }
        failpoint::reach(failpoint::name::REPAIR_AFTER_WRITE);
        let mut left = Comparison::default();
        if !rows.is_empty() {
            left = self.reader.compare_rows(&rows).await?;
        }
        for keys in keys.chunks(limit) {
            let compared = self.compare_suspects(keys).await?;
            left.differences.extend(compared.differences);
            left.parked += compared.parked;
        }
        Ok(left)
    }

    /// The page after a key: rows that are compared one by one.
    async fn rows(&self, after: Option<&Key>) -> Result<VerifiedPage, CopyError> {
        let rows = self.rows_between(after, None).await?;
        Ok(VerifiedPage {
            rows: rows.rows,
            read: rows.read,
            differences: rows.differences,
            parked: rows.parked,
            next: self.after_rows(rows.finished, rows.last),
        })
    }

    async fn rows_between(&self, after: Option<&Key>, upto: Option<&Key>) -> Result<ComparedRows, CopyError> {
        let ChunkReader {
            source,
            table,
            relation,
            ..
        } = self.reader;
        let read = source
            .read_between(table, relation, (after, upto), None, self.limit)
            .await?;
        let last = read.rows.last().and_then(|row| relation.key_of(row));
        let rows = read.rows.len() as u64;
        // A primary key is never NULL, so every row that was read has a key.
        let expected: Vec<Change> = (read.rows.into_iter())
            .filter_map(|row| Some(self.change(relation.key_of(&row)?, Operation::Insert(row))))
            .collect();
        let suspects = self.agent.compare(&expected).await?;
        drop(expected);
        let suspects: Vec<Key> = suspects.into_iter().map(|suspect| suspect.key).collect();
        let read_again = suspects.len() as u64;
        let mut comparison = self.compare_suspects(&suspects).await?;
        // Those are met among the keys that the Agent DB has.
        comparison.differences.retain(|difference| !is_extra(difference));
        Ok(ComparedRows {
            rows,
            read: rows + read_again,
            differences: comparison.differences,
            parked: comparison.parked,
            finished: read.finished,
            last: last.map(|key| key.compact()),
        })
    }

    /// All of them are counted between fences: equal numbers prove nothing while changes are on their way.
    async fn counted_rows(&self, after: Option<&Key>) -> Result<VerifiedPage, CopyError> {
        let (mut comparison, rows, last) = self.reader.compare_counts(after, self.limit).await?;
        // Those are met among the rows that the Agent DB has.
        comparison.differences.retain(|difference| !is_extra(difference));
        Ok(VerifiedPage {
            rows,
            read: rows,
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
        let keys = keys.page(after, self.limit).await?;
        let page = page(self.extras_of(&keys).await?);
        Ok(VerifiedPage {
            read: keys.len() as u64,
            next: after_extras(keys.last()),
            ..page
        })
    }

    /// Which of the Agent DB's keys the Site DB does not have.
    async fn extras_of(&self, keys: &[Key]) -> Result<Comparison, CopyError> {
        let ChunkReader {
            source,
            table,
            relation,
            ..
        } = self.reader;
        let suspects = only_in_agent(source, table, relation, keys).await?;
        let mut comparison = self.compare_suspects(&suspects).await?;
        // A key that is spelled otherwise was compared with the Site DB's rows.
        comparison.differences.retain(is_extra);
        Ok(comparison)
    }

    async fn compare_suspects(&self, suspects: &[Key]) -> Result<Comparison, CopyError> {
        match &self.pages {
            AgentPages::Keys(agent) if !suspects.is_empty() => self.reader.compare_keys(agent, suspects).await,
            _ => Ok(Comparison::default()),
        }
    }

    async fn counted_extras(&self, rows: &AgentRows<'_>, after: Option<&Key>) -> Result<VerifiedPage, CopyError> {
        let agent = rows.page(after, self.limit).await?;
        let next = after_extras(agent.last.as_ref());
        if agent.rows.is_empty() {
            return Ok(VerifiedPage {
                next,
                ..VerifiedPage::default()
            });
        }
        // All of them, also those that the Site DB has just now: equal ones may have come since its rows were compared.
        let mut comparison = self.reader.compare_rows(&agent.rows).await?;
        comparison.differences.retain(is_extra);
        Ok(VerifiedPage {
            next,
            read: agent.rows.len() as u64,
            ..page(comparison)
        })
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

/// Rows that were compared one by one.
struct ComparedRows {
    rows: u64,
    /// With those that were read again between fences.
    read: u64,
    differences: Vec<Difference>,
    parked: u64,
    /// Whether no row follows.
    finished: bool,
    last: Option<Key>,
}

fn page(comparison: Comparison) -> VerifiedPage {
    VerifiedPage {
        differences: comparison.differences,
        parked: comparison.parked,
        ..VerifiedPage::default()
    }
}

const fn is_extra(difference: &Difference) -> bool {
    matches!(difference.kind, DifferenceKind::Extra(_))
}

/// Where the page of rows after this key begins.
fn in_rows(last: Key) -> CopyPlace {
    CopyPlace {
        phase: CopyPhase::Rows,
        last_key: Some(last),
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
