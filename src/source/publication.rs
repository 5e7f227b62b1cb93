//! What the Site DB must have before a stream can be read, checked and created where the role may: settings, rights,
//! tables with primary keys, the publication, and its answer to "which columns and rows".

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use tokio_postgres::Client;
use tracing::info;

use super::error::{SourceError, failed};
use super::selection::Selection;
use super::table::SourceTable;
use crate::change::{Identity, RelationId, TableName};
use crate::config::Sync;
use crate::postgres::keys::operator_schemas;
use crate::postgres::{Refusal, SessionError, Side, quote_identifier};

/// The oldest server that has everything we read: `pg_logical_emit_message` through pgoutput came with 14.
const OLDEST_VERSION: i32 = 140_000;

/// The Site DB is ready.
#[derive(Debug)]
pub struct Prepared {
    /// The tables that are synchronised, by name.
    pub tables: BTreeMap<TableName, SourceTable>,
    /// Its version, as `server_version_num`.
    pub version: i32,
}

/// Checks and creates what the stream needs.
///
/// # Errors
/// What is missing, with the statement to paste.
pub async fn prepare(client: &Client, sync: &Sync, selection: &Selection) -> Result<Prepared, SourceError> {
    let version = check_server(client).await?;
    check_role(client).await?;
    ensure_publication(client, sync, selection).await?;
    let tables = published(client, &sync.publication, version, selection).await?;
    if tables.is_empty() {
        return Err(SourceError::NoTables(sync.tables.clone()));
    }
    Ok(Prepared { tables, version })
}

async fn check_server(client: &Client) -> Result<i32, SourceError> {
    let row = client
        .query_one(
            "SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.current_setting('server_version'), \
             pg_catalog.current_setting('wal_level')",
            &[],
        )
        .await
        .map_err(failed("read the settings"))?;
    let version: i32 = row.get(0);
    if version < OLDEST_VERSION {
        return Err(SourceError::Version(row.get(1)));
    }
    let wal_level: String = row.get(2);
    if wal_level != "logical" {
        return Err(SourceError::WalLevel(wal_level));
    }
    Ok(version)
}

async fn check_role(client: &Client) -> Result<(), SourceError> {
    // Managed services grant the right through a role of theirs instead of the attribute.
    let row = client
        .query_one(
            "SELECT rolname::text, rolreplication OR rolsuper OR EXISTS (SELECT FROM pg_catalog.pg_roles r \
             WHERE r.rolname IN ('rds_replication', 'cloudsqlsuperuser', 'azure_pg_admin') \
             AND pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER')) \
             FROM pg_catalog.pg_roles WHERE rolname = current_user",
            &[],
        )
        .await
        .map_err(failed("read the role's rights"))?;
    if row.get(1) {
        Ok(())
    } else {
        Err(SourceError::NoReplicationRight(row.get(0)))
    }
}

/// A table of the Site DB that the configuration matches.
struct Candidate {
    table: TableName,
    has_key: bool,
    readable: bool,
}

async fn candidates(client: &Client, selection: &Selection) -> Result<Vec<Candidate>, SourceError> {
    // Partitions are published as their root; temporary and unlogged tables can't be.
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text, \
             EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary), \
             pg_catalog.has_table_privilege(c.oid, 'SELECT') \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' \
             AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' ORDER BY 1, 2",
            &[],
        )
        .await
        .map_err(failed("list the tables"))?;
    Ok(rows
        .iter()
        .map(|row| Candidate {
            table: TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
            has_key: row.get(2),
            readable: row.get(3),
        })
        .filter(|candidate| selection.takes(&candidate.table))
        .collect())
}

