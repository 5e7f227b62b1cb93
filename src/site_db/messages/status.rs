//! A message's status, as its column holds it.

use strum::{Display, EnumIter, EnumString, IntoStaticStr};

use crate::provider::AcceptedStatus;

/// `whatsapp_messages.status`. Which status follows which, and who writes it: [`transition`](super::transition).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum MessageStatus {
    /// Committed, to be sent: new, or after an attempt of which it is certain that nothing was sent.
    Pending,
    /// An attempt is under way under a lease; committed before the provider is called.
    Sending,
    /// The provider took it and gave it an id.
    Accepted,
    /// The provider took it and assesses the template's quality before it delivers. Never sent again.
    Held,
    /// Left the provider for the device.
    Sent,
    /// Reached the device.
    Delivered,
    /// Was opened.
    Read,
    /// A voice message was played.
    Played,
    /// Not sent, finally: the provider's answer or one of its reports says so.
    Failed,
    /// Perhaps sent: the answer was lost, or the process died while it waited. A report that returns our id settles it;
    /// the server never sends it again on its own.
    Unknown,
    /// Inbound: a user wrote it. Never changes.
    Received,
    /// Never sent and never will be: the waiting client was told so, or an operator decided so.
    Cancelled,
}

impl MessageStatus {
    /// As the column, the API and the metrics' labels write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The status of a message that the provider has just accepted.
    #[must_use]
    pub const fn after_acceptance(status: AcceptedStatus) -> Self {
        match status {
            AcceptedStatus::Delivering => Self::Accepted,
            AcceptedStatus::UnderReview => Self::Held,
        }
    }

    /// Whether the outbox has finished with it: all but `pending` and `sending`.
    #[must_use]
    pub const fn is_settled(self) -> bool {
        !matches!(self, Self::Pending | Self::Sending)
    }
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    #[test]
    fn every_status_reads_back_and_is_in_the_schema() {
        let schema = include_str!("../../../migrations/site/0001_conversations.sql");
        for status in MessageStatus::iter() {
            assert_eq!(status.as_str().parse(), Ok(status));
            assert!(schema.contains(&format!("'{status}'")), "{status}");
        }
        assert!("sleeping".parse::<MessageStatus>().is_err());
    }
}
