//! `twinlog subscribers`: how the receivers do that webhooks are handed on to, and delivering to them again.
//!
//! Everything is a row in the Site DB, so it works from any machine; the servers that run do the work.

use std::io::Write;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::inbox::time_of;
use super::printable::one_line;
use super::{Global, Outcome};
use crate::config::Needs;
use crate::site_db::deliveries::{self, Again};
use crate::site_db::subscribers::{self, COUNTED, Overview};
use crate::site_db::{Pool, SiteError};

/// How many are queued or deleted by one statement.
const BATCH: u16 = 2000;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// Prints the result as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Shows what waits for each subscriber; exits with 1 if one does not take its webhooks
    List,
    /// Delivers webhooks again, also those that the subscriber has had
    Replay {
        /// The subscriber's name in the configuration
        name: String,
        /// Those that were received then or later (2026-11-01, or 2026-11-01T08:00:00Z)
        #[arg(long, value_name = "TIME", value_parser = time_of, required_unless_present = "after")]
        since: Option<OffsetDateTime>,
        /// Those after this one (webhook_events.id)
        #[arg(long, value_name = "ID")]
        after: Option<Uuid>,
        /// Those that were received before
        #[arg(long, value_name = "TIME", value_parser = time_of)]
        until: Option<OffsetDateTime>,
    },
    /// Delivers the webhooks again that were given up
    Retry {
        /// The subscriber's name in the configuration
        name: String,
    },
    /// Forgets the webhooks that were given up
    Discard {
        /// The subscriber's name in the configuration
        name: String,
    },
    /// Removes a subscriber that no server has in its configuration any more, with all that waits for it
    Forget {
        /// Its former name in the configuration
        name: String,
    },
}

#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    /// At most [`COUNTED`].
    waiting: i64,
    lag_seconds: f64,
    given_up: i64,
    delivered_seconds_ago: Option<f64>,
    removed: bool,
    problem: Option<String>,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = global.start(Needs {
        site: true,
        agent: false,
        whatsapp: false,
    })?;
    let pool = Pool::connect(&config.site);
    let outcome = Box::pin(act(&pool, arguments)).await;
    pool.close().await;
    outcome
}

async fn act(pool: &Pool, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let all = subscribers::overview(pool, None)
        .await
        .context("read the subscribers")?;
    let named = |name: &str| all.iter().find(|one| one.name == name);
    let count = match &arguments.action {
        Action::List => return list(all, arguments.json),
        Action::Replay { name, .. } | Action::Retry { name } | Action::Discard { name } if named(name).is_none() => {
            anyhow::bail!("no server has had a subscriber {name:?} yet: twinlog subscribers list shows all");
        }
        Action::Replay {
            name,
            since,
            after,
            until,
        } => {
            let again = Again {
                after: after.unwrap_or_default(),
                since: since.unwrap_or(OffsetDateTime::UNIX_EPOCH),
                until: until.unwrap_or_else(OffsetDateTime::now_utc),
            };
            replay(pool, name, again).await.context("queue the webhooks")?
        }
        Action::Retry { name } => in_batches(|| deliveries::retry_given_up(pool, name, BATCH))
            .await
            .context("queue the webhooks")?,
        Action::Discard { name } => in_batches(|| deliveries::discard_given_up(pool, name, BATCH))
            .await
            .context("delete the webhooks")?,
        Action::Forget { name } => forget(pool, name, named(name).is_some()).await?,
    };
    let mut out = anstream::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::json!({"webhooks": count}))?;
    } else {
        let what = match &arguments.action {
            Action::Discard { .. } | Action::Forget { .. } => "are forgotten",
            _ => "will be delivered again; twinlog subscribers list shows how many wait",
        };
        writeln!(out, "{count} webhooks {what}")?;
    }
    Ok(Outcome::Success)
}

/// Repeats a statement until it has found fewer than [`BATCH`]: all in one would take longer than a statement may. Returns how many
/// it found.
async fn in_batches<R>(mut statement: impl FnMut() -> R) -> Result<u64, SiteError>
where
    R: Future<Output = Result<u64, SiteError>>,
{
    let mut all = 0;
    loop {
        let found = statement().await?;
        all += found;
        if found < u64::from(BATCH) {
            return Ok(all);
        }
    }
}

/// The subscriber goes last, so that the command can be repeated after a crash. `known`: there is a subscriber with this name.
async fn forget(pool: &Pool, name: &str, known: bool) -> anyhow::Result<u64> {
    let in_use = || anyhow::anyhow!("a server has {name:?} in its configuration: take it out there first");
    let delete = || in_batches(|| deliveries::forget(pool, name, BATCH));
    if known && !subscribers::remove(pool, name).await.context("remove the subscriber")? {
        return Err(in_use());
    }
    let mut deleted = delete().await.context("delete what waits for it")?;
    if known {
        if !subscribers::forget(pool, name).await.context("remove the subscriber")? {
            return Err(in_use());
        }
        // A webhook that was being stored when the subscriber was removed.
        deleted += delete().await.context("delete what waits for it")?;
    } else if deleted == 0 {
        anyhow::bail!("there is no subscriber {name:?}: twinlog subscribers list shows all");
    }
    Ok(deleted)
}

async fn replay(pool: &Pool, name: &str, mut again: Again) -> Result<u64, SiteError> {
    let mut queued = 0;
    while let Some((last, count)) = deliveries::queue_again(pool, name, again, BATCH).await? {
        queued += u64::try_from(count).unwrap_or(0);
        again.after = last;
    }
    Ok(queued)
}

fn list(all: Vec<Overview>, json: bool) -> anyhow::Result<Outcome> {
    let troubled = all
        .iter()
        .any(|one| !one.removed && (one.problem.is_some() || one.given_up > 0));
    let shown: Vec<Shown> = all
        .into_iter()
        .map(|one| Shown {
            name: one.name,
            waiting: one.waiting,
            lag_seconds: one.lag_seconds.round(),
            given_up: one.given_up,
            delivered_seconds_ago: one.delivered_seconds.map(f64::round),
            removed: one.removed,
            problem: one.problem,
        })
        .collect();
    let mut out = anstream::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&shown)?)?;
    } else {
        if shown.is_empty() {
            writeln!(
                out,
                "there are no subscribers: [[subscribers]] in the configuration makes some"
            )?;
        }
        for one in &shown {
            let more = if one.waiting >= COUNTED { " or more" } else { "" };
            let lag = if one.waiting > 0 {
                format!(", the oldest for {:.0} s", one.lag_seconds)
            } else {
                String::new()
            };
            write!(out, "{}: {}{more} webhooks wait{lag}", one_line(&one.name), one.waiting)?;
            if one.given_up > 0 {
                write!(out, "; {} were given up", one.given_up)?;
            }
            if one.removed {
                write!(out, "; no server has it in its configuration any more")?;
            }
            if let Some(problem) = &one.problem {
                write!(out, "; it takes none: {}", one_line(problem))?;
            }
            writeln!(out)?;
        }
    }
    Ok(if troubled { Outcome::Problem } else { Outcome::Success })
}
