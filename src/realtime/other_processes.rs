//! Finds messages whose status another process changed, and wakes their waiters in this process.

use std::collections::HashMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::waiters::Waiters;
use crate::shutdown;
use crate::site_db::{MessageStatus, Pool, messages};

/// How often one statement queries the status of all messages with waiters: another process may have sent one,
/// or a status webhook settled it. A quarter of a second is little compared with the round trip to Meta.
const QUERY_EVERY: Duration = Duration::from_millis(250);

/// Queries for all waiters of this process at once, and wakes those whose message has a new status. Runs until the stop;
/// after it, each waiter still queries for itself (see `outbox::wait`).
pub async fn run(pool: Pool, waiters: Waiters, stop: CancellationToken) {
    let mut seen: HashMap<Uuid, MessageStatus> = HashMap::new();
    loop {
        let ids = waiters.ids();
        if !ids.is_empty()
            && let Ok(statuses) = messages::standing(&pool, &ids).await
        {
            let before = std::mem::take(&mut seen);
            for messages::Standing { id, status } in statuses {
                // A message not seen before counts as `pending`: its waiter may have queried it before the status changed.
                let moved = *before.get(&id).unwrap_or(&MessageStatus::Pending) != status;
                if moved {
                    waiters.committed(id);
                }
                seen.insert(id, status);
            }
        }
        if !shutdown::sleep(QUERY_EVERY, &stop).await {
            return;
        }
    }
}
