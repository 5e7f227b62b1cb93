//! The publication: checks it, and creates or extends it if the role may. An existing publication is used as it is,
//! with its row filters and column lists.

use std::collections::{BTreeMap, HashSet};

use tokio_postgres::Client;
use tracing::info;

use super::catalog::published_tables;
use super::error::{SourceError, failed};
use super::selection::Selection;
use super::server::{check_role, check_server};
use super::table::SourceTable;
use crate::change::TableName;
use crate::postgres::{Refusal, SessionError, Side, quote_identifier};

/// The result of [`prepare`]: the Site DB is ready for a stream.
#[derive(Debug)]
pub struct Prepared {
    /// The tables that are synchronised, by name.
    pub tables: BTreeMap<TableName, SourceTable>,
    /// The server's version, as `server_version_num`.
    pub version: i32,
    /// What the publication does not send, of `inserts`, `updates` and `deletes`.
    pub unsent: Vec<&'static str>,
}

/// Checks and creates what the stream needs.
///
/// # Errors
/// What is missing, with the statement to paste.
pub async fn prepare(client: &Client, publication: &str, selection: &Selection) -> Result<Prepared, SourceError> {
    let version = check_server(client).await?;
    check_role(client).await?;
    ensure_publication(client, publication, selection).await?;
    let tables = published_tables(client, publication, version, selection).await?;
    if tables.is_empty() {
        return Err(SourceError::NoTables(selection.patterns()));
    }
    let unsent = unsent(client, publication).await?;
    Ok(Prepared {
        tables,
        version,
        unsent,
    })
}

/// A table of the Site DB that `sync.tables` selects.
struct Candidate {
    table: TableName,
    /// Whether the stream can identify the row of an update or a delete. In a publication, the Site DB refuses both for a
    /// table that has none.
    has_identity: bool,
    readable: bool,
}

/// The selected tables that can be published. Not partitions, which are published as part of their root, and not
/// temporary or unlogged tables.
async fn candidates(client: &Client, selection: &Selection) -> Result<Vec<Candidate>, SourceError> {
    let rows = client
        .query(
            "SELECT n.nspname::text AS schema_name, c.relname::text AS table_name, \
             c.relreplident = 'f' OR EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid \
             AND ((c.relreplident = 'd' AND i.indisprimary) OR (c.relreplident = 'i' AND i.indisreplident))) \
             AS has_identity, \
             pg_catalog.has_table_privilege(c.oid, 'SELECT') AS readable \
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
            table: TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")),
            has_identity: row.get("has_identity"),
            readable: row.get("readable"),
        })
        .filter(|candidate| selection.takes(&candidate.table))
        .collect())
}

/// Creates the publication, or adds the tables that it lacks.
async fn ensure_publication(client: &Client, publication: &str, selection: &Selection) -> Result<(), SourceError> {
    let wanted = candidates(client, selection).await?;
    let missing = missing(client, publication, &wanted).await?;
    let to_add = |candidate: &&Candidate| match &missing {
        None => true,
        Some(missing) => missing.contains(&&candidate.table),
    };
    if let Some(candidate) = wanted.iter().filter(to_add).find(|candidate| !candidate.has_identity) {
        return Err(SourceError::NoReplicaIdentity(candidate.table.clone()));
    }
    if let Some(candidate) = wanted.iter().find(|candidate| !candidate.readable) {
        return Err(SourceError::CannotSelect(candidate.table.clone()));
    }
    match missing {
        None if wanted.is_empty() => Err(SourceError::NoTables(selection.patterns())),
        None => {
            let tables: Vec<_> = wanted.iter().map(|candidate| &candidate.table).collect();
            create(client, publication, &tables).await
        }
        Some(missing) if missing.is_empty() => Ok(()),
        Some(missing) => extend(client, publication, &missing).await,
    }
}

async fn create(client: &Client, publication: &str, tables: &[&TableName]) -> Result<(), SourceError> {
    let statement = format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)",
        quote_identifier(publication),
        table_list(tables)
    );
    match client.batch_execute(&statement).await {
        Ok(()) => {
            info!(publication, tables = tables.len(), "publication created");
            Ok(())
        }
        Err(source) => Err(lacking_right(source, |refusal| SourceError::CannotCreatePublication {
            publication: publication.to_owned(),
            statement,
            refusal,
        })),
    }
}

