//! Where the stream stands, for those who only look: the monitor, `status`, health.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::agent_db::{Applied, Tally};
use crate::change::TableName;
use crate::lsn::Lsn;
use crate::metrics;
use crate::timestamp::PgTimestamp;

use super::batch::age;

/// Written by the pipeline, read by anyone. Each figure is right by itself; together they are a moment apart.
#[derive(Debug, Default)]
pub(super) struct View {
    received: AtomicU64,
    durable: AtomicU64,
    settled: AtomicU64,
    /// Microseconds of the oldest commit that is not durable yet; 0 (the year 2000) is none.
    oldest: AtomicI64,
    /// The source's clock less ours, in microseconds.
    clock_offset: AtomicI64,
    parked: Mutex<BTreeMap<TableName, u64>>,
    total: Mutex<Tally>,
}

impl View {
    pub(super) fn received(&self, position: Lsn) {
        self.received.fetch_max(position.0, Ordering::Relaxed);
    }

    pub(super) fn stand(&self, durable: Lsn, settled: Lsn, oldest: Option<PgTimestamp>) {
        self.durable.store(durable.0, Ordering::Relaxed);
        self.oldest.store(oldest.map_or(0, |commit| commit.0), Ordering::Relaxed);
        self.settled.store(settled.0, Ordering::Release);
    }

    pub(super) fn applied(&self, applied: &Applied) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        for (table, &rows) in &applied.parked_now {
            metrics::set_failed_rows(table, rows);
            parked.insert(table.clone(), rows);
        }
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        for (table, tally) in &applied.tables {
            metrics::count_tally(table, tally.as_results());
            metrics::count_retries("healed", tally.healed);
            total.add(tally);
        }
    }

    pub(super) fn parked(&self) -> BTreeMap<TableName, u64> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn total(&self) -> Tally {
        *self.total.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_clock_offset(&self, micros: i64) {
        self.clock_offset.store(micros, Ordering::Relaxed);
    }

    /// The source's clock, as well as we know it.
    pub(super) fn source_now(&self) -> PgTimestamp {
        PgTimestamp(PgTimestamp::now().0 + self.clock_offset.load(Ordering::Relaxed))
    }

    pub(super) fn received_lsn(&self) -> Lsn {
        Lsn(self.received.load(Ordering::Relaxed))
    }

    pub(super) fn durable_lsn(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Relaxed))
    }

    pub(super) fn settled_lsn(&self) -> Lsn {
        Lsn(self.settled.load(Ordering::Acquire))
    }

    /// The age of the oldest transaction that was received and is not durable.
    pub(super) fn oldest_unapplied(&self) -> Option<Duration> {
        match self.oldest.load(Ordering::Relaxed) {
            0 => None,
            commit => Some(age(PgTimestamp(commit), self.source_now())),
        }
    }
}
