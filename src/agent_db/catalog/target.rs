//! How to write a table of the stream in the Agent DB.

use std::sync::Arc;

use crate::change::Relation;

/// A table of the stream and how to write it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::agent_db) struct Target {
    /// The stream's columns and the Agent DB's key.
    pub relation: Arc<Relation>,
    /// How to write each of the relation's columns.
    pub columns: Vec<Column>,
    /// The equality operator of each key column, `OPERATOR(schema.=)`.
    pub equals: Vec<String>,
    /// The collation of each key column in its index, as it stands in a statement, where another unique index of the same
    /// columns has others: ON CONFLICT would take both as the key. Else empty.
    pub collations: Vec<Option<String>>,
    /// Where rows are counted: an index that narrows down which of them are compared.
    pub lookup: Option<Lookup>,
    /// The other columns that the Agent DB's table has and a row can be given, quoted. The stream does not know them.
    pub unpublished: Vec<String>,
    /// What the table can't have as the Site DB has it, for people to see.
    pub notes: Option<String>,
    /// Whether its rows are in partitions.
    pub partitioned: bool,
    /// Triggers or rules of the Agent DB may write another row than the one that was sent, or none: what was written is
    /// looked at.
    pub guarded: bool,
    /// Some of those triggers may be deferred: what was written is looked at again after they have fired.
    pub fires_late: bool,
    /// Whether `COPY` may be used. It passes by rules, and a BEFORE STATEMENT trigger may refuse it between its being taken
    /// up and its first row, where the driver loses count of the answers.
    pub copyable: bool,
}

/// How to write a column.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::agent_db) struct Column {
    /// Its name, quoted.
    pub name: String,
    /// The base type of a domain, without a length limit, as it is shown.
    pub kind: String,
    /// The type to cast its text to: the same as it stands in a statement.
    pub cast: String,
    /// The type whose value prints as a stored one does: with its length where an assignment would round, pad or cut.
    pub stored: String,
    /// Where an assignment cuts blanks alone and a cast cuts anything: the type in which blanks at the end do not count.
    pub blanks: Option<&'static str>,
    /// `GENERATED ALWAYS AS IDENTITY`: can be inserted (OVERRIDING SYSTEM VALUE) but never updated.
    pub identity_always: bool,
    /// Part of the primary key.
    pub in_key: bool,
    /// Whether equal values always have the same spelling.
    pub alike: bool,
}

/// A column that leads an index. Rows that equal each other have the same value there.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::agent_db) struct Lookup {
    /// Its position among the columns.
    pub column: usize,
    /// The index's equality operator, `OPERATOR(schema.=)`.
    pub equals: String,
}

impl Column {
    /// The value that an assignment of `value`, an expression, stores; where it refuses the value, one that no column holds.
    pub(in crate::agent_db) fn as_stored(&self, value: &str) -> String {
        let Self { cast, stored, .. } = self;
        let Some(blanks) = self.blanks else {
            return format!("{value}::{stored}");
        };
        format!(
            "CASE WHEN {value}::{stored}::{blanks} COLLATE pg_catalog.\"C\" OPERATOR(pg_catalog.=) {value}::{cast}::{blanks} \
             THEN {value}::{stored} ELSE {value}::{cast} END"
        )
    }

    /// Whether an UPDATE of a row that keeps its key may set it.
    pub(in crate::agent_db) const fn is_settable(&self) -> bool {
        !self.identity_always && !self.in_key
    }

    /// Whether it is not part of the key, and no UPDATE may set it: the row is deleted and inserted.
    pub(in crate::agent_db) const fn is_reinserted(&self) -> bool {
        self.identity_always && !self.in_key
    }
}

impl Target {
    /// Whether an update of a counted row must be one: the Agent DB has columns of its own, whose values stay.
    pub(in crate::agent_db) fn updates_in_place(&self) -> bool {
        !self.unpublished.is_empty() && !self.columns.iter().any(|column| column.identity_always)
    }

    /// Whether equal keys always have the same spelling.
    pub(in crate::agent_db) fn spells_keys_alike(&self) -> bool {
        self.columns.iter().all(|column| !column.in_key || column.alike)
    }

    /// `"schema"."table"` as statements name it that find rows: with `ONLY`, since the rows of tables that inherit from it
    /// are not its own. A partitioned table has all of its rows in others.
    pub(in crate::agent_db) fn only(&self) -> String {
        let only = if self.partitioned { "" } else { "ONLY " };
        format!("{only}{}", self.relation.table.quoted())
    }

    /// Whether an UPDATE may change the key.
    pub(in crate::agent_db) fn key_can_change(&self) -> bool {
        !self
            .columns
            .iter()
            .any(|column| column.in_key && column.identity_always)
    }
}
