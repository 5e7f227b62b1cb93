//! Serves the commands that `twinlog verify` writes into `twinlog.commands`: one at a time, table by table, page by page.
//!
//! A page's result is stored in the command's row, with the place of the next page, before the next page is read: a command
//! goes on there after a restart, if the table is the same in both databases. Whoever ends its row (Ctrl-C) has it given up
//! within a second. With `repair`, differences are
//! stored before they are repaired, so the report has them also where the daemon dies in between; the page is then verified
//! once more, and what is left of them repaired. Only what is equal once it is compared again counts as repaired.
//!
//! By `sync.verify_every` the daemon asks itself, slowly; what people ask for comes first. What was found last of each table is
//! in `twinlog.proofs`, and in metrics.
//!
//! | file | its job |
//! |---|---|
//! | `served` | a command that is served: its progress, whether it is still wanted |
//! | `pages` | one attempt to verify a table, page by page |
//!
//! Not here: how rows are compared (`copy::verify`).

mod pages;
mod served;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent_db::{
    AgentError, CommandKind, Control, TableRecord, TableRecords, TableSettings, TableState, VerifiedTable, VerifyState,
};
use crate::change::TableName;
use crate::copy::{ChunkRegistry, CopyError};
use crate::postgres::{SessionError, Side};
use crate::retry::{Disposition, backoff};
use crate::shutdown;
use crate::source::{SourceError, SourceTable, Visibility};

use served::{Goes, Served};

use super::error::SyncError;
use super::resync::named;
use super::schedule::{is_of_person, is_of_schedule, is_scheduled, show};
use super::settings::PipelineSettings;
use super::status::sync_status::SyncStatus;
use super::stream::requests::StreamRequests;

/// How often commands are looked for. They are noticed sooner, by `NOTIFY`.
const TICK: Duration = Duration::from_secs(1);

/// First and longest wait before a page that could not be verified is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long a table may fail for temporary reasons, such as a lock, until it counts as one that can't be verified.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// What verifying needs from the run.
pub(super) struct Verification {
    pub(super) settings: Arc<PipelineSettings>,
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    /// The tables' states, as they are committed.
    pub(super) states: watch::Receiver<Arc<TableRecords>>,
    pub(super) chunks: ChunkRegistry,
    pub(super) requests: StreamRequests,
    pub(super) status: Arc<SyncStatus>,
    pub(super) visibility: Arc<Visibility>,
    /// Says which tables another pipeline writes as well.
    pub(super) shared: Arc<dyn TableSettings>,
}

/// A table may be verified, can't be, or not yet.
enum Readiness {
    Ready,
    NotYet,
    Held(String),
}

