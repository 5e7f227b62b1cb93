//! Checks every few seconds that the Site DB answers and has what this version needs; reports it in the health.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::health::{Component, Standing, Trouble};
use crate::shutdown;
use crate::site_db::{self, Pool, SiteError};

/// How often to check the Site DB: half of the time that a person needs to notice an outage.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often to check while it does not answer, so that the server is ready soon after it does.
const LOOK_EVERY_WHILE_MISSING: Duration = Duration::from_secs(1);
/// A check that takes longer counts as failed: the connection may hang.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// A round takes less.
const ROUND: Duration = Duration::from_secs(12);

/// Runs until the stop.
pub(super) async fn site_db(pool: Pool, health: Component, stop: CancellationToken) {
    let health = health.reports_every(ROUND);
    loop {
        let looked = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            looked = tokio::time::timeout(LOOK_TIMEOUT, site_db::check(&pool)) => {
                looked.unwrap_or(Err(SiteError::timed_out()))
            }
        };
        let ready = looked.is_ok();
        match looked {
            Ok(()) => health.ready(json!(null)),
            Err(error) => {
                let hint = error.hint().unwrap_or("see the Site DB's log");
                let reason = format!("requests are refused until it is ready: {}: {hint}", error.summary());
                health.stands(
                    Standing::NotReady(Trouble::new("not_ready", reason)),
                    json!({"sqlstate": error.sqlstate()}),
                );
            }
        }
        let wait = if ready { LOOK_EVERY } else { LOOK_EVERY_WHILE_MISSING };
        if !shutdown::sleep(wait, &stop).await {
            return;
        }
    }
}
