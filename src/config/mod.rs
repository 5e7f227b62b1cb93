//! The configuration: `config/default.toml` compiled in, then the file, then `TWINLOG__SECTION__KEY`.
//!
//! [`load()`] reports every problem at once, each with its key and remedy. What it returns is valid: nothing after it checks
//! a value again. Secrets are [`SecretString`](secrecy::SecretString)s, which cannot be printed.
//!
//! ```text
//! default.toml, file, environment ─→ layers ─→ one table ─→ reader ─→ sections ─→ Config, or all problems
//! ```
//!
//! | file | its job |
//! |---|---|
//! | `load` | the way from texts to a [`Config`] |
//! | `layers` | merges defaults, file and environment |
//! | `keys` | which keys there are and of what kind; unknown keys, with the one that was probably meant |
//! | `reader` | typed values out of the merged table; notes each problem |
//! | `sections/` | one file for each section: its values, their limits, and why |
//! | `database_url` | a Postgres URL |
//! | `problem` | problems and errors |
//!
//! A new key is a line in `keys`, its default and documentation in `config/default.toml`, and a field in its section.

mod database_url;
mod keys;
mod layers;
mod load;
mod problem;
mod reader;
mod sections;
#[cfg(test)]
mod tests;

pub use database_url::{DatabaseUrl, DatabaseUrlError, Host, SslMode};
pub use layers::DEFAULTS;
pub use load::load;
pub use problem::{ConfigError, Problem};
pub use sections::{
    Account, Admin, Agent, ApiToken, Config, CorsOrigins, Events, Http, Jwt, JwtKeySource, JwtNumbers, JwtUsers, Log,
    LogFormat, Needs, OnLostSlot, OnNewColumn, OnUnreplicableTable, Retention, Site, SocketIo, Subscriber, Sync,
    Whatsapp,
};
