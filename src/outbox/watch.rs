//! Looks for messages that another process moved on, and tells those who wait for them here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::shared::Shared;
use crate::shutdown;
use crate::site_db::{MessageStatus, messages};

/// How often one statement looks at all messages that are waited for: another process may have sent one, or a status
/// webhook settled it. A quarter of a second is little beside the round trip to Meta.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks for all waiters of this process at once, and tells those whose message has moved on. Runs until the stop; then
/// nothing is begun elsewhere that a waiter could miss for long.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut seen: HashMap<Uuid, MessageStatus> = HashMap::new();
    loop {
        let ids = shared.waiters.ids();
        if !ids.is_empty()
            && let Ok(statuses) = messages::standing(&shared.pool, &ids).await
        {
            let before = std::mem::take(&mut seen);
            for messages::Standing { id, status } in statuses {
                // A waiter that is new here may have looked before its message moved on from where all begin.
                let moved = *before.get(&id).unwrap_or(&MessageStatus::Pending) != status;
                if moved {
                    shared.waiters.tell(id);
                }
                seen.insert(id, status);
            }
        }
        if !shutdown::sleep(LOOK_EVERY, &shared.stop).await {
            return;
        }
    }
}
