//! The loop of runs: start and stream; after an error wait, and start again at the checkpoint.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use crate::agent_db::Control;
use crate::change::{Hold, TableName};
use crate::copy::{ChunkRegistry, CopyError};
use crate::health::{Component, Health};
use crate::lsn::Lsn;
use crate::postgres::diagnosis::{are_swapped, read_only_remedy};
use crate::postgres::error::explain;
use crate::postgres::{Side, quote_identifier};
use crate::shutdown;
use crate::source::visibility::OlderTransactions;
use crate::source::{Selection, Visibility};
use crate::wire::{ServerFault, SlotName, ValueForm};

use super::after_error::{Failures, LoopGuard, setback, wait};
use super::agent_watch::{AgentWatch, ChangedTables};
use super::catalog_watch::CatalogWatch;
use super::copies::Copies;
use super::error::SyncError;
use super::healing::Healing;
use super::release::Release;
use super::sequences::SequenceCarrier;
use super::settings::PipelineSettings;
use super::slot_limit::SlotLimit;
use super::start::{Start, Started};
use super::status::monitor::Monitor;
use super::status::state::Setback;
use super::status::sync_status::SyncStatus;
use super::stream::apply_task::ApplyHandle;
use super::stream::assemble::Assembler;
use super::stream::buffer::TransactionBuffer;
use super::stream::described::CatalogColumns;
use super::stream::requests::StreamRequests;
use super::stream::stream_loop::{StreamLoop, StreamParts};
use super::verify::Verification;

/// Runs a pipeline until `stop` is cancelled. A failure of either database does not end it: it is reported, and tried
/// again.
///
/// # Errors
/// Only wrong settings: `sync.tables` contains an invalid pattern, or `sync.slot` is not a valid slot name.
pub async fn run(settings: PipelineSettings, health: &Health, stop: CancellationToken) -> Result<(), SyncError> {
    let span = info_span!("sync", pipeline = settings.pipeline);
    let daemon = Daemon {
        selection: Selection::new(&settings.tables)?,
        slot: settings.slot.parse()?,
        limit: Arc::new(SlotLimit::new(&settings)),
        settings: Arc::new(settings),
        status: Arc::new(SyncStatus::default()),
    };
    Box::pin(daemon.run(health.component("sync"), &stop))
        .instrument(span)
        .await
}

struct Daemon {
    settings: Arc<PipelineSettings>,
    selection: Selection,
    slot: SlotName,
    status: Arc<SyncStatus>,
    limit: Arc<SlotLimit>,
}

impl Daemon {
    /// Runs the loop and, beside it, the monitor, which keeps reporting between the runs.
    async fn run(&self, health: Component, stop: &CancellationToken) -> Result<(), SyncError> {
        let monitor_stop = CancellationToken::new();
        let monitor = Monitor::new(
            Arc::clone(&self.settings),
            Arc::clone(&self.status),
            Arc::clone(&self.limit),
            health,
        );
        let monitor = Box::pin(monitor.run(monitor_stop.clone())).in_current_span();
        let monitor = tokio::spawn(monitor);
        let result = Box::pin(self.supervise(stop)).await;
        monitor_stop.cancel();
        // Ends within its own time-outs. The runtime has already reported a panic.
        let _ = monitor.await;
        result
    }

    async fn supervise(&self, stop: &CancellationToken) -> Result<(), SyncError> {
        let mut failures = Failures::default();
        let mut guard = LoopGuard::default();
        let mut fault: Option<(TableName, Hold)> = None;
        let mut pass_until = None;
        let mut may_be_swapped = true;
        loop {
            let began = Instant::now();
            let commits = self.status.commits();
            self.status.run_began();
            let run = async {
                // Before anything is written.
                may_be_swapped = may_be_swapped && self.check_urls().await?;
                self.limit.enforce(&self.settings, &self.slot).await?;
                self.run_within_limit(fault.as_ref(), pass_until, stop).await
            };
            let error = match Box::pin(run).await {
                Ok(()) => return Ok(()),
                Err(_) if stop.is_cancelled() => return Ok(()),
                Err(error) => guard.check(self.named(error), self.status.settled_lsn()),
            };
            let (reason, setback) = (self.explain(&error).await, setback(&error));
            // The next run holds it, so that the same fault never ends two runs.
            fault = error.hold();
            pass_until = match &error {
                SyncError::RowTooLarge { commit, .. } => Some(*commit),
                SyncError::PassedOver => None,
                _ => pass_until,
            };
            let (attempt, is_news) = failures.count(
                &reason,
                began.elapsed(),
                self.status.commits() > commits,
                Instant::now(),
            );
            self.ended(setback, reason, attempt, is_news);
            if !shutdown::sleep(wait(setback, attempt, self.settings.reconnect), stop).await {
                return Ok(());
            }
        }
    }

    /// Whether it is still to be found out if the two URLs are swapped.
    ///
    /// # Errors
    /// They are.
    async fn check_urls(&self) -> Result<bool, SyncError> {
        match Box::pin(are_swapped(&self.settings.site, &self.settings.agent)).await {
            Some(true) => Err(SyncError::UrlsSwapped),
            found => Ok(found.is_none()),
        }
    }

