//! What is applied, and the result: plain data.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agent_db::bookkeeping::{TableChange, Tally};
use crate::change::{Change, Hold, Relation, TableName, Truncate};
use crate::lsn::Lsn;

/// A piece of the stream, in order. A source transaction may be spread over several.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    /// What happened.
    pub items: Vec<Item>,
    /// The position by which parked rows are found in the source's log: the commit's, or the last one known.
    pub lsn: Lsn,
}

/// A change to apply, or a fact to store with it.
#[derive(Debug, Clone)]
pub enum Item {
    /// A row changed.
    Change(Change),
    /// The present rows of parked keys, read together: they may wait for each other, so they are written together.
    Heal(Vec<Change>),
    /// Tables were emptied.
    Truncate(Truncate),
    /// A table's new state, such as a copy's progress; written in the transaction of its rows.
    Table(TableChange),
    /// Changes that were received and are not applied.
    PassedOver {
        /// Their table.
        relation: Arc<Relation>,
        /// How many changes.
        count: u64,
        /// Why not.
        why: PassedOver,
    },
}

/// Why changes are counted, but not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassedOver {
    /// The table is not synchronised.
    NotSelected,
    /// The table is held. When it is released, it is read again.
    Held,
}

/// The result of a segment, in the open transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// By table.
    pub tables: BTreeMap<TableName, Tally>,
    /// How many rows of each table that has, or had, some are parked now.
    pub parked_now: BTreeMap<TableName, u64>,
    /// The tables whose own fault showed itself here, each with the fault and its remedy. Nothing of the segment was
    /// written to them, and nothing will be before [`Transaction::set_mode`](super::Transaction::set_mode) says so.
    pub held: BTreeMap<TableName, Hold>,
}

impl Applied {
    /// The sum over all tables.
    #[must_use]
    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        for tally in self.tables.values() {
            total.add(tally);
        }
        total
    }
}

/// A commit that is durable in the Agent DB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The position that is durable now.
    pub end_lsn: Lsn,
    /// What the transaction held, over all of its segments.
    pub applied: Applied,
    /// False if the checkpoint was stored already and nothing had to be written.
    pub written: bool,
}
