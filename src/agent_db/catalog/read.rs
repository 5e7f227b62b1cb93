//! Reads what the catalog says about one table.

use tokio_postgres::{Client, Row};

use crate::agent_db::error::AgentError;
use crate::change::TableName;

/// A table as the catalog has it.
#[derive(Debug)]
pub(super) struct TableFacts {
    /// Whether its rows are in partitions.
    pub partitioned: bool,
    /// See [`Target::copyable`](super::target::Target::copyable).
    pub copyable: bool,
    /// All columns, in the table's order.
    pub columns: Vec<ColumnFacts>,
    /// Unique indexes that have a place for every row, in the order in which they are taken as the table's key: the
    /// primary key first, then the oldest.
    pub unique: Vec<UniqueFacts>,
}

/// A unique index, neither partial nor over expressions.
#[derive(Debug)]
pub(super) struct UniqueFacts {
    pub primary: bool,
    /// Whether uniqueness is checked at once; it is not for a deferrable constraint.
    pub immediate: bool,
    /// The constraint's name; empty where there is an index alone.
    pub constraint: String,
    /// Its columns, in its order.
    pub columns: Vec<KeyFacts>,
}

/// A column as the catalog has it.
#[derive(Debug)]
pub(super) struct ColumnFacts {
    pub name: String,
    /// The base type of a domain, without a length limit.
    pub base_type: String,
    /// The base type as a value is stored in it. With its length, but not where an assignment refuses what a cast cuts.
    pub stored_type: String,
    /// `GENERATED ALWAYS AS (…)`.
    pub generated: bool,
    /// `GENERATED ALWAYS AS IDENTITY`.
    pub identity_always: bool,
    /// NOT NULL and without a default, so the INSERT must give a value.
    pub must_be_given: bool,
    /// Whether its collation is deterministic: only identical texts are equal.
    pub deterministic: bool,
}

/// A column of a unique index.
#[derive(Debug)]
pub(super) struct KeyFacts {
    pub column: String,
    pub operator_schema: String,
    /// The equality operator of the index.
    pub operator: String,
}

/// The table's row in `pg_class`.
const TABLE: &str = "
SELECT c.oid, c.relkind::text AS kind,
    NOT c.relhasrules AND NOT pg_catalog.row_security_active(c.oid)
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND g.tgenabled <> 'D'
            -- Bits: 1 for each row, 2 before, 4 insert.
            AND g.tgtype::int & 7 = 6) AS copyable
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2";

/// Columns with the base type of each. A domain's own limit is checked by the assignment to the column.
const COLUMNS: &str = "
WITH RECURSIVE base (attnum, type, length) AS (
    SELECT a.attnum, a.atttypid, a.atttypmod FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.attnum, t.typbasetype, t.typtypmod FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.type WHERE t.typtype = 'd'
)
SELECT a.attname AS name, pg_catalog.format_type(b.type, -1) AS base_type,
       pg_catalog.format_type(b.type, CASE WHEN b.type IN ('varchar'::regtype, 'varchar[]'::regtype, 'bit'::regtype,
           'bit[]'::regtype, 'varbit'::regtype, 'varbit[]'::regtype) THEN -1 ELSE b.length END) AS stored_type,
       a.attgenerated <> '' AS generated,
       a.attidentity = 'a' AS identity_always,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AS must_be_given,
       coalesce((SELECT l.collisdeterministic FROM pg_catalog.pg_collation l WHERE l.oid = a.attcollation), true)
           AS deterministic
FROM pg_catalog.pg_attribute a
JOIN base b ON b.attnum = a.attnum
JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype <> 'd'
WHERE a.attrelid = $1
ORDER BY a.attnum";

/// The columns of unique indexes, with the equality operator (strategy 3 of a btree) of each.
const UNIQUE: &str = "
SELECT i.indexrelid AS index_id, a.attname AS column_name, n.nspname AS operator_schema, o.oprname AS operator,
    i.indisprimary AS primary_key, i.indimmediate AS immediate, coalesce(c.conname, '') AS constraint_name
FROM pg_catalog.pg_index i
LEFT JOIN pg_catalog.pg_constraint c ON c.conindid = i.indexrelid AND c.contype IN ('p', 'u')
CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY AS k(attnum, opclass, position)
JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
JOIN pg_catalog.pg_opclass f ON f.oid = k.opclass
JOIN pg_catalog.pg_amop m ON m.amopfamily = f.opcfamily AND m.amoplefttype = f.opcintype
    AND m.amoprighttype = f.opcintype AND m.amopstrategy = 3 AND m.amoppurpose = 's'
JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr
JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND NOT i.indisexclusion
    AND i.indpred IS NULL AND i.indexprs IS NULL AND k.position <= i.indnkeyatts
ORDER BY i.indisprimary DESC, i.indexrelid, k.position";

/// Reads the catalog in three queries.
pub(super) async fn table(client: &Client, table: &TableName) -> Result<TableFacts, AgentError> {
    let failed = |source| AgentError::from_driver("read the catalog", Some(table), source);
    let class = client
        .query_opt(TABLE, &[&&*table.schema, &&*table.name])
        .await
        .map_err(failed)?
        .ok_or_else(|| AgentError::TableMissing { table: table.clone() })?;
    let oid: u32 = class.get("oid");
    let kind: &str = class.get("kind");
    if !matches!(kind, "r" | "p") {
        return Err(AgentError::NotATable { table: table.clone() });
    }
    let columns = client.query(COLUMNS, &[&oid]).await.map_err(failed)?;
    let unique = client.query(UNIQUE, &[&oid]).await.map_err(failed)?;
    Ok(TableFacts {
        partitioned: kind == "p",
        copyable: class.get("copyable"),
        columns: columns.iter().map(ColumnFacts::from_row).collect(),
        unique: UniqueFacts::from_rows(&unique),
    })
}

impl ColumnFacts {
    fn from_row(row: &Row) -> Self {
        Self {
            name: row.get("name"),
            base_type: row.get("base_type"),
            stored_type: row.get("stored_type"),
            generated: row.get("generated"),
            identity_always: row.get("identity_always"),
            must_be_given: row.get("must_be_given"),
            deterministic: row.get("deterministic"),
        }
    }
}

impl KeyFacts {
    fn from_row(row: &Row) -> Self {
        Self {
            column: row.get("column_name"),
            operator_schema: row.get("operator_schema"),
            operator: row.get("operator"),
        }
    }
}

impl UniqueFacts {
    /// From rows of which each is a column, an index's columns together.
    fn from_rows(rows: &[Row]) -> Vec<Self> {
        rows.chunk_by(|one, next| one.get::<_, u32>("index_id") == next.get::<_, u32>("index_id"))
            .filter_map(|columns| {
                let first = columns.first()?;
                Some(Self {
                    primary: first.get("primary_key"),
                    immediate: first.get("immediate"),
                    constraint: first.get("constraint_name"),
                    columns: columns.iter().map(KeyFacts::from_row).collect(),
                })
            })
            .collect()
    }
}
