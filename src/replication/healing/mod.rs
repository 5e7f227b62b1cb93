//! Tries parked rows again when they are due, together with the parked rows that may wait for them.
//!
//! | file | its job |
//! |---|---|
//! | `knots` | which tables are tried together |
//! | `portions` | how many rows are tried together |
//! | `rehearsal` | what a retry would come to |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::agent_db::{AgentError, Control, FailedKey};
use crate::change::{Row, TableName};
use crate::copy::{ChunkReader, ChunkRegistry, CopyError, ForeignRows, ParkedReader};
use crate::postgres::{SessionError, Side};
use crate::retry::Disposition;
use crate::shutdown;
use crate::source::{KeysOfTable, Source, SourceTable, Visibility};

use super::error::SyncError;
use super::settings::PipelineSettings;
use super::status::sync_status::SyncStatus;
use super::stream::requests::StreamRequests;
use super::tables::life::TableEvent;

mod knots;
mod portions;
mod rehearsal;

use knots::knots;
use portions::Portions;

pub use rehearsal::{RehearsedRow, rehearse};

/// Due keys that are tried at once.
const KEYS: u32 = 500;

/// Longest wait between two checks for due rows. `twinlog failed retry` wakes the task sooner, by `NOTIFY`.
const IDLE: Duration = Duration::from_secs(1);

/// Shortest wait between two checks: a key of a table that is not synchronised any more stays due for ever, and would
/// otherwise keep the loop busy.
const PAUSE: Duration = Duration::from_millis(50);

/// Longest pause after an attempt that took long itself.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The same knot is spoken of again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Tables of a knot that are named.
const MOST_NAMED: usize = 5;

/// The same after an attempt in which rows were healed.
const LONGEST_PAUSE_OF_HEALED: Duration = Duration::from_millis(500);

/// How long healing waits after the Site DB refused a read.
const REFUSED_RETRY: Duration = Duration::from_secs(5);

/// What healing needs from the run.
pub(super) struct Healing {
    pub(super) settings: Arc<PipelineSettings>,
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    pub(super) chunks: ChunkRegistry,
    pub(super) requests: StreamRequests,
    pub(super) status: Arc<SyncStatus>,
    pub(super) visibility: Arc<Visibility>,
}

