//! What a provider reports on its own: users' messages, statuses of ours, changes of identity, notices about an account.
//!
//! One callback may carry many events of several numbers. An event that can't be read is [`Content::Malformed`] and does
//! not affect the others.

use serde_json::Value;
use time::OffsetDateTime;

use super::ids::{ContactIdentity, PhoneNumberId, Wamid};
use super::opaque::OpaqueId;
use super::refusal::Refusal;

/// One thing that a provider reports; a callback carries one or many.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The business account that it concerns, if the provider has such accounts.
    pub waba_id: Option<String>,
    /// Our number, if it concerns one.
    pub phone_number_id: Option<PhoneNumberId>,
    /// Our number as people dial it.
    pub display_phone_number: Option<String>,
    /// The provider's name for this kind of event (Meta: the subscribed field).
    pub field: String,
    /// The event itself.
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
    /// A message from before the number joined the provider, or the medium of one: then it has the id of a message of the
    /// type `media_placeholder`, which came before or comes later, and perhaps no user.
    History {
        /// As for [`Content::Message`] or [`Content::Echo`].
        message: Box<Message>,
        /// Who wrote it.
        direction: Direction,
        /// Its status then, for a message of ours; `None` if the provider does not say.
        status: Option<ReportedStatus>,
    },
    /// A user's ids have changed.
    IdentityChanged(Box<IdentityChange>),
    /// An error that is not about a message: throughput, the app, the account.
    AccountError(Box<Refusal>),
    /// News of a template: whether it may be sent.
    Template(Box<TemplateNotice>),
    /// A notice about the account or the number that may stop us from sending: a person should look.
    AccountNotice(Value),
    /// Anything else, unchanged.
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
    /// The user: its sender, or its recipient if we wrote it. Without any id for what we wrote in a group, and for media of
    /// the history.
    pub contact: ContactIdentity,
    /// The provider's id of the group that it was written in.
    pub group: Option<String>,
    /// The type by Meta's name, whichever the provider; `unknown` if there is none.
    pub kind: String,
    /// The text that a person sees: the body, the caption, the button's title.
    pub text: Option<String>,
    /// The message that it answers, reacts to, edits or revokes.
    pub context: Option<Wamid>,
    /// When it was written, by WhatsApp's clock, to the second.
    pub at: Option<OffsetDateTime>,
    /// The advertisement that the user came from.
    pub referral: Option<Value>,
    /// How the user's ids changed, if this is the notice of that.
    pub change: Option<IdentityChange>,
    /// The whole object, unchanged.
    pub raw: Value,
}

/// A user's new ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdentityChange {
    /// The ids that the user had and has no more.
    pub previous: ContactIdentity,
    /// The ids that count from now on.
    pub current: ContactIdentity,
    /// Further ids of the user, of which it is not said since when or how long they count.
    pub other: ContactIdentity,
    /// When they changed, by the provider's clock, to the second.
    pub at: Option<OffsetDateTime>,
}

/// What a provider tells of a template of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateNotice {
    /// The provider's id of it.
    pub id: String,
    /// Its name; empty if the provider does not say.
    pub name: String,
    /// Its language's code; empty if the provider does not say.
    pub language: String,
    /// What is new.
    pub news: TemplateNews,
    /// When the provider wrote it, by its clock, to the second.
    pub at: Option<OffsetDateTime>,
}

/// What is new of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateNews {
    /// Messages with it are refused, by this word of the provider's.
    Stopped(String),
    /// It may be sent, or is no more there.
    Usable,
    /// People refuse it, by this word of the provider's, which will stop it; `None`: they don't.
    Quality(Option<String>),
}

/// A status that a provider reports for a message of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusReport {
    /// The message.
    pub wamid: Wamid,
    /// The status.
    pub status: ReportedStatus,
    /// When it happened, by the provider's clock, to the second; `None` if the provider does not say.
    pub at: Option<OffsetDateTime>,
    /// Who it concerns: the participant of a group, else the recipient. Empty if the provider does not say.
    pub recipient: String,
    /// The recipient's ids, as far as the provider reports them.
    pub contact: ContactIdentity,
    /// The opaque value that we sent with the message, as the provider returned it.
    pub opaque: Option<String>,
    /// The reason, for `failed`.
    pub refusal: Option<Refusal>,
    /// The whole object, unchanged.
    pub raw: Value,
}

/// A status of a message of ours, as a provider reports it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ReportedStatus {
    /// The provider has the message.
    Accepted,
    /// The provider has the message and assesses its template before it delivers.
    Held,
    /// It left the provider for the device.
    Sent,
    /// It reached the device.
    Delivered,
    /// It was opened.
    Read,
    /// A voice message was played.
    Played,
    /// It will not arrive.
    Failed,
    /// Any other text, in lower case.
    Other(String),
}

impl ReportedStatus {
    /// Reads a status in lower case.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "accepted" => Self::Accepted,
            "held" => Self::Held,
            "sent" => Self::Sent,
            "delivered" => Self::Delivered,
            "read" => Self::Read,
            "played" => Self::Played,
            "failed" => Self::Failed,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The text in lower case, as `message_status_events.status` holds it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Accepted => "accepted",
            Self::Held => "held",
            Self::Sent => "sent",
            Self::Delivered => "delivered",
            Self::Read => "read",
            Self::Played => "played",
            Self::Failed => "failed",
            Self::Other(text) => text,
        }
    }
}

impl Event {
    /// Whether this is a message that a person wrote just now. All else (statuses, history, system notices, account
    /// events) is protocol, and does not prove that messages still arrive.
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

/// A time by the provider's clock is believed if it is not before this: WhatsApp did not exist.
const WHATSAPP_BEGAN: i64 = 1_230_768_000;

/// The provider's time of something that we heard of at `received_at`, if it can be true: not before WhatsApp, and not more
/// than a day after we heard of it (its clock may be ahead of ours).
#[must_use]
pub fn credible(at: Option<OffsetDateTime>, received_at: OffsetDateTime) -> Option<OffsetDateTime> {
    at.filter(|at| at.unix_timestamp() >= WHATSAPP_BEGAN && *at <= received_at + time::Duration::DAY)
}

impl StatusReport {
    /// The row of ours that the report settles, if the opaque value is ours.
    #[must_use]
    pub fn opaque_id(&self) -> Option<OpaqueId> {
        self.opaque.as_deref().and_then(OpaqueId::parse)
    }
}
