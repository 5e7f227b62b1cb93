//! What is wrong with a table, as far as the catalog says it. More than is looked at when a table is resolved: also the rights
//! that Postgres asks for only when a row is written.

use tokio_postgres::Client;

use super::resolve::resolve;
use super::target::Target;
use crate::agent_db::error::AgentError;
use crate::change::{TableDescription, TableName};

/// Sequences and functions that defaults, checks and indexes of the table use, and the role may not. Not what a default of a
/// published column uses, as its value is always given.
const OBJECTS: &str = "
WITH used (classid, objid) AS (
    SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, d.oid FROM pg_catalog.pg_attrdef d
    JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) d.adrelid
        AND a.attnum OPERATOR(pg_catalog.=) d.adnum
    WHERE d.adrelid OPERATOR(pg_catalog.=) $1::pg_catalog.text::pg_catalog.regclass
        AND (a.attgenerated OPERATOR(pg_catalog.<>) '' OR NOT a.attname OPERATOR(pg_catalog.=) ANY ($2))
    UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, k.oid FROM pg_catalog.pg_constraint k
    WHERE k.conrelid OPERATOR(pg_catalog.=) $1::pg_catalog.text::pg_catalog.regclass
        AND k.contype OPERATOR(pg_catalog.=) 'c'
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid FROM pg_catalog.pg_index i
    WHERE i.indrelid OPERATOR(pg_catalog.=) $1::pg_catalog.text::pg_catalog.regclass
), of_table (refclassid, refobjid) AS (
    SELECT DISTINCT d.refclassid, d.refobjid FROM used u JOIN pg_catalog.pg_depend d
        ON d.classid OPERATOR(pg_catalog.=) u.classid AND d.objid OPERATOR(pg_catalog.=) u.objid
)
SELECT 'USAGE ON SEQUENCE ' OPERATOR(pg_catalog.||) pg_catalog.quote_ident(n.nspname) OPERATOR(pg_catalog.||) '.'
    OPERATOR(pg_catalog.||) pg_catalog.quote_ident(s.relname) AS lacking
FROM of_table o JOIN pg_catalog.pg_class s ON o.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
    AND s.oid OPERATOR(pg_catalog.=) o.refobjid AND s.relkind OPERATOR(pg_catalog.=) 'S'
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) s.relnamespace
WHERE NOT CASE WHEN s.relkind OPERATOR(pg_catalog.=) 'S'
    THEN pg_catalog.has_sequence_privilege(s.oid, 'USAGE, UPDATE') ELSE true END
UNION ALL
SELECT 'EXECUTE ON FUNCTION ' OPERATOR(pg_catalog.||) pg_catalog.quote_ident(n.nspname) OPERATOR(pg_catalog.||) '.'
    OPERATOR(pg_catalog.||) pg_catalog.quote_ident(f.proname) OPERATOR(pg_catalog.||) '('
    OPERATOR(pg_catalog.||) pg_catalog.pg_get_function_identity_arguments(f.oid) OPERATOR(pg_catalog.||) ')'
FROM of_table o JOIN pg_catalog.pg_proc f ON o.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
    AND f.oid OPERATOR(pg_catalog.=) o.refobjid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) f.pronamespace
WHERE NOT pg_catalog.has_function_privilege(f.oid, 'EXECUTE')
ORDER BY 1";

/// Looks a table up, and for all rights that writing its rows needs.
pub(in crate::agent_db) async fn examine(client: &Client, table: &TableDescription) -> Result<Target, AgentError> {
    let target = resolve(client, table).await?;
    let objects = lacking(client, table).await?;
    if objects.is_empty() {
        return Ok(target);
    }
    Err(AgentError::ObjectsNotPermitted {
        table: table.table.clone(),
        role: role(client, &table.table).await?,
        objects,
    })
}

async fn lacking(client: &Client, table: &TableDescription) -> Result<Vec<String>, AgentError> {
    let published: Vec<&str> = table.columns.iter().map(|name| &**name).collect();
    let rows = client
        .query(OBJECTS, &[&table.table.regclass(), &published])
        .await
        .map_err(|source| AgentError::from_driver("read the catalog", Some(&table.table), source))?;
    Ok(rows.iter().map(|row| row.get("lacking")).collect())
}

async fn role(client: &Client, table: &TableName) -> Result<String, AgentError> {
    let row = client
        .query_one("SELECT current_user::pg_catalog.text AS role", &[])
        .await
        .map_err(|source| AgentError::from_driver("read the catalog", Some(table), source))?;
    Ok(row.get("role"))
}
