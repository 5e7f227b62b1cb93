//! A resync's condition as SQL for a table of the Agent DB, whose types may be others than the Site DB's.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::error::AgentError;
use crate::change::Relation;
use crate::postgres::Condition;

/// The condition of a read as SQL, if it has one.
pub(super) async fn optional_condition_sql(
    agent: &Client,
    relation: &Relation,
    condition: Option<&Condition>,
) -> Result<Option<String>, AgentError> {
    match condition {
        None => Ok(None),
        Some(condition) => condition_sql(agent, relation, condition).await.map(Some),
    }
}

/// A condition as SQL, with the types of its columns in the Agent DB.
async fn condition_sql(agent: &Client, relation: &Relation, condition: &Condition) -> Result<String, AgentError> {
    let types = agent
        .query(
            "SELECT a.attname::text AS name, pg_catalog.format_type(a.atttypid, -1) AS type FROM pg_catalog.pg_attribute a \
             WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND a.attname = ANY ($2)",
            &[&relation.table.regclass(), &condition.columns()],
        )
        .await
        .map_err(|source| AgentError::from_driver("read the types of a condition", Some(&relation.table), source))?;
    let types: HashMap<&str, &str> = types.iter().map(|row| (row.get("name"), row.get("type"))).collect();
    Ok(condition.to_sql(&relation.table, |column| types.get(column).copied())?)
}
