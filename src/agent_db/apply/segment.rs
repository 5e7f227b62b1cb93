//! What is applied, and what became of it: plain data.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agent_db::bookkeeping::{TableChange, Tally};
use crate::change::{Change, Relation, TableName, Truncate};
use crate::lsn::Lsn;

/// A piece of the stream, in order. A source transaction may be spread over several.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    /// What happened.
    pub items: Vec<Item>,
    /// The position by which parked rows are found in the source's log: the commit's, or the last one known.
    pub lsn: Lsn,
}

/// One thing that happened, or that is to be remembered with it.
#[derive(Debug, Clone)]
pub enum Item {
    /// A row changed.
    Change(Change),
    /// Tables were emptied.
    Truncate(Truncate),
    /// What the table is doing by now: a copy's progress, written with the rows that it speaks of.
    Table(TableChange),
    /// Changes that were received and are not for us (the table's copy has not begun, a filter took them out).
    Filtered {
        /// Their table.
        relation: Arc<Relation>,
        /// How many changes.
        count: u64,
    },
}

/// What became of a segment, inside of the open transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// By table.
    pub tables: BTreeMap<TableName, Tally>,
    /// How many rows of each of these tables are parked now.
    pub parked_now: BTreeMap<TableName, u64>,
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
    /// False where the checkpoint was there already and nothing had to be written.
    pub written: bool,
}
