//! `twinlog verify`: proves that tables are equal in both databases, or lists where they are not; through the running daemon, or
//! through one of its own if none runs.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use clap::{ArgGroup, Args};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::own_daemon::{OwnDaemon, daemon_runs};
use super::person::person;
use super::printable::one_line;
use super::row_names::table_name;
use super::{Global, Outcome};
use crate::agent_db::{
    CommandKind, CommandState, Control, DifferentRow, ShownKey, VerifiedTable, VerifyArguments, VerifyProgress,
    VerifyState,
};
use crate::change::TableName;
use crate::config::Needs;
use crate::{migrations, shutdown};

/// How often progress is read.
const TICK: Duration = Duration::from_millis(200);

/// Keys that are printed of each kind of difference; `--json` has all that are listed.
const MOST_PRINTED: usize = 20;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["tables", "all"])))]
pub(super) struct Arguments {
    /// Tables to verify (schema.table, or a table of public)
    tables: Vec<String>,
    /// Every table that is synchronised
    #[arg(long)]
    all: bool,
    /// Writes what differs as the Site DB has it
    #[arg(long)]
    repair: bool,
    /// With --repair: only says what would be written
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// Rows that are read in a second at most
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
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
    migrations::apply_twinlog(&config.agent.url).await?;
    let control = Control::connect_for_person(&config.agent.url, &config.sync.slot, "twinlog verify").await?;
    let running = daemon_runs(&control).await?;
    let tables: Vec<TableName> = arguments.tables.iter().map(|name| table_name(name)).collect();
    if running {
        // It would refuse them too.
        let known = control.tables().await?;
        for table in &tables {
            if !known.iter().any(|known| known.table == *table) {
                anyhow::bail!("table {table} is not synchronised: see twinlog status");
            }
        }
    }
    let command = CommandKind::verify(VerifyArguments {
        all: arguments.all,
        tables: tables.iter().map(ToString::to_string).collect(),
        repair: arguments.repair && !arguments.dry_run,
        rate: arguments.rate,
        by: Some(person()),
    });
    let stop = shutdown::on_signal().context("listen for signals")?;
    let id = control.request(&command).await?;
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
        let style = ProgressStyle::with_template(
            "{spinner} {msg} [{bar:30}] {human_pos}/{human_len} rows, {per_sec}, {eta} left",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(0).with_style(style)
    } else {
        ProgressBar::hidden()
    };
    loop {
        let Some(command) = control.command(id).await? else {
            anyhow::bail!("verify {id} is not in the Agent DB any more");
        };
        let CommandKind::Verify(verify) = command.kind? else {
            anyhow::bail!("command {id} is not a verify");
        };
        show(&bar, &verify.progress);
        match command.state {
            CommandState::Done => {
                bar.finish_and_clear();
                return report(arguments, id, &verify.progress);
            }
            CommandState::Failed => {
                bar.finish_and_clear();
                anyhow::bail!("verify {id} failed: {}", command.error.unwrap_or_default());
            }
            CommandState::Requested | CommandState::Running => {}
        }
        if !own.runs() && !daemon_runs(control).await? {
            tracing::warn!("the daemon does not report: this command does its work");
            own.start();
        }
        if !shutdown::sleep(TICK, stop).await {
            bar.finish_and_clear();
            // The daemon gives it up at its next page.
            control.finish_command(id, Err("cancelled by who asked for it")).await?;
            anyhow::bail!("verify {id} is cancelled");
        }
    }
}

fn show(bar: &ProgressBar, progress: &VerifyProgress) {
    let rows = progress.tables.iter().map(|table| table.rows).sum();
    let estimated = |table: &VerifiedTable| u64::try_from(table.estimated.unwrap_or(0)).unwrap_or(0).max(table.rows);
    bar.set_length(progress.tables.iter().map(estimated).sum());
    bar.set_position(rows);
    let current = progress
        .tables
        .iter()
        .find(|table| table.state == VerifyState::Verifying);
    bar.set_message(current.map_or_else(|| "waiting".to_owned(), |table| one_line(&table.table).into_owned()));
    bar.tick();
}

fn report(arguments: &Arguments, id: i64, progress: &VerifyProgress) -> anyhow::Result<Outcome> {
    let equal = progress.is_equal();
    let mut out = anstream::stdout().lock();
    if arguments.json {
        let tables: Vec<Value> = progress.tables.iter().map(in_json).collect();
        writeln!(out, "{}", json!({ "equal": equal, "command": id, "tables": tables }))?;
    } else {
        if progress.tables.is_empty() {
            writeln!(out, "nothing is verified: no table is synchronised")?;
        }
        for table in &progress.tables {
            for line in lines(table, arguments.dry_run) {
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(if equal { Outcome::Success } else { Outcome::Problem })
}

fn in_json(table: &VerifiedTable) -> Value {
    json!({
        "table": table.table,
        "equal": table.is_equal(),
        "rows": table.rows,
        "missing": table.missing,
        "missing_rows": table.missing_rows,
        "extra": table.extra,
        "extra_rows": table.extra_rows,
        "different": table.different,
        "different_rows": table.different_rows,
        "lists_are_cut": table.is_cut(),
        "parked": table.parked,
        "held": table.held,
        "repaired": table.repaired,
        "began": table.began,
    })
}

/// A table's result in words.
fn lines(table: &VerifiedTable, dry_run: bool) -> Vec<String> {
    let name = one_line(&table.table);
    if let Some(reason) = &table.held {
        return vec![format!("{name}: not verified: {}", one_line(reason))];
    }
    let mut found: Vec<String> = [
        (table.missing_rows, "missing in the Agent DB"),
        (table.extra_rows, "only in the Agent DB"),
        (table.different_rows, "different"),
        (table.parked, "parked (see twinlog failed list)"),
    ]
    .iter()
    .filter(|(rows, _)| *rows > 0)
    .map(|(rows, what)| format!("{rows} {what}"))
    .collect();
    if found.is_empty() {
        found.push("equal".to_owned());
    }
    if table.repaired > 0 {
        found.push(format!("{} repaired", table.repaired));
    } else if dry_run && table.differing() > 0 {
        found.push(format!("{} would be repaired", table.differing()));
    }
    let mut lines = vec![format!("{name}: {} row(s) compared: {}", table.rows, found.join(", "))];
    for (what, keys) in [("missing", &table.missing), ("extra", &table.extra)] {
        lines.extend(
            keys.iter()
                .take(MOST_PRINTED)
                .map(|key| format!("  {what} {}", in_text(key))),
        );
        lines.extend((keys.len() > MOST_PRINTED).then(|| format!("  {what} … (--json lists more)")));
    }
    for DifferentRow { key, columns } in table.different.iter().take(MOST_PRINTED) {
        lines.push(format!(
            "  different {}: {}",
            in_text(key),
            one_line(&columns.join(", "))
        ));
    }
    lines.extend((table.different.len() > MOST_PRINTED).then(|| "  different … (--json lists more)".to_owned()));
    lines
}

fn in_text(key: &ShownKey) -> String {
    let json = serde_json::to_string(key).unwrap_or_default();
    one_line(&json).into_owned()
}
