//! One run after another: set up, prove the slot, stream; on an error wait, and begin again at the checkpoint.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::agent_db::{
    AgentError, Applier, ApplierSettings, Checkpoint, Control, SourceIdentity, TableProgress, TableState,
};
use crate::change::TableName;
use crate::config::Config;
use crate::copy::ChunkRegistry;
use crate::failpoint;
use crate::health::Health;
use crate::lsn::Lsn;
use crate::migrations;
use crate::retry::{Disposition, backoff};
use crate::shutdown;
use crate::source::publication::{self, Prepared};
use crate::source::visibility::blockers;
use crate::source::{self, Selection, Source, SourceTable, Visibility};
use crate::wire::{Feedback, FrameStream, ReplicationConnection, ServerFault, SlotName};

use super::copies::Copies;
use super::error::SyncError;
use super::healing::Healing;
use super::lookout::Lookout;
use super::monitor::Monitor;
use super::slot::{GapReason, SourceFacts, Verdict, judge, parse_history};
use super::status::state::SyncState;
use super::status::sync_status::SyncStatus;
use super::stream::apply_task::SinkHandle;
use super::stream::assemble::{Assembler, Membership};
use super::stream::buffer::Batch;
use super::stream::stream_loop::{Parts, Pipeline};

/// How often a held pipeline looks whether somebody has acted: often enough that a repair shows at once, rarely enough
/// for the logs of both databases.
const HELD: Duration = Duration::from_secs(2);

/// How often one that stands by tries to take over.
const STANDBY: Duration = Duration::from_secs(1);

/// How long creating a slot may wait for older transactions before it says who holds it up (pitfall P12).
const SLOT_LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A run that lasted this long was a good one: the next failure starts the backoff anew.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// An error that lasts is logged again this often.
const REMIND: Duration = Duration::from_secs(60);

/// Synchronises until `stop` is cancelled; whatever happens to either database, it says so and goes on.
///
/// # Errors
/// Only what no waiting can mend: `sync.tables` holds something that is no pattern, or the slot's name can't be one.
pub async fn run(config: Arc<Config>, health: &Health, stop: CancellationToken) -> Result<(), SyncError> {
    let selection = Selection::new(&config.sync.tables)?;
    let slot: SlotName = config.sync.slot.parse()?;
    let view = Arc::new(SyncStatus::default());
    let component = health.component("sync");
    let monitor_stop = CancellationToken::new();
    let monitor = Monitor::new(Arc::clone(&config), Arc::clone(&view), component);
    let monitor = tokio::spawn(Box::pin(monitor.run(monitor_stop.clone())));
    let daemon = Daemon {
        config,
        selection,
        slot,
        view,
    };
    let result = Box::pin(daemon.supervise(&stop)).await;
    monitor_stop.cancel();
    // It ends within its own time-outs; a panic in it has been reported by the runtime.
    let _ = monitor.await;
    result
}

struct Daemon {
    config: Arc<Config>,
    selection: Selection,
    slot: SlotName,
    view: Arc<SyncStatus>,
}

/// A stream that is ready to be read, and everything that was learned on the way.
struct Started {
    applier: Applier,
    identity: SourceIdentity,
    prepared: Prepared,
    resume_after: Lsn,
    fresh_slot: bool,
    frames: FrameStream,
    feedback: Feedback,
}

impl Daemon {
    async fn supervise(&self, stop: &CancellationToken) -> Result<(), SyncError> {
        let mut attempt = 0_u32;
        let mut last_logged: Option<(String, Instant)> = None;
        loop {
            let began = Instant::now();
            self.view.set_connecting();
            let error = match Box::pin(self.run_once(stop)).await {
                Ok(()) => return Ok(()),
                Err(_) if stop.is_cancelled() => return Ok(()),
                Err(error) => error,
            };
            if began.elapsed() >= GOOD_RUN {
                attempt = 0;
            }
            attempt = attempt.saturating_add(1);
            let reason = error.explain();
            let news = last_logged
                .as_ref()
                .is_none_or(|(said, at)| *said != reason || at.elapsed() >= REMIND);
            if news {
                last_logged = Some((reason.clone(), Instant::now()));
            }
            let sync = &self.config.sync;
            let wait = match (&error, error.disposition()) {
                (SyncError::Agent(AgentError::Busy { .. }), _) => {
                    if self.view.set_state(SyncState::Standby, Some(reason.clone())) {
                        info!(slot = %self.slot, %reason, "standing by");
                    }
                    STANDBY
                }
                (SyncError::Gap(_), _) => {
                    self.view.set_gap(Some(reason.clone()));
                    self.view.set_state(SyncState::Gap, Some(reason.clone()));
                    if news {
                        error!(slot = %self.slot, %reason, "rows may be missing: the stream is held");
                    }
                    HELD
                }
                (_, Disposition::Transient) => {
                    if news {
                        warn!(slot = %self.slot, attempt, %reason, "the stream was interrupted, reconnecting");
                    }
                    self.view.set_state(SyncState::Connecting, Some(reason.clone()));
                    backoff(attempt, sync.reconnect_initial, sync.reconnect_max)
                }
                (_, Disposition::Systemic | Disposition::Row) => {
                    if news {
                        error!(slot = %self.slot, %reason, "held until somebody acts");
                    }
                    self.view.set_state(SyncState::Held, Some(reason.clone()));
                    HELD
                }
            };
            if !shutdown::sleep(wait, stop).await {
                return Ok(());
            }
        }
    }

