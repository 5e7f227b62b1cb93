//! Releases held tables once the reason is gone.
//!
//! It looks with a session of its own whether a table can be read in the Site DB and written in the Agent DB. Not every
//! fault can be seen in a catalog: then the table is released, held again by its next change or chunk, and tried again
//! after a wait that doubles each time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::agent_db::{AgentError, Pipeline, TableCheck, TableRecords, TableState};
use crate::change::TableName;
use crate::postgres::error::explain;
use crate::retry::backoff;
use crate::shutdown;
use crate::source::{Selection, Source, SourceTable, publication};

use super::claims;
use super::error::SyncError;
use super::settings::PipelineSettings;
use super::stream::requests::StreamRequests;
use super::tables::life::TableEvent;

/// Interval between two looks. A person who has repaired the cause watches for it; a look costs the Site DB one
/// catalog query, and the Agent DB a few for each held table.
const INTERVAL: Duration = Duration::from_secs(2);

/// First and longest wait before a table that was held again soon after its release is released once more.
const AGAIN: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(60));

/// A table that was not held again for this long starts over with the first wait.
const GOOD: Duration = Duration::from_secs(120);

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
}

/// When a table was released, and how often in quick succession.
struct Released {
    at: Instant,
    times: u32,
}

impl Release {
    /// Looks at the held tables until it is stopped.
    pub(super) async fn run(self, stop: &CancellationToken) -> Result<(), SyncError> {
        let mut check: Option<(Source, TableCheck)> = None;
        let mut released: HashMap<TableName, Released> = HashMap::new();
        while shutdown::sleep(INTERVAL, stop).await {
            let records = Arc::clone(&self.states.borrow());
            let held: Vec<&SourceTable> = records
                .values()
                .filter(|record| record.state == TableState::Held)
                .filter_map(|record| self.tables.get(&record.table))
                .collect();
            if held.is_empty() {
                // Most daemons never need the session.
                check = None;
                continue;
            }
            let (site, session) = match check.take() {
                Some(sessions) => sessions,
                None => (
                    Source::connect(&self.settings.site, "twinlog check").await?,
                    TableCheck::connect(&self.settings.agent, self.pipeline.clone()).await?,
                ),
            };
            let slots = session.other_claiming_slots().await?;
            for slot in claims::gone(&site, slots, self.version).await? {
                claims::log_taken_over(&slot, session.remove_abandoned_claims(&slot).await?);
            }
            let faults = publication::faults(site.client(), &self.settings.publication, &self.selection).await?;
            // The watch over the catalog says what is wrong with the others.
            for table in held.into_iter().filter(|table| !faults.contains_key(&table.table)) {
                match session.check(&table.description()).await {
                    // So many rows were refused that the table was held: reading it again would only refuse them again.
                    Ok(())
                        if is_of_too_many(&records, &table.table)
                            && session.refuses_parked(&self.settings.slot, &table.table).await? => {}
                    // Held again though nothing was seen: the fault is not in the catalog.
                    Ok(()) if released.get(&table.table).is_some_and(|released| !released.is_due()) => {}
                    Ok(()) => self.release(table, &mut released).await?,
                    Err(error) if error.table_fault().is_some() => {
                        released.remove(&table.table);
                        self.stays_held(&table.table, &error).await?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            check = Some((site, session));
        }
        Ok(())
    }

    async fn release(&self, table: &SourceTable, released: &mut HashMap<TableName, Released>) -> Result<(), SyncError> {
        let name = &table.table;
        match self.requests.release(table.clone()).await? {
            Ok(()) => info!(table = %name, "a table is released: it is read again"),
            Err(error) if error.table_fault().is_some() => return self.stays_held(name, &error).await,
            Err(error) => return Err(error.into()),
        }
        let before = released.get(name).filter(|released| released.at.elapsed() < GOOD);
        let times = before.map_or(0, |released| released.times) + 1;
        let at = Instant::now();
        released.insert(name.clone(), Released { at, times });
        Ok(())
    }
}

impl Release {
    /// Shows why, if that has changed.
    async fn stays_held(&self, table: &TableName, error: &AgentError) -> Result<(), SyncError> {
        let reason = explain(error, error.hint());
        let records = Arc::clone(&self.states.borrow());
        if records
            .get(table)
            .is_some_and(|record| record.detail.as_ref() != Some(&reason))
        {
            // Every state accepts this event.
            let _ = self.requests.table(table, TableEvent::Held { reason }).await?;
        }
        Ok(())
    }
}

impl Released {
    /// Whether it may be released again, if it is held.
    fn is_due(&self) -> bool {
        self.at.elapsed() >= backoff(self.times, AGAIN.0, AGAIN.1)
    }
}

/// Whether a table is held because too many of its rows are parked.
fn is_of_too_many(records: &TableRecords, table: &TableName) -> bool {
    let reason = records.get(table).and_then(|record| record.detail.as_deref());
    reason.is_some_and(AgentError::is_too_many_failed)
}
