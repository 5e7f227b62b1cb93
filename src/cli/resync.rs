//! `twinlog resync`: reads tables again, online, through the running daemon, or through one of its own if none runs.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use clap::{ArgGroup, Args};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::own_daemon::{OwnDaemon, daemon_runs};
use super::row_names::table_name;
use super::{Global, Outcome, pipelines};
use crate::agent_db::{CommandKind, CommandState, Control, ResyncArguments, ResyncProgress, ResyncedState};
use crate::change::TableName;
use crate::config::Needs;
use crate::postgres::{Condition, ConditionError};
use crate::{migrations, replication, shutdown};

/// How often progress is read.
const TICK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["tables", "all"])))]
pub(super) struct Arguments {
    /// Tables to read again (schema.table, or a table of public)
    tables: Vec<String>,
    /// Every table that is synchronised
    #[arg(long)]
    all: bool,
    /// Only rows for which this condition holds: columns compared with literals (= < > IN BETWEEN LIKE IS NULL), AND, OR, NOT,
    /// now() - interval '…'
    #[arg(long = "where", value_name = "SQL")]
    condition: Option<String>,
    /// Waits until it is done, with progress
    #[arg(long)]
    wait: bool,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = global.start(Needs {
        site: true,
        agent: true,
        whatsapp: false,
    })?;
    if let Some(condition) = &arguments.condition {
        let _: Condition = condition
            .parse()
            .map_err(|error: ConditionError| anyhow::anyhow!("--where: {error} — {}", error.hint()))?;
    }
    migrations::apply_twinlog(&config.agent.url).await?;
    let control = Control::connect_for_person(&config.agent.url, &config.sync.slot, "twinlog resync").await?;
    let running = daemon_runs(&control).await?;
    let tables: Vec<TableName> = arguments.tables.iter().map(|name| table_name(name)).collect();
    if running {
        // It would refuse them too, but only after this command has ended.
        let known = control.tables().await?;
        for table in &tables {
            if !known.iter().any(|known| known.table == *table) {
                anyhow::bail!("table {table} is not synchronised: see twinlog status");
            }
        }
    }
    // Only a complete resync can put a Site DB in the place of another one.
    let site = match &arguments.condition {
        None if arguments.all => Box::pin(replication::site_of(&pipelines::pipeline(&config))).await,
        _ => None,
    };
    let command = CommandKind::resync(ResyncArguments {
        all: arguments.all,
        tables: tables.iter().map(ToString::to_string).collect(),
        condition: arguments.condition.clone(),
        site,
    });
    let id = control.request(&command).await?;

    let stop = shutdown::on_signal().context("listen for signals")?;
    if running && !arguments.wait {
        say(arguments.json, &json!({ "command": id, "state": "requested" }), || {
            format!("resync {id} requested from the running daemon; twinlog status shows its progress")
        })?;
        return Ok(Outcome::Success);
    }
    // Without a daemon this process is one until the resync is done.
    let mut own = OwnDaemon::new(config, &stop);
    if !running {
        own.start();
    }
    let result = follow(&control, id, arguments, &stop, &mut own).await;
    own.end().await;
    result
}

async fn follow(
    control: &Control,
    id: i64,
    arguments: &Arguments,
    stop: &CancellationToken,
    own: &mut OwnDaemon,
) -> anyhow::Result<Outcome> {
    let bar = if std::io::stderr().is_terminal() && !arguments.json {
        let style = ProgressStyle::with_template("{spinner} {msg} [{bar:30}] {human_pos}/{human_len} rows")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(0).with_style(style)
    } else {
        ProgressBar::hidden()
    };
    loop {
        let Some(command) = control.command(id).await? else {
            anyhow::bail!("resync {id} is not in the Agent DB any more");
        };
        let CommandKind::Resync(resync) = command.kind? else {
            anyhow::bail!("command {id} is not a resync");
        };
        let progress = resync.progress;
        show(&bar, &progress);
        match command.state {
            CommandState::Done => {
                bar.finish_and_clear();
                say(
                    arguments.json,
                    &json!({ "command": id, "state": "done", "progress": progress }),
                    || {
                        let changed = progress
                            .changed()
                            .map_or_else(String::new, |rows| format!(", {rows} changed in the Agent DB"));
                        format!("resync {id} done: {} row(s) read{changed}", progress.rows())
                    },
                )?;
                return Ok(Outcome::Success);
            }
            CommandState::Failed => {
                bar.finish_and_clear();
                anyhow::bail!("resync {id} failed: {}", command.error.unwrap_or_default());
            }
            CommandState::Requested | CommandState::Running => {}
        }
        if !own.runs() && !daemon_runs(control).await? {
            tracing::warn!("the daemon does not report: this command does its work");
            own.start();
        }
        if !shutdown::sleep(TICK, stop).await {
            bar.finish_and_clear();
            say(arguments.json, &json!({ "command": id, "state": "running" }), || {
                if own.runs() {
                    format!("resync {id} is not done; the next daemon that runs goes on with it")
                } else {
                    format!("resync {id} goes on in the daemon; twinlog status shows its progress")
                }
            })?;
            return Ok(Outcome::Problem);
        }
    }
}

fn show(bar: &ProgressBar, progress: &ResyncProgress) {
    let tables = &progress.tables;
    let estimated = tables
        .iter()
        .map(|table| table.estimated.unwrap_or(0).max(table.rows))
        .sum();
    let bounded = |rows: i64| u64::try_from(rows).unwrap_or(0);
    bar.set_length(bounded(estimated));
    bar.set_position(bounded(progress.rows()));
    let current = tables
        .iter()
        .find(|table| table.state == ResyncedState::Resyncing)
        .map(|table| table.table.clone());
    bar.set_message(current.unwrap_or_else(|| "waiting".to_owned()));
    bar.tick();
}

fn say(json: bool, value: &Value, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    if json {
        writeln!(out, "{value}")?
    } else {
        writeln!(out, "{}", text())?
    }
    Ok(())
}
