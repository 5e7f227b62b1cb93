//! Why a message failed, waits, or has no outcome, as its row keeps it.

use crate::provider::ErrorClass;

/// Why a message failed, waits, or has no outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The provider's error code, if it gave one.
    pub code: Option<i32>,
    /// What kind of problem it is.
    pub class: ProblemClass,
    /// The reason as a sentence for people; the provider's own text if there is one.
    pub message: String,
}

/// `whatsapp_messages.error_class`, as far as the server writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemClass {
    /// The provider, or something on the way to it, refused the message.
    Refused(ErrorClass),
    /// The request never left: a fault of the network.
    NotSent,
    /// It is not known whether the message was sent.
    OutcomeUnknown,
    /// The message was cancelled because it repeats another one.
    Repeat,
    /// The message was cancelled because its client stopped waiting; the same client may ask again.
    WaitElapsed,
    /// A person decided so.
    Decided,
}

impl ProblemClass {
    /// As the column holds it; also a bounded label of a metric.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused(class) => class.as_str(),
            Self::NotSent => "not_sent",
            Self::OutcomeUnknown => "unknown",
            Self::Repeat => "repeat",
            Self::WaitElapsed => "wait_elapsed",
            Self::Decided => "decided",
        }
    }
}
