//! What a publication sends, read from the Site DB's catalog: each table with its columns, types, keys and filter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio_postgres::{Client, Row};

use super::bounded;
use super::error::SourceError;
use super::marks;
use super::published::{WITH_COLUMN_LISTS, sent};
use super::selection::Selection;
use super::table::SourceTable;
use crate::change::{Identity, RelationId, SourceFacts, TableName};
use crate::postgres::keys::operator_schemas;
use crate::postgres::type_parts::{ACTING_KEYS, TYPE_PARTS};

/// The tables that are both published and selected.
#[derive(Debug)]
pub(super) struct PublishedTables {
    pub(super) tables: BTreeMap<TableName, SourceTable>,
    /// Those of them whose row filter is not known, since they are locked. They are not in `tables`.
    pub(super) unread: BTreeSet<TableName>,
}

/// The tables that are both published and selected. `version` is the server's `server_version_num`.
///
/// # Errors
/// The statement failed.
pub(super) async fn published_tables(
    client: &Client,
    publication: &str,
    version: i32,
    selection: &Selection,
) -> Result<PublishedTables, SourceError> {
    let (sql, action) = (statement(version), "read the publication's tables");
    let read = |row: &Row| {
        // The list of the selected tables says that it can't be replicated.
        if !bounded::is_utf8(row, &["mark_types"]) {
            return Ok(None);
        }
        let table = source_table(row)?;
        let is_unread = row.get::<_, bool>("filtered") && table.row_filter.is_none();
        Ok(selection.takes(&table.table).then_some((table, is_unread)))
    };
    let found = bounded::rows(client, &sql, &[&publication], action, read).await?;
    let (unread, tables): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, is_unread)| *is_unread);
    Ok(PublishedTables {
        tables: tables
            .into_iter()
            .map(|(table, _)| (table.table.clone(), table))
            .collect(),
        unread: unread.into_iter().map(|(table, _)| table.table).collect(),
    })
}

/// The query for the server's version.
fn statement(version: i32) -> String {
    let schemas = if version >= WITH_COLUMN_LISTS {
        "(SELECT s.oid FROM pg_catalog.pg_publication_namespace s \
         WHERE s.pnpubid = b.oid AND s.pnnspid = c.relnamespace)"
    } else {
        "NULL"
    };
    let sent = sent(version);
    let operators = operator_schemas("c.oid");
    let marks = marks::columns(schemas);
    let (identified_by, partitions) = (identified_by("c"), partitions());
    format!(
        "WITH RECURSIVE {sent} \
         SELECT c.oid AS relation_id, n.nspname::text AS schema_name, c.relname::text AS table_name, \
         sent.row_filter AS row_filter, sent.filtered AS filtered, c.relkind = 'p' AS partitioned, c.reltuples::bigint AS estimated_rows, \
         pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) AS columns, \
         pg_catalog.array_agg(pg_catalog.format_type(a.atttypid, -1) ORDER BY a.attnum) AS types, \
         pg_catalog.array_agg(pg_catalog.format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) AS declared, \
         pg_catalog.array_agg(a.atttypid ORDER BY a.attnum) AS type_ids, \
         pg_catalog.array_agg(coalesce((SELECT l.collisdeterministic FROM pg_catalog.pg_collation l \
         WHERE l.oid = a.attcollation), true) ORDER BY a.attnum) AS deterministic, \
         c.relreplident = 'f' AS identified_by_all, \
         pg_catalog.array_agg({TYPE_PARTS} ORDER BY a.attnum) AS parts, {ACTING_KEYS} AS acting_keys, \
         {identified_by} AS identified_by, {partitions} AS partitions, \
         ARRAY(SELECT g.attname::text FROM pg_catalog.pg_attribute g WHERE g.attrelid = c.oid AND g.attnum > 0 \
         AND NOT g.attisdropped AND g.attgenerated <> '') AS generated, \
         (SELECT coalesce(pg_catalog.json_agg(u.columns), '[]')::text FROM \
         (SELECT pg_catalog.array_agg(k.attname::text ORDER BY k.attnum) AS columns FROM pg_catalog.pg_index i \
         JOIN pg_catalog.pg_attribute k ON k.attrelid = i.indrelid \
         AND k.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
         WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND NOT i.indisexclusion \
         AND i.indpred IS NULL AND i.indexprs IS NULL \
         GROUP BY i.indexrelid HAVING pg_catalog.bool_and(k.attnotnull) ORDER BY i.indexrelid) u) AS unique_keys, \
         pg_catalog.array_agg(a.attnotnull ORDER BY a.attnum) AS not_null, \
         ARRAY(SELECT o.attname::text FROM pg_catalog.pg_attribute o WHERE o.attrelid = c.oid AND o.attnum > 0 \
         AND NOT o.attisdropped ORDER BY o.attnum) AS all_columns, \
         pg_catalog.array_agg((SELECT CASE WHEN y.typtype <> 'd' THEN pg_catalog.format_type(a.atttypid, a.atttypmod) ELSE (\
         WITH RECURSIVE base (type, length) AS (SELECT a.atttypid, a.atttypmod UNION ALL \
         SELECT t.typbasetype, t.typtypmod FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.type WHERE t.typtype = 'd') \
         SELECT pg_catalog.format_type(b.type, b.length) FROM base b \
         JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype <> 'd') END \
         FROM pg_catalog.pg_type y WHERE y.oid = a.atttypid) ORDER BY a.attnum) AS stored_types, \
         (SELECT pg_catalog.concat_ws(':', b.oid, (SELECT pg_catalog.string_agg(r.oid::text, ',' ORDER BY r.oid) \
         FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = b.oid AND (r.prrelid = c.oid OR r.prrelid IN \
         (SELECT x.relid FROM pg_catalog.pg_partition_ancestors(c.oid) x))), {schemas}, \
         b.pubinsert, b.pubupdate, b.pubdelete, b.pubtruncate, b.pubviaroot) \
         FROM pg_catalog.pg_publication b WHERE b.pubname = $1) AS membership, {operators} AS operators, {marks} \
         FROM sent JOIN pg_catalog.pg_class c ON c.oid = sent.oid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         AND a.attnum = ANY (sent.numbers) GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 2, 3"
    )
}

