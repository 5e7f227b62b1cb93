//! `[site]` and `[agent]`: the two databases.

use secrecy::ExposeSecret;

use crate::config::database_url::{DatabaseUrl, Host, SslMode};
use crate::config::keys::variable_of;
use crate::config::reader::ValueReader;

/// The Site DB.
#[derive(Debug, Clone)]
pub struct Site {
    /// How to reach it.
    pub url: DatabaseUrl,
    /// Most connections of the server at the same time.
    pub max_connections: u32,
}

/// The Agent DB.
#[derive(Debug, Clone)]
pub struct Agent {
    /// How to reach it.
    pub url: DatabaseUrl,
}

impl Site {
    /// Whether the configuration names it. (A command that needs it does not start without.)
    #[must_use]
    pub fn is_set(&self) -> bool {
        is_set(&self.url)
    }
}

impl Agent {
    /// Whether the configuration names it. (A command that needs it does not start without.)
    #[must_use]
    pub fn is_set(&self) -> bool {
        is_set(&self.url)
    }
}

pub(super) fn site(reader: &mut ValueReader<'_>, needed: bool) -> Option<Site> {
    let url = database_url(reader, "site.url", needed);
    // Postgres allows 100 connections of all clients together by default (`max_connections`).
    let max_connections = reader.integer("site.max_connections", 1..=1000);
    Some(Site {
        url: url?,
        max_connections: max_connections?,
    })
}

pub(super) fn agent(reader: &mut ValueReader<'_>, needed: bool) -> Option<Agent> {
    Some(Agent {
        url: database_url(reader, "agent.url", needed)?,
    })
}

fn database_url(reader: &mut ValueReader<'_>, key: &str, needed: bool) -> Option<DatabaseUrl> {
    let value = reader.value(key);
    if value.is_none() {
        if needed {
            return reader.wrong(
                key,
                "is missing",
                format!(
                    "set it to postgres://USER:PASSWORD@HOST:5432/DATABASE, here or as {}",
                    variable_of(key)
                ),
            );
        }
        return Some(unset());
    }
    let text = reader.secret_of(key, value)?;
    match text.expose_secret().trim().parse() {
        Ok(url) => Some(url),
        Err(error) => reader.wrong(
            key,
            error,
            "write it as postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=…",
        ),
    }
}

/// The folder of [`unset`].
const NOWHERE: &str = "/nonexistent";

fn is_set(url: &DatabaseUrl) -> bool {
    !matches!(&url.host, Host::Unix(folder) if *folder == std::path::Path::new(NOWHERE))
}

/// Stands for a URL that the command does not need and that is not set: no server can listen there.
fn unset() -> DatabaseUrl {
    DatabaseUrl {
        host: Host::Unix(NOWHERE.into()),
        port: 5432,
        user: "unset".to_owned(),
        password: None,
        database: "unset".to_owned(),
        sslmode: SslMode::Disable,
        sslrootcert: None,
    }
}

/// Notes if both are one database.
pub(super) fn check_different(reader: &mut ValueReader<'_>, site: &Site, agent: &Agent) {
    if same_database(&site.url, &agent.url) {
        reader.problem(
            "agent.url",
            "is the same database as site.url",
            "name the other database: the daemon would read back what it writes",
        );
    }
}

fn same_database(left: &DatabaseUrl, right: &DatabaseUrl) -> bool {
    (&left.host, left.port, &left.database) == (&right.host, right.port, &right.database)
}
