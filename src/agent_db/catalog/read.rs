//! Reads what the catalog says about one table.

use std::sync::Arc;

use tokio_postgres::{Client, Row};

use crate::agent_db::error::{AgentError, Refuses};
use crate::change::TableName;
use crate::postgres::type_parts::{ACTING_KEYS, TYPE_PARTS};
use crate::postgres::{Lossy, quote_identifier};

/// A table as the catalog has it.
#[derive(Debug, Default)]
pub(super) struct TableFacts {
    /// Whether its rows are in partitions.
    pub partitioned: bool,
    /// See [`Target::guarded`](super::target::Target::guarded).
    pub guarded: bool,
    /// See [`Target::fires_late`](super::target::Target::fires_late).
    pub fires_late: bool,
    /// See [`Target::copyable`](super::target::Target::copyable).
    pub copyable: bool,
    /// Whether a crash of the server empties it, or a partition of it.
    pub unlogged: bool,
    /// The foreign keys whose actions delete or change its rows when the session writes: name, line break, and a text that is the
    /// same in both databases.
    pub acting_keys: Vec<String>,
    /// Whether its primary key is one of periods (WITHOUT OVERLAPS).
    pub temporal: bool,
    /// Whether row-level security hides rows from this role.
    pub row_security: bool,
    /// The session's role.
    pub role: String,
    /// All columns, in the table's order.
    pub columns: Vec<ColumnFacts>,
    /// Rules by which an INSERT with ON CONFLICT is refused.
    pub rules: Vec<String>,
    /// Unique indexes that have a place for every row, in the order in which they are taken as the table's key: the
    /// primary key first, then the oldest.
    pub unique: Vec<UniqueFacts>,
    /// The columns that lead an index of all rows, those of unique indexes first.
    pub leading: Vec<KeyFacts>,
}

/// A unique index, neither partial nor over expressions.
#[derive(Debug)]
pub(super) struct UniqueFacts {
    pub primary: bool,
    /// Whether uniqueness is checked at once; it is not for a deferrable constraint.
    pub immediate: bool,
    /// The constraint's name; empty where there is an index alone.
    pub constraint: String,
    /// Whether it takes as equal what its columns, by their own collations, do not.
    pub merges: bool,
    /// Its columns, in its order.
    pub columns: Vec<KeyFacts>,
    /// The collation of each column in it, as it stands in a statement; `None` where the type has none.
    pub collations: Vec<Option<String>>,
}

/// A column as the catalog has it.
#[derive(Debug)]
pub(super) struct ColumnFacts {
    pub name: String,
    /// The base type of a domain, without a length limit, as it is shown.
    pub base_type: String,
    /// The same as it stands in a statement, whatever the search path.
    pub cast: String,
    /// The base type as a value is stored in it, as it stands in a statement. With its length, but not for bits: an assignment
    /// refuses what a cast cuts or fills up.
    pub stored_type: String,
    /// See [`Column::blanks`](super::target::Column::blanks).
    pub blanks: Option<&'static str>,
    /// The base type with its length.
    pub declared_type: String,
    /// `GENERATED ALWAYS AS (…)`.
    pub generated: bool,
    /// `GENERATED ALWAYS AS IDENTITY`.
    pub identity_always: bool,
    /// Whether the INSERT must give a value: NULL is refused, and there is no default.
    pub must_be_given: Option<Refuses>,
    /// Whether its collation is deterministic: only identical texts are equal.
    pub deterministic: bool,
    /// Whether its base type is an enum.
    pub enumerated: bool,
    /// The types that its type is made of, if that is one of users' own.
    pub parts: Option<Vec<String>>,
}

/// A column of a unique index.
#[derive(Debug)]
pub(super) struct KeyFacts {
    pub column: String,
    pub operator_schema: String,
    /// The equality operator of the index.
    pub operator: String,
}

