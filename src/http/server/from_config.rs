//! The configuration → the settings of each part of the server.

use crate::config::Config;
use crate::http::limits;
use crate::http::listener::Bounds;
use crate::http::media_link::MediaLinks;
use crate::http::state::{HttpSettings, PassthroughAccount};
use crate::inbox::InboxSettings;
use crate::outbox::{AccountSettings, OutboxSettings, RetryPolicy};
use crate::provider::cloud::secrets::Secrets;
use crate::provider::cloud::{Account, Client, ClientSettings, ClientSetupError};
use crate::provider::{self, ApiVersion, Callback, PhoneNumberId};

/// Names the one pipeline of today: messages over WhatsApp.
const PIPELINE: &str = "whatsapp";

/// The settings of the server's parts.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) outbox: OutboxSettings,
    pub(super) inbox: InboxSettings,
    pub(super) http: HttpSettings,
}

impl Settings {
    /// # Errors
    /// The HTTPS client could not be set up.
    pub(super) fn new(config: &Config) -> Result<Self, ClientSetupError> {
        let whatsapp = &config.whatsapp;
        let client = Client::new(&ClientSettings {
            graph_url: whatsapp.graph_url.clone(),
            api_version: whatsapp.api_version.clone(),
            timeout: whatsapp.send_timeout,
            secrets: Secrets::new(
                whatsapp
                    .accounts
                    .iter()
                    .map(|account| &account.access_token)
                    .chain(&whatsapp.app_secrets),
            ),
            media_hosts: whatsapp.media_hosts.clone(),
        })?;
        name_unbound_tokens(config);
        let mut sending = Vec::new();
        let mut passing = Vec::new();
        for configured in &whatsapp.accounts {
            // Never fails: the configuration accepts only digits.
            let Some(number) = PhoneNumberId::parse(&configured.phone_number_id) else {
                continue;
            };
            let account = Account::new(client.clone(), number, configured.access_token.clone());
            passing.push(PassthroughAccount {
                account: account.clone(),
                waba_id: configured.waba_id.clone(),
            });
            sending.push(AccountSettings {
                account: provider::Account::Cloud(account),
                waba_id: configured.waba_id.clone(),
                messages_per_second: configured.messages_per_second,
            });
        }
        Ok(Self {
            outbox: OutboxSettings {
                pipeline: PIPELINE,
                accounts: sending,
                send_timeout: whatsapp.send_timeout,
                retry: RetryPolicy {
                    max_attempts: whatsapp.max_attempts,
                    initial: whatsapp.retry_initial,
                    max: whatsapp.retry_max,
                },
                hold_probe: whatsapp.hold_probe,
                ask_history_after: whatsapp.ask_history_after,
                takeover: whatsapp.takeover,
            },
            inbox: InboxSettings {
                retention: Some(config.retention),
                takeover: whatsapp.takeover,
                ..InboxSettings::new(Callback::Cloud {
                    app_secrets: whatsapp.app_secrets.clone(),
                })
            },
            http: HttpSettings {
                tokens: config.tokens.clone(),
                jwt: config.jwt.clone(),
                cors_origins: config.http.cors_origins.clone(),
                verify_token: whatsapp.verify_token.clone(),
                send_wait: config.http.send_wait,
                max_listeners: config.events.max_listeners,
                socket_io: config.socket_io.clone(),
                connections: Bounds {
                    connections: config.http.max_connections,
                    per_address: config.http.max_connections_per_address,
                    silence: limits::SILENCE,
                },
                max_body_bytes: config.http.max_body_bytes,
                max_media_bytes: config.http.max_media_bytes,
                public_url: config.http.public_url.clone(),
                links: MediaLinks::new(whatsapp.app_secrets.clone()),
                api_version: ApiVersion::parse(&whatsapp.api_version),
                accounts: passing,
            },
        })
    }
}

/// Says which API tokens may use all of several numbers, because nobody said which.
fn name_unbound_tokens(config: &Config) {
    let numbers: Vec<_> = config
        .whatsapp
        .accounts
        .iter()
        .map(|account| account.phone_number_id.as_str())
        .collect();
    if numbers.len() < 2 {
        return;
    }
    for token in config.tokens.iter().filter(|token| token.numbers.is_none()) {
        tracing::warn!(
            client = token.name,
            numbers = numbers.join(", "),
            hint = "list the client's numbers in auth.tokens.numbers",
            "an API token is not bound to numbers: it may use all that are configured"
        );
    }
}
