//! What goes into the sink and what comes out of it: plain data.

use std::collections::BTreeMap;
use std::sync::Arc;

use time::OffsetDateTime;

use crate::change::{Change, Key, Relation, RelationId, TableName, Truncate};
use crate::lsn::Lsn;

/// A table as the source's stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDescription {
    /// The stream's name for it.
    pub id: RelationId,
    /// The table.
    pub table: TableName,
    /// Its published columns, in the order of the row images.
    pub columns: Vec<Arc<str>>,
    /// By what the source identifies the old row of an update or a delete.
    pub identity: Identity,
}

/// A table's replica identity in the Site DB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The whole old row.
    Full,
    /// These positions in the columns (DEFAULT or INDEX). Empty (NOTHING) where rows are only ever inserted: the source
    /// itself refuses the rest.
    Columns(Vec<usize>),
}

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
    /// A copy's progress, written with the rows that it speaks of.
    CopyProgress(TableProgress),
    /// Changes that were received and are not for us (the table's copy has not begun, a filter took them out).
    Filtered {
        /// The table.
        relation: Arc<Relation>,
        /// How many.
        count: u64,
    },
    /// Changes that were received and that something newer has made irrelevant.
    Superseded {
        /// The table.
        relation: Arc<Relation>,
        /// How many.
        count: u64,
    },
}

/// What a table is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableState {
    /// Nothing is copied. Set when the daemon first sees the table.
    New,
    /// The first copy runs.
    Copying,
    /// Equal to the source but for lag.
    Streaming,
    /// Streaming, and being read again.
    Resyncing,
}

impl TableState {
    /// As stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Copying => "copying",
            Self::Streaming => "streaming",
            Self::Resyncing => "resyncing",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::New, Self::Copying, Self::Streaming, Self::Resyncing]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// Where in a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyPhase {
    /// The source's rows, by key order.
    Rows,
    /// Rows that only the Agent DB has.
    Extras,
}

impl CopyPhase {
    /// As stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Extras => "extras",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Rows, Self::Extras]
            .into_iter()
            .find(|phase| phase.as_str() == text)
    }
}

/// A table's row in `twinlog.tables`: what it is doing and how far its copy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableProgress {
    /// The table.
    pub table: TableName,
    /// What it is doing.
    pub state: TableState,
    /// Where in a copy.
    pub phase: Option<CopyPhase>,
    /// The last key done in this phase.
    pub last_key: Option<Key>,
    /// Rows copied so far.
    pub rows_copied: i64,
    /// Rows that there may be.
    pub rows_estimated: Option<i64>,
    /// A resync's condition on the source's rows.
    pub condition: Option<String>,
    /// The command that asked for it.
    pub command_id: Option<i64>,
    /// Why its copy waits for a person.
    pub detail: Option<String>,
    /// When the copy began.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
    /// The source position as of which the last finished copy is right.
    pub copied_at_lsn: Option<Lsn>,
}

impl TableProgress {
    /// A table of which nothing is copied.
    #[must_use]
    pub const fn new(table: TableName) -> Self {
        Self {
            table,
            state: TableState::New,
            phase: None,
            last_key: None,
            rows_copied: 0,
            rows_estimated: None,
            condition: None,
            command_id: None,
            detail: None,
            started_at: None,
            finished_at: None,
            copied_at_lsn: None,
        }
    }
}

/// What became of changes. `received = applied + unchanged + superseded + filtered + parked` always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Changes that the stream brought.
    pub received: u64,
    /// Written.
    pub applied: u64,
    /// Nothing to do: the deleted row was not there.
    pub unchanged: u64,
    /// A newer change of the same key made it irrelevant.
    pub superseded: u64,
    /// Not for us.
    pub filtered: u64,
    /// Kept in `twinlog.failed_rows`.
    pub parked: u64,
    /// Rows written or deleted by copies, outside of the sum.
    pub copied: u64,
    /// Parked rows that were mended, outside of the sum.
    pub healed: u64,
}

impl Tally {
    /// Whether nothing was lost track of.
    #[must_use]
    pub const fn balances(&self) -> bool {
        self.received == self.applied + self.unchanged + self.superseded + self.filtered + self.parked
    }

    /// Adds another tally to this one.
    pub const fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.applied += other.applied;
        self.unchanged += other.unchanged;
        self.superseded += other.superseded;
        self.filtered += other.filtered;
        self.parked += other.parked;
        self.copied += other.copied;
        self.healed += other.healed;
    }
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
