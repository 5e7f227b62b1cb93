//! `twinlog inbox replay`: processes kept webhook events again, through the running server, or alone if none runs.
//!
//! Everything that an event does is idempotent, so a replay changes only what was missing. It hands over a bounded number at
//! a time, so that what Meta sends meanwhile need not wait behind it.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Global, Outcome};
use crate::config::{Config, Needs};
use crate::health::Health;
use crate::inbox::{Inbox, InboxSettings, Worker};
use crate::provider::Callback;
use crate::shutdown;
use crate::site_db::webhook_events::{self, ReplayFilter, WebhookState};
use crate::site_db::{Pool, SiteError, servers};

/// How many are handed over at a time.
const BATCH: u32 = 500;
/// How often their state is read.
const TICK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Processes kept webhook events again, after a fix; exits with 1 if a part of one fails again
    ///
    /// The running server does it; if none runs, this command does it itself. An event changes nothing twice.
    Replay(Replay),
}

#[derive(Debug, Args)]
struct Replay {
    /// Only these events (webhook_events.id)
    ids: Vec<Uuid>,
    /// Only events in this state
    #[arg(long, value_enum, default_value_t = State::Failed)]
    state: State,
    /// Only events that were received then or later (2026-11-01, or 2026-11-01T08:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = time_of)]
    since: Option<OffsetDateTime>,
    /// Only events that were received before
    #[arg(long, value_name = "TIME", value_parser = time_of)]
    until: Option<OffsetDateTime>,
    /// Only counts them
    #[arg(long)]
    dry_run: bool,
    /// How many seconds to wait for each part of the work
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// A part could not be stored
    Failed,
    /// All is stored
    Processed,
    /// Both
    All,
}

pub(super) fn time_of(text: &str) -> Result<OffsetDateTime, String> {
    let whole = if text.contains('T') {
        text.to_owned()
    } else {
        format!("{text}T00:00:00Z")
    };
    OffsetDateTime::parse(&whole, &Rfc3339).map_err(|_| "write it as 2026-11-01 or 2026-11-01T08:00:00Z".to_owned())
}

/// What was done.
#[derive(Debug, Default, serde::Serialize)]
struct Done {
    found: u64,
    processed: i64,
    failed: i64,
    /// Handed over, and not done in time: the server goes on with them.
    waiting: i64,
    /// Whether a running server did it.
    by_server: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let Action::Replay(replay) = &arguments.action;
    let config = global.start(Needs {
        site: true,
        agent: false,
        whatsapp: false,
    })?;
    let pool = Pool::connect(&config.site);
    let stop = shutdown::on_signal().context("listen for signals")?;
    let result = Box::pin(replayed(&pool, &config, replay, &stop)).await;
    pool.close().await;
    let done = result?;
    let mut out = anstream::stdout().lock();
    if replay.json {
        writeln!(out, "{}", serde_json::to_string(&done)?)?;
    } else if replay.dry_run {
        writeln!(out, "{} webhook events would be processed again", done.found)?;
    } else {
        writeln!(
            out,
            "{} webhook events: {} processed, {} failed, {} still wait",
            done.found, done.processed, done.failed, done.waiting
        )?;
        if done.failed > 0 {
            writeln!(
                out,
                "why: SELECT id, failures FROM webhook_events WHERE state = 'failed'"
            )?;
        }
    }
    Ok(if done.failed == 0 && done.waiting == 0 {
        Outcome::Success
    } else {
        Outcome::Problem
    })
}

async fn replayed(pool: &Pool, config: &Config, replay: &Replay, stop: &CancellationToken) -> Result<Done, SiteError> {
    let filter = ReplayFilter {
        ids: replay.ids.clone(),
        states: match replay.state {
            // Who names an event means it, whatever its state is.
            _ if !replay.ids.is_empty() => vec![WebhookState::Failed, WebhookState::Processed],
            State::Failed => vec![WebhookState::Failed],
            State::Processed => vec![WebhookState::Processed],
            State::All => vec![WebhookState::Failed, WebhookState::Processed],
        },
        since: replay.since,
        // What comes meanwhile is not meant.
        until: Some(replay.until.unwrap_or_else(OffsetDateTime::now_utc)),
    };
    let mut done = Done {
        by_server: server_runs(pool).await?,
        ..Done::default()
    };
    let own = (!done.by_server && !replay.dry_run).then(|| OwnWorker::start(pool, config));
    let progress = progress(replay);
    let mut after = Uuid::nil();
    while !stop.is_cancelled() {
        let ids = webhook_events::to_replay(pool, &filter, after, BATCH).await?;
        let Some(last) = ids.last() else { break };
        after = *last;
        done.found += u64::try_from(ids.len()).unwrap_or(0);
        if replay.dry_run {
            continue;
        }
        webhook_events::replay(pool, &ids).await?;
        settle(pool, &ids, Duration::from_secs(replay.wait), stop, &mut done).await?;
        progress.set_position(done.found);
        if done.waiting > 0 {
            break;
        }
    }
    progress.finish_and_clear();
    if let Some(own) = own {
        own.end().await;
    }
    Ok(done)
}

/// Waits until these are done.
async fn settle(
    pool: &Pool,
    ids: &[Uuid],
    patience: Duration,
    stop: &CancellationToken,
    done: &mut Done,
) -> Result<(), SiteError> {
    let deadline = Instant::now() + patience;
    loop {
        let states = webhook_events::in_states(pool, ids).await?;
        let count = |wanted| {
            states
                .iter()
                .find(|(state, _)| *state == wanted)
                .map_or(0, |(_, count)| *count)
        };
        let waiting = count(WebhookState::Received);
        if waiting == 0 || Instant::now() >= deadline || !shutdown::sleep(TICK, stop).await {
            done.processed += count(WebhookState::Processed);
            done.failed += count(WebhookState::Failed);
            done.waiting += waiting;
            return Ok(());
        }
    }
}

async fn server_runs(pool: &Pool) -> Result<bool, SiteError> {
    let servers = servers::all(pool).await?.unwrap_or_default();
    Ok(servers
        .iter()
        .any(|server| server.age_seconds <= servers::SILENT_SECONDS))
}

/// Processes webhooks while no server does.
struct OwnWorker {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl OwnWorker {
    fn start(pool: &Pool, config: &Config) -> Self {
        let settings = InboxSettings {
            takeover: config.whatsapp.takeover,
            ..InboxSettings::new(Callback::Cloud {
                app_secrets: config.whatsapp.app_secrets.clone(),
            })
        };
        let worker = Worker::new(Inbox::new(pool.clone(), settings), Health::default().component("inbox"));
        let stop = CancellationToken::new();
        let task = tokio::spawn(worker.run(stop.clone()));
        Self { stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        // If it panicked, the events still wait, and the counts say so.
        let _ = self.task.await;
    }
}

fn progress(replay: &Replay) -> ProgressBar {
    if replay.json || replay.dry_run || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} webhook events ({per_sec})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}
