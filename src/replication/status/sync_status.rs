//! The stream's positions, figures and facts, shared with the monitor, which reports them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::{info, warn};

use crate::agent_db::{Applied, TableRecord, TableRecords, TableState, Tally};
use strum::VariantArray;

use crate::change::{HoldCause, TableName};
use crate::lsn::Lsn;
use crate::metrics;
use crate::timestamp::PgTimestamp;

use super::delay::age;
use super::state::{Setback, SyncFacts, SyncState};

/// Held tables that are named with their reason in the state's reason, so that it stays readable.
const MOST_NAMED: usize = 5;

/// Tables that are left out and are named.
const MOST_IGNORED: usize = 100;

/// A run that streams for so long without being held again has shown that the cause of the last one is gone.
const PROVED_AFTER: Duration = Duration::from_secs(10);

/// Written by the stream and the runs, read by the monitor. Each figure is exact, but two figures may be of slightly
/// different moments.
#[derive(Debug, Default)]
pub(in crate::replication) struct SyncStatus {
    received: AtomicU64,
    durable: AtomicU64,
    settled: AtomicU64,
    /// Commit time of the oldest transaction that is not durable yet, in microseconds since 2000; 0 means none.
    oldest: AtomicI64,
    /// The Site DB's clock minus ours, in microseconds.
    clock_offset: AtomicI64,
    parked: Mutex<BTreeMap<TableName, u64>>,
    total: Mutex<Tally>,
    /// Selected tables that can't be replicated and are left out.
    ignored: Mutex<Vec<String>>,
    /// Held tables.
    held: AtomicU64,
    /// The facts from which the state is derived.
    facts: Mutex<SyncFacts>,
    /// What is waited for, by who waits.
    waits: Mutex<BTreeMap<String, String>>,
    /// Commits of changes in the Agent DB since the process started.
    commits: AtomicU64,
    /// The last run was held while it was streaming, and no commit has shown since that the cause is gone.
    is_doubtful: AtomicBool,
    /// When the present run began to stream.
    flows_since: Mutex<Option<Instant>>,
    /// Notified when the state changes.
    changed: Notify,
}

impl SyncStatus {
    pub(in crate::replication) fn received(&self, position: Lsn) {
        self.received.fetch_max(position.0, Ordering::Relaxed);
    }

    pub(in crate::replication) fn set_positions(&self, durable: Lsn, settled: Lsn, oldest: Option<PgTimestamp>) {
        self.durable.store(durable.0, Ordering::Relaxed);
        self.oldest
            .store(oldest.map_or(0, |commit| commit.0), Ordering::Relaxed);
        self.settled.store(settled.0, Ordering::Release);
    }

    /// The position that an earlier daemon has stored, until the stream has one of its own.
    pub(in crate::replication) fn resume_at(&self, settled: Lsn) {
        // Fails if the stream was faster.
        let _ = self
            .settled
            .compare_exchange(0, settled.0, Ordering::AcqRel, Ordering::Relaxed);
    }

