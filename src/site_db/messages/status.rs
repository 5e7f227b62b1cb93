//! A message's status, and who sets it when.

use std::fmt;
use std::str::FromStr;

/// `whatsapp_messages.status`.
///
/// ```text
/// pending ⇄ sending → accepted → sent → delivered → read → played
///    │         ├→ held ──┘  (by the status webhook)
///    │         ├→ failed
///    ↓         └→ unknown → (status webhook) accepted … | failed
/// cancelled
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageStatus {
    /// Committed, to be sent. Set by the outbox on submission, and again after an attempt of which it is certain that
    /// nothing was sent (throttled, account held, error that passes).
    Pending,
    /// An attempt is under way under a lease. Set by the outbox before it calls the Graph API.
    Sending,
    /// Meta took it and gave a wamid. Set by the outbox from the answer, or by the inbox from the first echo.
    Accepted,
    /// Meta took it and assesses the template's quality before it delivers. Set by the outbox; never sent again.
    Held,
    /// Left Meta for the device. Set by the inbox from the status webhook, as the next three are.
    Sent,
    /// Reached the device.
    Delivered,
    /// Was opened.
    Read,
    /// A voice message was played.
    Played,
    /// Not sent, finally: Meta's answer says so (outbox), or a status webhook does (inbox).
    Failed,
    /// Perhaps sent: the answer was lost, or the process died while it waited. Set by the outbox, or by any server's
    /// sweep when the lease expires. Settled by the status webhook that echoes our id; never sent again by itself.
    Unknown,
    /// Inbound. Set by the inbox.
    Received,
    /// Never sent and never will be: the waiting client was told so, or an operator decided.
    Cancelled,
}

impl MessageStatus {
    /// All of them, in the order of the schema's check.
    pub const ALL: [Self; 12] = [
        Self::Pending,
        Self::Sending,
        Self::Accepted,
        Self::Held,
        Self::Sent,
        Self::Delivered,
        Self::Read,
        Self::Played,
        Self::Failed,
        Self::Unknown,
        Self::Received,
        Self::Cancelled,
    ];

    /// As the column holds it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sending => "sending",
            Self::Accepted => "accepted",
            Self::Held => "held",
            Self::Sent => "sent",
            Self::Delivered => "delivered",
            Self::Read => "read",
            Self::Played => "played",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Received => "received",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the outbox is done with it: all but `pending` and `sending`.
    #[must_use]
    pub const fn is_settled(self) -> bool {
        !matches!(self, Self::Pending | Self::Sending)
    }
}

impl fmt::Display for MessageStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A status that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the message status {0:?} is not known to this version")]
pub struct UnknownStatus(String);

impl FromStr for MessageStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

impl TryFrom<String> for MessageStatus {
    type Error = UnknownStatus;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_reads_back_and_is_in_the_schema() {
        let schema = include_str!("../../../migrations/site/0001_conversations.sql");
        for status in MessageStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            assert!(schema.contains(&format!("'{status}'")), "{status}");
        }
        assert!("sleeping".parse::<MessageStatus>().is_err());
    }
}
