//! Tries parked rows again when they are due, all due keys of a table together.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::agent_db::{AgentError, Control, FailedKey};
use crate::change::{Key, Row, TableName};
use crate::copy::{ChunkReader, ChunkRegistry, CopyError, Wanted};
use crate::retry::Disposition;
use crate::shutdown;
use crate::source::{Source, SourceTable, Visibility};

use super::error::SyncError;
use super::settings::PipelineSettings;
use super::stream::requests::StreamRequests;

/// Keys read between one pair of fences.
const KEYS: u32 = 500;

/// Longest wait between two checks for due rows. `twinlog failed retry` wakes the task sooner, by `NOTIFY`.
const IDLE: Duration = Duration::from_secs(1);

/// Shortest wait between two checks: a key of a table that is not synchronised any more stays due for ever, and would
/// otherwise keep the loop busy.
const PAUSE: Duration = Duration::from_millis(50);

/// How long healing waits after the Site DB refused a read.
const REFUSED_RETRY: Duration = Duration::from_secs(5);

/// What healing needs from the run.
pub(super) struct Healing {
    pub(super) settings: Arc<PipelineSettings>,
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    pub(super) chunks: ChunkRegistry,
    pub(super) requests: StreamRequests,
    pub(super) visibility: Arc<Visibility>,
}

impl Healing {
    /// Tries due rows again until it is stopped.
    pub(super) async fn run(self, control: Control, stop: &CancellationToken) -> Result<(), SyncError> {
        let mut source: Option<Source> = None;
        // The refusal that was logged last, so that the same one is logged only once.
        let mut held: Option<(TableName, String)> = None;
        loop {
            let wait = control
                .next_failed_row_due()
                .await?
                .map_or(IDLE, |due| due.clamp(PAUSE, IDLE));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = control.notified() => if control.is_closed() {
                    return Err(AgentError::Aborted.into());
                },
                () = tokio::time::sleep(wait) => {}
            }
            if !self.heal_due(&control, &mut source, &mut held, stop).await?
                && !shutdown::sleep(REFUSED_RETRY, stop).await
            {
                return Ok(());
            }
        }
    }

    /// Tries the keys that are due. Returns false if the Site DB refused a read.
    async fn heal_due(
        &self,
        control: &Control,
        source: &mut Option<Source>,
        held: &mut Option<(TableName, String)>,
        stop: &CancellationToken,
    ) -> Result<bool, SyncError> {
        let mut due: HashMap<TableName, Vec<FailedKey>> = HashMap::new();
        for failed in control.due_failed_rows(KEYS).await? {
            due.entry(failed.table.clone()).or_default().push(failed);
        }
        let mut readable = true;
        for (table, keys) in due {
            let Some(table) = self.tables.get(&table) else { continue };
            match Box::pin(self.heal(source, table, &keys, stop)).await {
                // Stopping: the stream's loop drains, and only its result counts.
                Err(_) if stop.is_cancelled() => return Ok(true),
                Ok(()) => debug!(table = %table.table, keys = keys.len(), "parked rows tried again"),
                // The stream does not depend on this read: keep it running, and leave the rows parked.
                Err(SyncError::Copy(error)) if error.disposition() != Disposition::Transient => {
                    readable = false;
                    *source = None;
                    let reason = SyncError::Copy(error).explain();
                    if held.as_ref() != Some(&(table.table.clone(), reason.clone())) {
                        warn!(table = %table.table, %reason, "parked rows can't be read from the Site DB: they stay parked, and are tried again");
                        *held = Some((table.table.clone(), reason));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(readable)
    }

    async fn heal(
        &self,
        source: &mut Option<Source>,
        table: &SourceTable,
        failed: &[FailedKey],
        stop: &CancellationToken,
    ) -> Result<(), SyncError> {
        let source = match source {
            Some(source) => source,
            none => none.insert(
                Source::connect(&self.settings.site, "twinlog heal")
                    .await
                    .map_err(CopyError::from)?,
            ),
        };
        self.visibility.wait(source.client(), stop).await?;
        let relation = self.requests.resolve(table.description()).await?;
        let reader = ChunkReader {
            chunks: &self.chunks,
            source,
            table,
            relation: &relation,
        };
        if relation.counts_rows() {
            let rows: Vec<Row> = failed.iter().filter_map(|failed| failed.row.clone()).collect();
            Box::pin(reader.heal(Wanted::Rows(&rows))).await?;
        } else {
            let keys: Vec<Key> = failed
                .iter()
                .filter(|failed| failed.row.is_none())
                .map(|failed| failed.key.clone())
                .collect();
            Box::pin(reader.heal(Wanted::Keys(&keys))).await?;
        }
        Ok(())
    }
}
