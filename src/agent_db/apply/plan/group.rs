//! Rows that one statement writes: out of a round, or cut from the stream in its exact order.

use std::sync::Arc;

use ahash::AHashSet;

use super::{Image, TableRound, image, moved};
use crate::agent_db::apply::sql::Kind;
use crate::change::{Change, ColumnValue, Key, Origin, Relation, Row};

/// One row of a [`Group`].
#[derive(Debug, Clone, Copy)]
pub(in crate::agent_db::apply) struct Line<'e> {
    /// The change by which the result is counted, or parked.
    pub change: &'e Change,
    /// The key to find the row by: the old one for a move.
    pub key: &'e Key,
    /// The image to write; `None` for a delete.
    pub row: Option<&'e Row>,
}

/// Rows of one table that one statement writes. Their keys are distinct.
#[derive(Debug)]
pub(in crate::agent_db::apply) struct Group<'e> {
    /// The table.
    pub relation: &'e Arc<Relation>,
    /// The statement.
    pub kind: Kind,
    /// Whether the rows come from a chunk.
    pub origin: Origin,
    /// Whether the keys are parked, so that success heals them.
    pub heal: bool,
    /// The rows.
    pub lines: Vec<Line<'e>>,
}

/// The statement and the row for an image.
fn kind_of<'e>(image: Image<'e>, origin: Origin) -> (Kind, Option<&'e Row>) {
    match image {
        Image::Upsert(row) => (
            Kind::Upsert {
                only_if_different: origin == Origin::Chunk,
            },
            Some(row),
        ),
        Image::Partial(row) => (Kind::Partial { present: present(row) }, Some(row)),
        Image::Delete => (Kind::Delete, None),
    }
}

fn present(row: &Row) -> Box<[bool]> {
    row.0.iter().map(|value| *value != ColumnValue::Unchanged).collect()
}

impl<'e> Group<'e> {
    /// A change alone, exactly as it came.
    pub(in crate::agent_db::apply) fn of_one(change: &'e Change, heal: bool) -> Self {
        let (kind, key, row) = match moved(change) {
            Some((old, row)) => (Kind::Move { present: present(row) }, old, Some(row)),
            None => {
                let (kind, row) = kind_of(image(&change.operation), change.origin);
                (kind, &change.key, row)
            }
        };
        Self {
            relation: &change.relation,
            kind,
            origin: change.origin,
            heal,
            lines: vec![Line { change, key, row }],
        }
    }

