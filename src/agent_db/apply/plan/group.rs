//! Rows that one statement writes: taken from a plan, or one change exactly as it came.

use std::sync::Arc;

use super::counted::{CountedRow, counted};
use super::image::{Image, image, moved};
use super::write_plan::TablePlan;
use crate::agent_db::apply::sql::StatementKind;
use crate::change::{Change, ColumnValue, Key, Origin, Relation, Row};

/// One row of a [`Group`].
#[derive(Debug, Clone, Copy)]
pub(in crate::agent_db::apply) struct RowWrite<'e> {
    /// The change that is counted, or parked if it is refused.
    pub change: &'e Change,
    /// The key to find the row by: the old one for a move.
    pub key: &'e Key,
    /// The image to write; `None` for a delete.
    pub row: Option<&'e Row>,
}

/// Why rows are written: decides how they are counted, and what a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent_db::apply) enum Purpose {
    /// They come from the stream: each is counted, and parked if it is refused.
    Stream,
    /// A copy or a resync read them: they are counted as copied, and parked when they are refused.
    Chunk,
    /// They were read because their keys are parked: success heals the keys, a refusal delays the next attempt.
    Heal,
}

impl Purpose {
    const fn of(origin: Origin) -> Self {
        match origin {
            Origin::Stream => Self::Stream,
            Origin::Chunk => Self::Chunk,
        }
    }
}

/// Rows of one table that one statement writes. Their keys are distinct.
#[derive(Debug)]
pub(in crate::agent_db::apply) struct Group<'e> {
    /// The table.
    pub relation: &'e Arc<Relation>,
    /// The statement.
    pub kind: StatementKind,
    /// Why the rows are written.
    pub purpose: Purpose,
    /// The rows: none only where it is tried whether the statement is accepted at all.
    pub rows: Vec<RowWrite<'e>>,
}

/// A COPY costs one more round trip, about 100 µs, and saves about 2 µs a row.
const FEWEST_TO_COPY: usize = 64;

/// The statement and the row for an image.
fn kind_of(image: Image<'_>, origin: Origin) -> (StatementKind, Option<&Row>) {
    match image {
        Image::Upsert(row) => (
            StatementKind::Upsert {
                only_if_different: origin == Origin::Chunk,
            },
            Some(row),
        ),
        Image::Partial(row) => (StatementKind::Partial { present: present(row) }, Some(row)),
        Image::Delete => (StatementKind::Delete, None),
    }
}

/// Which columns an image holds.
pub(in crate::agent_db::apply) fn present(row: &Row) -> Box<[bool]> {
    row.0.iter().map(|value| *value != ColumnValue::Unchanged).collect()
}

impl<'e> Group<'e> {
    /// A single change, exactly as it came. `heal`: it comes from a chunk and its key is parked.
    pub(in crate::agent_db::apply) fn of_one(change: &'e Change, heal: bool) -> Self {
        let (kind, key, row) = if change.relation.counts_rows()
            && let Some((kind, row)) = counted(&change.operation)
        {
            (kind, &change.key, Some(row))
        } else if let Some((old, row)) = moved(change) {
            (StatementKind::Move { present: present(row) }, old, Some(row))
        } else {
            let (kind, row) = kind_of(image(&change.operation), change.origin);
            (kind, &change.key, row)
        };
        Self {
            relation: &change.relation,
            kind,
            purpose: if heal {
                Purpose::Heal
            } else {
                Purpose::of(change.origin)
            },
            rows: vec![RowWrite { change, key, row }],
        }
    }

    /// The statements for the moves of a table's plan.
    pub(in crate::agent_db::apply) fn of_moves(table: &TablePlan<'e>) -> Vec<Self> {
        joined(table.moves.iter().map(|&change| Self::of_one(change, false)))
    }

    /// The statements for the updates of counted rows of a table's plan.
    pub(in crate::agent_db::apply) fn of_updates(table: &TablePlan<'e>) -> Vec<Self> {
        joined(table.updates.iter().map(|&change| Self::of_one(change, false)))
    }

    /// The statements for the heals of a table's plan.
    pub(in crate::agent_db::apply) fn of_heals(table: &TablePlan<'e>) -> Vec<Self> {
        joined(table.heals.iter().map(|&change| Self::of_one(change, true)))
    }

