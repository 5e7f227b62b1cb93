//! What parked rows have in common: their table, and what refused them. Never a value or a key.

use std::fmt;

use crate::change::TableName;

/// The cause of refusals of one table's rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::agent_db) struct Fingerprint {
    pub table: TableName,
    /// The SQLSTATE, or `TW…`.
    pub sqlstate: Box<str>,
    /// The constraint that refused them, if it was one.
    pub constraint: Option<Box<str>>,
}

impl Fingerprint {
    pub(in crate::agent_db) fn new(table: &TableName, sqlstate: &str, constraint: Option<&str>) -> Self {
        Self {
            table: table.clone(),
            sqlstate: sqlstate.into(),
            constraint: constraint.map(Into::into),
        }
    }
}

impl fmt::Display for Fingerprint {
    /// `23503 city_land_fkey public.city`; `-` where no constraint is to blame.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let constraint = self.constraint.as_deref().unwrap_or("-");
        write!(f, "{} {constraint} {}", self.sqlstate, self.table)
    }
}
