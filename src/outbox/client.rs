//! A client that waits, and perhaps leaves before it has its answer.
//!
//! Many clients have a time-out of a few seconds and send the same request again. The first one is on its way to the provider
//! then, so the message would be sent twice. If the connection breaks, the future that answers it is dropped: that is noted in
//! the message's row, and the repeat gets the first one's answer, at whichever server it arrives.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use uuid::Uuid;

use super::repeats::RequestKey;
use super::shared::Shared;
use crate::shutdown;
use crate::site_db::messages;

/// Pauses before the row is looked for: it may not be committed yet, or the Site DB may be away for a moment.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_secs(2),
    Duration::from_secs(8),
    Duration::from_secs(20),
    Duration::from_secs(40),
];

/// As long as it lives, the client is there. Dropped without [`Self::done`], it has left.
#[derive(Debug)]
pub(super) struct ClientThatWaits {
    /// `None`: it has its answer, or nobody waits.
    waiting: Option<(Arc<Shared>, Uuid)>,
}

impl ClientThatWaits {
    /// A client that waits for the message with this id, which may not be stored yet.
    pub(super) fn new(shared: &Arc<Shared>, id: Uuid) -> Self {
        Self {
            waiting: Some((Arc::clone(shared), id)),
        }
    }

    /// It has its answer.
    pub(super) fn done(mut self) {
        if let Some((shared, id)) = self.waiting.take() {
            shared.repeats.ends(id);
        }
    }
}

impl Drop for ClientThatWaits {
    fn drop(&mut self) {
        if let (Some((shared, id)), Ok(runtime)) = (self.waiting.take(), Handle::try_current()) {
            shared.wake(&shared.repeats.left(id));
            runtime.spawn(async move { note(&shared, id).await });
        }
    }
}

/// Tells that an answer was probably not read.
#[derive(Clone)]
pub struct Receipt {
    shared: Arc<Shared>,
    key: RequestKey,
    id: Uuid,
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Receipt {
    pub(super) const fn new(shared: Arc<Shared>, key: RequestKey, id: Uuid) -> Self {
        Self { shared, key, id }
    }

    /// The connection was reset after the answer had been written to it: an equal request that comes now gets the same answer.
    pub fn unread(self) {
        self.shared.wake(&self.shared.repeats.unread(self.key, self.id));
    }
}

async fn note(shared: &Shared, id: Uuid) {
    for pause in PAUSES {
        if !shutdown::sleep(pause, &shared.stop).await {
            break;
        }
        match messages::client_left(&shared.pool, id).await {
            Ok(true) => {
                tracing::debug!(message_id = %id, "a client left before it had its answer");
                return;
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(message_id = %id, "that a client left is not noted yet: {error}"),
        }
    }
}
