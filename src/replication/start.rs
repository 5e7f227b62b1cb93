//! The start of a run, from the first connection to the first byte of the stream, in steps:
//!
//! 1. *connect*: the Agent DB (schema, the slot's lock), the Site DB (publication, tables), the replication connection;
//! 2. *check the slot*: compare the Agent DB's checkpoint with what the Site DB says ([`continuity::judge`] decides);
//! 3. *look at the tables*: which are this pipeline's to write, and what is wrong with others;
//! 4. *take a position*: resume, adopt the slot, create it, or continue after a gap that a person accepted;
//! 5. *register the tables*: what happened to them while no daemon ran (`tables::at_start`);
//! 6. *start streaming*, and check the slot's position once more.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent_db::{
    AgentError, Applier, Checkpoint, CommandKind, Control, Pipeline, ResyncProgress, SourceIdentity, StoredCheckpoint,
};
use crate::change::{Hold, Shape, TableName};
use crate::config::OnLostSlot;
use crate::failpoint;
use crate::lsn::Lsn;
use crate::migrations;
use crate::postgres::{Side, refuse_pooler};
use crate::source::publication::{self, Prepared};
use crate::source::visibility::blockers;
use crate::source::{self, Faults, Selection, SlotFacts, Source};
use crate::wire::{Feedback, FrameStream, ReplicationConnection, ServerFault, SlotName, ValueForm};

use super::claims;
use super::continuity::{self, GapReason, SourceLog, Verdict, parse_history};
use super::error::SyncError;
use super::faults::{self, Unreplicable};
use super::other_pipeline::{identity, is_accepted, or_busy};
use super::resync;
use super::settings::PipelineSettings;
use super::slot_limit::SlotLimit;
use super::stale_reader::{application_name, applier_settings, end_stale_walsender};
use super::status::sync_status::SyncStatus;
use super::tables::at_start::AtStart;
use super::tables::book::TableBook;
use super::tables::life::TableEvent;

/// How long creating a slot may wait for older transactions before the attempt ends and names them (pitfall P12).
const SLOT_LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of a start: a stream that is ready to be read, and what its tasks need.
pub(super) struct Started {
    pub(super) applier: Applier,
    pub(super) identity: SourceIdentity,
    pub(super) tables: TableBook,
    pub(super) prepared: Prepared,
    /// Selected tables that can't be replicated and are left out.
    pub(super) ignored: Faults,
    pub(super) resume_after: Lsn,
    /// The slot was created by this start.
    pub(super) fresh_slot: bool,
    /// Where the Site DB's log ended when the start looked.
    pub(super) tip: Lsn,
    pub(super) frames: FrameStream,
    pub(super) feedback: Feedback,
    /// For whom tables are claimed.
    pub(super) pipeline: Pipeline,
}

/// The input of a start.
#[derive(Clone, Copy)]
pub(super) struct Start<'a> {
    pub(super) settings: &'a PipelineSettings,
    pub(super) selection: &'a Selection,
    pub(super) slot: &'a SlotName,
    pub(super) status: &'a SyncStatus,
    pub(super) limit: &'a SlotLimit,
    /// The table whose own fault has ended the last run, and its reason: this run holds it.
    pub(super) fault: Option<&'a (TableName, Hold)>,
    /// How the stream sends values.
    pub(super) form: ValueForm,
}

/// Result of step 1: the connections and the published tables.
struct Connected {
    applier: Applier,
    control: Control,
    source: Source,
    prepared: Prepared,
    /// The tables that can't be replicated now, each with the fault and its remedy.
    faults: Faults,
    replication: ReplicationConnection,
    pipeline: Pipeline,
}

/// Result of step 2: how to start, and the facts that this follows from.
struct SlotCheck {
    identity: SourceIdentity,
    slot: Option<SlotFacts>,
    stored: Option<StoredCheckpoint>,
    verdict: Verdict,
    /// Where the Site DB's log ended.
    tip: Lsn,
}

/// Result of step 4: where the stream continues.
struct Position {
    resume_after: Lsn,
    fresh_slot: bool,
}

