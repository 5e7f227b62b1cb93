//! The publication: checks it, and creates or extends it if the role may. An existing publication is used as it is,
//! with its row filters and column lists.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio_postgres::Client;
use tracing::info;

use super::candidates::{Candidate, Faults, add_statement, candidates};
use super::catalog::{PublishedTables, published_tables};
use super::error::{SourceError, failed};
use super::selection::Selection;
use super::server::{check_role, check_server};
use super::table::SourceTable;
use crate::change::{Hold, HoldCause, TableName};
use crate::postgres::sqlstate::{LOCK_NOT_AVAILABLE, NOT_PERMITTED, READ_ONLY, is_of_its_table};
use crate::postgres::{Refusal, SessionError, Side, quote_identifier, quote_literal};

/// The result of [`prepare`]: the Site DB is ready for a stream.
#[derive(Debug)]
pub struct Prepared {
    /// The tables that are published and selected, by name.
    pub tables: BTreeMap<TableName, SourceTable>,
    /// The selected tables that can't be replicated now, each with the fault and its remedy. A table of `tables` may be
    /// among them.
    pub faults: Faults,
    /// Those of them that the server has refused to add to the publication.
    pub refused: BTreeSet<TableName>,
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
    let (mut faults, refused) = Box::pin(ensure_publication(client, publication, version, selection)).await?;
    let PublishedTables { tables, unread } = published_tables(client, publication, version, selection).await?;
    faults.extend(unread.into_iter().map(with_unread_filter));
    if tables.is_empty() {
        return Err(nothing(faults, selection));
    }
    let unsent = unsent(client, publication).await?;
    Ok(Prepared {
        tables,
        faults,
        refused,
        version,
        unsent,
    })
}

/// The tables that are both published and selected, by name; changes nothing. None where there is no publication, and not
/// those whose row filter can't be read, since they are locked.
///
/// # Errors
/// A statement failed, or the server is none that Twinlog can read.
pub async fn published(
    client: &Client,
    publication: &str,
    selection: &Selection,
) -> Result<BTreeMap<TableName, SourceTable>, SourceError> {
    let version = check_server(client).await?;
    Ok(published_tables(client, publication, version, selection).await?.tables)
}

/// Creates the publication, or adds the tables that it lacks. Returns the selected tables that can't be replicated,
/// and which of them the server has refused to add.
async fn ensure_publication(
    client: &Client,
    publication: &str,
    version: i32,
    selection: &Selection,
) -> Result<(Faults, BTreeSet<TableName>), SourceError> {
    let wanted = candidates(client, publication, version, selection).await?;
    wait_for_locks(client, LOCK_TIMEOUT).await?;
    let (mut faults, mut lacking) = (Faults::new(), Vec::new());
    let mut refused = BTreeSet::new();
    for candidate in &wanted {
        match candidate.fault(selection) {
            Some(fault) => drop(faults.insert(candidate.table.clone(), fault)),
            None if candidate.lacks() => lacking.push(candidate),
            None => {}
        }
    }
    // Partitions that are published by themselves are no candidates, and may be all that is selected.
    let is_to_be_created = wanted.iter().any(|candidate| candidate.published.is_none());
    if is_to_be_created && lacking.is_empty() {
        return Err(nothing(faults, selection));
    }
    if is_to_be_created {
        let left_out = Box::pin(create(client, publication, &lacking)).await?;
        for candidate in left_out {
            let fault = candidate.not_ours_to_add(publication, selection);
            faults.insert(candidate.table.clone(), fault);
        }
    } else {
        for (candidate, why) in Box::pin(extend(client, publication, &lacking)).await? {
            let fault = match why {
                Some(refusal) => candidate.not_added(publication, &refusal, selection),
                None => candidate.not_ours_to_add(publication, selection),
            };
            faults.insert(candidate.table.clone(), fault);
            refused.insert(candidate.table.clone());
        }
    }
    wait_for_locks(client, LONG_LOCK_TIMEOUT).await?;
    Ok((faults, refused))
}

/// Why there is nothing to replicate.
fn nothing(faults: Faults, selection: &Selection) -> SourceError {
    if faults.is_empty() {
        SourceError::NoTables(selection.patterns())
    } else {
        SourceError::NoTableReplicable(
            faults
                .into_values()
                .map(|hold| hold.reason)
                .collect::<Vec<_>>()
                .join("; "),
        )
    }
}

/// How long a publication waits for the lock of a table that it gets: no table flows meanwhile.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// The same after a table was found locked: others are probably locked with it.
const NEXT_LOCK_TIMEOUT: Duration = Duration::from_millis(50);

/// What the session had before.
const LONG_LOCK_TIMEOUT: Duration = Duration::from_secs(30);

