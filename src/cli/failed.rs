//! `twinlog failed`: the rows that the Agent DB refused. They are tried again by themselves; `retry` makes it soon.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::json;
use tokio::time::Instant;

use super::{Global, Outcome};
use crate::agent_db::{Control, FailedFilter};
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
    /// Has parked rows read again from the Site DB now, and waits for what becomes of them
    Retry(Retry),
}

#[derive(Debug, Args)]
struct List {
    /// Only this table (schema.table, or a table of public)
    table: Option<String>,
    /// At most so many
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
    let control = Control::connect(&config.agent.url, &config.sync.slot, "twinlog failed").await?;
    match &arguments.action {
        Action::List(list) => show(&control, list).await,
        Action::Retry(retry) => again(&control, retry).await,
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
            table.add_row([
                row.table.to_string(),
                row.key.clone(),
                row.operation.clone(),
                row.reason.clone(),
                row.constraint.clone().unwrap_or_default(),
                row.changes.to_string(),
                row.attempts.to_string(),
                row.message.clone(),
            ]);
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

async fn again(control: &Control, arguments: &Retry) -> anyhow::Result<Outcome> {
    let filter = FailedFilter {
        table: arguments.table.as_deref().map(table_name),
        key: arguments.key.clone(),
    };
    let asked = control.retry_failed(&filter).await?;
    let stop = shutdown::on_signal().context("listen for signals")?;
    let deadline = Instant::now() + Duration::from_secs(arguments.wait);
    // Each row is either gone (healed) or has one attempt more (refused again).
    let (healed, refused) = loop {
        let (healed, refused) = control.retried(&asked).await?;
        if healed + refused >= asked.len() as u64 || Instant::now() >= deadline {
            break (healed, refused);
        }
        if !shutdown::sleep(Duration::from_millis(100), &stop).await {
            break (healed, refused);
        }
    };
    let waiting = asked.len() as u64 - healed - refused;
    let mut out = anstream::stdout().lock();
    if arguments.json {
        let result = json!({ "asked": asked.len(), "healed": healed, "refused": refused, "waiting": waiting });
        writeln!(out, "{result}")?;
    } else if asked.is_empty() {
        writeln!(out, "no row is parked")?;
    } else {
        writeln!(
            out,
            "{} row(s) asked for: {healed} healed, {refused} refused again, {waiting} not tried yet",
            asked.len()
        )?;
        if waiting > 0 {
            writeln!(out, "  is the daemon running? twinlog status")?;
        } else if refused > 0 {
            writeln!(out, "  why: twinlog failed list")?;
        }
    }
    Ok(if healed == asked.len() as u64 {
        Outcome::Success
    } else {
        Outcome::Problem
    })
}
