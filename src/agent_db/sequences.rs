//! The sequences of the Agent DB's tables: how far they are, and moving them forward.

use super::bookkeeping::Control;
use super::error::AgentError;
use crate::change::TableName;
use crate::postgres::sequences::{self, ColumnSequence};

impl Control {
    /// The sequences from which columns of tables take their values.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn sequences(&self, tables: &[&TableName]) -> Result<Vec<ColumnSequence>, AgentError> {
        sequences::sequences(&self.client, tables)
            .await
            .map_err(|source| AgentError::from_driver("read the sequences", None, source))
    }

    /// Moves a sequence to a value that it counts as given; never back.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn move_sequence(&self, sequence: &ColumnSequence, value: i64) -> Result<(), AgentError> {
        let direction = if sequence.increment > 0 { "<" } else { ">" };
        // Looked at once more in the statement that moves it: others take values too.
        let statement = format!(
            "SELECT pg_catalog.setval(s.oid, $2, true) FROM (SELECT $1::text::pg_catalog.regclass AS oid) s
             WHERE coalesce(pg_catalog.pg_sequence_last_value(s.oid) {direction} $2, true)"
        );
        self.client
            .query(&statement, &[&sequence.sequence.regclass(), &value])
            .await
            .map_err(|source| AgentError::from_driver("move a sequence", Some(&sequence.table), source))?;
        Ok(())
    }
}
