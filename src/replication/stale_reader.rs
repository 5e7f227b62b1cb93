//! The replication connection of an earlier daemon that has died: it keeps the slot busy until the server notices.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tracing::info;

use crate::agent_db::{AgentError, Applier, ApplierSettings};
use crate::source::{self, Source};
use crate::wire::SlotName;

use super::settings::PipelineSettings;

/// A daemon answers the server every ten seconds at least: one that has not done so three times is dead.
const SILENT: Duration = Duration::from_secs(30);

/// Ends the walsender of an earlier daemon that has died. It has our application name, and the caller holds the slot's lock on the
/// Agent DB, so no living daemon has this name (pitfall P13). Returns whether there was one.
pub(super) async fn end_stale_walsender(source: &Source, settings: &PipelineSettings, slot: &SlotName) -> bool {
    let ended = source::end_reader(source.client(), slot.as_str(), &application_name(settings, slot), None).await;
    let has_ended = matches!(ended, Ok(true));
    if has_ended {
        info!(%slot, "ended the stale replication connection of an earlier daemon");
    }
    has_ended
}

/// The same for a caller that has not the slot's lock. Nobody can have it where the Agent DB is away, and then a living daemon may
/// still be about to end its stream: only a connection that has not answered for [`SILENT`] is ended.
pub(super) async fn end_if_dead(source: &Source, settings: &PipelineSettings, slot: &SlotName) -> bool {
    let applier = Applier::connect(&settings.agent, slot.as_str(), applier_settings(settings));
    let name = application_name(settings, slot);
    match Box::pin(applier).await {
        // The lock is held until the end of this arm.
        Ok(_lock) => end_stale_walsender(source, settings, slot).await,
        Err(AgentError::Busy { .. }) => false,
        Err(_) => matches!(
            source::end_reader(source.client(), slot.as_str(), &name, Some(SILENT)).await,
            Ok(true)
        ),
    }
}

/// What the session that writes needs to know.
pub(super) fn applier_settings(settings: &PipelineSettings) -> ApplierSettings {
    ApplierSettings {
        application_name: "twinlog apply".to_owned(),
        max_failed_rows: settings.parking.max_rows,
        retry_initial: settings.parking.retry.0,
        retry_max: settings.parking.retry.1,
        statement_limit: settings.statement_limit,
    }
}

/// The `application_name` of the replication connection: the same for every daemon of this Agent DB and slot, and different from
/// all others, so that a stale connection of ours can be recognised.
pub(super) fn application_name(settings: &PipelineSettings, slot: &SlotName) -> String {
    let hash = Sha256::digest(format!("{} {slot}", settings.agent));
    format!("twinlog stream {}", hex::encode(&hash[..8]))
}