    /// The statements for the rows of a table's plan. `may_copy`: rows of this origin that should be new may go by COPY.
    pub(in crate::agent_db::apply) fn of_rows(
        table: &'e TablePlan<'_>,
        may_copy: impl Fn(Origin) -> bool,
    ) -> Vec<Self> {
        /// A wider row goes by COPY even alone: it is sent in pieces, where a parameter is in memory three times.
        const WIDE: usize = 1 << 20;
        let copies = |origin| {
            let new = table
                .rows
                .values()
                .filter(|changes| changes.is_new && changes.last.origin == origin)
                .take(FEWEST_TO_COPY);
            let (count, is_wide) = new.fold((0, false), |(count, is_wide), changes| {
                (count + 1, is_wide || changes.last.size() > WIDE)
            });
            may_copy(origin) && (count == FEWEST_TO_COPY || is_wide)
        };
        let (stream_copies, chunk_copies) = (copies(Origin::Stream), copies(Origin::Chunk));
        let mut groups: Vec<Self> = Vec::new();
        for (&key, changes) in &table.rows {
            let origin = changes.last.origin;
            let (mut kind, row) = kind_of(changes.image(), origin);
            let copies = match origin {
                Origin::Stream => stream_copies,
                Origin::Chunk => chunk_copies,
            };
            if copies && changes.is_new && matches!(kind, StatementKind::Upsert { .. }) {
                kind = StatementKind::Copy;
            }
            let purpose = Purpose::of(origin);
            let write = RowWrite {
                change: changes.last,
                key,
                row,
            };
            // Most rows need the same statement as the row before.
            match groups
                .iter_mut()
                .rev()
                .find(|group| group.purpose == purpose && group.kind == kind)
            {
                Some(group) => group.rows.push(write),
                None => groups.push(Self {
                    relation: table.relation,
                    kind,
                    purpose,
                    rows: vec![write],
                }),
            }
        }
        groups
    }

    /// The statements for the counted rows of a table's plan. `may_copy`: those of the stream may go by COPY.
    pub(in crate::agent_db::apply) fn of_counted(table: &TablePlan<'e>, may_copy: bool) -> Vec<Self> {
        let changes = table.counted.values().flat_map(CountedRow::changes);
        let mut groups = joined(changes.map(|change| Self::of_one(change, false)));
        for group in &mut groups {
            if may_copy && group.kind == StatementKind::Insert && group.rows.len() >= FEWEST_TO_COPY {
                group.kind = StatementKind::Copy;
            }
        }
        groups
    }

    /// Whether another group's rows may join this one's statement.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.relation, other.relation) && self.purpose == other.purpose && self.kind == other.kind
    }

    /// The group without the rows at some positions; `None` if no row is left.
    pub(in crate::agent_db::apply) fn without(&self, is_out: impl Fn(usize) -> bool) -> Option<Self> {
        let rows: Vec<RowWrite<'e>> = self
            .rows
            .iter()
            .enumerate()
            .filter(|(position, _)| !is_out(*position))
            .map(|(_, row)| *row)
            .collect();
        (!rows.is_empty()).then(|| Self {
            relation: self.relation,
            kind: self.kind.clone(),
            purpose: self.purpose,
            rows,
        })
    }

    /// The statement with no rows.
    pub(in crate::agent_db::apply) fn without_rows(&self) -> Self {
        Self {
            relation: self.relation,
            kind: self.kind.clone(),
            purpose: self.purpose,
            rows: Vec::new(),
        }
    }

    /// Both halves, in order.
    pub(in crate::agent_db::apply) fn halves(self) -> (Self, Self) {
        let middle = self.rows.len() / 2;
        self.split_at(middle)
    }

    /// The rows before a position, and the others.
    pub(in crate::agent_db::apply) fn split_at(mut self, position: usize) -> (Self, Self) {
        let second = self.rows.split_off(position.min(self.rows.len()));
        let second = Self {
            relation: self.relation,
            kind: self.kind.clone(),
            purpose: self.purpose,
            rows: second,
        };
        (self, second)
    }

    /// Of these moved rows, the ones whose full image is known, to be inserted under their new keys.
    pub(in crate::agent_db::apply) fn as_upserts(&self, moved: &[RowWrite<'e>]) -> Option<Self> {
        let kind = if self.relation.counts_rows() {
            StatementKind::Insert
        } else {
            StatementKind::Upsert {
                only_if_different: false,
            }
        };
        let rows: Vec<RowWrite<'e>> = moved
            .iter()
            .filter(|write| write.row.is_some_and(Row::is_full))
            .map(|write| RowWrite {
                key: &write.change.key,
                ..*write
            })
            .collect();
        (!rows.is_empty()).then_some(Self {
            relation: self.relation,
            kind,
            purpose: self.purpose,
            rows,
        })
    }

    /// Whether this is written by COPY, which is refused as a whole; no statement may be sent after it before its answer.
    pub(in crate::agent_db::apply) fn copies(&self) -> bool {
        self.kind == StatementKind::Copy
    }

    /// Whether this moves rows to other keys, or makes rows that have none other ones: those that are missing are inserted.
    pub(in crate::agent_db::apply) const fn moves(&self) -> bool {
        matches!(self.kind, StatementKind::Move { .. } | StatementKind::UpdateOne)
    }

    /// Whether a row may be in it more than once.
    pub(super) const fn takes_equal_rows(&self) -> bool {
        matches!(self.kind, StatementKind::Insert | StatementKind::DeleteOne)
    }

    /// Whether this removes rows: what must come first for unique indexes, and last for foreign keys.
    pub(in crate::agent_db::apply) fn deletes(&self) -> bool {
        matches!(self.kind, StatementKind::Delete | StatementKind::DeleteOne)
    }
}

/// Joins groups that one statement can write.
fn joined<'e>(ones: impl Iterator<Item = Group<'e>>) -> Vec<Group<'e>> {
    let mut groups: Vec<Group<'e>> = Vec::new();
    for one in ones {
        match groups.iter_mut().rev().find(|group| group.is_like(&one)) {
            Some(group) => group.rows.extend(one.rows),
            None => groups.push(one),
        }
    }
    groups
}
