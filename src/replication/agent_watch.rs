//! Notices that synchronised tables were changed in the Agent DB while the daemon runs: a type that was widened, a
//! constraint, a trigger or a right that came or went. The table is then looked up again before it is written the next
//! time, and its parked rows are tried again.
//!
//! Between two looks, a row that is refused is parked, and tried again at the next look; a delete that row-level security
//! hides is not seen, and made good when the table is released.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::agent_db::Control;
use crate::change::TableName;
use crate::shutdown;
use crate::source::SourceTable;

use super::error::SyncError;
use super::stream::requests::StreamRequests;

/// Interval between two looks: one query of the catalog, on a connection of its own.
const INTERVAL: Duration = Duration::from_secs(2);

/// What the watch needs from the run.
pub(super) struct AgentWatch {
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    pub(super) requests: StreamRequests,
}

impl AgentWatch {
    /// Looks until it is stopped.
    ///
    /// # Errors
    /// A query of the Agent DB failed.
    pub(super) async fn run(self, control: Control, stop: &CancellationToken) -> Result<(), SyncError> {
        let mut known = control.agent_marks(self.tables.keys()).await?;
        while shutdown::sleep(INTERVAL, stop).await {
            let now = control.agent_marks(self.tables.keys()).await?;
            for table in self.tables.keys().filter(|table| known.get(*table) != now.get(*table)) {
                info!(%table, "the table was changed in the Agent DB: it is looked up again");
                self.requests.agent_changed(table).await?;
                control.retry_table(table).await?;
            }
            known = now;
        }
        Ok(())
    }
}
