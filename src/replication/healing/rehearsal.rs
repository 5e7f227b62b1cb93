//! What a retry of parked rows would come to: reads their present rows from the Site DB, tries them in a transaction of the Agent
//! DB that is rolled back, and says what would become of each. Changes nothing, and needs no daemon.
//!
//! As in healing, rows that may wait for the ones that are asked for are tried with them.

use std::collections::{BTreeMap, BTreeSet};

use crate::agent_db::{Control, FailedFilter, FailedKey, Rehearsal, Rehearsed};
use crate::change::{Change, Key, Row, TableName};
use crate::copy::{CopyError, present_counts, present_rows};
use crate::replication::error::SyncError;
use crate::replication::settings::PipelineSettings;
use crate::source::publication::published;
use crate::source::{KeysOfTable, Selection, Source, SourceTable};

use super::knots::knots;

/// Keys that are rehearsed at once, and others that are tried with them because they may wait for each other.
const KEYS: u32 = 500;
const WAITING: u32 = 2_000;

/// What would become of a parked row.
#[derive(Debug, Clone)]
pub struct RehearsedRow {
    /// Its table.
    pub table: TableName,
    /// Its key, as a JSON array of texts.
    pub key: String,
    /// What would become of it; or why it can't be tried.
    pub would: Result<Rehearsed, String>,
}

/// Rehearses a retry of the parked rows that match, at most 500.
///
/// # Errors
/// A connection's, or a fault that is not one table's.
pub async fn rehearse(
    settings: &PipelineSettings,
    control: &Control,
    filter: &FailedFilter,
) -> Result<Vec<RehearsedRow>, SyncError> {
    let asked = control.parked_keys(filter, KEYS).await?;
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let source = Source::connect(&settings.site, "twinlog rehearse").await?;
    let selection = Selection::new(&settings.tables)?;
    let tables = published(source.client(), &settings.publication, &selection).await?;
    let mut run = Run {
        source,
        tables,
        rehearsal: Rehearsal::connect(&settings.agent, &settings.slot, settings.statement_limit).await?,
        would: BTreeMap::new(),
    };
    let of_tables: BTreeSet<TableName> = asked.iter().map(|failed| failed.table.clone()).collect();
    for knot in knots(&of_tables, &control.linked_failed_tables().await?) {
        let mut keys: Vec<FailedKey> = asked
            .iter()
            .filter(|failed| knot.contains(&failed.table))
            .cloned()
            .collect();
        if knot.len() > 1 {
            let others: Vec<TableName> = knot.iter().cloned().collect();
            for other in control.tried_failed_rows(&others, WAITING).await? {
                if !keys
                    .iter()
                    .any(|known| known.table == other.table && known.key == other.key)
                {
                    keys.push(other);
                }
            }
        }
        Box::pin(run.rehearse(&keys)).await?;
    }
    Ok(asked
        .into_iter()
        .map(|FailedKey { table, key, .. }| {
            let known = run.would.remove(&(table.clone(), key.clone()));
            RehearsedRow {
                key: key.to_json(),
                table,
                would: known.unwrap_or_else(|| Err("not tried: too much to read at once; name fewer rows".to_owned())),
            }
        })
        .collect())
}

struct Run {
    source: Source,
    tables: BTreeMap<TableName, SourceTable>,
    rehearsal: Rehearsal,
    would: BTreeMap<(TableName, Key), Result<Rehearsed, String>>,
}

impl Run {
    /// Rehearses keys together.
    async fn rehearse(&mut self, keys: &[FailedKey]) -> Result<(), SyncError> {
        let mut by_table: BTreeMap<&TableName, Vec<&FailedKey>> = BTreeMap::new();
        for failed in keys {
            by_table.entry(&failed.table).or_default().push(failed);
        }
        let (mut tables, mut alone): (Vec<KeysOfTable>, Vec<Change>) = (Vec::new(), Vec::new());
        for (name, failed) in by_table {
            let Some(table) = self.tables.get(name).cloned() else {
                self.not_tried(
                    &failed,
                    "the table is not published, not selected by sync.tables, or locked in the Site DB",
                );
                continue;
            };
            let relation = match self.rehearsal.resolve(&table.description()).await {
                Ok(relation) => relation,
                Err(error) if error.table().is_some() => {
                    self.not_tried(&failed, &error.to_string());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let key = relation.key_text();
            if failed
                .iter()
                .any(|failed| failed.row_key.as_ref().is_some_and(|known| *known != key))
            {
                self.not_tried(
                    &failed,
                    "the table has another key than when its rows were parked: it is read again as a whole",
                );
                continue;
            }
            if relation.counts_rows() {
                let rows: Vec<Row> = failed.iter().filter_map(|failed| failed.row.clone()).collect();
                let read = self.source.count_rows(&table, rows).await?;
                alone.extend(present_counts(&relation, read));
                continue;
            }
            let keys = failed.iter().filter(|failed| failed.row.is_none());
            let keys = keys.map(|failed| failed.key.clone()).collect();
            tables.push(KeysOfTable { relation, table, keys });
        }
        let mut together = Vec::new();
        if !tables.is_empty() {
            let read = self.source.read_parked(&tables).await?;
            let present = present_rows(&tables, read).map_err(|_| CopyError::StreamEnded)?;
            together = present.changes;
            alone.extend(present.respelled);
        }
        for (table, key, rehearsed) in Box::pin(self.rehearsal.rehearse(&together, &alone)).await? {
            self.would.insert((table, key), Ok(rehearsed));
        }
        Ok(())
    }

    fn not_tried(&mut self, failed: &[&FailedKey], why: &str) {
        for failed in failed {
            self.would
                .insert((failed.table.clone(), failed.key.clone()), Err(why.to_owned()));
        }
    }
}
