//! Waits for transactions of the Site DB that a snapshot would not see: those that changed a table before it was
//! published, and those whose commit is already in the log but not visible yet.

use std::time::Duration;

use std::time::Instant;

use tokio::sync::{Mutex, OnceCell};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::Source;
use super::error::{SourceError, failed};
use crate::postgres::waits::running_transactions;
use crate::shutdown;

/// Interval between two checks.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// Checks until the wait is told for the first time (two seconds), and until it is told again (the same).
const TELL_EVERY: u32 = 20;

/// Is told what is waited for, and `None` at the end.
pub type OnWait<'a> = &'a (dyn Fn(Option<String>) + Send + Sync);

/// Lets the first reader of a run wait until snapshots see everything that earlier runs have applied.
///
/// A transaction is streamed as soon as its commit is in the local log, but others see it only a moment later, or, if
/// it waits for a synchronous standby, after any time. The transactions of this run are remembered, and a chunk that
/// does not see one of them is read again (`copy::window`). Transactions that an earlier run has applied are not
/// remembered: a chunk that does not see them would write their old rows again.
#[derive(Debug, Default)]
pub struct Visibility(OnceCell<()>);

impl Visibility {
    /// Waits until rows may be read; returns at once after the first time.
    ///
    /// # Errors
    /// A statement failed, or we were stopped.
    pub async fn wait(
        &self,
        client: &Client,
        stop: &CancellationToken,
        on_wait: OnWait<'_>,
    ) -> Result<(), SourceError> {
        self.0
            .get_or_try_init(|| wait_for_commits(client, stop, on_wait))
            .await
            .map(|_| ())
    }
}

/// Waits for the commits that wait for a synchronous standby now. Without a synchronous standby there is nothing to
/// wait for: a commit that an earlier run has streamed is visible long before this run reads rows.
async fn wait_for_commits(client: &Client, stop: &CancellationToken, on_wait: OnWait<'_>) -> Result<(), SourceError> {
    let row = client
        .query_one(
            "SELECT pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_waits, \
             pg_catalog.current_setting('synchronous_standby_names') <> '' AS awaits_standby, \
             pg_catalog.clock_timestamp()::text AS now",
            &[],
        )
        .await
        .map_err(failed("look for a synchronous standby"))?;
    let (sees_waits, awaits_standby): (bool, bool) = (row.get("sees_waits"), row.get("awaits_standby"));
    let now: String = row.get("now");
    if !sees_waits {
        // Any running transaction may be one of them.
        if awaits_standby {
            let why = "copies and retries of failed rows wait until the Site DB's running transactions have ended, since one of them may wait for a \
                       synchronous standby; to shorten this wait, on the Site DB: GRANT pg_read_all_stats TO the role";
            wait_for_running_transactions(client, stop, why, on_wait).await?;
        }
        return Ok(());
    }
    let mut checks = 0;
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
        let Some(pids) = pids else {
            on_wait(None);
            return Ok(());
        };
        checks += 1;
        if should_tell(checks) {
            on_wait(Some(format!(
                "copies and retries of failed rows wait for commits that wait for a synchronous standby (pids {pids}): check that it runs"
            )));
        }
        if !shutdown::sleep(CHECK_EVERY, stop).await {
            return Err(SourceError::Stopped);
        }
    }
}

/// Waits until every transaction that runs now has ended (pitfall P10). What one of them wrote into a table before the
/// table was published is not in the stream, and a copy's snapshot sees it only after that transaction has ended.
///
/// # Errors
/// A statement failed, or we were stopped.
pub async fn wait_for_running_transactions(
    client: &Client,
    stop: &CancellationToken,
    why: &str,
    on_wait: OnWait<'_>,
) -> Result<(), SourceError> {
    // Take a new transaction id as the limit. A snapshot's xmax would miss running transactions with higher ids.
    let horizon: String = client
        .query_one("SELECT pg_catalog.pg_current_xact_id()::text", &[])
        .await
        .map_err(failed("begin a transaction"))?
        .get(0);
    let mut checks = 0;
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
            on_wait(None);
            return Ok(());
        }
        checks += 1;
        if should_tell(checks) {
            on_wait(Some(format!("{why}: {}", blockers(client).await)));
        }
        if !shutdown::sleep(CHECK_EVERY, stop).await {
            return Err(SourceError::Stopped);
        }
    }
}

/// The waits of all new tables for older transactions, one at a time: what one waits for, those that come later wait for too.
#[derive(Debug, Default)]
pub struct OlderTransactions(
    /// When the last wait began that has come to its end.
    Mutex<Option<Instant>>,
);

impl OlderTransactions {
    /// Waits until every transaction that runs now has ended. `connect`: opens the session that looks, if one is needed.
    ///
    /// # Errors
    /// A statement or the connection failed, or we were stopped.
    pub async fn wait(
        &self,
        connect: impl Future<Output = Result<Source, SourceError>>,
        stop: &CancellationToken,
        why: &str,
        on_wait: OnWait<'_>,
    ) -> Result<(), SourceError> {
        let since = Instant::now();
        let mut ended = tokio::select! {
            () = stop.cancelled() => return Err(SourceError::Stopped),
            ended = self.0.lock() => ended,
        };
        if ended.is_some_and(|began| began >= since) {
            return Ok(());
        }
        let began = Instant::now();
        let source = connect.await?;
        wait_for_running_transactions(source.client(), stop, why, on_wait).await?;
        *ended = Some(began);
        Ok(())
    }
}

fn should_tell(checks: u32) -> bool {
    checks.is_multiple_of(TELL_EVERY)
}

/// Who has transactions that run now, prepared ones included, for a log line; empty if that can't be read.
pub async fn blockers(client: &Client) -> String {
    running_transactions(client).await.unwrap_or_default()
}
