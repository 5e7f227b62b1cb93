//! Triggers that fire with the commit though the session's role is `replica`.

use tokio_postgres::Client;

use crate::agent_db::error::AgentError;

/// Whether the Agent DB has any. Such a trigger's refusal must be met before the commit, while it can still be found out
/// which row it is about.
pub(in crate::agent_db) async fn has_deferred_triggers(client: &Client) -> Result<bool, AgentError> {
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tginitdeferred
                 AND g.tgenabled OPERATOR(pg_catalog.=) ANY ('{A,R}')) AS has",
            &[],
        )
        .await
        .map_err(|source| AgentError::from_driver("read the deferred triggers", None, source))?;
    Ok(row.get("has"))
}
