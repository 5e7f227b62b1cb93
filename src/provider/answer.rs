//! The result of asking a provider to send a message.
//!
//! The question that decides everything: can the provider have the message? [`Answer`] has one variant for each case, so
//! that a sender can't mistake a lost answer for a refusal.

use super::ids::{ContactIdentity, WaId, Wamid};
use super::refusal::Refusal;

/// The result of one call, as far as it decides whether the message may be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The provider has the message.
    Accepted(Accepted),
    /// The provider, or something on the way to it, read the request and refused it: the message was not sent.
    Refused(Refusal),
    /// The request may have arrived, but no answer came that says what happened: the message may have been sent.
    Lost(&'static str),
    /// The request never left (no address, no connection, no TLS): the message was not sent.
    NotSent(&'static str),
}

/// What the answer to an accepted send says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The provider's id of the message.
    pub wamid: Wamid,
    /// The recipient as WhatsApp knows it. The number may differ from the one dialled (Brazil, Mexico).
    pub recipient: ContactIdentity,
    /// The number that was dialled; `None` for a group or a business-scoped user id.
    pub dialled: Option<WaId>,
    /// Whether the provider delivers it now or keeps it for now.
    pub status: AcceptedStatus,
}

/// What the provider does with an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptedStatus {
    /// It delivers the message now.
    Delivering,
    /// It keeps the message until it has assessed the template. A status report tells the result; the message must not be
    /// sent again.
    UnderReview,
}

/// What a look at a number shows, without sending anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// The provider answers for the number.
    Well,
    /// The provider refuses calls for the number.
    Refused(Refusal),
    /// Something answers that is not the provider.
    Stranger {
        /// HTTP status.
        status: u16,
    },
    /// No answer.
    NoAnswer(&'static str),
}

/// An answer, and the HTTP response that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// What the response, or its absence, means.
    pub answer: Answer,
    /// Kept so that a client that asks again gets the same response; `None` if none came.
    pub response: Option<Response>,
}

/// An HTTP response as received, with our access token removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

impl From<Answer> for Answered {
    fn from(answer: Answer) -> Self {
        Self { answer, response: None }
    }
}
