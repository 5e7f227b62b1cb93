//! This process, as the Site DB knows it, and who waits for its commits.

use tokio::sync::Notify;
use uuid::Uuid;

/// This process.
#[derive(Debug)]
pub(super) struct Process {
    /// Set in each session; events of this process bear it.
    pub(super) id: Uuid,
    /// Told after each commit that may have written events.
    committed: Notify,
}

impl Process {
    pub(super) fn new() -> Self {
        Self {
            id: Uuid::new_v4(),
            committed: Notify::new(),
        }
    }

    /// Something was committed.
    pub(super) fn committed(&self) {
        self.committed.notify_one();
    }

    /// Waits until something was committed since the last call. For one waiter.
    pub(super) async fn next_commit(&self) {
        self.committed.notified().await;
    }
}
