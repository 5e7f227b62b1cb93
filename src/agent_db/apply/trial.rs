//! Whether the database takes a table's statements at all: runs them with no rows.

use std::sync::Arc;

use tokio_postgres::Client;

use super::sql::{self, StatementKind, TextArray};
use crate::agent_db::catalog::Target;
use crate::agent_db::error::AgentError;
use crate::retry::Disposition;

/// Runs them, and returns what is refused whatever the row. What would be held against a row (a trigger's own code says no) is not
/// the table's fault: it may refuse deletes only. The caller rolls back.
pub(in crate::agent_db) async fn try_statements(client: &Client, target: &Arc<Target>) -> Result<(), AgentError> {
    let kinds = if target.relation.counts_rows() {
        [StatementKind::Insert, StatementKind::DeleteOne]
    } else {
        let upsert = StatementKind::Upsert {
            only_if_different: true,
        };
        [upsert, StatementKind::Delete]
    };
    let failed = |source| AgentError::from_driver("write rows", Some(&target.relation.table), source);
    for kind in kinds {
        let text = sql::statement(target, &kind);
        let none = text.parameters.iter().map(|_| TextArray::Texts(&[]));
        client.batch_execute("SAVEPOINT trial").await.map_err(failed)?;
        let tried = async {
            let statement = client.prepare(&text.sql).await?;
            client.execute_raw(&statement, none).await
        };
        match tried.await.map_err(failed) {
            Ok(_) => {}
            Err(error) if error.disposition() == Disposition::Row => {}
            Err(error) => return Err(error.whatever_the_row()),
        }
        client
            .batch_execute("ROLLBACK TO SAVEPOINT trial")
            .await
            .map_err(failed)?;
    }
    Ok(())
}
