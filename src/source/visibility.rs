//! Waiting for transactions of the Site DB that a snapshot does not see: those that wrote a table before it was published,
//! and those whose commit is in the log already.

use std::time::Duration;

use tokio::sync::OnceCell;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::error::{SourceError, failed};
use crate::shutdown;

/// Between two looks: what is waited for is a commit, or a person.
const LOOK: Duration = Duration::from_millis(100);

/// Looks until somebody should know, and between two words of it: two seconds, half a minute.
const PATIENCE: (u32, u32) = (20, 300);

/// That everything of the log before this run can be seen by a snapshot: awaited once a run, by whoever reads rows first.
///
/// A transaction is streamed as soon as its commit is in the local log, but others see it only when its backend has gone
/// on; where it waits for a synchronous standby, that may take for ever. The transactions of this run are remembered, and
/// a chunk that does not see one of them is void (`copy::window`). Those that a run before this one has streamed and
/// applied are known to nobody: a chunk that does not see them would bring their old rows back.
#[derive(Debug, Default)]
pub struct Visibility(OnceCell<()>);

impl Visibility {
    /// Waits until rows may be read.
    ///
    /// # Errors
    /// A statement failed, or we were stopped.
    pub async fn wait(&self, client: &Client, stop: &CancellationToken) -> Result<(), SourceError> {
        self.0
            .get_or_try_init(|| wait_for_commits(client, stop))
            .await
            .map(|_| ())
    }
}

/// Waits for the commits that wait for a synchronous standby now. Without one, a commit that an earlier run has streamed
/// is visible long before this run can read a row.
async fn wait_for_commits(client: &Client, stop: &CancellationToken) -> Result<(), SourceError> {
    let row = client
        .query_one(
            "SELECT pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), \
             pg_catalog.current_setting('synchronous_standby_names') <> '', pg_catalog.clock_timestamp()::text",
            &[],
        )
        .await
        .map_err(failed("look for a synchronous standby"))?;
    let (sees_waits, awaits_standby, now): (bool, bool, String) = (row.get(0), row.get(1), row.get(2));
    if !sees_waits {
        // Any running transaction may be one of them.
        if awaits_standby {
            let why = "rows are not read before the Site DB's running transactions have ended, one of which may wait for \
                       a synchronous standby; after GRANT pg_read_all_stats to the role it could tell which";
            wait_for_running_transactions(client, stop, why).await?;
        }
        return Ok(());
    }
    let mut rounds = 0;
    loop {
        let pids: Option<String> = client
            .query_one(
                "SELECT pg_catalog.string_agg(pid::text, ', ') FROM pg_catalog.pg_stat_activity \
                 WHERE wait_event = 'SyncRep' AND xact_start <= $1::text::timestamptz",
                &[&now],
            )
            .await
            .map_err(failed("look for commits that wait for a standby"))?
            .get(0);
        let Some(pids) = pids else { return Ok(()) };
        rounds += 1;
        if should_say(rounds) {
            warn!(
                pids,
                "rows are not read before these commits of the Site DB, which wait for a synchronous standby, are visible"
            );
        }
        if !shutdown::sleep(LOOK, stop).await {
            return Err(SourceError::Stopped);
        }
    }
}

/// Waits until every transaction that runs now has ended (pitfall P10): what one of them wrote into a table before the
/// table joined the publication is in no stream, and in a copy's snapshot only once it has ended.
///
/// # Errors
/// A statement failed, or we were stopped.
pub async fn wait_for_running_transactions(
    client: &Client,
    stop: &CancellationToken,
    why: &str,
) -> Result<(), SourceError> {
    // An id of our own: a snapshot's end is the last transaction that has *ended*, and leaves out those that run beyond it.
    let horizon: String = client
        .query_one("SELECT pg_catalog.pg_current_xact_id()::text", &[])
        .await
        .map_err(failed("begin a transaction"))?
        .get(0);
    let mut rounds = 0;
    loop {
        let done: bool = client
            .query_one(
                "SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) > $1::text::xid8",
                &[&horizon],
            )
            .await
            .map_err(failed("read a snapshot"))?
            .get(0);
        if done {
            return Ok(());
        }
        rounds += 1;
        if should_say(rounds) {
            let pids = blockers(client).await;
            warn!(pids, "{why}");
        }
        if !shutdown::sleep(LOOK, stop).await {
            return Err(SourceError::Stopped);
        }
    }
}

fn should_say(rounds: u32) -> bool {
    rounds == PATIENCE.0 || rounds.is_multiple_of(PATIENCE.1)
}

/// The processes whose transactions are oldest, for a person to look at; empty where that can't be read.
pub async fn blockers(client: &Client) -> String {
    let rows = client
        .query(
            "SELECT pid::text || coalesce(' (' || application_name || ', ' || state || ')', '') \
             FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() \
             ORDER BY xact_start LIMIT 5",
            &[],
        )
        .await
        .unwrap_or_default();
    rows.iter()
        .filter_map(|row| row.get::<_, Option<String>>(0))
        .collect::<Vec<_>>()
        .join(", ")
}
