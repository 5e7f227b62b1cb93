//! Notices that synchronised tables were changed in the Agent DB: a type that was widened, a constraint, a trigger or a right
//! that came or went, a table that was created anew. The table is looked up again before it is written the next time, and
//! held if it can't be written any more; its parked rows are tried again; and it is read again if its rows may have
//! changed, or may have been written otherwise than they were sent.
//!
//! What was seen is stored, so that a change is also noticed after the daemon was away. Between two looks, a row that is
//! refused is parked, and tried again at the next look. Not noticed: a trigger that is created and dropped between two
//! looks on a table that has others, and rows that somebody writes there (`twinlog resync` finds them).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::agent_db::{AgentMark, AgentMarks, Control, TableRecords, TableState};
use crate::change::TableName;
use crate::shutdown;
use crate::source::SourceTable;

use super::error::SyncError;
use super::stream::requests::StreamRequests;
use super::tables::life::TableEvent;

/// Interval between two looks: one query of the catalog, on a connection of its own, of about 0.1 ms for each table.
const INTERVAL: Duration = Duration::from_secs(2);

/// With thousands of tables the interval is longer, so that a look takes at most this part of it.
const SHARE: u32 = 10;

/// The tables that were changed in the Agent DB since this was asked last.
#[derive(Debug, Clone, Default)]
pub(super) struct ChangedTables(Arc<Mutex<BTreeSet<TableName>>>);

impl ChangedTables {
    fn add(&self, table: &TableName) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(table.clone());
    }

    pub(super) fn take(&self) -> BTreeSet<TableName> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the watch needs from the run.
pub(super) struct AgentWatch {
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    /// The tables' states, as they are committed.
    pub(super) states: watch::Receiver<Arc<TableRecords>>,
    pub(super) requests: StreamRequests,
    pub(super) changed: ChangedTables,
}

impl AgentWatch {
    /// Looks until it is stopped.
    ///
    /// # Errors
    /// A query of the Agent DB failed.
    pub(super) async fn run(self, control: Control, stop: &CancellationToken) -> Result<(), SyncError> {
        let mut stored = control.stored_agent_marks().await?;
        let mut seen = control.agent_marks(self.tables.keys()).await?;
        self.compare(&control, &mut stored, &seen).await?;
        let mut interval = INTERVAL;
        while shutdown::sleep(interval, stop).await {
            let began = Instant::now();
            let now = control.agent_marks(self.tables.keys()).await?;
            interval = INTERVAL.max(began.elapsed() * SHARE);
            for (name, table) in self.tables.iter().filter(|(name, _)| seen.get(*name) != now.get(*name)) {
                info!(table = %name, "the table was changed in the Agent DB: it is looked up again");
                self.requests.agent_changed(name).await?;
                self.look_up(table).await?;
                control.retry_table(name).await?;
                self.changed.add(name);
            }
            if now != seen {
                self.compare(&control, &mut stored, &now).await?;
            }
            seen = now;
        }
        Ok(())
    }

    /// Looks a table up, and holds it if it can't be written. One that is held is looked up by those who release it.
    async fn look_up(&self, table: &SourceTable) -> Result<(), SyncError> {
        let records = Arc::clone(&self.states.borrow());
        let is_held = |name| records.get(name).is_none_or(|record| record.state == TableState::Held);
        if is_held(&table.table) {
            return Ok(());
        }
        match self.requests.resolve(table.description()).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let Some((_, hold)) = error.hold() else {
                    return Err(error);
                };
                // Every state accepts this event.
                let _ = self.requests.table(&table.table, TableEvent::Held(hold)).await?;
                Ok(())
            }
        }
    }

    /// Reads tables again whose rows may have changed, and stores what was seen.
    async fn compare(&self, control: &Control, stored: &mut AgentMarks, now: &AgentMarks) -> Result<(), SyncError> {
        for (table, mark) in now {
            let known = stored.get(table);
            if known == Some(mark) {
                continue;
            }
            if let Some(why) = known.and_then(|known| known.doubted_by(mark)) {
                self.doubt(table, why).await?;
            }
            self.store(control, stored, table, mark).await?;
        }
        Ok(())
    }

    async fn doubt(&self, table: &TableName, why: &'static str) -> Result<(), SyncError> {
        info!(%table, why, "a table is read again: its rows may have changed in the Agent DB");
        // A state that does not accept the event is one in which nothing is known to be right yet.
        let _ = self.requests.table(table, TableEvent::MayDiffer).await?;
        Ok(())
    }

    /// After the event: if the run ends between the two, the next one finds the same difference again.
    async fn store(
        &self,
        control: &Control,
        stored: &mut AgentMarks,
        table: &TableName,
        mark: &AgentMark,
    ) -> Result<(), SyncError> {
        control.store_agent_mark(table, mark).await?;
        stored.insert(table.clone(), mark.clone());
        Ok(())
    }
}
