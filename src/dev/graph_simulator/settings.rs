//! How a simulator is set up: its numbers, its delays, its webhooks, its limits.

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::limits::Limits;

/// How the simulator is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Signs the webhooks.
    pub app_secret: SecretString,
    /// What the simulator sends in the handshake; the callback must know the same.
    pub verify_token: String,
    /// The business numbers.
    pub accounts: Vec<Account>,
    /// Where webhooks go; can be set later, and until then there are none.
    pub callback_url: Option<Url>,
    /// When a message's statuses are reported.
    pub delays: Delays,
    /// Batches, time-outs and retries of webhooks.
    pub webhooks: WebhookSettings,
    /// Meta's rate limits; `None`: unlimited.
    pub limits: Option<Limits>,
}

/// A business number of the simulator.
#[derive(Debug, Clone)]
pub struct Account {
    /// Meta's id of the number, in digits.
    pub phone_number_id: String,
    /// The WhatsApp Business account that it belongs to.
    pub waba_id: String,
    /// The number as people see it, in digits.
    pub display_phone_number: String,
    /// The token that its calls need.
    pub access_token: String,
}

/// How long after its acceptance a message's statuses are reported.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    /// Until `sent`.
    pub sent: Duration,
    /// Until `delivered`; `None`: never reported.
    pub delivered: Option<Duration>,
    /// Until `read`; `None`: never reported.
    pub read: Option<Duration>,
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            sent: Duration::from_millis(20),
            delivered: Some(Duration::from_millis(60)),
            read: Some(Duration::from_millis(120)),
        }
    }
}

impl Default for Settings {
    /// One number (`106540352242922`, token `simulator-token`) on a free loopback port, without a callback.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            app_secret: SecretString::from("simulator-secret"),
            verify_token: "simulator-verify-token".to_owned(),
            accounts: vec![Account {
                phone_number_id: "106540352242922".to_owned(),
                waba_id: "102290129340398".to_owned(),
                display_phone_number: "15550783881".to_owned(),
                access_token: "simulator-token".to_owned(),
            }],
            callback_url: None,
            delays: Delays::default(),
            webhooks: WebhookSettings::default(),
            limits: None,
        }
    }
}

/// How the callback is called.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// Updates that one POST may carry, if so many wait. Meta goes up to 1000.
    pub batch: usize,
    /// POSTs at the same time.
    pub concurrency: usize,
    /// When a POST counts as failed.
    pub timeout: Duration,
    /// The waits between attempts; the last one repeats. Meta's schedule is days long; this one is compressed.
    pub retries: Vec<Duration>,
    /// When an update is dropped: Meta's 7 days, compressed.
    pub give_up_after: Duration,
}

impl Default for WebhookSettings {
    fn default() -> Self {
        Self {
            batch: 10,
            concurrency: 4,
            timeout: Duration::from_secs(5),
            retries: [50, 100, 200, 400, 800, 1600].map(Duration::from_millis).to_vec(),
            give_up_after: Duration::from_secs(300),
        }
    }
}