    /// The statements of the moves of a table's round.
    pub(in crate::agent_db::apply) fn of_moves(table: &TableRound<'e>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for &change in &table.moves {
            join(&mut groups, Self::of_one(change, false));
        }
        groups
    }

    /// The statements of the heals of a table's round.
    pub(in crate::agent_db::apply) fn of_heals(table: &TableRound<'e>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for &change in &table.heals {
            join(&mut groups, Self::of_one(change, true));
        }
        groups
    }

    /// The statements of the rows of a table's round. `may_copy`: rows of this origin that should be new may go by COPY.
    pub(in crate::agent_db::apply) fn of_rows(
        table: &'e TableRound<'_>,
        may_copy: impl Fn(Origin) -> bool,
    ) -> Vec<Self> {
        /// A COPY costs one more round trip, about 100 µs, and saves about 2 µs a row.
        const FEWEST_TO_COPY: usize = 64;
        let new_rows = |origin| {
            let news = table
                .rows
                .values()
                .filter(|entry| entry.is_new && entry.last.origin == origin);
            may_copy(origin) && news.take(FEWEST_TO_COPY).count() == FEWEST_TO_COPY
        };
        let (copy_stream, copy_chunk) = (new_rows(Origin::Stream), new_rows(Origin::Chunk));
        let mut groups: Vec<Self> = Vec::new();
        for (&key, entry) in &table.rows {
            let (mut kind, row) = kind_of(entry.image(), entry.last.origin);
            let copies = match entry.last.origin {
                Origin::Stream => copy_stream,
                Origin::Chunk => copy_chunk,
            };
            if copies && entry.is_new && matches!(kind, Kind::Upsert { .. }) {
                kind = Kind::Copy;
            }
            let line = Line {
                change: entry.last,
                key,
                row,
            };
            // Nearly always the same statement as the row before.
            match groups
                .iter_mut()
                .rev()
                .find(|group| group.origin == entry.last.origin && group.kind == kind)
            {
                Some(group) => group.lines.push(line),
                None => groups.push(Self {
                    relation: table.relation,
                    kind,
                    origin: entry.last.origin,
                    heal: false,
                    lines: vec![line],
                }),
            }
        }
        groups
    }

    /// Whether another group's rows may join this one's statement.
    fn is_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.relation, other.relation)
            && self.origin == other.origin
            && self.heal == other.heal
            && self.kind == other.kind
    }

    /// Both halves, in order.
    pub(in crate::agent_db::apply) fn halves(mut self) -> (Self, Self) {
        let second = self.lines.split_off(self.lines.len() / 2);
        let second = Self {
            relation: self.relation,
            kind: self.kind.clone(),
            origin: self.origin,
            heal: self.heal,
            lines: second,
        };
        (self, second)
    }

    /// Of moved rows, those whose full image is known, to be inserted under their new keys.
    pub(in crate::agent_db::apply) fn as_upserts(&self, lines: &[Line<'e>]) -> Option<Self> {
        let lines: Vec<Line<'e>> = lines
            .iter()
            .filter(|line| line.row.is_some_and(Row::is_full))
            .map(|line| Line {
                key: &line.change.key,
                ..*line
            })
            .collect();
        (!lines.is_empty()).then_some(Self {
            kind: Kind::Upsert {
                only_if_different: false,
            },
            lines,
            ..*self
        })
    }

    /// Of moved rows, those whose full image is known, to be deleted under their old keys.
    pub(in crate::agent_db::apply) fn as_deletes(&self, lines: &[Line<'e>]) -> Option<Self> {
        let lines: Vec<Line<'e>> = lines
            .iter()
            .filter(|line| line.row.is_some_and(Row::is_full))
            .map(|line| Line { row: None, ..*line })
            .collect();
        (!lines.is_empty()).then_some(Self {
            kind: Kind::Delete,
            lines,
            ..*self
        })
    }

    /// Whether this goes by COPY, which is refused as a whole and after which no other statement is in flight.
    pub(in crate::agent_db::apply) fn copies(&self) -> bool {
        self.kind == Kind::Copy
    }

    /// Whether this removes rows: what must come first for unique indexes, and last for foreign keys.
    pub(in crate::agent_db::apply) fn deletes(&self) -> bool {
        self.kind == Kind::Delete
    }
}

fn join<'e>(groups: &mut Vec<Group<'e>>, one: Group<'e>) {
    match groups.iter_mut().rev().find(|group| group.is_like(&one)) {
        Some(group) => group.lines.extend(one.lines),
        None => groups.push(one),
    }
}

/// Changes in exact stream order, cut into runs that one statement can write: neighbours of one table and kind whose
/// keys are distinct.
#[derive(Debug, Default)]
pub(in crate::agent_db::apply) struct Run<'a> {
    group: Option<Group<'a>>,
    keys: AHashSet<&'a Key>,
}

impl<'a> Run<'a> {
    /// Takes the change, or gives back what must be written before it can be taken.
    pub(in crate::agent_db::apply) fn offer(&mut self, change: &'a Change, heal: bool) -> Option<Group<'a>> {
        let one = Group::of_one(change, heal);
        let old = moved(change).map(|(old, _)| old);
        if let Some(group) = &mut self.group {
            let is_known = self.keys.contains(&change.key) || old.is_some_and(|old| self.keys.contains(old));
            if is_known || !group.is_like(&one) {
                return self.take();
            }
            group.lines.extend(one.lines);
        } else {
            self.group = Some(one);
        }
        self.keys.insert(&change.key);
        self.keys.extend(old);
        None
    }

    /// Whether the run is about to heal a key of the change.
    pub(in crate::agent_db::apply) fn is_healing(&self, change: &Change) -> bool {
        self.group
            .as_ref()
            .is_some_and(|group| group.heal && group.relation.table == change.relation.table)
            && (self.keys.contains(&change.key) || moved(change).is_some_and(|(old, _)| self.keys.contains(old)))
    }

    /// What is left to be written.
    pub(in crate::agent_db::apply) fn take(&mut self) -> Option<Group<'a>> {
        self.keys.clear();
        self.group.take()
    }
}