    /// The error with its causes and its remedy, in one line.
    async fn explain(&self, error: &SyncError) -> String {
        if error.is_read_only()
            && let Some(remedy) = Box::pin(read_only_remedy(Side::Agent, &self.settings.agent)).await
        {
            return explain(error, Some(remedy));
        }
        error.explain()
    }

    /// Adds the names that the remedy of an error needs.
    fn named(&self, error: SyncError) -> SyncError {
        match error {
            SyncError::Wire(error) if error.fault() == Some(ServerFault::PublicationMissing) => {
                SyncError::PublicationWasMissing {
                    slot: self.settings.slot.clone(),
                    publication: self.settings.publication.clone(),
                    source: error,
                }
            }
            SyncError::Wire(error) if error.fault() == Some(ServerFault::Undecodable) => SyncError::CannotDecode {
                slot: self.settings.slot.clone(),
                after: self.status.settled_lsn(),
                source: error,
            },
            other => other,
        }
    }

    /// Stores how a run ended in the status, and logs it if it is news.
    fn ended(&self, setback: Setback, reason: String, attempt: u32, is_news: bool) {
        let slot = &self.slot;
        if setback == Setback::RowsMissing {
            self.status.set_gap(Some(reason.clone()));
        }
        let is_other_state = self.status.run_ended(setback, reason.clone());
        match setback {
            Setback::SlotTaken if is_other_state => {
                info!(%slot, %reason, "another daemon is active for this slot: standing by")
            }
            Setback::RowsMissing if is_news => {
                error!(%slot, %reason, "rows may be missing: the stream is held until twinlog resync --all")
            }
            Setback::Temporary if is_news => {
                warn!(%slot, attempt, %reason, "the stream was interrupted, reconnecting");
            }
            Setback::NeedsRepair | Setback::SlotOfAnother if is_news => {
                error!(%slot, %reason, "the stream is held: repair what the reason names, it continues by itself");
            }
            Setback::SlotTaken
            | Setback::SlotOfAnother
            | Setback::RowsMissing
            | Setback::Temporary
            | Setback::NeedsRepair => {}
        }
    }

    /// One run, which ends when the slot keeps too much.
    async fn run_within_limit(
        &self,
        fault: Option<&(TableName, Hold)>,
        pass_until: Option<Lsn>,
        stop: &CancellationToken,
    ) -> Result<(), SyncError> {
        // Ended in order, so that the slot is free.
        let stop = stop.child_token();
        let mut run = Box::pin(self.run_once(fault, pass_until, &stop));
        let kept = tokio::select! {
            biased;
            ended = &mut run => return ended,
            kept = self.limit.exceeded() => kept,
        };
        stop.cancel();
        // Whatever it ends with, the slot is given up next.
        let _ = run.await;
        Err(SyncError::SlotOverLimit { kept })
    }

