//! Decides which tables are copied and when: new tables, copies that a restart interrupted, tables to be read again.
//!
//! One task decides, so that a table never has two copies at the same time; copies of different tables run in parallel,
//! up to a limit. The table's stored state (`tables`) says what is due, so a copy continues after a restart.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, info, warn};

use crate::agent_db::{AgentError, Control, PublishedChanges, TableRecord, TableRecords, TableSettings, TableState};
use crate::change::{Hold, HoldCause, Identity, TableName};
use crate::copy::{ChunkReader, ChunkRegistry, CopyError, CopyPlace, ForeignRows};
use crate::postgres::{self, Condition, SessionError, Side};
use crate::retry::{Disposition, backoff};
use crate::shutdown;
use crate::source::publication;
use crate::source::visibility::{OlderTransactions, Visibility};
use crate::source::{Selection, Source, SourceError, SourceTable};

use super::error::SyncError;
use super::resync::ResyncCommands;
use super::settings::PipelineSettings;
use super::status::sync_status::SyncStatus;
use super::stream::requests::StreamRequests;
use super::tables::life::TableEvent;

/// How often the tables' states are checked. Commands are noticed sooner, by `NOTIFY`.
const TICK: Duration = Duration::from_secs(1);

/// First and longest wait before a failed copy is tried again. The longest is short: an attempt costs only a connection
/// and a chunk, and an operator who has repaired the cause wants to see the copy continue.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// How long a copy waits for a lock of the Agent DB: then the table is held, and said to be locked.
const AGENT_LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a copy fails for temporary reasons until its table is shown with the reason: it may be one that lasts, such as
/// connections that are all taken.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// What all copies of one run share.
pub(super) struct Copies {
    pub(super) settings: Arc<PipelineSettings>,
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    /// The tables to which each table refers, where the Agent DB checks that their rows are there: they are copied first, as
    /// all rows of the others would be refused meanwhile.
    pub(super) parents: BTreeMap<TableName, BTreeSet<TableName>>,
    /// The tables' states, as they are committed.
    pub(super) states: watch::Receiver<Arc<TableRecords>>,
    pub(super) chunks: ChunkRegistry,
    pub(super) requests: StreamRequests,
    pub(super) status: Arc<SyncStatus>,
    /// The slot was created in this run. Creating a slot waits until all older transactions have ended, so new tables
    /// need not wait for them again. The catalog watch clears it when a table becomes new in mid-run.
    pub(super) fresh_slot: Arc<AtomicBool>,
    pub(super) visibility: Arc<Visibility>,
    /// Says which tables another pipeline writes as well.
    pub(super) shared: Arc<dyn TableSettings>,
    /// What new tables wait for.
    pub(super) older: OlderTransactions,
    /// The Site DB's version, as `server_version_num`.
    pub(super) version: i32,
}

/// What to do about a copy that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterFailure {
    /// The cause is temporary: try again.
    TryAgain,
    /// A person has to repair the cause: show the reason, and try again in case it is repaired.
    Hold,
    /// The resync can never succeed: its condition is invalid.
    GiveUp,
}

impl AfterFailure {
    /// A resync whose condition is invalid can never succeed: fail its command instead of trying again.
    const fn of(disposition: Disposition, has_condition: bool) -> Self {
        match (disposition, has_condition) {
            (Disposition::Transient, _) => Self::TryAgain,
            (Disposition::Systemic | Disposition::Row, true) => Self::GiveUp,
            (Disposition::Systemic | Disposition::Row, false) => Self::Hold,
        }
    }
}

/// The failures of a copy since its last progress.
#[derive(Debug, Default)]
struct Failures {
    attempt: u32,
    since: Option<Instant>,
    /// Rows read when it failed last.
    rows_copied: i64,
}

impl Failures {
    /// Counts one more. A copy that has gone on in between starts afresh.
    fn count(&mut self, record: &TableRecord) {
        if self.rows_copied != record.rows_copied {
            *self = Self::default();
        }
        self.rows_copied = record.rows_copied;
        self.since.get_or_insert_with(Instant::now);
        self.attempt += 1;
    }

