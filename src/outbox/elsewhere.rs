//! What other processes, other parts of this one, and other programs did to messages: wakes those who wait for one, and the
//! numbers that have one to send.

use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

use super::shared::Shared;
use crate::realtime::Heard;
use crate::site_db::MessageStatus;
use crate::site_db::events::{Event, EventKind};

/// Runs until the stop. Without events (the Site DB was away), waiting requests and numbers ask the Site DB themselves now
/// and then.
pub(super) async fn run(shared: Arc<Shared>, mut events: Receiver<Heard>) {
    loop {
        let received = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            received = events.recv() => received,
        };
        match received {
            Ok(Heard::Event(event)) => tell(&shared, &event),
            Ok(Heard::Missed) | Err(RecvError::Lagged(_)) => {
                shared.waiters.committed_any();
                for sender in shared.senders.values() {
                    sender.ask_for_scan();
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

fn tell(shared: &Shared, event: &Event) {
    if event.kind == EventKind::MessageStatus {
        for (id, status) in event.ids.iter().zip(&event.statuses) {
            // Nobody waits for an attempt to begin.
            if status != MessageStatus::Sending.as_str() {
                shared.waiters.committed(*id);
            }
        }
    }
    // What this process stored or put back, it knows itself.
    let elsewhere = event.origin != Some(shared.pool.process());
    let about_messages = matches!(event.kind, EventKind::MessageCreated | EventKind::MessageStatus);
    if elsewhere
        && about_messages
        && event
            .statuses
            .iter()
            .any(|status| status == MessageStatus::Pending.as_str())
    {
        let number = |id: Uuid| {
            shared
                .senders
                .values()
                .find(|sender| sender.known_account_id() == Some(id))
        };
        if let Some(sender) = event.account_id.and_then(number) {
            sender.ask_for_scan();
        }
    }
}