/// The table's row in `pg_class`. `guarded`: triggers that fire in this session, or rules, may write another row than the
/// one that was sent, or none. Triggers of partitions count as the table's own.
const TABLE: &str = r#"
SELECT CASE WHEN pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.=) 'replica' THEN '{}'
    ELSE {ACTING_KEYS} END AS acting_keys, c.oid, c.relkind::pg_catalog.text AS kind, c.relhasrules OR EXISTS (
        SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid OPERATOR(pg_catalog.=) ANY (ARRAY(
                -- Not pg_partition_tree, which would wait for locked partitions.
                WITH RECURSIVE p (oid) AS (SELECT c.oid UNION ALL SELECT h.inhrelid FROM p
                    JOIN pg_catalog.pg_inherits h ON h.inhparent OPERATOR(pg_catalog.=) p.oid) SELECT p.oid FROM p))
            AND NOT g.tgisinternal
            AND g.tgenabled OPERATOR(pg_catalog.=) ANY (CASE
                WHEN pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.=) 'replica'
                THEN '{A,R}' ELSE '{A,O}' END::pg_catalog."char"[])
            -- Bits: 4 insert, 8 delete, 16 update.
            AND (g.tgtype::integer OPERATOR(pg_catalog.&) 28) OPERATOR(pg_catalog.<>) 0) AS guarded,
    EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid OPERATOR(pg_catalog.=) ANY (ARRAY(
                WITH RECURSIVE p (oid) AS (SELECT c.oid UNION ALL SELECT h.inhrelid FROM p
                    JOIN pg_catalog.pg_inherits h ON h.inhparent OPERATOR(pg_catalog.=) p.oid) SELECT p.oid FROM p))
            AND NOT g.tgisinternal AND g.tgdeferrable
            AND g.tgenabled OPERATOR(pg_catalog.=) ANY (CASE
                WHEN pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.=) 'replica'
                THEN '{A,R}' ELSE '{A,O}' END::pg_catalog."char"[])) AS fires_late,
    NOT c.relhasrules AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid OPERATOR(pg_catalog.=) c.oid
            AND g.tgenabled OPERATOR(pg_catalog.<>) 'D'
            -- Bits: 1 for each row, 2 before, 4 insert.
            AND (g.tgtype::integer OPERATOR(pg_catalog.&) 7) OPERATOR(pg_catalog.=) 6) AS copyable,
    c.relpersistence OPERATOR(pg_catalog.=) 'u' OR EXISTS (
        WITH RECURSIVE p (oid) AS (SELECT c.oid UNION ALL SELECT h.inhrelid FROM p
            JOIN pg_catalog.pg_inherits h ON h.inhparent OPERATOR(pg_catalog.=) p.oid)
        SELECT FROM p JOIN pg_catalog.pg_class q ON q.oid OPERATOR(pg_catalog.=) p.oid
        WHERE q.relkind OPERATOR(pg_catalog.=) 'r' AND q.relpersistence OPERATOR(pg_catalog.=) 'u') AS unlogged,
    EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND i.indisprimary
        AND i.indisexclusion) AS temporal,
    pg_catalog.row_security_active(c.oid) AS row_security, current_user::pg_catalog.text AS role,
    ARRAY(SELECT x.lacking FROM (VALUES ('USAGE', pg_catalog.has_schema_privilege(n.oid, 'USAGE')),
        ('DELETE', pg_catalog.has_table_privilege(c.oid, 'DELETE'))) AS x(lacking, has) WHERE NOT x.has
        UNION ALL SELECT y.lacking FROM (VALUES ('SELECT'), ('INSERT'), ('UPDATE')) AS y(lacking)
        WHERE NOT pg_catalog.has_table_privilege(c.oid, y.lacking) AND (
            NOT pg_catalog.has_any_column_privilege(c.oid, y.lacking)
            -- A key may be changed, and seldom is.
            OR EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid
                AND a.attname OPERATOR(pg_catalog.=) ANY ($3) AND NOT a.attisdropped
                AND NOT pg_catalog.has_column_privilege(c.oid, a.attnum, y.lacking)
                AND NOT (y.lacking OPERATOR(pg_catalog.=) 'UPDATE' AND EXISTS (SELECT FROM pg_catalog.pg_index i
                    WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND i.indisprimary
                    AND a.attnum OPERATOR(pg_catalog.=) ANY (i.indkey)))))) AS lacking,
    -- Rules for UPDATE (2) count even where they are disabled, those for INSERT (3) only where they take effect.
    ARRAY(SELECT w.rulename::pg_catalog.text FROM pg_catalog.pg_rewrite w WHERE w.ev_class OPERATOR(pg_catalog.=) c.oid
        AND (w.ev_type OPERATOR(pg_catalog.=) '2' OR w.ev_type OPERATOR(pg_catalog.=) '3' AND w.ev_enabled
            OPERATOR(pg_catalog.=) ANY (CASE
                WHEN pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.=) 'replica'
                THEN '{A,R}' ELSE '{A,O}' END::pg_catalog."char"[]))) AS rules
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE n.nspname OPERATOR(pg_catalog.=) $1 AND c.relname OPERATOR(pg_catalog.=) $2"#;