async fn extend(client: &Client, publication: &str, missing: &[&TableName]) -> Result<(), SourceError> {
    let statement = format!(
        "ALTER PUBLICATION {} ADD TABLE {}",
        quote_identifier(publication),
        table_list(missing)
    );
    match client.batch_execute(&statement).await {
        Ok(()) => {
            info!(publication, tables = missing.len(), "publication extended");
            Ok(())
        }
        Err(source) => Err(lacking_right(source, |refusal| SourceError::CannotExtendPublication {
            publication: publication.to_owned(),
            tables: missing.iter().map(|&table| table.clone()).collect(),
            statement,
            refusal,
        })),
    }
}

fn table_list(tables: &[&TableName]) -> String {
    tables.iter().map(|table| table.quoted()).collect::<Vec<_>>().join(", ")
}

/// Which of the wanted tables the publication lacks; `None` if there is no publication.
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
            // A partition counts as its root. A root without partitions is not in pg_publication_tables, only in
            // pg_publication_rel.
            "SELECT n.nspname::text AS schema_name, c.relname::text AS table_name \
             FROM pg_catalog.pg_publication_tables p \
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
        .map(|row| TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")))
        .collect();
    let missing = wanted
        .iter()
        .map(|candidate| &candidate.table)
        .filter(|table| !published.contains(table));
    Ok(Some(missing.collect()))
}

/// What the publication does not send.
async fn unsent(client: &Client, publication: &str) -> Result<Vec<&'static str>, SourceError> {
    let row = client
        .query_opt(
            "SELECT pubinsert, pubupdate, pubdelete FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[&publication],
        )
        .await
        .map_err(failed("look the publication up"))?;
    let kinds = [
        ("pubinsert", "inserts"),
        ("pubupdate", "updates"),
        ("pubdelete", "deletes"),
    ];
    Ok(row.map_or_else(Vec::new, |row| {
        let unsent = kinds.into_iter().filter(|(column, _)| !row.get::<_, bool>(column));
        unsent.map(|(_, name)| name).collect()
    }))
}

/// What is not any more as [`prepare`] found it.
#[derive(Debug)]
pub enum CatalogChange {
    /// A table was added, left, or is streamed or copied in another way.
    Table(TableName),
    /// Only marks of these tables differ: each with what it is now.
    Marks(Vec<SourceTable>),
}

/// Compares the catalog with what was found before; `None` if nothing has changed. A new table that `prepare` would
/// refuse is ignored, so that it does not stop the stream of the other tables.
///
/// # Errors
/// A statement failed.
pub async fn changed(
    client: &Client,
    publication: &str,
    version: i32,
    selection: &Selection,
    known: &BTreeMap<TableName, SourceTable>,
) -> Result<Option<CatalogChange>, SourceError> {
    let published = published_tables(client, publication, version, selection).await?;
    let gone = known.keys().find(|table| !published.contains_key(*table));
    let other = published
        .iter()
        .find(|(name, table)| known.get(*name).is_none_or(|known| !known.same_as(table)))
        .map(|(name, _)| name);
    if let Some(table) = gone.or(other) {
        return Ok(Some(CatalogChange::Table(table.clone())));
    }
    let mut wanted = candidates(client, selection).await?;
    wanted.retain(|candidate| candidate.has_identity && candidate.readable);
    let missing = missing(client, publication, &wanted).await?;
    if let Some(table) = missing.and_then(|missing| missing.first().map(|&table| table.clone())) {
        return Ok(Some(CatalogChange::Table(table)));
    }
    let marked: Vec<SourceTable> = published
        .into_values()
        .filter(|table| known.get(&table.table).is_some_and(|known| known.marks != table.marks))
        .collect();
    Ok((!marked.is_empty()).then_some(CatalogChange::Marks(marked)))
}

/// If the role lacks the right, makes the error that contains the statement for the owner; other errors are kept.
fn lacking_right(source: tokio_postgres::Error, explain: impl FnOnce(Box<Refusal>) -> SourceError) -> SourceError {
    match SessionError::new(Side::Site, "prepare the publication", source) {
        SessionError::Refused { refusal, .. } if refusal.sqlstate == "42501" => explain(refusal),
        other => other.into(),
    }
}