impl Healing {
    /// Tries due rows again until it is stopped.
    pub(super) async fn run(self, control: Control, stop: &CancellationToken) -> Result<(), SyncError> {
        let mut state = State::default();
        let mut pause = PAUSE;
        loop {
            let wait = control
                .next_failed_row_due()
                .await?
                .map_or(IDLE, |due| due.clamp(pause, IDLE.max(pause)));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = control.notified() => if control.is_closed() {
                    return Err(AgentError::from(SessionError::Ended(Side::Agent)).into());
                },
                () = tokio::time::sleep(wait) => {}
            }
            let (began, parked) = (Instant::now(), self.parked());
            let readable = self.heal_due(&control, &mut state, stop).await?;
            // Many rows that stay refused must not take up the apply task, which writes the stream's changes too. Where rows
            // heal, others may have waited for them.
            pause = if self.parked() < parked {
                (began.elapsed() / 2).clamp(PAUSE, LONGEST_PAUSE_OF_HEALED)
            } else {
                (began.elapsed() * 2).clamp(PAUSE, LONGEST_PAUSE)
            };
            if !readable && !shutdown::sleep(REFUSED_RETRY, stop).await {
                return Ok(());
            }
        }
    }

    /// Rows that are parked now, over all tables.
    fn parked(&self) -> u64 {
        self.status.parked().values().sum()
    }

    /// Tries the keys that are due, together with those that may wait for them. Returns false if the Site DB refused a read.
    async fn heal_due(
        &self,
        control: &Control,
        state: &mut State,
        stop: &CancellationToken,
    ) -> Result<bool, SyncError> {
        let mut due: BTreeMap<TableName, Vec<FailedKey>> = BTreeMap::new();
        for failed in control.due_failed_rows(KEYS).await? {
            due.entry(failed.table.clone()).or_default().push(failed);
        }
        if due.is_empty() {
            return Ok(true);
        }
        let links = control.linked_failed_tables().await?;
        let mut readable = true;
        for knot in knots(&due.keys().cloned().collect(), &links) {
            let keys = self.keys_of(control, &knot, &mut due, state).await?;
            let (tables, rows) = (keys.len(), keys.values().map(Vec::len).sum::<usize>());
            match Box::pin(self.heal_or_skip(state, keys, stop)).await {
                // Stopping: the stream's loop drains, and only its result counts.
                Err(_) if stop.is_cancelled() => return Ok(true),
                Ok(was_read) => {
                    debug!(tables, rows, "parked rows tried again");
                    readable &= was_read;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(readable)
    }

    /// The keys of a knot: those that are due, and others that may wait for them, as many as are tried at once.
    async fn keys_of(
        &self,
        control: &Control,
        knot: &BTreeSet<TableName>,
        due: &mut BTreeMap<TableName, Vec<FailedKey>>,
        state: &mut State,
    ) -> Result<BTreeMap<TableName, Vec<FailedKey>>, SyncError> {
        let mut keys: BTreeMap<TableName, Vec<FailedKey>> = BTreeMap::new();
        for table in knot {
            if let Some(of_table) = due.remove(table) {
                keys.insert(table.clone(), of_table);
            }
        }
        let tables: Vec<TableName> = knot.iter().cloned().collect();
        let parked: u64 = control
            .failed_counts()
            .await?
            .iter()
            .filter(|(table, _)| knot.contains(table))
            .map(|(_, rows)| rows)
            .sum();
        let portion = state.portions.next(&tables, parked);
        let waiting = control.waiting_failed_rows(&tables, portion).await?;
        if waiting.len() >= portion as usize {
            state.too_many(&tables, parked, portion);
        }
        for failed in waiting {
            keys.entry(failed.table.clone()).or_default().push(failed);
        }
        Ok(keys)
    }

    /// Heals keys together; where a table can't be read, each table's alone, so that the others do not wait for it. Returns
    /// false if the Site DB refused a read.
    async fn heal_or_skip(
        &self,
        state: &mut State,
        keys: BTreeMap<TableName, Vec<FailedKey>>,
        stop: &CancellationToken,
    ) -> Result<bool, SyncError> {
        match Box::pin(self.heal(&mut state.source, &keys, stop)).await {
            // A table that is held heals when it is released.
            Ok(()) | Err(SyncError::Copy(CopyError::TableHeld(_))) => return Ok(true),
            Err(SyncError::Copy(error)) if error.disposition() != Disposition::Transient => {
                state.source = None;
                if keys.len() <= 1 {
                    let table = keys.keys().next().cloned();
                    state.refused(table, SyncError::Copy(error).explain());
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
        for (table, keys) in keys {
            let alone = BTreeMap::from([(table.clone(), keys)]);
            match Box::pin(self.heal(&mut state.source, &alone, stop)).await {
                Ok(()) | Err(SyncError::Copy(CopyError::TableHeld(_))) => {}
                // The stream does not depend on this read: keep it running, and leave the rows parked.
                Err(SyncError::Copy(error)) if error.disposition() != Disposition::Transient => {
                    state.source = None;
                    state.refused(Some(table), SyncError::Copy(error).explain());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    async fn heal(
        &self,
        source: &mut Option<Source>,
        keys: &BTreeMap<TableName, Vec<FailedKey>>,
        stop: &CancellationToken,
    ) -> Result<(), SyncError> {
        let source = match source {
            Some(source) => source,
            none => none.insert(
                Source::connect(&self.settings.site, "twinlog heal")
                    .await
                    .map_err(CopyError::from)?,
            ),
        };
        let on_wait = &|wait| self.status.set_wait("healing", wait);
        self.visibility.wait(source.client(), stop, on_wait).await?;
        let (mut tables, mut counted) = (Vec::new(), Vec::new());
        for (name, failed) in keys {
            // A table that is not synchronised any more.
            let Some(table) = self.tables.get(name) else { continue };
            let relation = match self.requests.resolve(table.description()).await {
                Ok(relation) => relation,
                Err(error) => {
                    let Some((_, hold)) = error.hold() else {
                        return Err(error);
                    };
                    // Every state accepts this event.
                    let _ = self.requests.table(name, TableEvent::Held(hold)).await?;
                    continue;
                }
            };
            let key = relation.key_text();
            if failed
                .iter()
                .any(|failed| failed.row_key.as_ref().is_some_and(|known| *known != key))
            {
                warn!(table = %name, "rows were parked under another key than the table has now: the table is read again");
                // Where the table's state does not accept the event, it is not synchronised any more.
                let _ = self.requests.table(name, TableEvent::KeyOutdated).await?;
                continue;
            }
            if relation.counts_rows() {
                let rows: Vec<Row> = failed.iter().filter_map(|failed| failed.row.clone()).collect();
                counted.push((table, relation, rows));
                continue;
            }
            let keys = failed.iter().filter(|failed| failed.row.is_none());
            tables.push(KeysOfTable {
                relation,
                table: table.clone(),
                keys: keys.map(|failed| failed.key.clone()).collect(),
            });
        }
        if !tables.is_empty() {
            let reader = ParkedReader {
                chunks: &self.chunks,
                source,
            };
            Box::pin(reader.heal(&tables)).await?;
        }
        // Nothing can refer to a row without a key, but it may refer to others.
        for (table, relation, rows) in &counted {
            let reader = ChunkReader {
                // Healing asks for keys, and looks for no others.
                foreign_rows: ForeignRows::Keep,
                chunks: &self.chunks,
                source,
                table,
                relation,
            };
            Box::pin(reader.heal_counted(rows)).await?;
        }
        Ok(())
    }
}

/// What healing remembers between two attempts.
#[derive(Default)]
struct State {
    source: Option<Source>,
    /// The refusal that was logged last, so that the same one is logged only once.
    held: Option<(Option<TableName>, String)>,
    portions: Portions,
    /// Knots of which more rows wait than are tried at once, by their first table: when that was said last.
    told: BTreeMap<TableName, Instant>,
}

impl State {
    /// More rows wait for each other than are tried at once: says so, now and then.
    fn too_many(&mut self, tables: &[TableName], parked: u64, portion: u32) {
        let Some(first) = tables.first() else { return };
        if self.told.get(first).is_some_and(|told| told.elapsed() < TELL_AGAIN) {
            return;
        }
        self.told.insert(first.clone(), Instant::now());
        let names: Vec<String> = tables.iter().take(MOST_NAMED).map(ToString::to_string).collect();
        warn!(
            tables = names.join(", "),
            parked,
            portion,
            "more parked rows may wait for each other than are tried at once: those that wait for none of the others heal first; why: twinlog failed list"
        );
    }

    fn refused(&mut self, table: Option<TableName>, reason: String) {
        let seen = Some((table, reason));
        if self.held == seen {
            return;
        }
        if let Some((table, reason)) = &seen {
            let table = table.as_ref().map(ToString::to_string).unwrap_or_default();
            warn!(table, %reason, "parked rows can't be read from the Site DB: they stay parked, and are tried again");
        }
        self.held = seen;
    }
}