fn class() -> String {
    TABLE.replace("{ACTING_KEYS}", ACTING_KEYS)
}

/// Whether deletes reach a table's rows.
#[derive(Debug)]
pub(in crate::agent_db) struct Sight {
    /// The role, if row-level security hides rows from it.
    pub hidden_from: Option<String>,
    /// See [`Target::guarded`](super::target::Target::guarded).
    pub guarded: bool,
}

impl Sight {
    /// Reads it.
    pub(in crate::agent_db) async fn read(client: &Client, table: &TableName) -> Result<Self, AgentError> {
        let failed = |source| AgentError::from_driver("read the catalog", Some(table), source);
        let row = client
            .query_opt(&class(), &[&&*table.schema, &&*table.name, &Vec::<&str>::new()])
            .await
            .map_err(failed)?
            .ok_or_else(|| AgentError::TableMissing { table: table.clone() })?;
        Ok(Self {
            hidden_from: row.get::<_, bool>("row_security").then(|| row.get("role")),
            guarded: row.get("guarded"),
        })
    }
}

/// Columns with the base type of each. A domain's own limit is checked by the assignment to the column.
const COLUMNS: &str = "
WITH RECURSIVE base (attnum, type, length) AS (
    SELECT a.attnum, a.atttypid, a.atttypmod FROM pg_catalog.pg_attribute a
    WHERE a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.attnum, t.typbasetype, t.typtypmod FROM base b
    JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) b.type WHERE t.typtype OPERATOR(pg_catalog.=) 'd'
)
SELECT a.attname AS name, pg_catalog.format_type(b.type, -1) AS base_type,
       n.nspname AS type_schema, t.typname AS type_name, CASE
           WHEN n.nspname OPERATOR(pg_catalog.=) 'pg_catalog' AND t.typname OPERATOR(pg_catalog.=) ANY
               ('{bit,_bit,varbit,_varbit}') THEN -1 ELSE b.length END AS length,
       pg_catalog.format_type(b.type, b.length) AS with_length,
       a.attgenerated OPERATOR(pg_catalog.<>) '' AS generated,
       a.attidentity OPERATOR(pg_catalog.=) 'a' AS identity_always,
       CASE WHEN a.atthasdef OR a.attidentity OPERATOR(pg_catalog.<>) '' THEN NULL
           WHEN a.attnotnull AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid OPERATOR(pg_catalog.=) $1
               AND (i.indisprimary OR i.indisreplident) AND a.attnum OPERATOR(pg_catalog.=) ANY (i.indkey)) THEN 'key'
           WHEN a.attnotnull THEN 'column'
           WHEN EXISTS (SELECT FROM base b2 JOIN pg_catalog.pg_type t2 ON t2.oid OPERATOR(pg_catalog.=) b2.type
               WHERE b2.attnum OPERATOR(pg_catalog.=) a.attnum AND t2.typnotnull)
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_type t3
                   WHERE t3.oid OPERATOR(pg_catalog.=) a.atttypid AND t3.typdefault IS NOT NULL) THEN 'domain'
           END AS must_be_given,
       coalesce((SELECT l.collisdeterministic FROM pg_catalog.pg_collation l
           WHERE l.oid OPERATOR(pg_catalog.=) a.attcollation), true) AS deterministic,
       t.typtype OPERATOR(pg_catalog.=) 'e' AS enumerated, {TYPE_PARTS} AS parts
FROM pg_catalog.pg_attribute a
JOIN base b ON b.attnum OPERATOR(pg_catalog.=) a.attnum
JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) b.type AND t.typtype OPERATOR(pg_catalog.<>) 'd'
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
WHERE a.attrelid OPERATOR(pg_catalog.=) $1
ORDER BY a.attnum";

/// The columns of unique indexes, with the equality operator (strategy 3 of a btree) of each.
const UNIQUE: &str = "
SELECT i.indexrelid AS index_id, a.attname AS column_name, n.nspname AS operator_schema, o.oprname AS operator,
    i.indisprimary AS primary_key, i.indimmediate AS immediate, coalesce(c.conname, '') AS constraint_name,
    NOT l.collisdeterministic AND l.oid OPERATOR(pg_catalog.<>) a.attcollation AS merges,
    pg_catalog.quote_ident(ln.nspname) OPERATOR(pg_catalog.||) '.' OPERATOR(pg_catalog.||)
        pg_catalog.quote_ident(l.collname) AS collation_name
