//! `twinlog.tables`, columns `source_…`: what a table was on the Site DB when its copy began. By that a start sees that the
//! table has become another one while no daemon ran.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::control::{Control, failed};
use crate::agent_db::error::AgentError;
use crate::change::{Shape, TableName};

impl Control {
    /// The shapes that are known.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn shapes(&self) -> Result<BTreeMap<TableName, Shape>, AgentError> {
        let rows = self
            .client
            .query(
                "SELECT schema_name, table_name, source_oid, coalesce(source_membership, '') AS source_membership,
                     coalesce(source_columns, '{}') AS source_columns, source_filter, source_marks::text AS source_marks
                 FROM twinlog.tables WHERE slot = $1 AND source_oid IS NOT NULL",
                &[&self.slot],
            )
            .await
            .map_err(failed("read the tables' shapes"))?;
        Ok(rows
            .iter()
            .map(|row| {
                let shape = Shape {
                    oid: row.get("source_oid"),
                    membership: row.get("source_membership"),
                    columns: row.get("source_columns"),
                    row_filter: row.get("source_filter"),
                    // Marks of a version with other ones count as unknown.
                    marks: row
                        .get::<_, Option<&str>>("source_marks")
                        .and_then(|marks| serde_json::from_str(marks).ok()),
                };
                (
                    TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")),
                    shape,
                )
            })
            .collect())
    }
}

/// Remembers the shape of a table that has its row, in whatever transaction is open.
pub(in crate::agent_db) async fn remember(
    client: &Client,
    slot: &str,
    table: &TableName,
    shape: &Shape,
) -> Result<(), AgentError> {
    let marks = shape.marks.as_ref().and_then(|marks| serde_json::to_string(marks).ok());
    client
        .execute(
            "UPDATE twinlog.tables SET source_oid = $4, source_membership = $5, source_columns = $6,
                 source_filter = $7, source_marks = $8::pg_catalog.text::pg_catalog.jsonb
             WHERE slot OPERATOR(pg_catalog.=) $1 AND schema_name OPERATOR(pg_catalog.=) $2
                 AND table_name OPERATOR(pg_catalog.=) $3",
            &[
                &slot,
                &&*table.schema,
                &&*table.name,
                &shape.oid,
                &shape.membership,
                &shape.columns,
                &shape.row_filter,
                &marks,
            ],
        )
        .await
        .map_err(failed("remember a table's shape"))?;
    Ok(())
}