impl Start<'_> {
    /// Takes all the steps.
    pub(super) async fn run(&self, stop: &CancellationToken) -> Result<Started, SyncError> {
        let mut connected = Box::pin(self.connect()).await?;
        let check = Box::pin(self.check_slot(&mut connected)).await?;
        // Before anything of another pipeline is written.
        if let Verdict::Gap(reason) = &check.verdict
            && !is_accepted(&connected.control, reason, &check.identity).await?
        {
            return Err(SyncError::Gap(reason.clone()));
        }
        Box::pin(self.examine_tables(&mut connected)).await?;
        let mut tables = TableBook::new(connected.control.tables().await?);
        let position = Box::pin(self.take_position(&mut connected, &check, &mut tables)).await?;
        let ignored = Box::pin(self.register_tables(&mut connected, &mut tables, check.stored.is_none())).await?;
        let Connected {
            mut applier,
            source,
            prepared,
            replication,
            pipeline,
            ..
        } = connected;
        let streaming = self.start_streaming(
            replication,
            &mut applier,
            &source,
            prepared.version,
            position.resume_after,
        );
        let (frames, feedback) = Box::pin(streaming).await?;
        if stop.is_cancelled() {
            return Err(SyncError::StreamEnded);
        }
        Ok(Started {
            applier,
            identity: check.identity,
            tables,
            prepared,
            ignored,
            resume_after: position.resume_after,
            fresh_slot: position.fresh_slot,
            tip: check.tip,
            frames,
            feedback,
            pipeline,
        })
    }

    async fn connect(&self) -> Result<Connected, SyncError> {
        let PipelineSettings { site, agent, slot, .. } = self.settings;
        // Before anything else, as even the migrations take a lock.
        let (of_agent, of_site) = tokio::join!(refuse_pooler(Side::Agent, agent), refuse_pooler(Side::Site, site));
        of_agent.and(of_site).map_err(AgentError::from)?;
        migrations::apply_twinlog(agent).await?;
        let mut applier = match Box::pin(Applier::connect(agent, slot, applier_settings(self.settings))).await {
            Err(busy @ AgentError::Busy { .. }) => return Err(Box::pin(or_busy(self.settings, busy)).await),
            connected => connected?,
        };
        let source = Source::connect(site, "twinlog setup").await?;
        let prepared = publication::prepare(source.client(), &self.settings.publication, self.selection).await?;
        let mut replication = ReplicationConnection::connect(site, &application_name(self.settings, self.slot)).await?;
        let system = replication.identify_system().await?;
        let pipeline = claims::pipeline(self.settings, system.system_identifier)?;
        applier.claim_for(pipeline.clone());
        let control = Control::connect(agent, slot, "twinlog setup").await?;
        Ok(Connected {
            applier,
            control,
            source,
            prepared,
            faults: Faults::default(),
            replication,
            pipeline,
        })
    }

    /// Takes over what is this pipeline's to write, and finds the tables that can't be replicated.
    async fn examine_tables(&self, connected: &mut Connected) -> Result<(), SyncError> {
        let Connected {
            applier,
            source,
            prepared,
            faults,
            ..
        } = connected;
        claims::settle(applier, source, prepared).await?;
        *faults = Box::pin(faults::find(applier, prepared, self.settings.on_new_column, self.fault)).await?;
        Ok(())
    }

    async fn check_slot(&self, connected: &mut Connected) -> Result<SlotCheck, SyncError> {
        let PipelineSettings { site, slot: name, .. } = self.settings;
        let replication = &mut connected.replication;
        let system = replication.identify_system().await?;
        let stored = connected.applier.durable_checkpoint().await?;
        let identity = SourceIdentity {
            database_oid: Some(source::database_oid(connected.source.client()).await?),
            ..identity(self.settings, &system)
        };
        let mut history = Vec::new();
        if stored
            .as_ref()
            .is_some_and(|stored| stored.checkpoint.identity.timeline != system.timeline)
        {
            let rows = replication
                .simple_query(&format!("TIMELINE_HISTORY {}", system.timeline))
                .await?;
            history = rows
                .first()
                .and_then(|row| row.get(1)?.as_deref())
                .map(parse_history)
                .unwrap_or_default();
        }
        let facts = SourceLog {
            identity: identity.clone(),
            wal_end: system.position,
            history,
        };
        let slot = source::slot(connected.source.client(), name, connected.prepared.version).await?;
        if let Some(slot) = &slot
            && slot.database != site.database
        {
            return Err(SyncError::SlotElsewhere {
                slot: name.clone(),
                database: slot.database.clone(),
            });
        }
        self.status.set_gap(
            stored
                .as_ref()
                .and_then(|stored| stored.gap.as_ref())
                .map(|gap| gap.reason.clone()),
        );
        let verdict = self
            .limit
            .named(continuity::judge(slot.as_ref(), stored.as_ref(), &facts));
        Ok(SlotCheck {
            identity,
            slot,
            stored,
            verdict,
            tip: system.position,
        })
    }

    async fn take_position(
        &self,
        connected: &mut Connected,
        check: &SlotCheck,
        tables: &mut TableBook,
    ) -> Result<Position, SyncError> {
        let existing_slot = |resume_after| Position {
            resume_after,
            fresh_slot: false,
        };
        match &check.verdict {
            Verdict::Resume(position) => Ok(existing_slot(*position)),
            Verdict::Adopt(position) => {
                let checkpoint = Checkpoint::at(&check.identity, *position);
                connected.applier.initialise_checkpoint(&checkpoint).await?;
                Ok(existing_slot(*position))
            }
            Verdict::Create => Ok(Position {
                resume_after: self.create_slot(connected, &check.identity).await?,
                fresh_slot: true,
            }),
            Verdict::Gap(reason) => {
                if !self.accept_gap(connected, check, reason, tables).await? {
                    return Err(SyncError::Gap(reason.clone()));
                }
                Ok(existing_slot(self.position_after_gap(connected, check, reason).await?))
            }
            Verdict::WrongPlugin(plugin) => Err(SyncError::WrongPlugin {
                slot: self.settings.slot.clone(),
                plugin: plugin.clone(),
            }),
        }
    }

    async fn create_slot(&self, connected: &mut Connected, identity: &SourceIdentity) -> Result<Lsn, SyncError> {
        let created = match connected.replication.create_slot(self.slot, SLOT_LOCK_TIMEOUT).await {
            Ok(created) => created,
            Err(error) => {
                if error.fault() == Some(ServerFault::LockTimeout) {
                    let pids = blockers(connected.source.client()).await;
                    warn!(slot = %self.slot, pids, "creating the slot waits until older transactions of the Site DB have ended: end the processes in pids, or wait");
                }
                return Err(error.into());
            }
        };
        self.limit.recreated();
        failpoint::reach(failpoint::name::SLOT_AFTER_CREATE);
        info!(slot = %self.slot, position = %created.consistent_point, "slot created");
        let checkpoint = Checkpoint::at(identity, created.consistent_point);
        connected.applier.initialise_checkpoint(&checkpoint).await?;
        Ok(created.consistent_point)
    }

    /// Rows may be missing: only a `resync --all` of an operator lets the stream continue, and the state stays `GAP`
    /// until every table is read again. Returns whether such a command is open.
    async fn accept_gap(
        &self,
        connected: &mut Connected,
        check: &SlotCheck,
        reason: &GapReason,
        tables: &mut TableBook,
    ) -> Result<bool, SyncError> {
        let Connected {
            applier,
            control,
            prepared,
            ..
        } = connected;
        if reason.must_be_stored() {
            applier.set_gap(&reason.to_string()).await?;
        }
        if self.settings.lost_slot.then == OnLostSlot::Resync
            && reason.may_be_made_up_for(check.stored.as_ref(), &check.identity)
        {
            resync::ask_for_all(control).await?;
        }
        let commands = control.open_commands().await?;
        let Some((command, mut resync)) = commands.into_iter().find_map(resync::complete_resync) else {
            return Ok(false);
        };
        // The checkpoint is about to be replaced. After that, only the stored gap says that rows may be missing.
        applier.set_gap(&reason.to_string()).await?;
        self.status.set_gap(Some(reason.to_string()));
        warn!(command, reason = %reason, "continuing after a gap: every table is read again");
        // Tables that the command read before the gap have to be read again.
        resync.progress = ResyncProgress::default();
        control.command_progress(command, &CommandKind::Resync(resync)).await?;
        for table in prepared.tables.keys() {
            let event = TableEvent::GapAccepted { command };
            if let Some(change) = tables.apply(table, event)? {
                applier.write_table(&change).await?;
            }
        }
        Ok(true)
    }

    /// Continues at the existing slot's position if the slot is still usable; otherwise creates a new slot.
    async fn position_after_gap(
        &self,
        connected: &mut Connected,
        check: &SlotCheck,
        reason: &GapReason,
    ) -> Result<Lsn, SyncError> {
        let confirmed = check.slot.as_ref().and_then(|slot| slot.confirmed_flush);
        match confirmed {
            Some(position) if !matches!(reason, GapReason::SlotLost(_)) => {
                let checkpoint = Checkpoint::at(&check.identity, position);
                connected.applier.initialise_checkpoint(&checkpoint).await?;
                Ok(position)
            }
            _ => {
                if check.slot.is_some() {
                    connected.replication.drop_slot(self.slot).await?;
                }
                self.create_slot(connected, &check.identity).await
            }
        }
    }

    /// Stores what happened to the tables since the last run. Returns the tables that are left out.
    async fn register_tables(
        &self,
        connected: &mut Connected,
        tables: &mut TableBook,
        checkpoint_lost: bool,
    ) -> Result<Faults, SyncError> {
        let Connected {
            applier,
            control,
            prepared,
            faults,
            ..
        } = connected;
        let mut unreplicable = Unreplicable::new(
            std::mem::take(faults),
            self.settings.on_unreplicable_table,
            self.selection,
            tables.records(),
        );
        unreplicable.keep_locked(tables.records(), |table| prepared.tables.contains_key(table));
        unreplicable.log_ignored();
        let shapes = control.shapes().await?;
        let found: BTreeMap<TableName, Shape> = prepared
            .tables
            .iter()
            .filter(|(name, _)| !unreplicable.held.contains_key(*name) && !unreplicable.ignored.contains_key(*name))
            .map(|(name, table)| (name.clone(), table.shape()))
            .collect();
        let selected = prepared.tables.keys().chain(unreplicable.held.keys());
        applier
            .settle_claims(selected.filter(|table| !unreplicable.ignored.contains_key(*table)))
            .await?;
        let at_start = AtStart {
            stored: tables.records(),
            shapes: &shapes,
            found: &found,
            held: &unreplicable.held,
            checkpoint_lost,
        };
        for due in at_start.due() {
            if let Some(event) = due.event {
                if let Some(why) = due.why {
                    warn!(table = %due.table, event = event.name(), why, "a table's state changed at the start");
                }
                let hold = match &event {
                    TableEvent::Held(hold) => Some(hold.clone()),
                    _ => None,
                };
                if let Some(change) = tables.apply(&due.table, event)? {
                    if let Some(Hold { cause, reason }) = hold {
                        warn!(table = %due.table, cause = cause.as_str(), %reason, "a table is held: its changes are passed over until the reason is gone, then it is read again");
                    }
                    applier.write_table(&change).await?;
                }
            }
            if let Some(shape) = due.shape {
                applier.remember_shape(&due.table, &shape).await?;
            }
        }
        let records = tables.records();
        Box::pin(applier.forget_parked_of_others(|table| records.contains_key(table))).await?;
        tables.publish();
        Ok(unreplicable.ignored)
    }

    async fn start_streaming(
        &self,
        replication: ReplicationConnection,
        applier: &mut Applier,
        source: &Source,
        version: i32,
        resume_after: Lsn,
    ) -> Result<(FrameStream, Feedback), SyncError> {
        let publications = [self.settings.publication.clone()];
        let stream = match replication
            .start_replication_as(self.slot, resume_after, &publications, self.form)
            .await
        {
            Ok(stream) => stream,
            Err(error) => {
                if error.fault() == Some(ServerFault::SlotActive) {
                    end_stale_walsender(source, self.settings, self.slot).await;
                }
                return Err(error.into());
            }
        };
        // Somebody may have moved the slot between the check and the start. The server would then silently begin at the
        // slot's new position, since it never sends again what was confirmed.
        let slot = source::slot(source.client(), &self.settings.slot, version).await?;
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
        Ok(stream)
    }
}
