//! Subscribers that were removed from the configuration of all servers: nothing is kept for them any more.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::shutdown;
use crate::site_db::{Pool, deliveries, subscribers};

/// How often to look. The first look comes as late, when all servers that start now have noted theirs.
const EVERY: Duration = Duration::from_secs(3600);
/// A subscriber that no running server has had in its configuration for this long was removed. Servers are not updated that slowly.
const UNSEEN: Duration = Duration::from_secs(24 * 3600);

/// How many webhooks one statement deletes at most.
const BATCH: u16 = 2000;

/// Runs until the stop. What waits for a removed subscriber is deleted after `keep`.
pub(super) async fn run(pool: Pool, configured: Vec<String>, keep: Duration, stop: CancellationToken) {
    while shutdown::sleep(EVERY, &stop).await {
        let configured: Vec<&str> = configured.iter().map(String::as_str).collect();
        // The next look comes, and the Site DB's own component says why it can't be asked.
        let removed = subscribers::remove_unseen(&pool, &configured, UNSEEN).await;
        for name in removed.unwrap_or_default() {
            tracing::warn!(
                subscriber = name,
                hint = "twinlog subscribers forget NAME deletes what waits for it; otherwise it is kept for retention.undelivered_days",
                "no server has had this subscriber in its configuration for a day: webhooks are not kept for it any more"
            );
        }
        let mut deleted = 0;
        while let Ok(now @ 1..) = deliveries::forget_removed(&pool, keep, BATCH).await {
            deleted += now;
            if stop.is_cancelled() {
                break;
            }
        }
        if deleted > 0 {
            tracing::warn!(deleted, "webhooks that waited for removed subscribers were deleted");
        }
    }
}