    /// One run: everything from the first connection to the first error.
    async fn run_once(&self, stop: &CancellationToken) -> Result<(), SyncError> {
        let started = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            started = Box::pin(self.start(stop)) => started?,
        };
        let Started {
            mut applier,
            identity,
            prepared,
            resume_after,
            fresh_slot,
            frames,
            feedback,
        } = started;
        let (config, view) = (Arc::clone(&self.config), Arc::clone(&self.view));
        let connect = || Control::connect(&config.agent.url, &config.sync.slot, "twinlog control");
        let control = connect().await?;
        view.set_parked(control.failed_counts().await?);
        for table in control.tables().await? {
            let first = matches!(table.state, TableState::New | TableState::Copying);
            applier.set_copying(&table.table, first);
        }

        let tables = Arc::new(prepared.tables);
        let chunks = ChunkRegistry::default();
        // A few readers, who wait for each answer.
        let (requests, inbox) = mpsc::channel(16);
        let visibility = Arc::new(Visibility::default());
        let copies = Copies {
            config: Arc::clone(&config),
            tables: Arc::clone(&tables),
            chunks: chunks.clone(),
            requests: requests.clone(),
            view: Arc::clone(&view),
            fresh_slot,
            visibility: Arc::clone(&visibility),
        };
        let healing = Healing {
            config: Arc::clone(&config),
            tables: Arc::clone(&tables),
            chunks: chunks.clone(),
            requests,
            visibility,
        };
        let (known, selection) = (Arc::clone(&tables), self.selection.clone());
        let membership = move |table: &TableName| match (known.contains_key(table), selection.takes(table)) {
            (true, _) => Membership::Ours,
            (false, true) => Membership::New,
            (false, false) => Membership::Other,
        };
        let lookout = Lookout {
            config: Arc::clone(&config),
            selection: self.selection.clone(),
            tables: Arc::clone(&tables),
            version: prepared.version,
        };
        let pipeline = Pipeline::new(Parts {
            frames,
            feedback,
            sink: SinkHandle::spawn(applier, identity),
            assembler: Assembler::new(resume_after, membership),
            chunks,
            requests: inbox,
            view: Arc::clone(&view),
            batch: Batch::new(config.sync.batch_rows, config.sync.batch_bytes),
            resume_after,
        });
        info!(slot = %self.slot, position = %resume_after, tables = tables.len(), "the stream flows");
        // The readers stop first: the pipeline drains what they gave it.
        let readers = stop.child_token();
        let (copy_control, heal_control) = (control, connect().await?);
        let result = tokio::select! {
            result = Box::pin(pipeline.run(stop)) => result,
            result = Box::pin(only_errors(copies.run(copy_control, &readers))) => result,
            result = Box::pin(only_errors(healing.run(heal_control, &readers))) => result,
            result = Box::pin(only_errors(lookout.run(&readers))) => result,
        };
        readers.cancel();
        result
    }

    /// From the first connection to the first byte of the stream.
    async fn start(&self, stop: &CancellationToken) -> Result<Started, SyncError> {
        let (site, agent, sync) = (&self.config.site.url, &self.config.agent.url, &self.config.sync);
        migrations::apply_twinlog(agent).await?;
        let settings = ApplierSettings {
            application_name: "twinlog sink".to_owned(),
            max_failed_rows: sync.max_failed_rows,
            retry_initial: sync.retry_initial,
            retry_max: sync.retry_max,
        };
        let mut applier = Box::pin(Applier::connect(agent, &sync.slot, settings)).await?;
        let source = Source::connect(site).await?;
        let prepared = publication::prepare(source.client(), sync, &self.selection).await?;
        for table in prepared.tables.values() {
            // Better said at once than at the first row.
            applier.resolve(&table.describe()).await?;
        }
        let mut connection = ReplicationConnection::connect(site, &self.application_name()).await?;
        let system = connection.identify_system().await?;
        let stored = applier.durable_checkpoint().await?;
        let identity = SourceIdentity {
            system_identifier: system.system_identifier,
            timeline: system.timeline,
            database: site.database.clone(),
            slot: sync.slot.clone(),
            publication: sync.publication.clone(),
        };
        let mut history = Vec::new();
        if stored
            .as_ref()
            .is_some_and(|stored| stored.checkpoint.identity.timeline != system.timeline)
        {
            let rows = connection
                .simple_query(&format!("TIMELINE_HISTORY {}", system.timeline))
                .await?;
            history = rows
                .first()
                .and_then(|row| row.get(1)?.as_deref())
                .map(parse_history)
                .unwrap_or_default();
        }
        let facts = SourceFacts {
            identity: identity.clone(),
            wal_end: system.position,
            history,
        };
        let slot = source::slot(source.client(), &sync.slot, prepared.version).await?;
        if let Some(slot) = &slot
            && slot.database != site.database
        {
            return Err(SyncError::SlotElsewhere {
                slot: sync.slot.clone(),
                database: slot.database.clone(),
            });
        }
        self.view.set_gap(
            stored
                .as_ref()
                .and_then(|stored| stored.gap.as_ref())
                .map(|gap| gap.reason.clone()),
        );

        let control = Control::connect(agent, &sync.slot, "twinlog setup").await?;
        let mut fresh_slot = false;
        let resume_after = match judge(slot.as_ref(), stored.as_ref(), &facts) {
            Verdict::Resume(position) => position,
            Verdict::Adopt(position) => {
                let checkpoint = checkpoint(&identity, position);
                applier.initialise_checkpoint(&checkpoint).await?;
                position
            }
            Verdict::Create => {
                fresh_slot = true;
                self.create_slot(&mut connection, &mut applier, &source, &identity)
                    .await?
            }
            Verdict::Gap(reason) => {
                let accepted = self
                    .accept_gap(&control, &reason, &prepared.tables, &mut applier)
                    .await?;
                if !accepted {
                    return Err(SyncError::Gap(reason));
                }
                match slot {
                    Some(slot) if !matches!(reason, GapReason::SlotLost(_)) && slot.confirmed_flush.is_some() => {
                        let position = slot.confirmed_flush.unwrap_or_default();
                        applier.initialise_checkpoint(&checkpoint(&identity, position)).await?;
                        position
                    }
                    slot => {
                        if slot.is_some() {
                            connection.drop_slot(&self.slot).await?;
                        }
                        self.create_slot(&mut connection, &mut applier, &source, &identity)
                            .await?
                    }
                }
            }
            Verdict::WrongPlugin(plugin) => {
                return Err(SyncError::WrongPlugin {
                    slot: sync.slot.clone(),
                    plugin,
                });
            }
        };
        let anew = stored.is_none();
        self.register(&control, &prepared.tables, anew).await?;

        let publications = [sync.publication.clone()];
        let (frames, feedback) = match connection
            .start_replication(&self.slot, resume_after, &publications)
            .await
        {
            Ok(stream) => stream,
            Err(error) if error.fault() == Some(ServerFault::SlotActive) => {
                self.end_leftover(&source).await;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        };
        // Between the look at the slot and the start somebody may have moved it; the server would silently go on from
        // there (it never goes back behind what was confirmed).
        let slot = source::slot(source.client(), &sync.slot, prepared.version).await?;
        if let Some(position) = slot.and_then(|slot| slot.confirmed_flush)
            && position > resume_after
        {
            let reason = GapReason::SlotAhead {
                slot: position,
                checkpoint: resume_after,
            };
            applier.set_gap(&reason.to_string()).await?;
            return Err(SyncError::Gap(reason));
        }
        if stop.is_cancelled() {
            return Err(SyncError::StreamEnded);
        }
        Ok(Started {
            applier,
            identity,
            prepared,
            resume_after,
            fresh_slot,
            frames,
            feedback,
        })
    }

    /// The replication connection's name: the same for every daemon of this Agent DB and slot, and no other's, so that a
    /// leftover of ours can be told from a stranger.
    fn application_name(&self) -> String {
        let agent = &self.config.agent.url;
        let hash = Sha256::digest(format!("{agent} {}", self.slot));
        format!("twinlog stream {}", hex::encode(&hash[..8]))
    }

    async fn create_slot(
        &self,
        connection: &mut ReplicationConnection,
        applier: &mut Applier,
        source: &Source,
        identity: &SourceIdentity,
    ) -> Result<Lsn, SyncError> {
        let created = match connection.create_slot(&self.slot, SLOT_LOCK_TIMEOUT).await {
            Ok(created) => created,
            Err(error) => {
                if error.fault() == Some(ServerFault::LockTimeout) {
                    let pids = blockers(source.client()).await;
                    warn!(slot = %self.slot, pids, "creating the slot waits for older transactions of the Site DB to end");
                }
                return Err(error.into());
            }
        };
        failpoint::reach(failpoint::name::SLOT_AFTER_CREATE);
        info!(slot = %self.slot, position = %created.consistent_point, "slot created");
        applier
            .initialise_checkpoint(&checkpoint(identity, created.consistent_point))
            .await?;
        Ok(created.consistent_point)
    }

    /// Rows may be missing. Only a person's `resync --all` lets the stream go on: then every table is read again before
    /// anything is called healthy.
    async fn accept_gap(
        &self,
        control: &Control,
        reason: &GapReason,
        tables: &BTreeMap<TableName, SourceTable>,
        applier: &mut Applier,
    ) -> Result<bool, SyncError> {
        if reason.outlives_its_cause() {
            applier.set_gap(&reason.to_string()).await?;
        }
        let command = control.open_commands().await?.into_iter().find(|command| {
            command.kind == "resync"
                && command.arguments.get("all").and_then(serde_json::Value::as_bool) == Some(true)
                && command.arguments.get("where").is_none_or(serde_json::Value::is_null)
        });
        let Some(command) = command else { return Ok(false) };
        // From here on the checkpoint is another: only the mark says that rows may be missing.
        applier.set_gap(&reason.to_string()).await?;
        self.view.set_gap(Some(reason.to_string()));
        warn!(command = command.id, reason = %reason, "going on over a gap: every table is read again");
        // What it had read before the gap counts no more.
        control
            .command_progress(command.id, &serde_json::json!({ "tables": [] }))
            .await?;
        let known = control.tables().await?;
        for table in tables.keys() {
            let state = known
                .iter()
                .find(|known| known.table == *table)
                .map(|known| known.state);
            let mut next = TableProgress::new(table.clone());
            if matches!(state, Some(TableState::Streaming | TableState::Resyncing)) {
                next.state = TableState::Resyncing;
            }
            next.command_id = Some(command.id);
            control.save_table(&next).await?;
        }
        Ok(true)
    }

    /// Every table that is synchronised has its row, and no other: one that comes back later has missed changes and must
    /// be copied anew. So must one that is not what it was when it was copied.
    async fn register(
        &self,
        control: &Control,
        tables: &BTreeMap<TableName, SourceTable>,
        anew: bool,
    ) -> Result<(), SyncError> {
        let (known, shapes) = (control.tables().await?, control.shapes().await?);
        for gone in known.iter().filter(|known| !tables.contains_key(&known.table)) {
            warn!(table = %gone.table, "the table is not published or not selected any more");
            control.forget_table(&gone.table).await?;
        }
        for (name, table) in tables {
            let (state, before) = (known.iter().find(|known| known.table == *name), shapes.get(name));
            let shape = table.shape();
            let mut next = TableProgress::new(name.clone());
            next.command_id = state.and_then(|state| state.command_id);
            let outdated = before.and_then(|before| before.outdated_by(&shape));
            if let Some(why) = outdated {
                // As a new one, that is: after the transactions that run now (pitfall P10).
                warn!(table = %name, why, "the table is read again");
                control.save_table(&next).await?;
            } else if let Some(state) = state {
                // Without a checkpoint nothing is known of what happened since they were copied, or half copied.
                if anew && state.state != TableState::New {
                    if state.state != TableState::Copying {
                        next.state = TableState::Resyncing;
                    }
                    control.save_table(&next).await?;
                }
            } else {
                control.save_table(&next).await?;
            }
            // Last: whoever is interrupted before it does the same again.
            if before != Some(&shape) {
                control.remember_shape(name, &shape).await?;
            }
        }
        Ok(())
    }

    /// A walsender that still serves a dead predecessor of ours keeps the slot busy until the server notices. It bears
    /// our name, the lock on the Agent DB says that nobody else of that name is alive: end it (pitfall P13).
    async fn end_leftover(&self, source: &Source) {
        let ended = source::end_reader(source.client(), self.slot.as_str(), &self.application_name()).await;
        if matches!(ended, Ok(true)) {
            info!(slot = %self.slot, "ended the replication connection of a predecessor");
        }
    }
}

fn checkpoint(identity: &SourceIdentity, end_lsn: Lsn) -> Checkpoint {
    Checkpoint {
        identity: identity.clone(),
        end_lsn,
        source_commit_at: None,
    }
}

/// What a reader's end means to the run: an error ends it, a clean end does not, so that the pipeline has the last word.
async fn only_errors(reader: impl Future<Output = Result<(), SyncError>>) -> Result<(), SyncError> {
    reader.await?;
    std::future::pending().await
}
