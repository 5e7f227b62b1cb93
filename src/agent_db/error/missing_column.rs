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
}

/// The part of an ALTER TABLE that adds columns as the Site DB declares them.
pub(in crate::agent_db) fn add_columns(columns: &[MissingColumn]) -> String {
    let add = |column: &MissingColumn| {
        format!(
            "ADD COLUMN {} {}",
            crate::postgres::quote_identifier(&column.name),
            column.declared.as_deref().unwrap_or("…")
        )
    };
    columns.iter().map(add).collect::<Vec<_>>().join(", ")
}
