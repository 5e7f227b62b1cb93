//! Releases held tables once the reason is gone, and notices that tables that were left out can be replicated.
//!
//! It looks with a session of its own whether a table can be read in the Site DB and written in the Agent DB. Not every
//! fault can be seen without a row: then the table is released, held again by its next change or chunk, and tried again
//! after a wait that doubles each time. A change of the table in the Agent DB ends the wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::agent_db::{AgentError, Pipeline, TableCheck, TableRecords, TableState};
use crate::change::{HoldCause, SeenGone, TableName};
use crate::retry::backoff;
use crate::shutdown;
use crate::source::{Selection, Source, SourceTable, publication, type_definitions};

use super::agent_watch::ChangedTables;
use super::claims;
use super::error::SyncError;
use super::settings::PipelineSettings;
use super::stream::requests::StreamRequests;
use super::tables::life::TableEvent;

/// Interval between two looks. A person who has repaired the cause watches for it; a look costs the Site DB one
/// catalog query, and the Agent DB a few for each held table.
const INTERVAL: Duration = Duration::from_secs(2);

/// First and longest wait before a table is released, or its parked rows are tried, once more.
const AGAIN: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(60));

/// A table that was not held again for this long starts over with the first wait.
const GOOD: Duration = Duration::from_secs(120);

/// Tables that were left out and are looked at in one round: there may be hundreds of them, and nobody waits for most.
const MOST_LEFT_OUT: usize = 5;

/// What the releases need from the run.
pub(super) struct Release {
    pub(super) settings: Arc<PipelineSettings>,
    pub(super) selection: Selection,
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    /// The tables' states, as they are committed.
    pub(super) states: watch::Receiver<Arc<TableRecords>>,
    pub(super) requests: StreamRequests,
    /// For whom tables are claimed.
    pub(super) pipeline: Pipeline,
    /// The Site DB's version, as `server_version_num`.
    pub(super) version: i32,
    /// Published tables that can't be written in the Agent DB and are left out.
    pub(super) ignored: BTreeSet<TableName>,
    pub(super) changed: ChangedTables,
}

/// When something was tried, and how often in quick succession.
struct Tried {
    at: Instant,
    times: u32,
}

/// What was tried, by table.
#[derive(Default)]
struct Waits(HashMap<TableName, Tried>);

impl Waits {
    fn is_due(&self, table: &TableName) -> bool {
        let due = |tried: &Tried| tried.at.elapsed() >= backoff(tried.times, AGAIN.0, AGAIN.1);
        self.0.get(table).is_none_or(due)
    }

    fn tried(&mut self, table: &TableName) {
        let before = self.0.get(table).filter(|tried| tried.at.elapsed() < GOOD);
        let times = before.map_or(0, |tried| tried.times) + 1;
        let at = Instant::now();
        self.0.insert(table.clone(), Tried { at, times });
    }

    fn forget(&mut self, table: &TableName) {
        self.0.remove(table);
    }
}

/// What is kept between two looks.
#[derive(Default)]
struct Looks {
    sessions: Option<(Source, TableCheck)>,
    releases: Waits,
    /// Attempts with parked rows of a table that has too many.
    probes: Waits,
    /// The table that was left out and looked at last.
    left_out: Option<TableName>,
}

impl Release {
    /// Looks at the tables until it is stopped.
    ///
    /// # Errors
    /// A query failed, or a table that was left out can be replicated now ([`SyncError::TableChanged`]).
    pub(super) async fn run(self, stop: &CancellationToken) -> Result<(), SyncError> {
        let mut looks = Looks::default();
        while shutdown::sleep(INTERVAL, stop).await {
            for table in self.changed.take() {
                looks.releases.forget(&table);
                looks.probes.forget(&table);
            }
            let records = Arc::clone(&self.states.borrow());
            let held: Vec<&SourceTable> = records
                .values()
                .filter(|record| record.state == TableState::Held)
                .filter_map(|record| self.tables.get(&record.table))
                .collect();
            if held.is_empty() && self.ignored.is_empty() {
                // Most daemons never need the sessions.
                looks.sessions = None;
                continue;
            }
            let sessions = match looks.sessions.take() {
                Some(sessions) => sessions,
                None => (
                    Source::connect(&self.settings.site, "twinlog check").await?,
                    TableCheck::connect(
                        &self.settings.agent,
                        self.pipeline.clone(),
                        self.settings.statement_limit,
                    )
                    .await?,
                ),
            };
            let slots = sessions.1.other_claiming_slots().await?;
            for slot in claims::gone(&sessions.0, slots, self.version).await? {
                claims::log_taken_over(&slot, sessions.1.remove_abandoned_claims(&slot).await?);
            }
            if !held.is_empty() {
                self.look_at_held(&sessions, &mut looks, &records, held).await?;
            }
            self.look_at_left_out(&sessions.1, &mut looks).await?;
            looks.sessions = Some(sessions);
        }
        Ok(())
    }

