//! Serves the commands that `twinlog verify` writes into `twinlog.commands`: one at a time, table by table, page by page.
//!
//! A page's result is stored in the command's row, with the place of the next page, before the next page is read: a command
//! goes on there after a restart. Whoever ends its row (Ctrl-C) has it given up at the next page. With `repair`, differences are
//! stored before they are repaired, so the report has them also where the daemon dies in between; the page is then verified
//! once more, and what is left of them repaired.
//!
//! By `sync.verify_every` the daemon asks itself, slowly; what people ask for comes first. What was found last of each table is
//! in `twinlog.proofs`, and in metrics.
//!
//! Not here: how rows are compared (`copy::verify`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent_db::{
    AgentError, CommandKind, Comparer, Control, Difference, TableRecord, TableRecords, TableSettings, TableState,
    VerifiedTable, Verify, VerifyState,
};
use crate::change::TableName;
use crate::copy::{ChunkReader, ChunkRegistry, CopyError, CopyPlace, ForeignRows, TableVerifier};
use crate::failpoint;
use crate::postgres::{SessionError, Side};
use crate::retry::{Disposition, backoff};
use crate::shutdown;
use crate::source::{Source, SourceError, SourceTable, Visibility};

use super::error::SyncError;
use super::resync::named;
use super::schedule::{is_of_person, is_of_schedule, is_scheduled, show};
use super::settings::PipelineSettings;
use super::status::sync_status::SyncStatus;
use super::stream::requests::StreamRequests;

/// How often commands are looked for. They are noticed sooner, by `NOTIFY`.
const TICK: Duration = Duration::from_secs(1);

/// How often progress is stored while nothing is found.
const STORE_EVERY: Duration = Duration::from_millis(500);

/// Rows of a range whose digests are compared: some tens of milliseconds.
const RANGE_ROWS: u32 = 50_000;

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

/// Whether a command goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goes {
    On,
    /// It was ended by somebody, or the daemon stops.
    NoFurther,
}

/// A table may be verified, can't be, or not yet.
enum Readiness {
    Ready,
    NotYet,
    Held(String),
}

/// A command that is served.
struct Served<'a> {
    control: &'a Control,
    id: i64,
    verify: Verify,
    stored: Instant,
}

impl Served<'_> {
    fn table(&mut self, at: usize) -> Option<&mut VerifiedTable> {
        self.verify.progress.tables.get_mut(at)
    }

    /// Forgets what was found of a table: it is not the same any more.
    fn begin_anew(&mut self, at: usize) {
        if let Some(table) = self.table(at) {
            table.begin_anew(OffsetDateTime::now_utc().unix_timestamp());
        }
    }

    /// Stores the progress; tells whether the command goes on: it is still wanted, and nobody waits for another one.
    async fn store(&mut self) -> Result<Goes, SyncError> {
        if is_scheduled(&self.verify) && self.control.open_commands().await?.iter().any(is_of_person) {
            let kind = CommandKind::Verify(self.verify.clone());
            self.control.command_progress(self.id, &kind).await?;
            return Ok(Goes::NoFurther);
        }
        let kind = CommandKind::Verify(self.verify.clone());
        self.stored = Instant::now();
        Ok(match self.control.command_progress(self.id, &kind).await? {
            true => Goes::On,
            false => Goes::NoFurther,
        })
    }
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
            shown.began = OffsetDateTime::now_utc().unix_timestamp();
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

    /// Verifies a table's pages from where it stopped.
    async fn verify_pages(
        &self,
        command: &mut Served<'_>,
        at: usize,
        table: &SourceTable,
        stop: &CancellationToken,
    ) -> Result<Goes, SyncError> {
        let source = Source::connect(&self.settings.site, "twinlog verify").await?;
        let who = format!("the verification of {}", table.table);
        let on_wait = &|wait| self.status.set_wait(&who, wait);
        self.visibility.wait(source.client(), stop, on_wait).await?;
        let relation = self.requests.resolve(table.description()).await?;
        let agent = Comparer::connect(&self.settings.agent, &table.description()).await?;
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
        let (repair, rate) = (command.verify.arguments.repair, command.verify.arguments.rate);
        // A page takes no more than a second at the rate that is asked for, so that it can be given up.
        let at_most = |rows: u32| rows.min(rate.unwrap_or(rows)).max(1);
        let (limit, range) = (at_most(self.settings.copies.chunk_rows), at_most(RANGE_ROWS));
        let verifier = TableVerifier::new(reader, &agent, limit, range).await?;
        let Some(shown) = command.table(at) else {
            return Ok(Goes::On);
        };
        shown.estimated = Some(table.estimated_rows).filter(|&rows| rows >= 0);
        let (phase, last_key) = shown.place();
        let mut next = Some(CopyPlace { phase, last_key });
        while let Some(place) = next {
            let began = Instant::now();
            let page = tokio::select! {
                () = stop.cancelled() => return Ok(Goes::NoFurther),
                page = Box::pin(verifier.page(&place)) => page?,
            };
            if self.add(command, at, &page.differences, repair).await? == Goes::NoFurther {
                return Ok(Goes::NoFurther);
            }
            if repair && !page.differences.is_empty() {
                verifier.repair(&page.differences).await?;
                failpoint::reach(failpoint::name::REPAIR_AFTER_WRITE);
            }
            next = page.next;
            let Some(shown) = command.table(at) else {
                return Ok(Goes::On);
            };
            shown.rows += page.rows;
            shown.parked += page.parked;
            shown.repaired += std::mem::take(&mut shown.repairing);
            if let Some(place) = &next {
                shown.set_place(place.phase, place.last_key.as_ref());
            }
            let is_due = !page.differences.is_empty() || command.stored.elapsed() >= STORE_EVERY;
            if is_due && command.store().await? == Goes::NoFurther {
                return Ok(Goes::NoFurther);
            }
            if !shutdown::sleep(pause(page.rows, rate, began.elapsed()), stop).await {
                return Ok(Goes::NoFurther);
            }
        }
        tokio::select! {
            () = stop.cancelled() => Ok(Goes::NoFurther),
            settled = Box::pin(verifier.settle()) => {
                settled?;
                Ok(Goes::On)
            }
        }
    }

    /// Counts a page's differences; stores them before they are repaired.
    async fn add(
        &self,
        command: &mut Served<'_>,
        at: usize,
        differences: &[Difference],
        repair: bool,
    ) -> Result<Goes, SyncError> {
        let interrupted = command.table(at).is_some_and(|table| table.repairing > 0);
        if differences.is_empty() && !interrupted {
            return Ok(Goes::On);
        }
        let before = command.table(at).map_or(0, |table| table.differing());
        command.verify.progress.add(at, differences);
        let Some(shown) = command.table(at).filter(|_| repair) else {
            return Ok(Goes::On);
        };
        shown.repairing += shown.differing() - before;
        command.store().await
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

/// How long to wait after a page so that no more rows are read than asked for.
fn pause(rows: u64, rate: Option<u32>, took: Duration) -> Duration {
    let Some(rate) = rate.filter(|&rate| rate > 0) else {
        return Duration::ZERO;
    };
    Duration::from_secs_f64(rows as f64 / f64::from(rate)).saturating_sub(took)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_takes_as_long_as_its_rate_says() {
        let took = Duration::from_millis(200);
        for (rows, rate, expected) in [
            (1000, None, 0),
            (1000, Some(1000), 800),
            (100, Some(1000), 0),
            (1000, Some(0), 0),
        ] {
            assert_eq!(pause(rows, rate, took), Duration::from_millis(expected));
        }
    }
}
