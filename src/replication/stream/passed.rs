//! Which transactions a stream passes over, and which tables it has met in them.

use std::collections::HashSet;

use crate::change::RelationId;
use crate::lsn::Lsn;

/// A stream that passes over what it sends.
#[derive(Debug)]
pub(in crate::replication) struct Passing {
    /// The position of the commit record of the last transaction to pass over.
    until: Lsn,
    /// The tables that are to be read again because of it.
    tables: HashSet<RelationId>,
}

impl Passing {
    /// Passes over all transactions whose commit record is not after `until`.
    pub(in crate::replication) fn new(until: Lsn) -> Self {
        Self {
            until,
            tables: HashSet::new(),
        }
    }

    /// A change of a table is passed over. Returns whether it is the table's first.
    pub(in crate::replication) fn meets(&mut self, table: RelationId) -> bool {
        self.tables.insert(table)
    }

    /// Whether the transaction with this commit record is the last one, or after it.
    pub(in crate::replication) fn is_over_at(&self, commit: Lsn) -> bool {
        commit >= self.until
    }
}