async fn ensure_publication(client: &Client, sync: &Sync, selection: &Selection) -> Result<(), SourceError> {
    let wanted = candidates(client, selection).await?;
    let missing = missing(client, &sync.publication, &wanted).await?;
    if let Some(candidate) = wanted.iter().find(|candidate| !candidate.has_key) {
        return Err(SourceError::NoPrimaryKey(candidate.table.clone()));
    }
    if let Some(candidate) = wanted.iter().find(|candidate| !candidate.readable) {
        return Err(SourceError::CannotSelect(candidate.table.clone()));
    }
    let name = quote_identifier(&sync.publication);
    let list = |tables: &[&TableName]| tables.iter().map(|table| table.quoted()).collect::<Vec<_>>().join(", ");
    match missing {
        None => {
            if wanted.is_empty() {
                return Err(SourceError::NoTables(sync.tables.clone()));
            }
            let tables: Vec<_> = wanted.iter().map(|candidate| &candidate.table).collect();
            let statement = format!(
                "CREATE PUBLICATION {name} FOR TABLE {} WITH (publish_via_partition_root = true)",
                list(&tables)
            );
            match client.batch_execute(&statement).await {
                Ok(()) => info!(
                    publication = sync.publication,
                    tables = tables.len(),
                    "publication created"
                ),
                Err(source) => {
                    return Err(lacking_right(source, |refusal| SourceError::CannotCreatePublication {
                        publication: sync.publication.clone(),
                        statement,
                        refusal,
                    }));
                }
            }
        }
        Some(missing) if missing.is_empty() => {}
        Some(missing) => {
            let statement = format!("ALTER PUBLICATION {name} ADD TABLE {}", list(&missing));
            match client.batch_execute(&statement).await {
                Ok(()) => info!(
                    publication = sync.publication,
                    tables = missing.len(),
                    "publication extended"
                ),
                Err(source) => {
                    let tables = missing.into_iter().cloned().collect();
                    return Err(lacking_right(source, |refusal| SourceError::CannotExtendPublication {
                        publication: sync.publication.clone(),
                        tables,
                        statement,
                        refusal,
                    }));
                }
            }
        }
    }
    Ok(())
}

/// Which of the tables the publication would have to be extended by; `None` where there is no publication.
async fn missing<'a>(
    client: &Client,
    publication: &str,
    wanted: &'a [Candidate],
) -> Result<Option<Vec<&'a TableName>>, SourceError> {
    let existing = client
        .query_opt(
            "SELECT puballtables FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[&publication],
        )
        .await
        .map_err(failed("look the publication up"))?;
    match existing.map(|row| row.get::<_, bool>(0)) {
        None => return Ok(None),
        Some(true) => return Ok(Some(Vec::new())),
        Some(false) => {}
    }
    let published: HashSet<TableName> = client
        .query(
            // A partition that is published through its root counts as its root; a root that has none yet is a member
            // without being listed.
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_publication_tables p \
             JOIN pg_catalog.pg_namespace pn ON pn.nspname = p.schemaname \
             JOIN pg_catalog.pg_class pc ON pc.relname = p.tablename AND pc.relnamespace = pn.oid \
             JOIN pg_catalog.pg_class c ON c.oid = coalesce(pg_catalog.pg_partition_root(pc.oid), pc.oid) \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1 \
             UNION SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_publication p \
             JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid \
             JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1",
            &[&publication],
        )
        .await
        .map_err(failed("list the publication's tables"))?
        .iter()
        .map(|row| TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)))
        .collect();
    let missing = wanted
        .iter()
        .map(|candidate| &candidate.table)
        .filter(|table| !published.contains(table));
    Ok(Some(missing.collect()))
}

/// A table that is not as the set-up found it: it joined, left or changed. One that the set-up would refuse does not count
/// before there is a set-up again: what streams goes on streaming.
///
/// # Errors
/// A statement failed.
pub async fn changed(
    client: &Client,
    sync: &Sync,
    version: i32,
    selection: &Selection,
    known: &BTreeMap<TableName, SourceTable>,
) -> Result<Option<TableName>, SourceError> {
    let published = published(client, &sync.publication, version, selection).await?;
    let gone = known.keys().find(|table| !published.contains_key(*table));
    let other = published
        .iter()
        .find(|(name, table)| known.get(*name).is_none_or(|known| !known.same_as(table)))
        .map(|(name, _)| name);
    if let Some(table) = gone.or(other) {
        return Ok(Some(table.clone()));
    }
    let mut wanted = candidates(client, selection).await?;
    wanted.retain(|candidate| candidate.has_key && candidate.readable);
    let missing = missing(client, &sync.publication, &wanted).await?;
    Ok(missing.and_then(|missing| missing.first().map(|&table| table.clone())))
}

/// A refusal for want of a right gets the statement to paste; any other error stays what it is.
fn lacking_right(source: tokio_postgres::Error, explain: impl FnOnce(Box<Refusal>) -> SourceError) -> SourceError {
    match SessionError::new(Side::Site, "prepare the publication", source) {
        SessionError::Refused { refusal, .. } if refusal.sqlstate == "42501" => explain(refusal),
        other => other.into(),
    }
}