async fn wait_for_locks(client: &Client, longest: Duration) -> Result<(), SourceError> {
    client
        .batch_execute(&format!("SET lock_timeout = {}", longest.as_millis()))
        .await
        .map_err(failed("set lock_timeout"))
}

/// Tries again to add tables that the server has refused to add. Returns one that it has added now.
///
/// # Errors
/// A statement failed for a reason that is not one table's.
pub async fn add_refused(
    client: &Client,
    publication: &str,
    refused: &BTreeSet<TableName>,
) -> Result<Option<TableName>, SourceError> {
    wait_for_locks(client, NEXT_LOCK_TIMEOUT).await?;
    let mut added = None;
    for table in refused {
        if add(client, publication, table).await?.is_none() {
            added = Some(table.clone());
            break;
        }
    }
    wait_for_locks(client, LONG_LOCK_TIMEOUT).await?;
    Ok(added)
}

/// Adds a table; returns the refusal if that is the table's fault.
async fn add(client: &Client, publication: &str, table: &TableName) -> Result<Option<Refusal>, SourceError> {
    let Err(source) = client.batch_execute(&add_statement(publication, table)).await else {
        return Ok(None);
    };
    match SessionError::new(Side::Site, "extend the publication", source) {
        // A server that takes no writes just now sends those of the tables that it has.
        SessionError::Refused { refusal, .. }
            if is_of_its_table(&refusal.sqlstate) || refusal.sqlstate == READ_ONLY =>
        {
            Ok(Some(*refusal))
        }
        other => Err(other.into()),
    }
}

/// The statement that creates the publication for these tables.
pub(super) fn create_statement(publication: &str, candidates: &[&Candidate]) -> String {
    let tables: Vec<_> = candidates
        .iter()
        .map(|candidate| format!("ONLY {}", candidate.table.quoted()))
        .collect();
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)",
        quote_identifier(publication),
        tables.join(", ")
    )
}

/// Creates the publication for all tables, or, if the role does not own all of them, for those that it owns. Returns the
/// others.
async fn create<'a>(
    client: &Client,
    publication: &str,
    candidates: &[&'a Candidate],
) -> Result<Vec<&'a Candidate>, SourceError> {
    let statement = |candidates: &[&Candidate]| create_statement(publication, candidates);
    let (owned, others): (Vec<_>, Vec<_>) = candidates.iter().copied().partition(|candidate| candidate.is_owned());
    // None is ours: the server says what is missing.
    let (ours, others) = if owned.is_empty() {
        (candidates.to_vec(), Vec::new())
    } else {
        (owned, others)
    };
    match create_in_parts(client, publication, &ours, statement).await {
        Ok(()) => {
            info!(publication, tables = ours.len(), "publication created");
            Ok(others)
        }
        Err(source) => match SessionError::new(Side::Site, "create the publication", source) {
            // A table is locked: it must not keep the others out. Those that are left out come with the next start.
            SessionError::Refused { refusal, .. } if refusal.sqlstate == LOCK_NOT_AVAILABLE => {
                let statement = format!(
                    "CREATE PUBLICATION {} WITH (publish_via_partition_root = true)",
                    quote_identifier(publication)
                );
                client
                    .batch_execute(&statement)
                    .await
                    .map_err(failed("create the publication"))?;
                Box::pin(extend(client, publication, &ours)).await?;
                Ok(others)
            }
            SessionError::Refused { refusal, .. } if refusal.sqlstate == NOT_PERMITTED => {
                Err(SourceError::CannotCreatePublication {
                    publication: publication.to_owned(),
                    statement: statement(candidates),
                    refusal,
                })
            }
            other => Err(other.into()),
        },
    }
}

/// Most tables of one statement. Each is locked until its end, and a server has room for some thousand locks (64 for each of
/// its connections by default).
const TABLES_AT_ONCE: usize = 500;

/// Creates the publication with the first tables, and adds the others. If that is interrupted, the next start adds the rest.
async fn create_in_parts(
    client: &Client,
    publication: &str,
    tables: &[&Candidate],
    create: impl Fn(&[&Candidate]) -> String,
) -> Result<(), tokio_postgres::Error> {
    let (first, rest) = tables.split_at(tables.len().min(TABLES_AT_ONCE));
    client.batch_execute(&create(first)).await?;
    for some in rest.chunks(TABLES_AT_ONCE) {
        let names: Vec<String> = some
            .iter()
            .map(|candidate| format!("ONLY {}", candidate.table.quoted()))
            .collect();
        let statement = format!(
            "ALTER PUBLICATION {} ADD TABLE {}",
            quote_identifier(publication),
            names.join(", ")
        );
        client.batch_execute(&statement).await?;
    }
    Ok(())
}

