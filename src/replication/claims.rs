//! Which tables are this pipeline's to write: what the configuration says, and whose claims are over.

use std::sync::Arc;

use tracing::info;

use crate::agent_db::{Applier, Pipeline, TableSettings};
use crate::change::TableName;
use crate::source::publication::Prepared;
use crate::source::{self, Selection, Source};

use super::error::SyncError;
use super::settings::PipelineSettings;

/// `sync.tables` and `sync.shared_tables`.
#[derive(Debug)]
struct Patterns {
    tables: Selection,
    shared: Selection,
}

impl TableSettings for Patterns {
    fn is_shared(&self, table: &TableName) -> bool {
        self.shared.takes(table)
    }

    fn without(&self, table: &TableName) -> String {
        self.tables.without(table)
    }
}

/// The pipeline, as claims name it. `system_identifier`: of the Site DB.
pub(super) fn pipeline(settings: &PipelineSettings, system_identifier: String) -> Result<Pipeline, SyncError> {
    Ok(Pipeline {
        slot: settings.slot.clone(),
        system_identifier,
        database: settings.site.database.clone(),
        tables: Arc::new(Patterns {
            tables: Selection::new(&settings.tables)?,
            shared: Selection::new(&settings.shared_tables)?,
        }),
    })
}

/// Of slots that claim tables, all of this Site DB, those that do not exist there any more: a new slot was made in place of
/// them, so their claims are over.
pub(super) async fn gone(source: &Source, slots: Vec<String>, version: i32) -> Result<Vec<String>, SyncError> {
    let mut gone = Vec::new();
    for slot in slots {
        if source::slot(source.client(), &slot, version).await?.is_none() {
            gone.push(slot);
        }
    }
    Ok(gone)
}

/// Gives back the claims of tables that are not selected any more, and takes over those of slots that are gone.
pub(super) async fn settle(applier: &Applier, source: &Source, prepared: &Prepared) -> Result<(), SyncError> {
    let slots = applier.other_claiming_slots().await?;
    for slot in gone(source, slots, prepared.version).await? {
        log_taken_over(&slot, applier.remove_abandoned_claims(&slot).await?);
    }
    // A table that is not published any more may be a partition of one that is, or the reverse.
    let selected = prepared.tables.keys().chain(prepared.faults.keys());
    Ok(applier.settle_claims(selected.chain(&prepared.refused)).await?)
}

/// Says that claims were removed.
pub(super) fn log_taken_over(slot: &str, tables: u64) {
    if tables > 0 {
        info!(former_slot = %slot, tables, "slot former_slot does not exist any more in the Site DB: its claims on tables of the Agent DB are removed, and this pipeline can take them");
    }
}
