//! A provider's callback: checks that a webhook is genuine, and reads its events.
//!
//! With [`account`](super::account) this is the only place that chooses between providers: a second one is a folder beside
//! `cloud` and a variant here.

use secrecy::SecretString;

pub use super::cloud::signature::SignatureError;
pub use super::cloud::webhook::NotAWebhook;
use super::cloud::{self, signature, webhook};
use super::event::Event;
use super::refusal::ErrorClass;

/// How one provider calls us back.
#[derive(Debug, Clone)]
pub enum Callback {
    /// Meta's Cloud API.
    Cloud {
        /// A webhook must be signed with one of these; there are several while a secret is being replaced.
        app_secrets: Vec<SecretString>,
    },
}

impl Callback {
    /// Checks that a webhook comes from the provider. `signature` is the value of the provider's header
    /// (`X-Hub-Signature-256`), `body` the bytes as received.
    ///
    /// # Errors
    /// The signature is missing or wrong.
    pub fn verify(&self, signature: Option<&str>, body: &[u8]) -> Result<(), SignatureError> {
        match self {
            Self::Cloud { app_secrets } => signature::verify(app_secrets, signature, body),
        }
    }

    /// The events in a webhook's body, in the order in which they were written.
    ///
    /// # Errors
    /// The body is not one of the provider's webhooks.
    pub fn events(&self, body: &[u8]) -> Result<Vec<Event>, NotAWebhook> {
        match self {
            Self::Cloud { .. } => webhook::parse(body),
        }
    }
}

/// The class of an error code that was stored without its class.
#[must_use]
pub fn class_of_stored_code(code: i32) -> ErrorClass {
    cloud::classify(i64::from(code), None)
}
