//! Deletes webhook events that are no longer needed, as `[retention]` says: in small batches, with pauses, so that the work of
//! the day does not notice. One that is not processed is never deleted.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Retention;
use crate::shutdown;
use crate::site_db::webhook_events::{self, WebhookState};
use crate::site_db::{Pool, SiteError};

/// How often to look for old ones.
const EVERY: Duration = Duration::from_secs(3600);
/// The first look: not while the server starts.
const FIRST: Duration = Duration::from_secs(60);
/// Deleted by one statement: some milliseconds.
const BATCH: u32 = 500;
/// Between two batches: at most a few percent of the Site DB's time, and still a million in ten minutes.
const PAUSE: Duration = Duration::from_millis(250);

/// Runs until the stop.
pub(super) async fn run(pool: Pool, retention: Retention, stop: CancellationToken) {
    let mut wait = FIRST;
    while shutdown::sleep(wait, &stop).await {
        wait = EVERY;
        match forget(&pool, retention, &stop).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(
                deleted,
                "webhook events that are older than [retention] says were deleted"
            ),
            // The next look goes on.
            Err(error) => tracing::warn!(
                sqlstate = error.sqlstate(),
                hint = error.hint(),
                "old webhook events could not be deleted: {error}"
            ),
        }
    }
}

/// Deletes all that are old enough; returns how many.
pub(super) async fn forget(pool: &Pool, retention: Retention, stop: &CancellationToken) -> Result<u64, SiteError> {
    let mut deleted = 0;
    for (state, months) in [
        (WebhookState::Processed, retention.processed_webhooks_months),
        (WebhookState::Failed, retention.failed_webhooks_months),
    ] {
        if months == 0 {
            continue;
        }
        loop {
            let batch = webhook_events::forget(pool, state, months, BATCH).await?;
            deleted += batch;
            if batch < u64::from(BATCH) || !shutdown::sleep(PAUSE, stop).await {
                break;
            }
        }
    }
    Ok(deleted)
}
