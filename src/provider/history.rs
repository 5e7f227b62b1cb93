//! What a provider has of the messages that a number sent: for messages whose answer was lost.

use time::OffsetDateTime;

use super::event::ReportedStatus;
use super::ids::{WaId, Wamid};

/// A message that the provider has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The provider's id of it.
    pub wamid: Wamid,
    /// Whom it is for, if the provider tells.
    pub recipient: Option<WaId>,
    /// What became of it, in no order.
    pub events: Vec<HistoryEvent>,
}

/// Something that happened to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEvent {
    /// The status that it reached.
    pub status: ReportedStatus,
    /// By the provider's clock, to the second.
    pub at: OffsetDateTime,
    /// The reason, for `failed`, as the provider words it.
    pub why: Option<String>,
}

/// Why the history says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// No answer, or none of the provider's.
    #[error("the provider does not answer ({0})")]
    NoAnswer(&'static str),
    /// The provider refuses to tell.
    #[error("the provider refuses to tell (code {0})")]
    Refused(i64),
    /// The number has sent more since then than is read.
    #[error("the number has sent too many messages since then")]
    TooLong,
}

impl HistoryEntry {
    /// The time of the first thing that happened to it; `None`: nothing is told.
    #[must_use]
    pub fn began(&self) -> Option<OffsetDateTime> {
        self.events.iter().map(|event| event.at).min()
    }
}
