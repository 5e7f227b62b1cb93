//! `twinlog migrate`: applies the migrations of one or both databases.

use std::io::Write;

use clap::{Args, ValueEnum};

use super::global::Global;
use super::outcome::Outcome;
use super::report;
use crate::config::{Config, Needs};
use crate::migrations::{Applied, MigrationError, Set, apply_agent, apply_site};
use crate::postgres::Side;
use crate::postgres::diagnosis::{are_swapped, read_only_remedy};
use crate::replication::SyncError;
use crate::site_db::{self, Pool, SiteError};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only this database (default: both)
    #[arg(value_enum)]
    database: Option<Database>,
    /// Prints what was done as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Database {
    /// The Site DB
    Site,
    /// The Agent DB
    Agent,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let wanted = |database| arguments.database.is_none_or(|only| only == database);
    let (site, agent) = (wanted(Database::Site), wanted(Database::Agent));
    let config = global.start(Needs {
        site,
        agent,
        whatsapp: false,
    })?;
    if Box::pin(are_swapped(&config.site.url, &config.agent.url)).await == Some(true) {
        return Err(SyncError::UrlsSwapped.into());
    }
    // The second database is tried even if the first fails: one run shows everything that is missing.
    let mut done = Vec::new();
    let mut outcome = Outcome::Success;
    let mut results = Vec::new();
    if site {
        results.push(apply_site(&config.site.url).await);
    }
    if agent {
        results.push(apply_agent(&config.agent.url).await);
    }
    for result in results {
        match result {
            Ok(sets) => done.extend(sets),
            Err(error) => {
                outcome = Outcome::Problem;
                report::error(&with_remedy(&config, error).await);
            }
        }
    }
    print(&done, arguments.json)?;
    if site && let Some(error) = missing(&config).await {
        outcome = Outcome::Problem;
        report::error(&error);
    }
    Ok(outcome)
}

/// What a migrated Site DB lacks all the same: something that was renamed or dropped since. No migration makes it again.
async fn missing(config: &Config) -> Option<anyhow::Error> {
    let pool = Pool::connect(&config.site);
    let error = site_db::check(&pool).await.err();
    pool.close().await;
    let error = error.filter(|error| matches!(error, SiteError::Missing { .. }))?;
    Some(error.into())
}

/// Names the setting that makes a database read-only.
async fn with_remedy(config: &Config, error: MigrationError) -> anyhow::Error {
    let remedy = match error.side().filter(|_| error.is_read_only()) {
        Some(Side::Site) => Box::pin(read_only_remedy(Side::Site, &config.site.url)).await,
        Some(Side::Agent) => Box::pin(read_only_remedy(Side::Agent, &config.agent.url)).await,
        None => None,
    };
    let error = anyhow::Error::from(error);
    match remedy {
        Some(remedy) => error.context(remedy),
        None => error,
    }
}

fn print(done: &[Applied], json: bool) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(done)?)?;
        return Ok(());
    }
    for Applied { set, applied, present } in done {
        let database = set.side();
        let part = match set {
            Set::Twinlog => "bookkeeping",
            Set::Site | Set::Agent => "business tables",
        };
        if applied.is_empty() {
            writeln!(out, "{database}, {part}: up to date ({present} applied before)")?;
        } else {
            writeln!(out, "{database}, {part}: applied {}", applied.join(", "))?;
        }
    }
    Ok(())
}