impl Verification {
    /// Serves commands until it is stopped.
    pub(super) async fn run(self, control: Control, stop: &CancellationToken) -> Result<(), SyncError> {
        let mut looked: Option<Instant> = None;
        loop {
            let mut commands = control.open_commands().await?;
            commands.sort_by_key(|command| !is_of_person(command));
            let schedule = self.settings.verification;
            if looked.is_none_or(|looked| looked.elapsed() >= schedule.look_every()) {
                looked = Some(Instant::now());
                show(&control, &self.records()).await?;
                if !commands.iter().any(is_of_schedule) && schedule.ask(&control, &self.records()).await? {
                    continue;
                }
            }
            for command in commands {
                if let Ok(CommandKind::Verify(verify)) = command.kind {
                    let served = Served {
                        control: &control,
                        id: command.id,
                        verify,
                        stored: Instant::now(),
                    };
                    Box::pin(self.serve(served, stop)).await?;
                }
                if stop.is_cancelled() {
                    return Ok(());
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = control.notified() => if control.is_closed() {
                    return Err(AgentError::from(SessionError::Ended(Side::Agent)).into());
                },
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// The tables' committed states.
    fn records(&self) -> Arc<TableRecords> {
        Arc::clone(&self.states.borrow())
    }

    async fn serve(&self, mut command: Served<'_>, stop: &CancellationToken) -> Result<(), SyncError> {
        let arguments = &command.verify.arguments;
        let wanted = match named(&self.tables, arguments.all, &arguments.tables) {
            Ok(mut wanted) => {
                // Those as well that are selected and can't be read, such as one that is not in the publication.
                wanted.extend(self.records().keys().filter(|_| arguments.all).cloned());
                wanted
            }
            Err(error) => return Ok(command.control.finish_command(command.id, Err(&error)).await?),
        };
        if command.verify.progress.tables.is_empty() {
            let scheduled = is_scheduled(&command.verify);
            let mut tables = Vec::new();
            for table in BTreeSet::from_iter(wanted) {
                if scheduled && self.counts_rows(&table).await? {
                    continue;
                }
                tables.push(VerifiedTable::new(&table));
            }
            command.verify.progress.tables = tables;
            if command.store().await? == Goes::NoFurther {
                return Ok(());
            }
        }
        for at in 0..command.verify.progress.tables.len() {
            if Box::pin(self.verify_table(&mut command, at, stop)).await? == Goes::NoFurther {
                return Ok(());
            }
        }
        command.control.finish_command(command.id, Ok(())).await?;
        if is_scheduled(&command.verify) {
            command.control.forget_scheduled().await?;
        }
        let (equal, id) = (command.verify.progress.is_equal(), command.id);
        info!(command = id, equal, "verify done");
        Ok(())
    }

    /// Whether a table has no key. Each page of such a one reads the whole table in the stream.
    async fn counts_rows(&self, table: &TableName) -> Result<bool, SyncError> {
        let Some(table) = self.tables.get(table) else {
            return Ok(false);
        };
        if !matches!(self.readiness(&table.table), Readiness::Ready) {
            return Ok(false);
        }
        Ok(self
            .requests
            .resolve(table.description())
            .await
            .is_ok_and(|relation| relation.counts_rows()))
    }

    /// Why a table can't be verified that the stream does not have.
    fn why_unread(&self, name: &str) -> String {
        let records = self.records();
        let record = records.iter().find(|(table, _)| table.to_string() == name);
        match record.map(|(table, _)| self.readiness(table)) {
            Some(Readiness::Held(reason)) => reason,
            _ => "it is not synchronised: see twinlog status".to_owned(),
        }
    }

    /// Verifies a table to its end, unless that was done before.
    async fn verify_table(
        &self,
        command: &mut Served<'_>,
        at: usize,
        stop: &CancellationToken,
    ) -> Result<Goes, SyncError> {
        let Some(shown) = command.table(at).filter(|table| table.state != VerifyState::Done) else {
            return Ok(Goes::On);
        };
        if shown.state == VerifyState::Waiting {
            shown.begin(OffsetDateTime::now_utc());
        }
        shown.state = VerifyState::Verifying;
        let name = shown.table.clone();
        let source = self.tables.values().find(|table| table.table.to_string() == name);
        let held = match source {
            Some(source) => match Box::pin(self.verify_with_retries(command, at, source, stop)).await? {
                Some(held) => held,
                None => return Ok(Goes::NoFurther),
            },
            None => Some(self.why_unread(&name)),
        };
        let parked = command.control.failed_counts().await?;
        if let Some(shown) = command.table(at) {
            shown.state = VerifyState::Done;
            // Those as well that were passed over and have no entry any more: it may have been discarded, which proves nothing.
            let now = parked.iter().find(|(table, _)| table.to_string() == name);
            shown.parked = shown.parked.max(now.map_or(0, |(_, rows)| *rows));
            shown.held = held;
            if let Some(source) = source {
                told(&source.table, shown);
                let found = shown.clone();
                command.control.save_proof(&source.table, &found, command.id).await?;
                show(command.control, &self.records()).await?;
            }
        }
        command.store().await
    }

    /// Returns why the table can't be verified, `Some(None)` if it was; `None` if the command goes no further.
    async fn verify_with_retries(
        &self,
        command: &mut Served<'_>,
        at: usize,
        source: &SourceTable,
        stop: &CancellationToken,
    ) -> Result<Option<Option<String>>, SyncError> {
        let (mut attempt, mut failing) = (0, Instant::now());
        let mut place = None;
        loop {
            match self.readiness(&source.table) {
                Readiness::Held(reason) => return Ok(Some(Some(reason))),
                Readiness::NotYet => {
                    if command.store().await? == Goes::NoFurther || !shutdown::sleep(TICK, stop).await {
                        return Ok(None);
                    }
                    continue;
                }
                Readiness::Ready => {}
            }
            let error = match Box::pin(self.verify_pages(command, at, source, stop)).await {
                Ok(Goes::On) => match self.readiness(&source.table) {
                    Readiness::Ready => return Ok(Some(None)),
                    // What was read is of a table that is read anew.
                    Readiness::Held(_) | Readiness::NotYet => {
                        command.begin_anew(at);
                        continue;
                    }
                },
                Ok(Goes::NoFurther) | Err(SyncError::Copy(CopyError::StreamEnded)) => return Ok(None),
                // Of the run itself.
                Err(error) if !is_of_reading(&error) => return Err(error),
                Err(error) => error,
            };
            if stop.is_cancelled() {
                return Ok(None);
            }
            if is_another_table(&error) {
                command.begin_anew(at);
            }
            let now = command.table(at).map(|table| table.place());
            if now != place {
                (place, attempt, failing) = (now, 0, Instant::now());
            }
            attempt += 1;
            let reason = error.explain();
            let lasts = error.disposition() != Disposition::Transient || failing.elapsed() >= GIVE_UP_AFTER;
            // A table that is held meanwhile says so itself.
            if lasts && matches!(self.readiness(&source.table), Readiness::Ready) {
                return Ok(Some(Some(reason)));
            }
            info!(table = %source.table, attempt, %reason, "verifying a table was interrupted: trying again");
            if command.store().await? == Goes::NoFurther
                || !shutdown::sleep(backoff(attempt, RETRY.0, RETRY.1), stop).await
            {
                return Ok(None);
            }
        }
    }

    fn readiness(&self, table: &TableName) -> Readiness {
        let records = self.records();
        let reason = |record: &TableRecord| record.detail.clone().unwrap_or_else(|| "it is held".to_owned());
        match records.get(table) {
            None => Readiness::Held("it is not synchronised: see twinlog status".to_owned()),
            Some(record) => match record.state {
                TableState::Held => Readiness::Held(reason(record)),
                TableState::New | TableState::Copying if record.detail.is_some() => Readiness::Held(reason(record)),
                TableState::New | TableState::Copying => Readiness::NotYet,
                TableState::Streaming | TableState::Resyncing => Readiness::Ready,
            },
        }
    }
}

/// Whether the error is one of reading a table, and no other table has to wait for it.
const fn is_of_reading(error: &SyncError) -> bool {
    matches!(error, SyncError::Source(_) | SyncError::Agent(_) | SyncError::Copy(_))
}

/// Whether the error says that the table is not as it was when its verification began.
const fn is_another_table(error: &SyncError) -> bool {
    matches!(
        error,
        SyncError::Copy(
            CopyError::RelationChanged(_) | CopyError::TableHeld(_) | CopyError::Source(SourceError::Replaced(_))
        )
    )
}

/// Says what was found, without a key.
fn told(table: &TableName, shown: &VerifiedTable) {
    let VerifiedTable {
        rows,
        missing_rows: missing,
        extra_rows: extra,
        different_rows: different,
        parked,
        repaired,
        ..
    } = shown;
    match &shown.held {
        Some(reason) => warn!(%table, %reason, "a table can't be verified"),
        None if shown.is_equal() => info!(%table, rows, repaired, "a table is verified: equal in both databases"),
        None => {
            warn!(%table, rows, missing, extra, different, parked, repaired, "a table is not equal in both databases");
        }
    }
}
