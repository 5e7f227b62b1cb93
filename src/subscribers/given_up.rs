//! What has waited for too long: behind others, or while the subscriber takes nothing or too little.

use std::time::Duration;

use crate::site_db::{Pool, SiteError, deliveries};

/// Most webhooks that are given up at a time.
const MOST: u16 = 5000;
/// How long it is kept that a webhook was given up.
const KEEP: Duration = Duration::from_secs(90 * 24 * 3600);

/// Gives up the oldest webhooks that have waited for longer than `longest`. Returns whether there may be more.
pub(super) async fn more(pool: &Pool, subscriber: &str, longest: Duration) -> Result<bool, SiteError> {
    let given_up = deliveries::give_up_old(pool, subscriber, longest, KEEP, MOST).await?;
    if given_up > 0 {
        tracing::error!(
            subscriber,
            given_up,
            hint = "twinlog subscribers retry NAME delivers them again",
            "webhooks were given up: they have waited for as long as retention.undelivered_days says"
        );
    }
    Ok(given_up >= u64::from(MOST))
}
