//! `twinlog failed`: the rows that the Agent DB refused. They are tried again by themselves; `retry` does it now, `discard` ends it.
//!
//! | file | its job |
//! |---|---|
//! | `retry` | tries rows now, or rehearses it |
//! | `one` | shows one row with all that is known of it; gives it up |

mod one;
mod retry;

use std::io::Write;

use clap::{Args, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};

use super::printable::one_line;
use super::row_names::table_name;
use super::{Global, Outcome};
use crate::agent_db::{Control, FailedFilter};
use crate::config::Needs;
use crate::migrations;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Shows the parked rows, and why each was refused
    List(List),
    /// Shows one parked row with all that is known of it, and what people have decided about it
    Show(one::Show),
    /// Retries parked rows now with their values from the Site DB, and waits for the result
    Retry(retry::Arguments),
    /// Gives a parked row up: it is not tried again before it changes or `failed retry --key` names it
    ///
    /// The row goes on to differ from the Site DB's: `status` and `verify` go on to count it, and exit with 1. Who decided, when and
    /// why is kept, and `failed show` tells it.
    Discard(one::Discard),
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

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = global.start(Needs {
        site: false,
        agent: true,
        whatsapp: false,
    })?;
    // They need columns that an older daemon's database lacks. Does nothing where it is up to date.
    migrations::apply_twinlog(&config.agent.url).await?;
    let control = Control::connect_for_person(&config.agent.url, &config.sync.slot, "twinlog failed").await?;
    match &arguments.action {
        Action::List(list) => show(&control, list).await,
        Action::Show(arguments) => one::show(&control, arguments).await,
        Action::Retry(arguments) => Box::pin(retry::run(global, &config, &control, arguments)).await,
        Action::Discard(arguments) => one::discard(&control, arguments).await,
    }
}

async fn show(control: &Control, arguments: &List) -> anyhow::Result<Outcome> {
    let filter = FailedFilter {
        table: arguments.table.as_deref().map(table_name),
        ..FailedFilter::default()
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
            "id",
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
            let discarded = row.discarded_at.as_ref().map_or("", |_| "discarded; ");
            table.add_row(
                [
                    row.id.to_string(),
                    row.table.to_string(),
                    row.key.clone(),
                    row.operation.clone(),
                    row.reason.clone(),
                    row.constraint.clone().unwrap_or_default(),
                    row.changes.to_string(),
                    row.attempts.to_string(),
                    format!("{discarded}{}", row.message),
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