    /// One run: everything from the first connection to the first error.
    async fn run_once(
        &self,
        fault: Option<&(TableName, Hold)>,
        pass_until: Option<Lsn>,
        stop: &CancellationToken,
    ) -> Result<(), SyncError> {
        let start = Start {
            settings: &self.settings,
            selection: &self.selection,
            slot: &self.slot,
            status: &self.status,
            limit: &self.limit,
            fault,
            form: pass_until.map_or(ValueForm::Text, |_| ValueForm::Binary),
        };
        let started = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            started = Box::pin(start.run(stop)) => started?,
        };
        let control = self.control().await?;
        self.status.set_parked(control.failed_counts().await?);
        self.status
            .set_narrowed(narrowed(&self.settings.publication, &started.prepared.unsent));
        let run = self.build_run(started, pass_until);
        // The readers stop before the stream, whose loop then drains what they have sent.
        let readers = stop.child_token();
        let (copy_control, heal_control) = (control, self.control().await?);
        let (watch_control, verify_control) = (self.control().await?, self.control().await?);
        let result = tokio::select! {
            result = Box::pin(run.stream.run(stop)) => result,
            result = Box::pin(only_errors(run.copies.run(copy_control, &readers))) => result,
            result = Box::pin(only_errors(run.healing.run(heal_control, &readers))) => result,
            result = Box::pin(only_errors(run.verification.run(verify_control, &readers))) => result,
            result = Box::pin(only_errors(run.catalog_watch.run(&readers))) => result,
            result = Box::pin(only_errors(run.release.run(&readers))) => result,
            result = Box::pin(only_errors(run.sequences.run(&readers))) => result,
            result = Box::pin(only_errors(run.agent_watch.run(watch_control, &readers))) => result,
        };
        readers.cancel();
        result
    }

    async fn control(&self) -> Result<Control, SyncError> {
        Ok(Control::connect(&self.settings.agent, &self.settings.slot, "twinlog control").await?)
    }

    /// Builds the tasks of a run and the channels between them.
    fn build_run(&self, started: Started, pass_until: Option<Lsn>) -> Run {
        let Started {
            applier,
            identity,
            tables: book,
            prepared,
            ignored,
            resume_after,
            fresh_slot,
            tip,
            frames,
            feedback,
            pipeline,
        } = started;
        let facts = prepared
            .tables
            .values()
            .map(|table| (table.id, Arc::clone(&table.facts)))
            .collect();
        let tables = Arc::new(prepared.tables);
        let (ignored_at_site, ignored_at_agent): (BTreeSet<TableName>, BTreeSet<TableName>) = ignored
            .keys()
            .cloned()
            .partition(|table| prepared.faults.contains_key(table));
        let changed = ChangedTables::default();
        let chunks = ChunkRegistry::default();
        let (requests, inbox) = StreamRequests::channel();
        let visibility = Arc::new(Visibility::default());
        let fresh_slot = Arc::new(AtomicBool::new(fresh_slot));
        let copies = Copies {
            settings: Arc::clone(&self.settings),
            parents: applier.parents(),
            tables: Arc::clone(&tables),
            states: book.committed(),
            chunks: chunks.clone(),
            requests: requests.clone(),
            status: Arc::clone(&self.status),
            fresh_slot: Arc::clone(&fresh_slot),
            visibility: Arc::clone(&visibility),
            shared: Arc::clone(&pipeline.tables),
            older: OlderTransactions::default(),
            version: prepared.version,
        };
        let verification = Verification {
            settings: Arc::clone(&self.settings),
            tables: Arc::clone(&tables),
            states: book.committed(),
            chunks: chunks.clone(),
            requests: requests.clone(),
            status: Arc::clone(&self.status),
            visibility: Arc::clone(&visibility),
            shared: Arc::clone(&pipeline.tables),
        };
        let healing = Healing {
            settings: Arc::clone(&self.settings),
            tables: Arc::clone(&tables),
            chunks: chunks.clone(),
            requests: requests.clone(),
            status: Arc::clone(&self.status),
            visibility,
        };
        let sequences = SequenceCarrier {
            settings: Arc::clone(&self.settings),
            tables: Arc::clone(&tables),
        };
        let agent_watch = AgentWatch {
            tables: Arc::clone(&tables),
            states: book.committed(),
            requests: requests.clone(),
            changed: changed.clone(),
        };
        let states = book.committed();
        let settings = Arc::clone(&pipeline.tables);
        let release = Release {
            settings: Arc::clone(&self.settings),
            selection: self.selection.clone(),
            tables: Arc::clone(&tables),
            states: book.committed(),
            requests: requests.clone(),
            pipeline,
            version: prepared.version,
            ignored: ignored_at_agent,
            changed,
        };
        let names: HashMap<_, _> = tables
            .values()
            .filter(|table| !ignored.contains_key(&table.table))
            .map(|table| (table.id, table.table.clone()))
            .collect();
        self.status.set_ignored(ignored.keys());
        let catalog_hint = Arc::new(Notify::new());
        let stream = StreamLoop::new(StreamParts {
            frames,
            feedback,
            apply: ApplyHandle::spawn(applier, identity, book),
            assembler: Assembler::new(resume_after, move |id| names.get(&id).cloned()),
            chunks,
            requests: inbox,
            status: Arc::clone(&self.status),
            buffer: TransactionBuffer::new(self.settings.batch.rows, self.settings.batch.bytes),
            resume_after,
            columns: CatalogColumns::of(&tables),
            catalog_hint: Arc::clone(&catalog_hint),
            tip,
            facts,
            pass_until,
            settings,
        });
        let catalog_watch = CatalogWatch {
            settings: Arc::clone(&self.settings),
            selection: self.selection.clone(),
            tables: BTreeMap::clone(&tables),
            states,
            ignored: ignored.into_keys().collect(),
            ignored_at_site,
            refused: prepared.refused,
            requests,
            fresh_slot,
            version: prepared.version,
            status: Arc::clone(&self.status),
            hint: catalog_hint,
        };
        Run {
            stream,
            copies,
            healing,
            verification,
            catalog_watch,
            agent_watch,
            release,
            sequences,
        }
    }
}

/// The tasks that run at the same time while the stream flows.
struct Run {
    stream: StreamLoop,
    copies: Copies,
    healing: Healing,
    verification: Verification,
    catalog_watch: CatalogWatch,
    agent_watch: AgentWatch,
    release: Release,
    sequences: SequenceCarrier,
}

/// Why rows may differ because of what the publication does not send. (A TRUNCATE that it does not send is noticed, and the
/// table read again.)
fn narrowed(publication: &str, unsent: &[&str]) -> Option<String> {
    (!unsent.is_empty()).then(|| {
        format!(
            "publication {publication} of the Site DB does not send {}, so rows may differ and nothing tells (what it sends is applied) — on the Site DB: \
             ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');",
            unsent.join(" and "),
            quote_identifier(publication),
        )
    })
}

/// Returns only the errors of a reader that are its own. A clean end must not end the run, so that the stream's loop can
/// drain; nor must the end of the stream, whose loop returns the reason.
async fn only_errors(reader: impl Future<Output = Result<(), SyncError>>) -> Result<(), SyncError> {
    match reader.await {
        Ok(()) | Err(SyncError::Copy(CopyError::StreamEnded)) => std::future::pending().await,
        Err(error) => Err(error),
    }
}
