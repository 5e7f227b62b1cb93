//! The sequences from which columns of tables take their values, with how far each is: serial and identity columns, and any
//! default that calls `nextval` on a sequence by its name. Both databases are asked in the same way.

use tokio_postgres::{Client, Error};

use super::quote_identifier;
use crate::change::TableName;

/// A column and its sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnSequence {
    /// The column's table.
    pub table: TableName,
    /// The column.
    pub column: String,
    /// The sequence's own schema and name.
    pub sequence: TableName,
    /// Whether our role may read how far it is.
    pub readable: bool,
    /// Whether our role may move it.
    pub writable: bool,
    /// The last value that it has given; `None`: none yet, or it may not be read.
    pub last: Option<i64>,
    /// Its first value.
    pub start: i64,
    /// From one value to the next; below zero for a descending one.
    pub increment: i64,
    /// Its smallest value.
    pub min: i64,
    /// Its largest value.
    pub max: i64,
}

impl ColumnSequence {
    /// The right that is missing, as a statement for the sequence's owner.
    #[must_use]
    pub fn grant(&self, privilege: &str, role: &str) -> String {
        let (sequence, role) = (self.sequence.quoted(), quote_identifier(role));
        format!("GRANT {privilege} ON SEQUENCE {sequence} TO {role}")
    }
}

/// A column may take its values from a sequence by its default, or own one (identity, serial).
const SEQUENCES: &str = "
SELECT DISTINCT n.nspname::text AS schema_name, c.relname::text AS table_name, a.attname::text AS column_name,
    sn.nspname::text AS sequence_schema, s.relname::text AS sequence_name,
    pg_catalog.has_sequence_privilege(s.oid, 'SELECT, USAGE') AS readable,
    pg_catalog.has_sequence_privilege(s.oid, 'UPDATE') AS writable,
    CASE WHEN pg_catalog.has_sequence_privilege(s.oid, 'SELECT, USAGE') THEN pg_catalog.pg_sequence_last_value(s.oid) END AS last,
    q.seqstart, q.seqincrement, q.seqmin, q.seqmax
FROM unnest($1::text[], $2::text[]) AS wanted(schema_name, table_name)
JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema_name
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.table_name AND c.relkind IN ('r', 'p')
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN LATERAL (
    SELECT d.refobjid AS sequence FROM pg_catalog.pg_attrdef f
        JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = f.oid
            AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
        WHERE f.adrelid = c.oid AND f.adnum = a.attnum AND a.attgenerated = ''
    UNION
    SELECT d.objid FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.refobjid = c.oid AND d.refobjsubid = a.attnum AND d.deptype IN ('i', 'a')) u ON true
JOIN pg_catalog.pg_class s ON s.oid = u.sequence AND s.relkind = 'S'
JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid
ORDER BY 1, 2, 3, 4, 5";

/// The sequences of tables, in the order of their tables and columns.
///
/// # Errors
/// The statement's or the connection's.
pub async fn sequences(client: &Client, tables: &[&TableName]) -> Result<Vec<ColumnSequence>, Error> {
    let schemas: Vec<&str> = tables.iter().map(|table| &*table.schema).collect();
    let names: Vec<&str> = tables.iter().map(|table| &*table.name).collect();
    let rows = client.query(SEQUENCES, &[&schemas, &names]).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let text = |column: &str| row.get::<_, &str>(column);
            ColumnSequence {
                table: TableName::new(text("schema_name"), text("table_name")),
                column: text("column_name").to_owned(),
                sequence: TableName::new(text("sequence_schema"), text("sequence_name")),
                readable: row.get("readable"),
                writable: row.get("writable"),
                last: row.get("last"),
                start: row.get("seqstart"),
                increment: row.get("seqincrement"),
                min: row.get("seqmin"),
                max: row.get("seqmax"),
            }
        })
        .collect())
}
