//! What a provider tells us unasked: messages, reports about ours, changes of identity, news about an account.
//!
//! A provider's callback may carry many events, of several numbers. Each can be read or not on its own; one that can't is
//! [`Content::Malformed`] among its neighbours.

use serde_json::Value;
use time::OffsetDateTime;

use super::ids::{ContactIdentity, PhoneNumberId, UserId, WaId, Wamid};
use super::opaque::OpaqueId;
use super::refusal::Refusal;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The business account that it concerns, where the provider has such.
    pub waba_id: Option<String>,
    /// Our number, where it concerns one.
    pub phone_number_id: Option<PhoneNumberId>,
    /// Our number as people dial it.
    pub display_phone_number: Option<String>,
    /// The provider's name for this kind of event (Meta: the subscribed field).
    pub field: String,
    /// What it says.
    pub content: Content,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A user wrote to us.
    Message(Box<Message>),
    /// A message of ours got a status.
    Status(Box<StatusReport>),
    /// We wrote to a user with another program, such as the WhatsApp Business app on the phone.
    Echo(Box<Message>),
    /// A message from before the number came to the provider.
    History {
        /// The message.
        message: Box<Message>,
        /// Who wrote it.
        direction: Direction,
        /// Its status then, in lower case: `delivered`, `error`, `pending`, `played`, `read`, `sent`.
        status: Option<String>,
    },
    /// A user's business-scoped id has changed: the number did.
    UserIdChanged {
        /// The id that we may know.
        previous: UserId,
        /// The id that counts from now on.
        current: UserId,
    },
    /// An error without a message: throughput, the app, the account.
    AccountError(Box<Refusal>),
    /// News about the account or the number that may stop us from sending: a person should look.
    AccountNotice(Value),
    /// Anything else, kept as it came.
    Other(Value),
    /// It could not be read; the reason names no values.
    Malformed(&'static str),
}

/// Who wrote a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// A user to us.
    Inbound,
    /// We to a user.
    Outbound,
}

impl Direction {
    /// The `direction` column, a metric's label, a member of the API's answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// A message, in either direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The provider's id of it.
    pub wamid: Wamid,
    /// The user: its sender, or its recipient if we wrote it.
    pub contact: ContactIdentity,
    /// The provider's id of the group that it was written in.
    pub group: Option<String>,
    /// Meta's name of the type, which all providers' types are told in; `unknown` if there is none.
    pub kind: String,
    /// What a person reads of it.
    pub text: Option<String>,
    /// The message that it answers, reacts to, edits or revokes.
    pub context: Option<Wamid>,
    /// When it was written, by WhatsApp's clock, to the second.
    pub at: Option<OffsetDateTime>,
    /// The advertisement that brought the user.
    pub referral: Option<Value>,
    /// The number that the user has from now on, if this notice says so.
    pub new_number: Option<WaId>,
    /// The whole object as it came.
    pub raw: Value,
}

/// What a provider reports of a message of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusReport {
    /// The message.
    pub wamid: Wamid,
    /// The provider's word, in lower case: `sent`, `delivered`, `read`, `played`, `failed`, or one that is new.
    pub status: String,
    /// When it happened, by the provider's clock, to the second.
    pub at: OffsetDateTime,
    /// Who it concerns: the participant of a group, else the recipient. Empty if the provider does not say.
    pub recipient: String,
    /// The recipient, as far as the provider tells.
    pub contact: ContactIdentity,
    /// The opaque value that went out with the message, as it came back.
    pub opaque: Option<String>,
    /// Why, for `failed`.
    pub refusal: Option<Refusal>,
    /// The whole object as it came.
    pub raw: Value,
}

impl Event {
    /// Whether people are writing to each other here; all else (statuses, history, system notices, account events) is
    /// protocol, and says nothing about whether messages still arrive.
    #[must_use]
    pub fn is_real(&self) -> bool {
        match &self.content {
            Content::Message(message) | Content::Echo(message) => !message.is_notice(),
            _ => false,
        }
    }
}

impl Message {
    /// Whether WhatsApp wrote it and not the user (a changed number, say).
    #[must_use]
    pub fn is_notice(&self) -> bool {
        self.kind == "system"
    }

    /// Whether it is about an earlier message, which was announced already: a reaction, an edit, a removal.
    #[must_use]
    pub fn is_about_another(&self) -> bool {
        matches!(self.kind.as_str(), "reaction" | "edit" | "revoke")
    }
}

impl StatusReport {
    /// The row of ours that the report settles, if the opaque value is ours.
    #[must_use]
    pub fn opaque_id(&self) -> Option<OpaqueId> {
        self.opaque.as_deref().and_then(OpaqueId::parse)
    }
}
