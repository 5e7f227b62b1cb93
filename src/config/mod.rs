//! The configuration: `config/default.toml` compiled in, then the file, then `TWINLOG__SECTION__KEY`.
//!
//! Plain values that are right by construction: [`load()`] reports every problem at once, each with its key and remedy,
//! and nothing after it validates again. Secrets are [`SecretString`]s: they can't be printed.

mod database_url;
mod load;
mod reader;
mod schema;
mod sections;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::SecretString;

pub use database_url::{DatabaseUrl, DatabaseUrlError, Host, SslMode};
pub use load::{ConfigError, DEFAULTS, Problem, load};

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[site]`
    pub site: Site,
    /// `[agent]`
    pub agent: Agent,
    /// `[sync]`
    pub sync: Sync,
    /// `[http]`
    pub http: Http,
    /// `[admin]`
    pub admin: Admin,
    /// `[whatsapp]`
    pub whatsapp: Whatsapp,
    /// `[[auth.tokens]]`
    pub tokens: Vec<ApiToken>,
    /// `[log]`
    pub log: Log,
}

/// The Site DB.
#[derive(Debug, Clone)]
pub struct Site {
    /// Where it is.
    pub url: DatabaseUrl,
    /// Connections that the server may hold open.
    pub max_connections: u32,
}

/// The Agent DB.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Where it is.
    pub url: DatabaseUrl,
}

/// What the daemon synchronises, and how.
#[derive(Debug, Clone)]
pub struct Sync {
    /// The publication to read.
    pub publication: String,
    /// The replication slot.
    pub slot: String,
    /// Glob patterns over the unquoted `schema.table`; `!` takes out.
    pub tables: Vec<String>,
    /// A batch is handed over when it holds this many changes …
    pub batch_rows: usize,
    /// … or this many bytes.
    pub batch_bytes: usize,
    /// Rows that a copy reads between two fences.
    pub copy_chunk_rows: u32,
    /// Tables copied at the same time.
    pub copy_workers: usize,
    /// First wait before a parked row is tried again.
    pub retry_initial: Duration,
    /// Longest wait.
    pub retry_max: Duration,
    /// Parked rows in one table beyond which the table is at fault.
    pub max_failed_rows: usize,
    /// First wait before a reconnect.
    pub reconnect_initial: Duration,
    /// Longest wait.
    pub reconnect_max: Duration,
}

/// The public listener.
#[derive(Debug, Clone)]
pub struct Http {
    /// Its address.
    pub listen: SocketAddr,
    /// Longest request body.
    pub max_body_bytes: usize,
    /// How long a Graph client waits for its message to leave before it is cancelled.
    pub send_wait: Duration,
}

/// The admin listener.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Its address.
    pub listen: SocketAddr,
}

/// Meta's Cloud API and our numbers on it.
#[derive(Debug, Clone)]
pub struct Whatsapp {
    /// Base URL of the Graph API, without a trailing slash.
    pub graph_url: url::Url,
    /// Version segment for the plain API, `vN.M`.
    pub api_version: String,
    /// App secrets that may sign webhooks, at least one for `serve`.
    pub app_secrets: Vec<SecretString>,
    /// Token of the webhook's handshake.
    pub verify_token: Option<SecretString>,
    /// When a Graph call counts as unanswered.
    pub send_timeout: Duration,
    /// Attempts for errors that pass.
    pub max_attempts: u32,
    /// First wait between attempts.
    pub retry_initial: Duration,
    /// Longest wait.
    pub retry_max: Duration,
    /// How often a held number is tried.
    pub hold_probe: Duration,
    /// Our numbers.
    pub accounts: Vec<Account>,
}

/// A business number of ours.
#[derive(Debug, Clone)]
pub struct Account {
    /// Meta's id of the number.
    pub phone_number_id: String,
    /// Its WhatsApp Business account.
    pub waba_id: Option<String>,
    /// The token to call the Graph API with.
    pub access_token: SecretString,
    /// Meta's throughput limit for it.
    pub messages_per_second: u32,
}

/// A client of our API.
#[derive(Debug, Clone)]
pub struct ApiToken {
    /// What we call it, in logs and in `whatsapp_messages.client_name`.
    pub name: String,
    /// SHA-256 of its token.
    pub sha256: [u8; 32],
}

/// Logging.
#[derive(Debug, Clone)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// `tracing` filter directives.
    pub filter: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which parts of the configuration a command needs: what it does not need may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// `[site] url`
    pub site: bool,
    /// `[agent] url`
    pub agent: bool,
    /// `[whatsapp]` accounts, secrets and `[[auth.tokens]]`
    pub whatsapp: bool,
}