/// The names of the columns of a relation's replica identity, where that is an index that Postgres takes for it.
fn identified_by(class: &str) -> String {
    format!(
        "ARRAY(SELECT k.attname::text FROM pg_catalog.pg_index i \
         JOIN pg_catalog.pg_attribute k ON k.attrelid = i.indrelid \
         AND k.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
         WHERE i.indrelid = {class}.oid AND i.indisunique AND i.indimmediate AND (i.indisvalid OR {class}.relkind = 'p') \
         AND (({class}.relreplident = 'd' AND i.indisprimary) OR ({class}.relreplident = 'i' AND i.indisreplident)))"
    )
}

/// The replica identities of a table's partitions, each once, as JSON of [`PartitionsIdentity`]; NULL where it has none. What an
/// old row holds is decided by the partition that it is in, whatever the table itself has.
fn partitions() -> String {
    let identified_by = identified_by("l");
    format!(
        "CASE WHEN c.relkind = 'p' THEN (SELECT pg_catalog.json_agg(y)::text FROM (SELECT x.\"full\", x.columns, \
         (pg_catalog.array_agg(x.name ORDER BY x.name))[1:{MOST_PARTITIONS}] AS names FROM (\
         WITH RECURSIVE tree (oid) AS (SELECT c.oid UNION ALL SELECT h.inhrelid FROM tree \
         JOIN pg_catalog.pg_inherits h ON h.inhparent = tree.oid) \
         SELECT l.relreplident = 'f' AS \"full\", {identified_by} AS columns, \
         pg_catalog.format('%I.%I', ln.nspname, l.relname) AS name \
         FROM tree JOIN pg_catalog.pg_class l ON l.oid = tree.oid AND l.relkind = 'r' \
         JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace) x GROUP BY 1, 2 ORDER BY 1, 2) y) END"
    )
}

/// Most partitions that are named as having another identity than their table.
const MOST_PARTITIONS: usize = 10;

/// Partitions of one replica identity.
#[derive(Debug, serde::Deserialize)]
struct PartitionsIdentity {
    /// `REPLICA IDENTITY FULL`.
    full: bool,
    /// Else, the columns of the index; none where there is no such index.
    columns: Vec<Arc<str>>,
    /// Some of the partitions, quoted.
    names: Vec<String>,
}

