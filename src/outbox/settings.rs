//! What an outbox is told. Its own settings instead of the whole configuration, so that there may be several one day.

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
    /// When a call of a provider counts as unanswered.
    pub send_timeout: Duration,
    /// The limits of trying again.
    pub retry: RetryPolicy,
    /// How often one message of a held number is tried, to see whether the number can send again.
    pub hold_probe: Duration,
}

/// A number to send for.
#[derive(Debug, Clone)]
pub struct AccountSettings {
    /// The number at its provider.
    pub account: provider::Account,
    /// Its WhatsApp Business account, if the configuration names it.
    pub waba_id: Option<String>,
    /// The provider's throughput limit for it.
    pub messages_per_second: u32,
}
