//! How Postgres compares keys: the operators' schemas, and whether equal keys have the same spelling.

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::quote::quote_identifier;

/// An SQL expression: the schemas, except `pg_catalog`, of the operators of a table's unique indexes. `table` is an
/// expression for the table's OID. (Subqueries instead of joins: a join is planned as a scan of all operators, for each table.)
#[must_use]
pub fn operator_schemas(table: &str) -> String {
    format!(
        "ARRAY(SELECT DISTINCT on_.nspname::text FROM pg_catalog.pg_index oi \
         CROSS JOIN LATERAL pg_catalog.unnest(oi.indclass::oid[]) AS oc(opclass) \
         JOIN pg_catalog.pg_amop om ON om.amopfamily = \
         (SELECT of_.opcfamily FROM pg_catalog.pg_opclass of_ WHERE of_.oid = oc.opclass) \
         JOIN pg_catalog.pg_namespace on_ ON on_.oid = \
         (SELECT oo.oprnamespace FROM pg_catalog.pg_operator oo WHERE oo.oid = om.amopopr) \
         WHERE oi.indrelid = {table} AND oi.indisunique AND on_.nspname <> 'pg_catalog' ORDER BY 1)"
    )
}

/// Runs a statement of the open transaction that compares keys, with the schemas of their operators in the search path.
/// (Otherwise a plain `>` on a `citext` would be that of `text`, with another order than the index's: rows between two
/// chunks would be left out. A row comparison over columns of several schemas has no qualified form.) Only for this
/// statement, because names within values must be printed as the stream prints them.
///
/// # Errors
/// The statement failed.
pub async fn execute_with_operators(
    client: &Client,
    schemas: &[String],
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<(), tokio_postgres::Error> {
    if schemas.is_empty() {
        return client.execute(sql, parameters).await.map(|_| ());
    }
    let path: Vec<_> = schemas.iter().map(|schema| quote_identifier(schema)).collect();
    client
        .batch_execute(&format!("SET LOCAL search_path = pg_catalog, {}", path.join(", ")))
        .await?;
    client.execute(sql, parameters).await?;
    client.batch_execute("SET LOCAL search_path = pg_catalog").await
}

/// Whether equal values of a key type always have the same spelling (if the collation is deterministic). A `numeric` may be
/// 1.0 or 1.00, a `citext` may differ in case.
#[must_use]
pub fn is_spelled_one_way(base_type: &str) -> bool {
    matches!(
        base_type,
        "smallint"
            | "integer"
            | "bigint"
            | "oid"
            | "uuid"
            | "boolean"
            | "text"
            | "character varying"
            | "bytea"
            | "date"
            | "time without time zone"
            | "timestamp without time zone"
            | "timestamp with time zone"
    )
}

/// A type that spells its values as this one does, the same for all such types. (Without their length: each value that fits.)
#[must_use]
pub fn spelled_as(kind: &str) -> &str {
    match kind {
        "character varying" => "text",
        "smallint" | "integer" => "bigint",
        kind => kind,
    }
}