/// The columns that the old rows of all partitions bring, and the partitions of which they do not bring the whole identity of
/// the table; `None` if there are no such partitions. `own`: the table's identity, `None` for FULL.
fn narrowed(
    own: Option<&[String]>,
    columns: &[String],
    partitions: &[PartitionsIdentity],
) -> Option<(Vec<Arc<str>>, Vec<String>)> {
    // The Site DB refuses updates and deletes of a partition without an identity.
    let identified = || partitions.iter().filter(|some| some.full || !some.columns.is_empty());
    let brings =
        |some: &PartitionsIdentity, name: &str| some.full || some.columns.iter().any(|column| **column == *name);
    let is_narrower = |some: &&PartitionsIdentity| match own {
        None => !some.full,
        Some(own) => !own.iter().all(|name| brings(some, name)),
    };
    let narrower: Vec<String> = identified()
        .filter(is_narrower)
        .flat_map(|some| some.names.iter().cloned())
        .collect();
    let common = columns
        .iter()
        .filter(|name| identified().all(|some| brings(some, name)));
    (!narrower.is_empty()).then(|| (common.map(|name| Arc::from(name.as_str())).collect(), narrower))
}

fn source_table(row: &Row) -> Result<SourceTable, SourceError> {
    let columns: Vec<String> = row.get("columns");
    let marks = marks::of_row(row, &columns);
    let identified_by: Vec<String> = row.get("identified_by");
    let own = (!row.get::<_, bool>("identified_by_all")).then_some(&*identified_by);
    let partitions: Vec<PartitionsIdentity> =
        serde_json::from_str(row.get::<_, Option<&str>>("partitions").unwrap_or("[]"))
            .map_err(|_| SourceError::Incomplete("the replica identities of partitions"))?;
    let unique: Vec<Vec<Arc<str>>> = serde_json::from_str(row.get("unique_keys"))
        .map_err(|_| SourceError::Incomplete("the unique keys of a table"))?;
    let not_null: Vec<bool> = row.get("not_null");
    let stored: Vec<String> = row.get("stored_types");
    let declared: Vec<String> = row.get("declared");
    let deterministic: Vec<bool> = row.get("deterministic");
    let all_columns: Vec<String> = row.get("all_columns");
    let generated: Vec<String> = row.get("generated");
    let unsent_identity: Vec<&String> = own.map_or_else(Vec::new, |own| {
        own.iter().filter(|name| !columns.contains(name)).collect()
    });
    let (old_rows, narrower) = narrowed(own, &columns, &partitions).unzip();
    let parts: Vec<Option<&str>> = row.get("parts");
    let acting_keys: Vec<&str> = row.get("acting_keys");
    let facts = SourceFacts {
        parts: columns
            .iter()
            .zip(parts)
            .filter_map(|(name, parts)| Some((Arc::from(name.as_str()), serde_json::from_str(parts?).ok()?)))
            .collect(),
        acting_keys: acting_keys
            .iter()
            .filter_map(|key| Some(key.split_once('\n')?.1.to_owned()))
            .collect(),
        old_rows,
        narrower_partitions: narrower.unwrap_or_default(),
        generated_identity: unsent_identity.iter().any(|name| generated.contains(name)),
        unsent_identity: unsent_identity
            .into_iter()
            .map(|name| Arc::from(name.as_str()))
            .collect(),
        unique,
        unsent: all_columns
            .iter()
            .filter(|name| !columns.contains(name))
            .map(|name| Arc::from(name.as_str()))
            .collect(),
        types: columns
            .iter()
            .map(|name| Arc::from(name.as_str()))
            .zip(stored)
            .collect(),
        not_null: columns
            .iter()
            .zip(not_null)
            .filter(|(_, not_null)| *not_null)
            .map(|(name, _)| Arc::from(name.as_str()))
            .collect(),
        declared: columns
            .iter()
            .map(|name| Arc::from(name.as_str()))
            .zip(declared)
            .collect(),
        nondeterministic: columns
            .iter()
            .zip(&deterministic)
            .filter(|(_, deterministic)| !**deterministic)
            .map(|(name, _)| Arc::from(name.as_str()))
            .collect(),
    };
    let columns: Vec<Arc<str>> = columns.into_iter().map(Arc::from).collect();
    let identity = own.map_or(Identity::Full, |own| {
        Identity::of(&columns, |name| own.iter().any(|column| *column == **name))
    });
    let identity = facts.identity(identity, &columns);
    Ok(SourceTable {
        id: RelationId(row.get("relation_id")),
        table: TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")),
        columns,
        types: row.get("types"),
        type_ids: row.get("type_ids"),
        deterministic,
        declared: row.get("declared"),
        membership: row.get("membership"),
        marks,
        identity,
        facts: Arc::new(facts),
        operators: row.get("operators"),
        row_filter: row.get("row_filter"),
        partitioned: row.get("partitioned"),
        estimated_rows: row.get("estimated_rows"),
    })
}