/// The publication's own word on what it sends.
async fn published(
    client: &Client,
    publication: &str,
    version: i32,
    selection: &Selection,
) -> Result<BTreeMap<TableName, SourceTable>, SourceError> {
    // Column lists and row filters came with 15; since 18 a publication may send generated columns, and its column list
    // says whether it does.
    let (columns, filter) = if version >= 150_000 {
        ("p.attnames::text[]", "p.rowfilter")
    } else {
        ("NULL::text[]", "NULL::text")
    };
    // So did publications of whole schemas.
    let schemas = if version >= 150_000 {
        "(SELECT s.oid FROM pg_catalog.pg_publication_namespace s WHERE s.pnpubid = b.oid AND s.pnnspid = c.relnamespace)"
    } else {
        "NULL"
    };
    let generated = if version >= 180_000 {
        "true"
    } else {
        "a.attgenerated = ''"
    };
    let operators = operator_schemas("c.oid");
    let rows = client
        .query(
            &format!(
                "SELECT c.oid, p.schemaname::text, p.tablename::text, {filter}, c.relkind = 'p', c.reltuples::bigint, \
                 pg_catalog.array_agg(a.attname::text ORDER BY a.attnum), \
                 pg_catalog.array_agg(pg_catalog.format_type(a.atttypid, -1) ORDER BY a.attnum), \
                 c.relreplident = 'f', \
                 ARRAY(SELECT k.attname::text FROM pg_catalog.pg_index i \
                 JOIN pg_catalog.pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = ANY (i.indkey::int2[]) \
                 WHERE i.indrelid = c.oid AND ((c.relreplident = 'd' AND i.indisprimary) OR \
                 (c.relreplident = 'i' AND i.indisreplident))), \
                 pg_catalog.array_agg(pg_catalog.format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum), \
                 (SELECT pg_catalog.concat_ws(':', b.oid, (SELECT pg_catalog.string_agg(r.oid::text, ',' ORDER BY r.oid) \
                 FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = b.oid AND (r.prrelid = c.oid OR r.prrelid IN \
                 (SELECT x.relid FROM pg_catalog.pg_partition_ancestors(c.oid) x))), {schemas}, \
                 b.pubinsert, b.pubupdate, b.pubdelete, b.pubtruncate, b.pubviaroot) \
                 FROM pg_catalog.pg_publication b WHERE b.pubname = $1), {operators}, \
                 pg_catalog.array_agg(coalesce((SELECT l.collisdeterministic FROM pg_catalog.pg_collation l \
                 WHERE l.oid = a.attcollation), true) ORDER BY a.attnum) \
                 FROM pg_catalog.pg_publication_tables p \
                 JOIN pg_catalog.pg_namespace n ON n.nspname = p.schemaname \
                 JOIN pg_catalog.pg_class c ON c.relname = p.tablename AND c.relnamespace = n.oid \
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
                 AND ({columns} IS NULL OR a.attname::text = ANY ({columns})) AND {generated} \
                 WHERE p.pubname = $1 GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 2, 3"
            ),
            &[&publication],
        )
        .await
        .map_err(failed("read the publication's tables"))?;
    Ok(rows
        .iter()
        .map(|row| SourceTable {
            id: RelationId(row.get(0)),
            table: TableName::new(row.get::<_, &str>(1), row.get::<_, &str>(2)),
            row_filter: row.get(3),
            partitioned: row.get(4),
            estimated_rows: row.get(5),
            columns: row.get::<_, Vec<String>>(6).into_iter().map(Arc::from).collect(),
            types: row.get(7),
            declared: row.get(10),
            membership: row.get(11),
            operators: row.get(12),
            deterministic: row.get(13),
            identity: identity(row.get(8), &row.get::<_, Vec<String>>(9), &row.get::<_, Vec<String>>(6)),
        })
        .filter(|table| selection.takes(&table.table))
        .map(|table| (table.table.clone(), table))
        .collect())
}

/// By what the source identifies the old row, as the stream will say it.
fn identity(full: bool, identifying: &[String], columns: &[String]) -> Identity {
    if full {
        return Identity::Full;
    }
    let positions = columns
        .iter()
        .enumerate()
        .filter(|(_, name)| identifying.contains(name))
        .map(|(at, _)| at);
    Identity::Columns(positions.collect())
}
