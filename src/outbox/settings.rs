//! An outbox's own settings, instead of the whole configuration, so that one process can have several outboxes later.

use std::time::Duration;

use super::outcome::RetryPolicy;
use crate::provider;

/// An outbox's settings.
#[derive(Debug, Clone)]
pub struct OutboxSettings {
    /// Names this outbox in log lines; one of the program's own words, so that it may be a metric's label.
    pub pipeline: &'static str,
    /// The numbers that it sends for.
    pub accounts: Vec<AccountSettings>,
    /// A call of the provider without an answer for this long is given up: its message becomes `unknown`.
    pub send_timeout: Duration,
    /// How often and how soon a message is tried again.
    pub retry: RetryPolicy,
    /// How often one message of a held number is sent, to test whether the number can send again.
    pub hold_probe: Duration,
    /// A message whose outcome has been unknown for this long is looked for in the provider's history.
    pub ask_history_after: Duration,
    /// How long a person's message keeps programs out of its conversation.
    pub takeover: Duration,
}

/// A number to send for.
#[derive(Debug, Clone)]
pub struct AccountSettings {
    /// The number at its provider.
    pub account: provider::Account,
    /// Its WhatsApp Business account, if the configuration names it.
    pub waba_id: Option<String>,
    /// The provider's throughput limit for the number.
    pub messages_per_second: u32,
}
