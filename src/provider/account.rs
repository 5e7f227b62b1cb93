//! A number of ours at its provider; the outbox sends through it.
//!
//! With [`callback`](super::callback) this is the only place that chooses between providers: a second one is a folder beside
//! `cloud` and a variant here.

use secrecy::SecretString;
use time::OffsetDateTime;

use super::answer::{Answered, Looked};
use super::cloud;
use super::history::{HistoryEntry, HistoryError};
use super::ids::PhoneNumberId;
use super::outbound::Sending;

/// A number with its provider and its credential. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Account {
    /// At Meta's Cloud API.
    Cloud(cloud::Account),
}

impl Account {
    /// The provider's id of the number.
    #[must_use]
    pub const fn phone_number_id(&self) -> &PhoneNumberId {
        match self {
            Self::Cloud(account) => account.phone_number_id(),
        }
    }

    /// The access token, or what the provider has instead. A held number is released when its credential has changed.
    #[must_use]
    pub const fn credential(&self) -> &SecretString {
        match self {
            Self::Cloud(account) => account.access_token(),
        }
    }

    /// Sends a message once: no implementation may retry on its own.
    pub async fn send(&self, message: Sending<'_>) -> Answered {
        match self {
            Self::Cloud(account) => account.send(message).await,
        }
    }

    /// The messages of the number to which something happened since then, by the provider's clock; they may be among others.
    ///
    /// # Errors
    /// See [`HistoryError`]: then nothing is known.
    pub async fn history(&self, since: OffsetDateTime) -> Result<Vec<HistoryEntry>, HistoryError> {
        match self {
            Self::Cloud(account) => account.history(since).await,
        }
    }

    /// Looks whether the provider answers for the number and takes its credential. Sends nothing.
    pub async fn look(&self) -> Looked {
        match self {
            Self::Cloud(account) => account.look().await,
        }
    }

    /// Whether the provider refuses a template with this code until somebody acts, or a pause ends.
    #[must_use]
    pub const fn stops_template(&self, code: i32) -> bool {
        match self {
            Self::Cloud(_) => cloud::stops_template(code),
        }
    }

    /// What a person can do about a code for which the provider refuses to send for the number at all.
    #[must_use]
    pub fn remedy(&self, code: i32) -> &'static str {
        match self {
            Self::Cloud(_) => cloud::remedy(code),
        }
    }
}
