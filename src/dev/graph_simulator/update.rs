//! One update on its way to the callback.

use serde_json::Value;
use tokio::sync::oneshot;

/// A change about one number: Meta's `changes[]` entry with the account that it belongs to.
#[derive(Debug, Clone)]
pub(super) struct Update {
    pub(super) waba_id: String,
    pub(super) field: String,
    pub(super) value: Value,
}

/// An update that waits for its delivery.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) update: Update,
    /// Told when the first attempt is over, whether the callback took it or not.
    pub(super) attempted: Option<oneshot::Sender<()>>,
}
