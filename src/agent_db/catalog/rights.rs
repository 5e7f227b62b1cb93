//! What the daemon's role may do in the Agent DB; found by trying.

use tokio_postgres::Client;

use crate::agent_db::error::AgentError;

/// What the session may do. None of this is required: if a right is missing, rows are written another way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::agent_db) struct Rights {
    /// The role's name, unquoted.
    pub role: String,
    /// `session_replication_role = replica` is set: triggers and foreign keys of the Agent DB do not fire. Without it,
    /// rows are written in foreign-key order, and rows that a foreign key refuses are parked until their parent exists.
    pub session_replication_role: bool,
}

impl Rights {
    /// Tries what is allowed, and sets it.
    pub(in crate::agent_db) async fn probe(client: &Client) -> Result<Self, AgentError> {
        let row = client
            .query_one("SELECT current_user::pg_catalog.text AS role", &[])
            .await
            .map_err(|source| AgentError::from_driver("probe the role's rights", None, source))?;
        match client.batch_execute("SET session_replication_role = replica").await {
            Ok(()) => {}
            // Refused by right.
            Err(error) if error.as_db_error().is_some() => {}
            Err(source) => return Err(AgentError::from_driver("set session_replication_role", None, source)),
        }
        // It may be set on the role or the database, too.
        let is_replica = client
            .query_one(
                "SELECT pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.=) 'replica' AS is_replica",
                &[],
            )
            .await
            .map_err(|source| AgentError::from_driver("probe the role's rights", None, source))?;
        let session_replication_role = is_replica.get("is_replica");
        Ok(Self {
            role: row.get("role"),
            session_replication_role,
        })
    }
}