    async fn look_at_held(
        &self,
        (site, session): &(Source, TableCheck),
        looks: &mut Looks,
        records: &TableRecords,
        held: Vec<&SourceTable>,
    ) -> Result<(), SyncError> {
        let faults = publication::faults(site.client(), &self.settings.publication, self.version, &self.selection);
        let faults = match faults.await {
            // See the watch over the catalog.
            Err(error) if error.is_of_lock() => return Ok(()),
            faults => faults?,
        };
        // The watch over the catalog says what is wrong with the others.
        for table in held.into_iter().filter(|table| !faults.contains_key(&table.table)) {
            let name = &table.table;
            match session.check(&table.description()).await {
                // Reading the table again would only refuse its rows again, or wait for them.
                Ok(()) if let Some(cause) = of_parked_rows(records, name) => {
                    if looks.probes.is_due(name) {
                        looks.probes.tried(name);
                        let slot = &self.settings.slot;
                        let is_refused = match cause {
                            HoldCause::TooSlow => session.is_too_slow(slot, name).await?,
                            _ => session.refuses_parked(slot, name).await?,
                        };
                        if !is_refused {
                            self.release(table, &mut looks.releases).await?;
                        }
                    }
                }
                // Held again though nothing was seen: the fault needs a row.
                Ok(()) if !looks.releases.is_due(name) => {}
                Ok(()) => self.release(table, &mut looks.releases).await?,
                Err(error) if error.table_fault().is_some() => {
                    looks.releases.forget(name);
                    let error = with_types(site, session, table, error).await?;
                    self.stays_held(name, &error).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Looks at some of the tables that were left out, in turn. One that can be written now joins with the next run.
    async fn look_at_left_out(&self, session: &TableCheck, looks: &mut Looks) -> Result<(), SyncError> {
        let after = looks.left_out.take();
        let later = self
            .ignored
            .iter()
            .filter(|table| after.as_ref().is_none_or(|after| *table > after));
        for name in later.take(MOST_LEFT_OUT) {
            looks.left_out = Some(name.clone());
            let Some(table) = self.tables.get(name) else { continue };
            match session.check(&table.description()).await {
                Ok(()) => {
                    info!(table = %name, "a table that was left out can be replicated now");
                    return Err(SyncError::TableChanged(name.clone()));
                }
                Err(error) if error.table_fault().is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn release(&self, table: &SourceTable, releases: &mut Waits) -> Result<(), SyncError> {
        let name = &table.table;
        match self.requests.release(table.clone()).await? {
            Ok(()) => info!(table = %name, "a table is released: it is read again"),
            Err(error) if error.table_fault().is_some() => return self.stays_held(name, &error).await,
            Err(error) => return Err(error.into()),
        }
        releases.tried(name);
        Ok(())
    }

    /// Shows why, if that has changed.
    async fn stays_held(&self, table: &TableName, error: &AgentError) -> Result<(), SyncError> {
        let hold = error.hold();
        let records = Arc::clone(&self.states.borrow());
        if records
            .get(table)
            .is_some_and(|record| record.detail.as_ref() != Some(&hold.reason))
        {
            // Every state accepts this event.
            let _ = self.requests.table(table, TableEvent::Held(hold)).await?;
        }
        Ok(())
    }
}

/// Adds the statements that create the types which the Agent DB lacks together with a column.
async fn with_types(
    site: &Source,
    agent: &TableCheck,
    table: &SourceTable,
    error: AgentError,
) -> Result<AgentError, SyncError> {
    let AgentError::ColumnMissing {
        table: name, columns, ..
    } = error
    else {
        return Ok(error);
    };
    let names: Vec<&str> = columns.iter().map(|column| &*column.name).collect();
    let known = type_definitions(site.client(), table.id, &names).await?;
    let lacks = if known.is_empty() {
        BTreeSet::new()
    } else {
        let schemas: Vec<&str> = known.iter().map(|definition| &*definition.schema).collect();
        let types: Vec<&str> = known.iter().map(|definition| &*definition.name).collect();
        agent.missing_types(&schemas, &types).await?
    };
    let mut statements: Vec<String> = Vec::new();
    for definition in known.iter().filter(|definition| lacks.contains(&definition.name)) {
        let schema = lacks
            .contains(&definition.schema)
            .then(|| format!("CREATE SCHEMA IF NOT EXISTS {}", definition.schema));
        for statement in schema.into_iter().chain([definition.statement.clone()]) {
            if !statements.contains(&statement) {
                statements.push(statement);
            }
        }
    }
    Ok(AgentError::ColumnMissing {
        table: name,
        columns,
        types: Some(statements),
    })
}

/// Why a table is held, if its parked rows tell when that is gone.
fn of_parked_rows(records: &TableRecords, table: &TableName) -> Option<HoldCause> {
    let cause = records.get(table).and_then(|record| record.cause);
    cause.filter(|cause| cause.seen_gone() == SeenGone::ByParkedRow)
}