    /// How long to wait before the next attempt. One attempt falls on [`TOLD_AFTER`], as it is after an attempt that the
    /// reason is told.
    fn pause(&self) -> Duration {
        let pause = backoff(self.attempt, RETRY.0, RETRY.1);
        let untold = self.since.map(|since| TOLD_AFTER.saturating_sub(since.elapsed()));
        untold
            .filter(|left| !left.is_zero())
            .map_or(pause, |left| left.min(pause))
    }

    fn last_long(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= TOLD_AFTER)
    }
}

impl Copies {
    /// Serves resync commands and copies tables until it is stopped.
    pub(super) async fn run(self, control: Control, stop: &CancellationToken) -> Result<(), SyncError> {
        let commands = ResyncCommands {
            tables: Arc::clone(&self.tables),
            requests: self.requests.clone(),
            status: Arc::clone(&self.status),
        };
        self.look_at_identities().await?;
        let copies = Arc::new(self);
        let permits = Arc::new(Semaphore::new(copies.settings.copies.workers));
        let mut running: HashSet<TableName> = HashSet::new();
        let mut tasks: JoinSet<TableName> = JoinSet::new();
        loop {
            // Do this before serving commands, which may wait for the end of a large transaction of the stream.
            copies.status.stream_flows(&copies.records());
            commands.serve(&control, &copies.records(), &running).await?;
            let records = copies.records();
            for record in records.values().filter(|record| record.state.is_unfinished()) {
                if !copies.tables.contains_key(&record.table) {
                    continue;
                }
                if copies.waits_for_parents(record, &records) {
                    continue;
                }
                if running.insert(record.table.clone()) {
                    let (copies, permits) = (Arc::clone(&copies), Arc::clone(&permits));
                    let (table, stop) = (record.table.clone(), stop.clone());
                    let copy = async move {
                        if let Ok(permit) = permits.acquire().await
                            && let Some(source) = copies.tables.get(&table)
                        {
                            Box::pin(copies.copy_with_retries(source, &permits, permit, &stop)).await;
                        }
                        table
                    };
                    // There may be thousands, so each takes little until it has its permit.
                    tasks.spawn(copy.instrument(Span::current()));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Ok(table) = ended {
                        running.remove(&table);
                    } else {
                        // The copy panicked: end the run. The next run continues the copy.
                        return Err(SyncError::CopyEnded);
                    }
                }
                () = control.notified() => if control.is_closed() {
                    return Err(AgentError::from(SessionError::Ended(Side::Agent)).into());
                },
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// Looks the tables up whose old rows no index identifies. A unique key of the Site DB that came or went is not in the
    /// log, and may have made one row of several: the table is then read again.
    async fn look_at_identities(&self) -> Result<(), SyncError> {
        let records = self.records();
        for table in self.tables.values() {
            let names_no_key = table.identity == Identity::Full || table.identity.is_none();
            let had_none = records
                .get(&table.table)
                .is_some_and(|record| record.published == PublishedChanges::Inserts);
            if names_no_key || had_none {
                match self.requests.resolve(table.description()).await {
                    Ok(_) => {}
                    Err(error) => {
                        let Some((_, hold)) = error.hold() else {
                            return Err(error);
                        };
                        // Every state accepts this event.
                        let _ = self.requests.table(&table.table, TableEvent::Held(hold)).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a table's first copy begins only after those of the tables to which it refers. What holds one of these up for
    /// long does not hold up the others.
    fn waits_for_parents(&self, record: &TableRecord, records: &TableRecords) -> bool {
        let comes_first = |parent: &TableName| {
            records
                .get(parent)
                .is_some_and(|parent| parent.state.is_first_copy() && parent.detail.is_none())
        };
        record.state == TableState::New
            && self
                .parents
                .get(&record.table)
                .is_some_and(|parents| parents.iter().any(comes_first))
    }

    /// The tables' committed states.
    fn records(&self) -> Arc<TableRecords> {
        Arc::clone(&self.states.borrow())
    }

    /// Copies one table; tries again until it is copied, given up or stopped.
    ///
    /// Each attempt needs a permit of its own, so that a table that can't be copied keeps no other one from it; one that waits
    /// for older transactions has none.
    async fn copy_with_retries<'p>(
        &self,
        source: &SourceTable,
        permits: &'p Semaphore,
        first: SemaphorePermit<'p>,
        stop: &CancellationToken,
    ) {
        let (mut failures, mut permit) = (Failures::default(), first);
        loop {
            let mut waited = Ok(());
            if self.must_wait(&source.table) {
                drop(permit);
                waited = self.wait_for_older(&source.table, stop).await;
                let Ok(again) = permits.acquire().await else { return };
                permit = again;
            }
            let records = self.records();
            let Some(record) = records.get(&source.table).filter(|record| record.state.is_unfinished()) else {
                return;
            };
            let copied = match waited {
                Ok(()) => Box::pin(self.copy(source, stop)).await,
                Err(error) => Err(error),
            };
            let error = match copied {
                // A table that is held is copied when it is released.
                Ok(()) | Err(SyncError::Copy(CopyError::StreamEnded | CopyError::TableHeld(_))) => return,
                Err(error) => error,
            };
            drop(permit);
            if stop.is_cancelled() {
                return;
            }
            failures.count(record);
            if Box::pin(self.failed(record, &error, &failures)).await.is_err() {
                // The stream has ended; its own error is the one to report.
                return;
            }
            if !shutdown::sleep(failures.pause(), stop).await {
                return;
            }
            match permits.acquire().await {
                Ok(next) => permit = next,
                Err(_) => return,
            }
        }
    }

    /// What the Site DB's catalog says is wrong with a table that may not be read, with the statement to paste.
    async fn site_fault(&self, table: &TableName, error: &SyncError) -> Option<String> {
        let SyncError::Copy(CopyError::Source(error)) = error else {
            return None;
        };
        if !error.is_of_rights() {
            return None;
        }
        let selection = Selection::new(&self.settings.tables).ok()?;
        let source = Source::connect(&self.settings.site, "twinlog copy").await.ok()?;
        let publication = &self.settings.publication;
        let faults = publication::faults(source.client(), publication, self.version, &selection).await;
        faults.ok()?.remove(table).map(|hold| hold.reason)
    }

    /// Logs a failed attempt, and stores its reason with the table's state (the next finished chunk removes it).
    async fn failed(&self, record: &TableRecord, error: &SyncError, failures: &Failures) -> Result<(), SyncError> {
        let (table, reason, attempt) = (&record.table, error.explain(), failures.attempt);
        if let Some(hold) = locked_in_agent(error) {
            warn!(%table, attempt, %reason, "a table is held: its changes are passed over until the reason is gone, then it is read again");
            // Every state accepts this event.
            let _ = self.requests.table(table, TableEvent::Held(hold)).await?;
            return Ok(());
        }
        let event = match AfterFailure::of(error.disposition(), record.condition.is_some()) {
            AfterFailure::TryAgain => {
                info!(%table, attempt, %reason, "the copy of a table was interrupted: trying again");
                let reason = failures.last_long().then_some(reason);
                TableEvent::CopyWaits { reason }
            }
            AfterFailure::Hold => {
                let reason = self.site_fault(table, error).await.unwrap_or(reason);
                warn!(%table, attempt, %reason, "the copy of a table is held: repair what the reason names, it continues by itself");
                TableEvent::CopyWaits { reason: Some(reason) }
            }
            AfterFailure::GiveUp => {
                warn!(%table, %reason, "a resync with a condition failed and is not tried again");
                if let Some(command) = record.command_id {
                    let (agent, slot) = (&self.settings.agent, &self.settings.slot);
                    let control = Control::connect(agent, slot, "twinlog copy").await?;
                    control.finish_command(command, Err(&reason)).await?;
                }
                TableEvent::CopyGivenUp
            }
        };
        // If the state has changed meanwhile and does not accept the event, the loop sees the new state.
        let _ = self.requests.table(table, event).await?;
        Ok(())
    }

    /// A new table waits until the transactions have ended that may have changed it before it was published.
    fn must_wait(&self, table: &TableName) -> bool {
        let is_new = (self.records().get(table)).is_some_and(|record| record.state == TableState::New);
        is_new && !self.fresh_slot.load(Ordering::Relaxed)
    }

    async fn wait_for_older(&self, table: &TableName, stop: &CancellationToken) -> Result<(), SyncError> {
        let who = format!("the copy of {table}");
        let on_wait = &|wait| self.status.set_wait(&who, wait);
        let why = "the copy of a new table waits until older transactions of the Site DB have ended";
        let connect = Source::connect(&self.settings.site, "twinlog copy");
        Ok(self.older.wait(connect, stop, why, on_wait).await?)
    }

    async fn copy(&self, table: &SourceTable, stop: &CancellationToken) -> Result<(), SyncError> {
        let source = Source::connect(&self.settings.site, "twinlog copy").await?;
        let agent = postgres::connect(Side::Agent, &self.settings.agent, "twinlog copy")
            .await
            .map_err(AgentError::from)?;
        let wait = format!("SET lock_timeout = {}", AGENT_LOCK_TIMEOUT.as_millis());
        agent
            .batch_execute(&wait)
            .await
            .map_err(|source| AgentError::from(SessionError::new(Side::Agent, "set lock_timeout", source)))?;
        let who = format!("the copy of {}", table.table);
        let on_wait = &|wait| self.status.set_wait(&who, wait);
        self.visibility.wait(source.client(), stop, on_wait).await?;
        let relation = self.requests.resolve(table.description()).await?;
        let Some((place, condition)) = self.started(table).await? else {
            return Ok(());
        };
        info!(table = %table.table, phase = place.phase.as_str(), "copying a table");
        let reader = ChunkReader {
            chunks: &self.chunks,
            source: &source,
            table,
            relation: &relation,
            foreign_rows: if self.shared.is_shared(&table.table) {
                ForeignRows::Keep
            } else {
                ForeignRows::Delete
            },
        };
        let condition = condition
            .map(|condition| condition.parse::<Condition>())
            .transpose()
            .map_err(SourceError::from)
            .map_err(CopyError::from)?;
        Box::pin(reader.copy(place, condition.as_ref(), &agent, self.settings.copies.chunk_rows)).await?;
        let rows = self.records().get(&table.table).map(|record| record.rows_copied);
        info!(table = %table.table, rows, "table copied");
        Ok(())
    }

    /// Starts a copy or continues it. Returns its place and its condition; `None` if no copy is due any more.
    async fn started(&self, table: &SourceTable) -> Result<Option<(CopyPlace, Option<String>)>, SyncError> {
        let event = TableEvent::CopyStarted {
            at: OffsetDateTime::now_utc(),
            estimated: Some(table.estimated_rows).filter(|&rows| rows >= 0),
        };
        if self.requests.table(&table.table, event).await?.is_err() {
            return Ok(None);
        }
        Ok(self.records().get(&table.table).and_then(|record| {
            let place = CopyPlace {
                phase: record.phase?,
                last_key: record.last_key.clone(),
            };
            Some((place, record.condition.clone()))
        }))
    }
}

/// Why a table is held, if somebody has locked it in the Agent DB: it could be neither read nor written there.
fn locked_in_agent(error: &SyncError) -> Option<Hold> {
    let SyncError::Copy(CopyError::Agent(error)) = error else {
        return None;
    };
    error.table_fault()?;
    Some(error.hold()).filter(|hold| hold.cause == HoldCause::Locked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_condition_that_cannot_be_read_is_given_up() {
        for (disposition, has_condition, expected) in [
            (Disposition::Transient, true, AfterFailure::TryAgain),
            (Disposition::Transient, false, AfterFailure::TryAgain),
            (Disposition::Systemic, false, AfterFailure::Hold),
            (Disposition::Systemic, true, AfterFailure::GiveUp),
            (Disposition::Row, true, AfterFailure::GiveUp),
        ] {
            assert_eq!(AfterFailure::of(disposition, has_condition), expected);
        }
    }

    #[test]
    fn an_attempt_falls_on_the_time_at_which_the_reason_of_a_failing_copy_is_told() {
        let failing = |attempt, millis| Failures {
            attempt,
            since: Instant::now().checked_sub(Duration::from_millis(millis)),
            rows_copied: 0,
        };
        for attempt in 3..50 {
            let left = failing(attempt, 4_500).pause();
            assert!(left <= Duration::from_millis(500), "{left:?}");
            let told = failing(attempt, 6_000);
            assert!(told.last_long() && told.pause() >= Duration::from_secs(2), "{told:?}");
        }
        let first = failing(1, 0).pause();
        assert!(first >= RETRY.0 / 2 && first <= RETRY.0, "{first:?}");
    }
}