    pub(in crate::replication) fn applied(&self, applied: &Applied) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        // Metrics are counted elsewhere, by operation (`agent_db::apply::ledger`).
        for (table, &rows) in &applied.parked_now {
            parked.insert(table.clone(), rows);
        }
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        for tally in applied.tables.values() {
            total.add(tally);
        }
    }

    /// Something is durable in the Agent DB. `changes`: it has changes, so the stream makes progress.
    pub(in crate::replication) fn committed(&self, changes: bool) {
        self.commits.fetch_add(u64::from(changes), Ordering::Relaxed);
    }

    /// The stream flows in truth: a transaction is through it, or there is none.
    pub(in crate::replication) fn proved(&self) {
        self.is_doubtful.store(false, Ordering::Relaxed);
    }

    /// Commits of changes so far.
    pub(in crate::replication) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Whether the last run was held while it was streaming, and nothing shows yet that the cause is gone.
    pub(in crate::replication) fn is_doubtful(&self) -> bool {
        self.is_doubtful.load(Ordering::Relaxed)
    }

    /// Sets what `who` waits for; `None` if it does not wait any more.
    pub(in crate::replication) fn set_wait(&self, who: &str, what: Option<String>) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match &what {
            Some(what) => waits.insert(who.to_owned(), what.clone()),
            None => waits.remove(who),
        };
        match (before, what) {
            (None, Some(what)) => warn!("{what}"),
            (Some(before), None) => info!("waits no longer: {before}"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// What is waited for; `None` if nothing is.
    pub(in crate::replication) fn waits(&self) -> Option<String> {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let waits: Vec<&str> = waits.values().map(String::as_str).collect();
        (!waits.is_empty()).then(|| waits.join("; "))
    }

    pub(in crate::replication) fn parked(&self) -> BTreeMap<TableName, u64> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(in crate::replication) fn total(&self) -> Tally {
        *self.total.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins. A setback that an operator has to repair stays visible until the stream flows again.
    pub(in crate::replication) fn run_began(&self) {
        *self.flows_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.update(|facts| {
            facts.flowing = false;
            facts.setback.take_if(|(setback, _)| *setback == Setback::Temporary);
        });
    }

    /// The run has ended, or its start failed. Returns whether the state or its reason differs from before.
    pub(in crate::replication) fn run_ended(&self, setback: Setback, reason: String) -> bool {
        let has_flowed = self
            .flows_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some();
        if has_flowed && setback == Setback::NeedsRepair {
            self.is_doubtful.store(true, Ordering::Relaxed);
        }
        self.update(|facts| {
            facts.flowing = false;
            facts.setback = Some((setback, reason));
        })
    }

    /// Sets the tables that are left out. There may be thousands (partitions): the first of them are shown.
    pub(in crate::replication) fn set_ignored<'t>(&self, tables: impl ExactSizeIterator<Item = &'t TableName>) {
        let more = tables.len().saturating_sub(MOST_IGNORED);
        let mut shown: Vec<String> = tables.take(MOST_IGNORED).map(ToString::to_string).collect();
        if more > 0 {
            shown.push(format!("and {more} more"));
        }
        *self.ignored.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    pub(in crate::replication) fn ignored(&self) -> Vec<String> {
        self.ignored.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(in crate::replication) fn held_tables(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// The stream flows, and its tables are in these states.
    pub(in crate::replication) fn stream_flows(&self, tables: &TableRecords) {
        for state in TableState::VARIANTS {
            let count = tables.values().filter(|record| record.state == *state).count() as u64;
            metrics::set_tables(state.as_str(), count);
            if *state == TableState::Held {
                self.held.store(count, Ordering::Relaxed);
            }
        }
        for cause in HoldCause::VARIANTS {
            let count = tables.values().filter(|record| record.cause == Some(*cause)).count() as u64;
            metrics::set_held_tables(cause.as_str(), count);
        }
        let since = {
            let mut since = self.flows_since.lock().unwrap_or_else(PoisonError::into_inner);
            *since.get_or_insert_with(Instant::now)
        };
        if self.is_doubtful() {
            if since.elapsed() < PROVED_AFTER {
                // What held the last run is probably met again: do not say that all is well in between.
                return;
            }
            self.proved();
        }
        self.update(|facts| {
            facts.flowing = true;
            facts.setback = None;
            facts.copying = tables.values().any(|table| table.state.is_first_copy());
            facts.held_tables = held_tables(tables);
        });
    }

    /// Sets why rows may be missing; `None` if they are not any more.
    pub(in crate::replication) fn set_gap(&self, reason: Option<String>) {
        self.update(|facts| facts.gap = reason);
    }

    /// Sets why rows may differ because of what the publication does not send; `None` if it sends everything.
    pub(in crate::replication) fn set_narrowed(&self, reason: Option<String>) {
        self.update(|facts| facts.narrowed = reason);
    }

    /// The daemon has ended.
    pub(in crate::replication) fn stopped(&self) {
        self.update(|facts| facts.stopped = true);
    }

    /// The state, and the reason for it if it needs one.
    pub(in crate::replication) fn state(&self) -> (SyncState, Option<String>) {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).state()
    }

    /// Whether another daemon writes the slot's report.
    pub(in crate::replication) fn is_another_active(&self) -> bool {
        self.facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_another_active()
    }

    /// Whether this daemon may decide about the slot: it has had a run, and no other daemon was found to be active.
    pub(in crate::replication) fn may_give_up_slot(&self) -> bool {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        (facts.flowing || facts.setback.is_some()) && !facts.is_another_active()
    }

    /// Waits until the state changes. A change that happened before the call is not lost.
    pub(in crate::replication) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Changes the facts. Returns whether the state or its reason changes with them.
    fn update(&self, change: impl FnOnce(&mut SyncFacts)) -> bool {
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

    /// Sets the number of parked rows of each table, at the start of a run.
    pub(in crate::replication) fn set_parked(&self, counts: Vec<(TableName, u64)>) {
        *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = counts.into_iter().collect();
    }

    pub(in crate::replication) fn set_clock_offset(&self, micros: i64) {
        self.clock_offset.store(micros, Ordering::Relaxed);
    }

    /// An estimate of the Site DB's clock now.
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

    /// The age of the oldest transaction that was received and is not durable yet.
    pub(in crate::replication) fn oldest_unapplied(&self) -> Option<Duration> {
        match self.oldest.load(Ordering::Relaxed) {
            0 => None,
            commit => Some(age(PgTimestamp(commit), self.source_now())),
        }
    }
}

/// Which tables, or copies of tables, are held, and why; and how many others there are. `None` if none is.
fn held_tables(tables: &TableRecords) -> Option<String> {
    let held: Vec<String> = tables.values().filter_map(held).collect();
    if held.is_empty() {
        return None;
    }
    let others = tables.len() - held.len();
    let mut text = held.iter().take(MOST_NAMED).cloned().collect::<Vec<_>>().join("; ");
    if held.len() > MOST_NAMED {
        text.push_str(&format!("; and {} more: see twinlog status", held.len() - MOST_NAMED));
    }
    // A statement to paste ends with its own semicolon.
    let joint = if text.ends_with(';') { "" } else { ";" };
    text.push_str(&format!("{joint} {others} other table(s) not held"));
    Some(text)
}

/// Why the table or its copy is held; `None` if it is not.
fn held(table: &TableRecord) -> Option<String> {
    let reason = || table.detail.clone().unwrap_or_else(|| "no reason is known".to_owned());
    match table.state {
        TableState::Held => Some(format!("table {} is held: {}", table.table, reason())),
        TableState::New | TableState::Copying | TableState::Resyncing if table.detail.is_some() => {
            Some(format!("the copy of table {} is held: {}", table.table, reason()))
        }
        TableState::New | TableState::Copying | TableState::Resyncing | TableState::Streaming => None,
    }
}
