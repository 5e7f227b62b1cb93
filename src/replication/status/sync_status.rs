//! Where the stream stands, for those who only look: the monitor, `status`, health.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::agent_db::{Applied, TableRecord, TableRecords, TableState, Tally};
use crate::change::TableName;
use crate::lsn::Lsn;
use crate::metrics;
use crate::timestamp::PgTimestamp;

use super::delay::age;
use super::state::{Setback, SyncFacts, SyncState};

/// Written by the stream and the runs, read by anyone. Each figure is right by itself; together they are a moment apart.
#[derive(Debug, Default)]
pub(in crate::replication) struct SyncStatus {
    received: AtomicU64,
    durable: AtomicU64,
    settled: AtomicU64,
    /// Microseconds of the oldest commit that is not durable yet; 0 (the year 2000) is none.
    oldest: AtomicI64,
    /// The source's clock less ours, in microseconds.
    clock_offset: AtomicI64,
    parked: Mutex<BTreeMap<TableName, u64>>,
    total: Mutex<Tally>,
    /// What the state follows from.
    facts: Mutex<SyncFacts>,
    /// Told when the state changes.
    changed: Notify,
}

impl SyncStatus {
    pub(in crate::replication) fn received(&self, position: Lsn) {
        self.received.fetch_max(position.0, Ordering::Relaxed);
    }

    pub(in crate::replication) fn stand(&self, durable: Lsn, settled: Lsn, oldest: Option<PgTimestamp>) {
        self.durable.store(durable.0, Ordering::Relaxed);
        self.oldest
            .store(oldest.map_or(0, |commit| commit.0), Ordering::Relaxed);
        self.settled.store(settled.0, Ordering::Release);
    }

    pub(in crate::replication) fn applied(&self, applied: &Applied) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        // The metrics know already, by operation (`agent_db::apply::ledger`).
        for (table, &rows) in &applied.parked_now {
            parked.insert(table.clone(), rows);
        }
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        for tally in applied.tables.values() {
            total.add(tally);
        }
    }

    pub(in crate::replication) fn parked(&self) -> BTreeMap<TableName, u64> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(in crate::replication) fn total(&self) -> Tally {
        *self.total.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins. What needs a person goes on being said until the stream flows again.
    pub(in crate::replication) fn run_began(&self) {
        self.learn(|facts| {
            facts.flowing = false;
            facts.setback.take_if(|(setback, _)| *setback == Setback::Interrupted);
        });
    }

    /// The run has ended, or could not begin. Returns whether that is another state or reason than before.
    pub(in crate::replication) fn run_ended(&self, setback: Setback, reason: String) -> bool {
        self.learn(|facts| {
            facts.flowing = false;
            facts.setback = Some((setback, reason));
        })
    }

    /// The stream flows, and its tables are in these states.
    pub(in crate::replication) fn flows(&self, tables: &TableRecords) {
        self.learn(|facts| {
            facts.flowing = true;
            facts.setback = None;
            facts.copying = tables.values().any(|table| table.state.is_first_copy());
            facts.held_table = tables.values().find_map(held);
        });
    }

    /// Rows may be missing, and why; or not any more.
    pub(in crate::replication) fn set_gap(&self, reason: Option<String>) {
        self.learn(|facts| facts.gap = reason);
    }

    /// The daemon has ended.
    pub(in crate::replication) fn stopped(&self) {
        self.learn(|facts| facts.stopped = true);
    }

    /// The state, and why where that needs a reason.
    pub(in crate::replication) fn state(&self) -> (SyncState, Option<String>) {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).state()
    }

    /// Waits until the state changes. A change while nobody waits is not lost.
    pub(in crate::replication) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes facts up. Returns whether the state, or its reason, is another one by them.
    fn learn(&self, change: impl FnOnce(&mut SyncFacts)) -> bool {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let before = facts.state();
        change(&mut facts);
        let now = facts.state();
        metrics::set_sync_state(now.0.as_str(), SyncState::ALL);
        let changed = now != before;
        if changed {
            self.changed.notify_one();
        }
        changed
    }

    /// Rows that are parked, as they are known at the start of a run.
    pub(in crate::replication) fn set_parked(&self, counts: Vec<(TableName, u64)>) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        for (table, rows) in counts {
            parked.insert(table, rows);
        }
    }

    pub(in crate::replication) fn set_clock_offset(&self, micros: i64) {
        self.clock_offset.store(micros, Ordering::Relaxed);
    }

    /// The source's clock, as well as we know it.
    pub(in crate::replication) fn source_now(&self) -> PgTimestamp {
        PgTimestamp(PgTimestamp::now().0 + self.clock_offset.load(Ordering::Relaxed))
    }

    pub(in crate::replication) fn received_lsn(&self) -> Lsn {
        Lsn(self.received.load(Ordering::Relaxed))
    }

    pub(in crate::replication) fn durable_lsn(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Relaxed))
    }

    pub(in crate::replication) fn settled_lsn(&self) -> Lsn {
        Lsn(self.settled.load(Ordering::Acquire))
    }

    /// The age of the oldest transaction that was received and is not durable.
    pub(in crate::replication) fn oldest_unapplied(&self) -> Option<Duration> {
        match self.oldest.load(Ordering::Relaxed) {
            0 => None,
            commit => Some(age(PgTimestamp(commit), self.source_now())),
        }
    }
}

/// Why a table is held, or the copy of one waits for a person.
fn held(table: &TableRecord) -> Option<String> {
    let reason = table.detail.as_ref()?;
    match table.state {
        TableState::Held => Some(format!("table {} is held: {reason}", table.table)),
        TableState::New | TableState::Copying | TableState::Resyncing => {
            Some(format!("the copy of table {} is held: {reason}", table.table))
        }
        TableState::Streaming => None,
    }
}