/// Adds the tables that the publication lacks, each by itself: one that can't be added must not keep the others out.
/// Returns those, with the server's refusal, if it was asked.
async fn extend<'a>(
    client: &Client,
    publication: &str,
    lacking: &[&'a Candidate],
) -> Result<Vec<(&'a Candidate, Option<Refusal>)>, SourceError> {
    let (mut left_out, mut added) = (Vec::new(), 0);
    for &candidate in lacking {
        if !candidate.is_owned() {
            left_out.push((candidate, None));
            continue;
        }
        match add(client, publication, &candidate.table).await? {
            None => added += 1,
            Some(refusal) => {
                if refusal.sqlstate == LOCK_NOT_AVAILABLE {
                    wait_for_locks(client, NEXT_LOCK_TIMEOUT).await?;
                }
                left_out.push((candidate, Some(refusal)));
            }
        }
    }
    if added > 0 {
        info!(publication, tables = added, "publication extended");
    }
    Ok(left_out)
}

/// The selected tables that can't be replicated, by the catalog alone.
pub(super) fn faults_of(wanted: &[Candidate], publication: &str, selection: &Selection) -> Faults {
    let faults = wanted.iter().filter_map(|candidate| {
        let fault = candidate.fault(selection).or_else(|| {
            (candidate.lacks() && !candidate.is_owned()).then(|| candidate.not_ours_to_add(publication, selection))
        });
        Some((candidate.table.clone(), fault?))
    });
    faults.collect()
}

/// The selected tables that can't be replicated now, each with the fault and its remedy.
///
/// # Errors
/// A statement failed.
pub async fn faults(
    client: &Client,
    publication: &str,
    version: i32,
    selection: &Selection,
) -> Result<Faults, SourceError> {
    let wanted = candidates(client, publication, version, selection).await?;
    Ok(faults_of(&wanted, publication, selection))
}

/// The catalog, compared with what was found before.
#[derive(Debug)]
pub struct CatalogLook {
    /// What has changed; `None` if nothing has.
    pub change: Option<CatalogChange>,
    /// The selected tables that can't be replicated now.
    pub faults: Faults,
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

/// Compares the catalog with what was found before. A new table that can't be replicated is
/// no change (see [`faults`]), nor is one that [`prepare`] was `refused` to add.
///
/// # Errors
/// A statement failed.
pub async fn changed(
    client: &Client,
    publication: &str,
    version: i32,
    selection: &Selection,
    known: &BTreeMap<TableName, SourceTable>,
    refused: &BTreeSet<TableName>,
) -> Result<CatalogLook, SourceError> {
    let PublishedTables { mut tables, unread } = published_tables(client, publication, version, selection).await?;
    let wanted = candidates(client, publication, version, selection).await?;
    let mut faults = faults_of(&wanted, publication, selection);
    for table in unread {
        // While it is locked, nobody else changes it; what its owner does is seen when the lock is gone.
        if let Some(known) = known.get(&table) {
            tables.insert(table, known.clone());
        } else {
            faults.extend([with_unread_filter(table)]);
        }
    }
    Ok(CatalogLook {
        change: change(tables, &wanted, selection, known, refused),
        faults,
    })
}

/// The fault of a table that is locked, so that its row filter can't be read.
pub(super) fn with_unread_filter(table: TableName) -> (TableName, Hold) {
    let reason = format!(
        "table {table} of the Site DB is locked, so its row filter in the publication can't be read — on the Site DB, see who \
         has locked it, and end that transaction, or wait: SELECT pid, mode, granted FROM pg_locks WHERE relation = \
         {}::regclass AND mode = 'AccessExclusiveLock';",
        quote_literal(&table.regclass())
    );
    (table, Hold::new(HoldCause::Locked, reason))
}

fn change(
    published: BTreeMap<TableName, SourceTable>,
    wanted: &[Candidate],
    selection: &Selection,
    known: &BTreeMap<TableName, SourceTable>,
    refused: &BTreeSet<TableName>,
) -> Option<CatalogChange> {
    let gone = known.keys().find(|table| !published.contains_key(*table));
    let other = published
        .iter()
        .find(|(name, table)| known.get(*name).is_none_or(|known| !known.same_as(table)))
        .map(|(name, _)| name);
    let addable = wanted.iter().find(|candidate| {
        candidate.lacks()
            && candidate.is_owned()
            && candidate.fault(selection).is_none()
            && !refused.contains(&candidate.table)
    });
    if let Some(table) = gone.or(other).or(addable.map(|candidate| &candidate.table)) {
        return Some(CatalogChange::Table(table.clone()));
    }
    let marked: Vec<SourceTable> = published
        .into_values()
        .filter(|table| known.get(&table.table).is_some_and(|known| known.marks != table.marks))
        .collect();
    (!marked.is_empty()).then_some(CatalogChange::Marks(marked))
}