FROM pg_catalog.pg_index i
LEFT JOIN pg_catalog.pg_constraint c ON c.conindid OPERATOR(pg_catalog.=) i.indexrelid
    AND c.contype OPERATOR(pg_catalog.=) ANY ('{p,u}')
-- Several arrays: this is syntax, and always means the function of pg_catalog.
CROSS JOIN LATERAL unnest(i.indkey::smallint[], i.indclass::pg_catalog.oid[], i.indcollation::pg_catalog.oid[])
    WITH ORDINALITY AS k(attnum, opclass, collated, position)
LEFT JOIN pg_catalog.pg_collation l ON l.oid OPERATOR(pg_catalog.=) k.collated
LEFT JOIN pg_catalog.pg_namespace ln ON ln.oid OPERATOR(pg_catalog.=) l.collnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid
    AND a.attnum OPERATOR(pg_catalog.=) k.attnum
JOIN pg_catalog.pg_opclass f ON f.oid OPERATOR(pg_catalog.=) k.opclass
JOIN pg_catalog.pg_amop m ON m.amopfamily OPERATOR(pg_catalog.=) f.opcfamily
    AND m.amoplefttype OPERATOR(pg_catalog.=) f.opcintype AND m.amoprighttype OPERATOR(pg_catalog.=) f.opcintype
    AND m.amopstrategy OPERATOR(pg_catalog.=) 3 AND m.amoppurpose OPERATOR(pg_catalog.=) 's'
JOIN pg_catalog.pg_operator o ON o.oid OPERATOR(pg_catalog.=) m.amopopr
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace
WHERE i.indrelid OPERATOR(pg_catalog.=) $1 AND i.indisunique AND i.indisvalid AND NOT i.indisexclusion
    AND i.indpred IS NULL AND i.indexprs IS NULL AND k.position OPERATOR(pg_catalog.<=) i.indnkeyatts
ORDER BY i.indisprimary DESC, i.indexrelid, k.position";

/// The first columns of indexes, with the equality operator of each.
const LEADING: &str = "
SELECT a.attname AS column_name, n.nspname AS operator_schema, o.oprname AS operator
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid
    AND a.attnum OPERATOR(pg_catalog.=) i.indkey[0]
JOIN pg_catalog.pg_opclass f ON f.oid OPERATOR(pg_catalog.=) i.indclass[0]
JOIN pg_catalog.pg_am am ON am.oid OPERATOR(pg_catalog.=) f.opcmethod AND am.amname OPERATOR(pg_catalog.=) 'btree'
JOIN pg_catalog.pg_amop m ON m.amopfamily OPERATOR(pg_catalog.=) f.opcfamily
    AND m.amoplefttype OPERATOR(pg_catalog.=) f.opcintype AND m.amoprighttype OPERATOR(pg_catalog.=) f.opcintype
    AND m.amopstrategy OPERATOR(pg_catalog.=) 3 AND m.amoppurpose OPERATOR(pg_catalog.=) 's'
JOIN pg_catalog.pg_operator o ON o.oid OPERATOR(pg_catalog.=) m.amopopr
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace
WHERE i.indrelid OPERATOR(pg_catalog.=) $1 AND i.indisvalid AND i.indpred IS NULL
ORDER BY i.indisprimary DESC, i.indisunique DESC, i.indexrelid";

