//! Where the stream stands, for those who only look: the monitor, `status`, health.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::agent_db::{Applied, Tally};
use crate::change::TableName;
use crate::lsn::Lsn;
use crate::metrics;
use crate::timestamp::PgTimestamp;

use super::state::SyncState;
use crate::replication::stream::buffer::age;

/// Written by the pipeline, read by anyone. Each figure is right by itself; together they are a moment apart.
#[derive(Debug)]
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
    state: Mutex<(SyncState, Option<String>)>,
    /// Told when the state changes.
    changed: Notify,
    /// Why rows may be missing, while that is so.
    gap: Mutex<Option<String>>,
}

impl Default for SyncStatus {
    fn default() -> Self {
        Self {
            received: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            oldest: AtomicI64::new(0),
            clock_offset: AtomicI64::new(0),
            parked: Mutex::default(),
            total: Mutex::default(),
            state: Mutex::new((SyncState::Connecting, None)),
            changed: Notify::new(),
            gap: Mutex::new(None),
        }
    }
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
        // The sink has told the metrics, by operation (`agent_db::apply::ledger`).
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

    /// Sets the state, and why where that needs a word. Returns whether it is another than before.
    pub(in crate::replication) fn set_state(&self, state: SyncState, detail: Option<String>) -> bool {
        let mut current = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = current.0 != state || current.1 != detail;
        *current = (state, detail);
        metrics::set_sync_state(state.as_str(), &SyncState::ALL);
        if changed {
            self.changed.notify_one();
        }
        changed
    }

    /// Waits until the state changes, for the one who tells others. A change while nobody waits is not lost.
    pub(in crate::replication) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(in crate::replication) fn state(&self) -> (SyncState, Option<String>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rows may be missing, and why; or not any more.
    pub(in crate::replication) fn set_gap(&self, reason: Option<String>) {
        *self.gap.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    pub(in crate::replication) fn gap(&self) -> Option<String> {
        self.gap.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A run begins. What needs a person goes on being said until the stream flows.
    pub(in crate::replication) fn set_connecting(&self) {
        if !matches!(self.state().0, SyncState::Held | SyncState::Gap | SyncState::Standby) {
            self.set_state(SyncState::Connecting, None);
        }
    }

    /// The stream flows; a first copy runs beside it, or none, or one waits for a person. A gap stays one until it is
    /// closed.
    pub(in crate::replication) fn set_flowing(&self, copying: bool, held: Option<String>) {
        match (self.gap(), held) {
            (Some(reason), _) => self.set_state(SyncState::Gap, Some(reason)),
            (None, Some(reason)) => self.set_state(SyncState::Held, Some(reason)),
            (None, None) if copying => self.set_state(SyncState::Copying, None),
            (None, None) => self.set_state(SyncState::Streaming, None),
        };
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
