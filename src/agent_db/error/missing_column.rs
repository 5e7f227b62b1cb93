//! A column that the Agent DB's table lacks, and the clause that adds it.

/// A column that the Agent DB's table lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingColumn {
    /// Its name.
    pub name: String,
    /// Its type in the Site DB, where known.
    pub declared: Option<String>,
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
