//! What every statement is made of: its text, and what its parameters stand for.

/// The source of a statement's parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent_db::apply) enum Parameter {
    /// A column of the row images.
    Column(usize),
    /// A part of the rows' keys (the old ones for a move).
    KeyPart(usize),
    /// How many rows equal each of the row images.
    Count,
}

/// A statement's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::agent_db::apply) struct StatementText {
    /// With `$1`, `$2`, … for the parameters.
    pub sql: String,
    /// The source of each parameter, in order.
    pub parameters: Vec<Parameter>,
}

pub(super) fn list<T>(sql: &mut String, items: impl Iterator<Item = T>, mut each: impl FnMut(&mut String, T)) {
    for (index, item) in items.enumerate() {
        if index > 0 {
            sql.push_str(", ");
        }
        each(sql, item);
    }
}
