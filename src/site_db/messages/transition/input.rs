//! The values that a transition needs from its caller.

use strum::IntoStaticStr;

/// A value that the caller gives for each row, in addition to its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Input {
    LeaseOwner,
    ErrorCode,
    ErrorClass,
    ErrorMessage,
    ResponseStatus,
    Response,
    /// How long the message waits, in seconds.
    WaitSeconds,
    /// Whether the attempt counts towards the limit.
    Consumed,
    /// Seconds within which the message is sent or never; NULL: no limit.
    SendWithinSeconds,
    Status,
    Wamid,
    AcceptedAt,
    HeldAt,
    SentAt,
    DeliveredAt,
    ReadAt,
    PlayedAt,
    FailedAt,
    /// Whether a notification is to be written.
    Notify,
}

impl Input {
    /// The name of its column in the statement's list of rows.
    pub(crate) fn name(self) -> &'static str {
        self.into()
    }

    /// Its type in SQL.
    pub(crate) const fn sql_type(self) -> &'static str {
        match self {
            Self::LeaseOwner => "uuid",
            Self::ErrorCode | Self::ResponseStatus => "integer",
            Self::ErrorClass | Self::ErrorMessage | Self::Response | Self::Status | Self::Wamid => "text",
            Self::WaitSeconds | Self::SendWithinSeconds => "float8",
            Self::Consumed | Self::Notify => "boolean",
            Self::AcceptedAt
            | Self::HeldAt
            | Self::SentAt
            | Self::DeliveredAt
            | Self::ReadAt
            | Self::PlayedAt
            | Self::FailedAt => "timestamptz",
        }
    }
}
