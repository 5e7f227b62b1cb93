//! When to try parked rows again: as soon as they are due, a table's keys together.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::agent_db::{AgentError, Control};
use crate::change::{Key, TableName};
use crate::config::Config;
use crate::copy::board::Board;
use crate::copy::{Reader, Source, SourceTable};

use super::copying::describe;
use super::error::SyncError;
use super::pipeline::Request;

/// Keys read between one pair of fences.
const KEYS: u32 = 500;

/// How long nothing is looked at while nothing is parked; `failed retry` notifies.
const IDLE: Duration = Duration::from_secs(1);

/// At least this long between two rounds: a key of a table that is not synchronised any more stays due for ever.
const PAUSE: Duration = Duration::from_millis(50);

/// What healing needs of the run.
pub(super) struct Healing {
    pub(super) config: Arc<Config>,
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    pub(super) board: Board,
    pub(super) requests: mpsc::Sender<Request>,
}

impl Healing {
    /// Heals what is due until it is stopped.
    pub(super) async fn run(self, control: Control, stop: &CancellationToken) -> Result<(), SyncError> {
        let mut source: Option<Source> = None;
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
            let mut due: HashMap<TableName, Vec<Key>> = HashMap::new();
            for failed in control.due_failed_rows(KEYS).await? {
                due.entry(failed.table).or_default().push(failed.key);
            }
            for (table, keys) in due {
                let Some(table) = self.tables.get(&table) else { continue };
                let source = match &mut source {
                    Some(source) => source,
                    none => none.insert(Source::connect(&self.config.site.url).await?),
                };
                let relation = describe(&self.requests, table).await?;
                let reader = Reader {
                    board: &self.board,
                    source,
                    table,
                    relation: &relation,
                };
                Box::pin(reader.heal(&keys)).await?;
                debug!(table = %table.table, keys = keys.len(), "parked rows tried again");
            }
        }
    }
}
