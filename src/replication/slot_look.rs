//! For `twinlog doctor`: whether a start would find that the slot continues where the Agent DB is. Opens a replication connection,
//! as a start does, and changes nothing.

use crate::agent_db::{Control, SourceIdentity, StoredCheckpoint};
use crate::source::{self, Source};
use crate::wire::ReplicationConnection;

use super::continuity::{GapReason, SourceLog, Verdict, judge, parse_history};
use super::error::SyncError;
use super::other_pipeline::identity;
use super::settings::PipelineSettings;

/// Why a start would find that rows may be missing; `None` if it would not. `stored`: the Agent DB's checkpoint.
///
/// # Errors
/// A connection can't be opened, a statement failed, or the slot is another program's.
pub async fn gap_now(
    settings: &PipelineSettings,
    stored: Option<&StoredCheckpoint>,
) -> Result<Option<GapReason>, SyncError> {
    let mut replication = ReplicationConnection::connect(&settings.site, "twinlog doctor").await?;
    let system = replication.identify_system().await?;
    let is_of_other_timeline = |stored: &&StoredCheckpoint| stored.checkpoint.identity.timeline != system.timeline;
    let mut history = Vec::new();
    if stored.filter(is_of_other_timeline).is_some() {
        let asked = format!("TIMELINE_HISTORY {}", system.timeline);
        let rows = replication.simple_query(&asked).await?;
        let content = rows.first().and_then(|row| row.get(1)?.as_deref());
        history = content.map(parse_history).unwrap_or_default();
    }
    replication.close().await;
    let source = Source::connect(&settings.site, "twinlog doctor").await?;
    let slot = source::slot(source.client(), &settings.slot, source::version(source.client()).await?).await?;
    if let Some(slot) = slot
        .as_ref()
        .filter(|slot| slot.plugin == "pgoutput" && slot.database != settings.site.database)
    {
        return Err(SyncError::SlotElsewhere {
            slot: settings.slot.clone(),
            database: slot.database.clone(),
        });
    }
    let log = SourceLog {
        identity: SourceIdentity {
            database_oid: Some(source::database_oid(source.client()).await?),
            ..identity(settings, &system)
        },
        wal_end: system.position,
        history,
    };
    let mut verdict = judge(slot.as_ref(), stored, &log);
    if matches!(verdict, Verdict::Gap(GapReason::SlotAhead { .. })) {
        // A running daemon has gone on since the checkpoint was read. It acknowledges no position before its checkpoint has it.
        let control = Control::connect(&settings.agent, &settings.slot, "twinlog doctor").await?;
        let now = control.visible_checkpoint().await?;
        verdict = judge(slot.as_ref(), now.as_ref(), &log);
        // Then the log has grown as well.
        if matches!(verdict, Verdict::Gap(GapReason::LogBehind { .. })) {
            return Ok(None);
        }
    }
    match verdict {
        Verdict::Create | Verdict::Adopt(_) | Verdict::Resume(_) => Ok(None),
        Verdict::Gap(reason) => Ok(Some(reason)),
        Verdict::WrongPlugin(plugin) => Err(SyncError::WrongPlugin {
            slot: settings.slot.clone(),
            plugin,
        }),
    }
}
