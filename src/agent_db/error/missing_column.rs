//! Columns that can't be written: one that the Agent DB's table lacks, with the clause that adds it, and one that must have a
//! value.

/// A column that the Agent DB's table lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingColumn {
    /// Its name.
    pub name: String,
    /// Its type in the Site DB, where known.
    pub declared: Option<String>,
}

/// What refuses a NULL in a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuses {
    /// The column is NOT NULL.
    Column,
    /// Its domain is.
    Domain,
    /// The column is in the primary key or the replica identity, where NOT NULL can't be dropped.
    Key,
}

impl MissingColumn {
    /// Whether its type is not one of Postgres' own: only those are shown without a schema.
    pub(super) fn is_of_users_type(&self) -> bool {
        self.declared.as_deref().is_some_and(|declared| declared.contains('.'))
    }
}

/// The part of an ALTER TABLE that adds columns as the Site DB declares them; `None` if that is not known of all.
pub(in crate::agent_db) fn add_columns(columns: &[MissingColumn]) -> Option<String> {
    let add = |column: &MissingColumn| {
        let declared = column.declared.as_deref()?;
        let name = crate::postgres::quote_identifier(&column.name);
        Some(format!("ADD COLUMN {name} {declared}"))
    };
    let clauses: Option<Vec<String>> = columns.iter().map(add).collect();
    clauses.map(|clauses| clauses.join(", "))
}
