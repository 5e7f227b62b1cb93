//! Another daemon has the slot's lock in the Agent DB: the same pipeline's, for which this one stands by, or that of another
//! Site DB with the same `sync.slot`, which must never take over from it.

use crate::agent_db::{AgentError, Control, SourceIdentity};
use crate::wire::{ReplicationConnection, SystemIdentity};

use super::continuity::{GapReason, other_source};
use super::error::SyncError;
use super::resync::complete_resync;
use super::settings::PipelineSettings;

/// The error of a start that found the slot's lock taken.
pub(super) async fn or_busy(settings: &PipelineSettings, busy: AgentError) -> SyncError {
    match of_another(settings).await {
        // Where that can't be found out, the start that gets the lock finds it.
        Ok(None) | Err(_) => SyncError::Agent(busy),
        Ok(Some(reason)) => SyncError::SlotOfAnother {
            slot: settings.slot.clone(),
            reason,
        },
    }
}

/// Why the stored checkpoint is of another source than this pipeline's; `None` if it is not, or nothing is stored.
async fn of_another(settings: &PipelineSettings) -> Result<Option<String>, SyncError> {
    let control = Control::connect(&settings.agent, &settings.slot, "twinlog setup").await?;
    let Some(stored) = control.visible_checkpoint().await? else {
        return Ok(None);
    };
    let mut replication = ReplicationConnection::connect(&settings.site, "twinlog identify").await?;
    let system = replication.identify_system().await?;
    Ok(other_source(&stored.checkpoint.identity, &identity(settings, &system)).map(|reason| reason.to_string()))
}

/// Whether a start may go on to look at the tables. Where the slot's rows in the Agent DB are of another source, nothing is
/// written, until an operator says by `resync --all` that this one takes its place. A command that was meant for the other
/// Site DB, while its daemon is down, says nothing of the kind.
pub(super) async fn is_accepted(
    control: &Control,
    reason: &GapReason,
    identity: &SourceIdentity,
) -> Result<bool, SyncError> {
    if reason.must_be_stored() {
        return Ok(true);
    }
    let mut asked = control.open_commands().await?.into_iter().filter_map(complete_resync);
    Ok(asked.any(|(_, resync)| resync.arguments.site == Some(identity.site())))
}

/// The Site DB that a command is meant for, as [`SourceIdentity::site`] has it; `None` if it can't be reached.
pub async fn site_of(settings: &PipelineSettings) -> Option<String> {
    let mut replication = ReplicationConnection::connect(&settings.site, "twinlog identify")
        .await
        .ok()?;
    let system = replication.identify_system().await.ok()?;
    Some(identity(settings, &system).site())
}

/// What the pipeline reads. A replication connection does not say which OID the database has.
pub(super) fn identity(settings: &PipelineSettings, system: &SystemIdentity) -> SourceIdentity {
    SourceIdentity {
        system_identifier: system.system_identifier.clone(),
        timeline: system.timeline,
        database: settings.site.database.clone(),
        database_oid: None,
        slot: settings.slot.clone(),
        publication: settings.publication.clone(),
    }
}