/// Reads the catalog in four queries. `published`: the columns that are written.
pub(super) async fn table(
    client: &Client,
    table: &TableName,
    published: &[Arc<str>],
) -> Result<TableFacts, AgentError> {
    let failed = |source| AgentError::from_driver("read the catalog", Some(table), source);
    let published: Vec<&str> = published.iter().map(|name| &**name).collect();
    let class = client
        .query_opt(&self::class(), &[&&*table.schema, &&*table.name, &published])
        .await
        .map_err(failed)?
        .ok_or_else(|| AgentError::TableMissing { table: table.clone() })?;
    let oid: u32 = class.get("oid");
    let kind: &str = class.get("kind");
    if !matches!(kind, "r" | "p") {
        return Err(AgentError::NotATable {
            table: table.clone(),
            without: None,
        });
    }
    let role: String = class.get("role");
    let lacking: Vec<String> = class.get("lacking");
    if !lacking.is_empty() {
        let rights = ["USAGE", "SELECT", "INSERT", "UPDATE", "DELETE"];
        return Err(AgentError::NotPermitted {
            table: table.clone(),
            role,
            rights: rights
                .into_iter()
                .filter(|right| lacking.iter().any(|lacking| lacking == right))
                .collect(),
        });
    }
    let columns = COLUMNS.replace("{TYPE_PARTS}", TYPE_PARTS);
    let columns = client.query(&columns, &[&oid]).await.map_err(failed)?;
    let unique = client.query(UNIQUE, &[&oid]).await.map_err(failed)?;
    let leading = client.query(LEADING, &[&oid]).await.map_err(failed)?;
    Ok(TableFacts {
        partitioned: kind == "p",
        guarded: class.get("guarded"),
        fires_late: class.get("fires_late"),
        copyable: class.get("copyable"),
        unlogged: class.get("unlogged"),
        acting_keys: Lossy::all_of(&class, "acting_keys"),
        temporal: class.get("temporal"),
        row_security: class.get("row_security"),
        role: class.get("role"),
        rules: Lossy::all_of(&class, "rules"),
        columns: columns.iter().map(ColumnFacts::from_row).collect(),
        unique: UniqueFacts::from_rows(&unique),
        leading: leading.iter().map(KeyFacts::from_row).collect(),
    })
}

impl ColumnFacts {
    fn from_row(row: &Row) -> Self {
        Self {
            name: Lossy::of(row, "name"),
            base_type: Lossy::of(row, "base_type"),
            cast: qualified(&Lossy::of(row, "type_schema"), &Lossy::of(row, "type_name")),
            stored_type: stored(row),
            blanks: blanks(row),
            declared_type: Lossy::of(row, "with_length"),
            generated: row.get("generated"),
            identity_always: row.get("identity_always"),
            must_be_given: match row.get("must_be_given") {
                Some("key") => Some(Refuses::Key),
                Some("column") => Some(Refuses::Column),
                Some(_) => Some(Refuses::Domain),
                None => None,
            },
            deterministic: row.get("deterministic"),
            enumerated: row.get("enumerated"),
            parts: row
                .get::<_, Option<Lossy>>("parts")
                .and_then(|parts| serde_json::from_str(&parts.0).ok()),
        }
    }
}

/// An assignment to `char(n)` or `varchar(n)` cuts blanks at the end and refuses what else is too long; a cast cuts anything.
fn blanks(row: &Row) -> Option<&'static str> {
    if row.get::<_, i32>("length") < 0 || Lossy::of(row, "type_schema") != "pg_catalog" {
        return None;
    }
    match Lossy::of(row, "type_name").as_str() {
        "varchar" | "bpchar" => Some("pg_catalog.bpchar"),
        "_varchar" | "_bpchar" => Some("pg_catalog._bpchar"),
        _ => None,
    }
}

fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_identifier(schema), quote_identifier(name))
}

/// A type with its length. Lengths of Postgres' own types are keywords of the grammar (`numeric(10,2)`, `interval second(3)`),
/// which mean the same under any search path; those of others follow the name in parentheses.
fn stored(row: &Row) -> String {
    let (schema, name) = (Lossy::of(row, "type_schema"), Lossy::of(row, "type_name"));
    let shown = Lossy::of(row, "with_length");
    if row.get::<_, i32>("length") < 0 {
        qualified(&schema, &name)
    } else if schema == "pg_catalog" {
        shown
    } else {
        let length = shown.rfind('(').map(|start| shown[start..].trim_end_matches("[]"));
        format!("{}{}", qualified(&schema, &name), length.unwrap_or_default())
    }
}

impl KeyFacts {
    fn from_row(row: &Row) -> Self {
        Self {
            column: Lossy::of(row, "column_name"),
            operator_schema: Lossy::of(row, "operator_schema"),
            operator: Lossy::of(row, "operator"),
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
                    constraint: Lossy::of(first, "constraint_name"),
                    merges: columns
                        .iter()
                        .any(|column| column.get::<_, Option<bool>>("merges").unwrap_or_default()),
                    columns: columns.iter().map(KeyFacts::from_row).collect(),
                    collations: columns
                        .iter()
                        .map(|column| column.get::<_, Option<Lossy>>("collation_name").map(|name| name.0))
                        .collect(),
                })
            })
            .collect()
    }
}
