//! What the daemon's role may do in the Agent DB, found out by trying.

use tokio_postgres::Client;

use super::error::AgentError;

/// What the session may do. Nothing here is required: where something is missing the sink has another way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// The role.
    pub role: String,
    /// `session_replication_role = replica` is set: triggers and foreign keys of the Agent DB stay silent. Without it,
    /// rows are written in foreign-key order and rows that a foreign key refuses are parked until their parent is there.
    pub session_replication_role: bool,
    /// Row-level security does not apply to the role. Without it, a table with policies refuses its rows (never hides
    /// them: `row_security` is off).
    pub bypass_rls: bool,
    /// The role is a superuser.
    pub superuser: bool,
    /// The server's version, as in 150018.
    pub server_version: i32,
}

/// Finds out, and switches on what there is.
pub(super) async fn probe(client: &Client) -> Result<Rights, AgentError> {
    let row = client
        .query_one(
            "SELECT r.rolsuper, r.rolsuper OR r.rolbypassrls, pg_catalog.current_setting('server_version_num')::int4,
                    current_user::text
             FROM pg_catalog.pg_roles r WHERE r.rolname = current_user",
            &[],
        )
        .await
        .map_err(|source| AgentError::from_driver("probe the role's rights", None, source))?;
    let session_replication_role = match client.batch_execute("SET session_replication_role = replica").await {
        Ok(()) => true,
        // Refused by right, or by a pooler that does not let the setting through: both mean "not here".
        Err(error) if error.as_db_error().is_some() => false,
        Err(source) => return Err(AgentError::from_driver("set session_replication_role", None, source)),
    };
    Ok(Rights {
        session_replication_role,
        superuser: row.get(0),
        bypass_rls: row.get(1),
        server_version: row.get(2),
        role: row.get(3),
    })
}
