//! Noticing that the tables of the Site DB are others than at the set-up: one that was created or added to the
//! publication, one that left, a column list or a filter that changed.
//!
//! The stream says so itself, but only with the table's next change; rows that are there already would wait for it
//! unsynchronised and unseen. The answer is the one that every change of circumstances gets: the run ends, and the next
//! one's set-up finds everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::change::TableName;
use crate::config::Config;
use crate::shutdown;
use crate::source::{Selection, Source, SourceTable, publication};

use super::error::SyncError;

/// How often: a new table is a rare event that people watch, and looking costs the Site DB two catalog queries.
const LOOK: Duration = Duration::from_secs(5);

/// What the set-up found, to be compared with.
pub(super) struct Lookout {
    pub(super) config: Arc<Config>,
    pub(super) selection: Selection,
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    /// The Site DB's version, as `server_version_num`.
    pub(super) version: i32,
}

impl Lookout {
    /// Looks until it is stopped.
    ///
    /// # Errors
    /// The tables have changed, or the Site DB can't be asked.
    pub(super) async fn run(self, stop: &CancellationToken) -> Result<(), SyncError> {
        let source = Source::connect(&self.config.site.url).await?;
        while shutdown::sleep(LOOK, stop).await {
            let changed = publication::changed(
                source.client(),
                &self.config.sync,
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
