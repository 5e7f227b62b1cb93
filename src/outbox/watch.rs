//! Finds messages whose status another process changed, and wakes their waiters in this process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::shared::Shared;
use crate::shutdown;
use crate::site_db::{MessageStatus, messages};

/// How often one statement queries the status of all messages that clients wait for: another process may have sent one,
/// or a status webhook settled it. A quarter of a second is little compared with the round trip to Meta.
const QUERY_EVERY: Duration = Duration::from_millis(250);

/// Queries for all waiters of this process at once, and wakes those whose message has a new status. Runs until the stop;
/// after it, each waiter still queries for itself (see `wait`).
pub(super) async fn run(shared: Arc<Shared>) {
    let mut seen: HashMap<Uuid, MessageStatus> = HashMap::new();
    loop {
        let ids = shared.waiters.ids();
        if !ids.is_empty()
            && let Ok(statuses) = messages::standing(&shared.pool, &ids).await
        {
            let before = std::mem::take(&mut seen);
            for messages::Standing { id, status } in statuses {
                // A message not seen before counts as `pending`: its waiter may have queried it before the status changed.
                let moved = *before.get(&id).unwrap_or(&MessageStatus::Pending) != status;
                if moved {
                    shared.waiters.tell(id);
                }
                seen.insert(id, status);
            }
        }
        if !shutdown::sleep(QUERY_EVERY, &shared.stop).await {
            return;
        }
    }
}
