//! What came of asking a provider to send a message.
//!
//! The question that decides everything: could the provider have taken the message? [`Answer`] has one variant for each
//! reply, so that a sender can't take a lost answer for a refusal.

use super::ids::{ContactIdentity, WaId, Wamid};
use super::refusal::Refusal;

/// The end of one call.
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
    /// How far it went.
    pub status: AcceptedStatus,
}

/// How far an accepted message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptedStatus {
    /// On its way.
    Accepted,
    /// Kept by the provider while it judges the template. A status report tells what became of it; it must not be sent
    /// again.
    Held,
}

/// An answer, and the words in which it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// What it means.
    pub answer: Answer,
    /// For the client that asks again; `None` if there was none.
    pub response: Option<Response>,
}

/// An HTTP answer as it came, without our access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Its body as text.
    pub body: String,
}

impl From<Answer> for Answered {
    fn from(answer: Answer) -> Self {
        Self { answer, response: None }
    }
}
