//! Stores the webhooks of many requests in one statement; each request learns about its own.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::failpoint;
use crate::group_commit::{Bounds, Committer};
use crate::retry::Disposition;
use crate::site_db::webhook_events::{self, NewWebhook};
use crate::site_db::{Pool, SiteError};

/// A statement that takes longer has failed for its requests: each has waited as long, and Meta hears of it in time.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// - Three commits at a time: with 20 ms to the Site DB, each brings what came in the last 7 ms, and seven connections of the
///   usual ten are left for the other work.
/// - A batch of 512 rows or 1 MB keeps a statement in the range of milliseconds.
/// - What waits is what came while the Site DB did not answer. The webhooks beyond that are refused, and Meta sends them again.
pub(super) const BOUNDS: Bounds = Bounds {
    writers: 3,
    batch_items: 512,
    batch_bytes: 1024 * 1024,
    queue_items: 8192,
    queue_bytes: 16 * 1024 * 1024,
};

/// A webhook whose signature is right.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) body: Bytes,
    /// Hash (hex) of the body.
    pub(super) body_sha256: String,
}

/// Stores webhooks and returns their ids.
#[derive(Debug)]
pub(super) struct Storing(pub(super) Pool);

impl Committer for Storing {
    type Item = Verified;
    type Done = Uuid;
    type Error = SiteError;

    fn bytes(item: &Verified) -> usize {
        item.body.len()
    }

    fn is_an_items_fault(error: &SiteError) -> bool {
        error.disposition() == Disposition::Row
    }

    async fn commit(&self, items: &[Verified]) -> Result<Vec<Uuid>, SiteError> {
        let webhooks: Vec<NewWebhook<'_>> = items
            .iter()
            .map(|item| NewWebhook {
                body: &item.body,
                body_sha256: &item.body_sha256,
            })
            .collect();
        let ids = tokio::time::timeout(COMMIT_TIMEOUT, webhook_events::insert(&self.0, &webhooks))
            .await
            .unwrap_or(Err(SiteError::timed_out()))?;
        failpoint::reach(failpoint::name::WEBHOOK_AFTER_COMMIT);
        Ok(ids)
    }
}
