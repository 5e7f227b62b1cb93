//! Noticing that the Site DB's catalog is another one than at the start: a table that was created or added to the
//! publication, one that left, a column list or a row filter that changed.
//!
//! The stream says so itself, but only with the table's next change; rows that are there already would wait for it
//! unsynchronised and unseen. The answer is the one that every change of circumstances gets: the run ends, and the next
//! one's start finds everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::change::TableName;
use crate::shutdown;
use crate::source::{Selection, Source, SourceTable, publication};

use super::error::SyncError;
use super::settings::PipelineSettings;

/// How often: a new table is a rare event that people watch, and looking costs the Site DB two catalog queries.
const LOOK: Duration = Duration::from_secs(5);

/// What the start found, to be compared with.
pub(super) struct CatalogWatch {
    pub(super) settings: Arc<PipelineSettings>,
    pub(super) selection: Selection,
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    /// The Site DB's version, as `server_version_num`.
    pub(super) version: i32,
}

impl CatalogWatch {
    /// Looks until it is stopped.
    ///
    /// # Errors
    /// The tables have changed, or the Site DB can't be asked.
    pub(super) async fn run(self, stop: &CancellationToken) -> Result<(), SyncError> {
        let source = Source::connect(&self.settings.site).await?;
        while shutdown::sleep(LOOK, stop).await {
            let changed = publication::changed(
                source.client(),
                &self.settings.publication,
                self.version,
                &self.selection,
                &self.tables,
            );
            if let Some(table) = changed.await? {
                return Err(SyncError::TableChanged(table));
            }
        }
        Ok(())
    }
}
