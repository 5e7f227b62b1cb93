//! `twinlog failed`: the rows that the Agent DB refused. They are tried again by themselves; `retry` does it now.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::json;
use tokio::time::Instant;

use super::printable::one_line;
use super::{Global, Outcome};
use crate::agent_db::{Control, FailedFilter, RetryOutcome};
use crate::change::TableName;
use crate::config::Needs;
use crate::shutdown;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Shows the parked rows, and why each was refused
    List(List),
    /// Retries parked rows now with their values from the Site DB, and waits for the result
    Retry(Retry),
}

#[derive(Debug, Args)]
struct List {
    /// Only this table (schema.table, or a table of public)
    table: Option<String>,
    /// The most rows to show
    #[arg(long, value_name = "ROWS", default_value_t = 100)]
    limit: u32,
    /// Prints them as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Retry {
    /// Only this table (schema.table, or a table of public)
    table: Option<String>,
    /// Only this key, as `failed list` shows it
    #[arg(long, requires = "table")]
    key: Option<String>,
    /// How many seconds to wait for the daemon; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

/// `schema.table`, or a table of `public`.
pub(super) fn table_name(text: &str) -> TableName {
    match text.split_once('.') {
        Some((schema, name)) => TableName::new(schema, name),
        None => TableName::new("public", text),
    }
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = global.start(Needs {
        site: false,
        agent: true,
        whatsapp: false,
    })?;
    let control = Control::connect_for_person(&config.agent.url, &config.sync.slot, "twinlog failed").await?;
    match &arguments.action {
        Action::List(list) => show(&control, list).await,
        Action::Retry(arguments) => retry(&control, arguments).await,
    }
}

async fn show(control: &Control, arguments: &List) -> anyhow::Result<Outcome> {
    let filter = FailedFilter {
        table: arguments.table.as_deref().map(table_name),
        key: None,
    };
    let rows = control.failed_rows(&filter, arguments.limit).await?;
    let mut out = anstream::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&rows)?)?;
    } else if rows.is_empty() {
        writeln!(out, "no row is parked")?;
    } else {
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header([
            "table",
            "key",
            "operation",
            "reason",
            "constraint",
            "changes",
            "attempts",
            "message",
        ]);
        for row in &rows {
            table.add_row(
                [
                    row.table.to_string(),
                    row.key.clone(),
                    row.operation.clone(),
                    row.reason.clone(),
                    row.constraint.clone().unwrap_or_default(),
                    row.changes.to_string(),
                    row.attempts.to_string(),
                    row.message.clone(),
                ]
                .map(|text| one_line(&text).into_owned()),
            );
        }
        writeln!(out, "{table}")?;
        if rows.len() == arguments.limit as usize {
            writeln!(out, "(the first {}; --limit shows more)", rows.len())?;
        }
    }
    Ok(if rows.is_empty() {
        Outcome::Success
    } else {
        Outcome::Problem
    })
}

async fn retry(control: &Control, arguments: &Retry) -> anyhow::Result<Outcome> {
    let filter = FailedFilter {
        table: arguments.table.as_deref().map(table_name),
        key: arguments.key.clone(),
    };
    let requested = control.retry_failed(&filter).await?;
    let total = requested.len() as u64;
    let stop = shutdown::on_signal().context("listen for signals")?;
    let deadline = Instant::now() + Duration::from_secs(arguments.wait);
    // Each row is either gone (healed) or has one attempt more (refused again).
    let RetryOutcome { healed, refused } = loop {
        let outcome = control.retry_outcome(&requested).await?;
        if outcome.healed + outcome.refused >= total
            || Instant::now() >= deadline
            || !shutdown::sleep(Duration::from_millis(100), &stop).await
        {
            break outcome;
        }
    };
    let waiting = total - healed - refused;
    let mut out = anstream::stdout().lock();
    if arguments.json {
        let result = json!({ "asked": total, "healed": healed, "refused": refused, "waiting": waiting });
        writeln!(out, "{result}")?;
    } else if requested.is_empty() && arguments.key.is_some() {
        writeln!(
            out,
            "no row with this key is parked: twinlog failed list shows the keys"
        )?;
    } else if requested.is_empty() {
        writeln!(out, "no row is parked")?;
    } else {
        writeln!(
            out,
            "{total} row(s) asked for: {healed} healed, {refused} refused again, {waiting} not tried yet"
        )?;
        if waiting > 0 {
            writeln!(out, "  is the daemon running? twinlog status")?;
        } else if refused > 0 {
            writeln!(out, "  why: twinlog failed list")?;
        }
    }
    // A key that was named and is not parked is probably misspelled.
    let found = total > 0 || arguments.key.is_none();
    Ok(if healed == total && found {
        Outcome::Success
    } else {
        Outcome::Problem
    })
}
