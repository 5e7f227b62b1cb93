//! Notices that the Site DB's catalog has changed since the start of the run: a table was added to the publication or
//! removed from it, or its column list or row filter changed.
//!
//! The stream shows such a change only with a table's next change; until then, existing rows would be missing without
//! notice. So the catalog is polled, and looked at at once when the stream describes a table: the server does so before
//! the table's first change, and again after any change of its catalog entries. On a change the run ends, and the start
//! of the next run handles it.
//!
//! A table that only may differ without a word in the log (`change::Marks`) is read again without an end of the run. What
//! happens between two looks is seen at the next one, also if it was taken back; until then the table may differ unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::agent_db::{TableRecords, TableState};
use crate::change::TableName;
use crate::shutdown;
use crate::source::publication::{self, CatalogChange, CatalogLook};
use crate::source::{Faults, Selection, Source, SourceTable};

use super::error::SyncError;
use super::faults::is_left_out;
use super::settings::PipelineSettings;
use super::status::sync_status::SyncStatus;
use super::stream::requests::StreamRequests;
use super::tables::life::TableEvent;

/// Interval between two checks. A person who adds a table usually watches for it, and a check costs the Site DB two
/// catalog queries.
const INTERVAL: Duration = Duration::from_secs(5);

/// Shortest interval between two checks: a transaction that creates many tables describes them all.
const PAUSE: Duration = Duration::from_millis(500);

/// With thousands of tables both are longer, so that a check takes at most this part of the time. (It takes 0.1 ms for each table or
/// partition.)
const SHARE: u32 = 10;

/// What the start of the run found; the catalog is compared with it.
pub(super) struct CatalogWatch {
    pub(super) settings: Arc<PipelineSettings>,
    pub(super) selection: Selection,
    pub(super) tables: BTreeMap<TableName, SourceTable>,
    /// The tables' states, as they are committed.
    pub(super) states: watch::Receiver<Arc<TableRecords>>,
    /// Tables that can't be replicated and are left out.
    pub(super) ignored: BTreeSet<TableName>,
    /// Those of them that can't be replicated because of the Site DB.
    pub(super) ignored_at_site: BTreeSet<TableName>,
    /// Tables that the server has refused to add to the publication.
    pub(super) refused: BTreeSet<TableName>,
    pub(super) requests: StreamRequests,
    /// See [`super::copies::Copies`].
    pub(super) fresh_slot: Arc<AtomicBool>,
    /// The Site DB's version, as `server_version_num`.
    pub(super) version: i32,
    pub(super) status: Arc<SyncStatus>,
    /// Notified when the stream describes a table.
    pub(super) hint: Arc<Notify>,
}

impl CatalogWatch {
    /// Checks the catalog until it is stopped.
    ///
    /// # Errors
    /// A table has changed ([`SyncError::TableChanged`]), or a query to the Site DB failed.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<(), SyncError> {
        let source = Source::connect(&self.settings.site, "twinlog catalog").await?;
        let mut hinted = false;
        let mut pause = PAUSE;
        while shutdown::sleep(pause, stop).await {
            // The hint's transaction is in the log, and may become visible only a moment later: look once more then.
            if !hinted {
                let hint = timeout(INTERVAL.saturating_sub(pause), self.hint.notified());
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    hint = hint => hinted = hint.is_ok(),
                }
            } else {
                hinted = false;
            }
            let began = Instant::now();
            let changed = publication::changed(
                source.client(),
                &self.settings.publication,
                self.version,
                &self.selection,
                &self.tables,
                &self.refused,
            );
            let CatalogLook { change, faults } = match changed.await {
                // A table was locked just when its row filter was read. That must not end the run of all.
                Err(error) if error.is_of_lock() => continue,
                look => look?,
            };
            pause = PAUSE.max(began.elapsed() * SHARE);
            if let Some(table) = self.joins(&faults) {
                return Err(SyncError::TableChanged(table));
            }
            self.hold(faults).await?;
            if !self.refused.is_empty() {
                let added = publication::add_refused(source.client(), &self.settings.publication, &self.refused);
                if let Some(table) = added.await? {
                    return Err(SyncError::TableChanged(table));
                }
            }
            match change {
                Some(CatalogChange::Table(table)) => return Err(SyncError::TableChanged(table)),
                Some(CatalogChange::Marks(tables)) => {
                    for table in tables {
                        self.marked(table).await?;
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    /// A table that was left out, and can be replicated now.
    fn joins(&self, faults: &Faults) -> Option<TableName> {
        let mut can = (self.ignored_at_site.iter())
            .filter(|table| self.tables.contains_key(*table) && !faults.contains_key(*table));
        can.next().cloned()
    }

    /// Holds the tables that can't be replicated any more, and new ones that can't; forgets held ones that are gone.
    async fn hold(&mut self, faults: Faults) -> Result<(), SyncError> {
        let records = Arc::clone(&self.states.borrow());
        let gone = records.values().filter(|record| {
            record.state == TableState::Held
                && !self.tables.contains_key(&record.table)
                && !self.refused.contains(&record.table)
                && !faults.contains_key(&record.table)
        });
        for record in gone {
            // Every state accepts this event.
            let _ = self.requests.table(&record.table, TableEvent::LeftPublication).await?;
        }
        // The Agent DB's faults are looked at elsewhere.
        let known = self.ignored.len();
        self.ignored
            .retain(|table| self.tables.contains_key(table) || faults.contains_key(table));
        if self.ignored.len() != known {
            self.status.set_ignored(self.ignored.iter());
        }
        for (table, hold) in faults {
            let record = records.get(&table);
            if record
                .is_some_and(|record| record.state == TableState::Held && record.detail.as_ref() == Some(&hold.reason))
            {
                continue;
            }
            let policy = self.settings.on_unreplicable_table;
            if is_left_out(&table, &hold, policy, &self.selection, record) {
                if self.ignored.insert(table.clone()) {
                    info!(%table, reason = %hold, "a table is left out, since it can't be replicated");
                    self.status.set_ignored(self.ignored.iter());
                }
                continue;
            }
            // Every state accepts this event.
            let _ = self.requests.table(&table, TableEvent::Held(hold)).await?;
        }
        Ok(())
    }

    /// A table's marks have changed: reads it again if its rows may have changed with them.
    async fn marked(&mut self, now: SourceTable) -> Result<(), SyncError> {
        let (name, shape) = (now.table.clone(), now.shape());
        let known = self.tables.get(&name).map(SourceTable::shape);
        let reason = known.and_then(|known| {
            let outdated = known.outdated_by(&shape).map(|why| (TableEvent::ShapeOutdated, why));
            outdated.or_else(|| known.doubted_by(&shape).map(|why| (TableEvent::MayDiffer, why)))
        });
        if let Some((event, why)) = reason {
            info!(table = %name, why, "a table is read again: its rows may have changed without a word in the log");
            // From now on, transactions may run that were there before a table became new.
            self.fresh_slot.store(false, Ordering::Relaxed);
            // A state that does not accept the event is one in which nothing is known to be right yet.
            let _ = self.requests.table(&name, event).await?;
        }
        // After the event: if the run ends between the two, the next start finds the same difference again.
        self.requests.shape(&name, shape).await?;
        self.tables.insert(name, now);
        Ok(())
    }
}
