//! `twinlog failed retry`: tries parked rows now, or says what would come of it.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::agent_db::{Control, FailedFilter, Rehearsed, RetryOutcome};
use crate::cli::pipelines::pipeline;
use crate::cli::printable::one_line;
use crate::cli::row_names::{key_of, table_name};
use crate::cli::{Global, Outcome};
use crate::config::{Config, Needs};
use crate::replication::{RehearsedRow, rehearse};
use crate::shutdown;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only this table (schema.table, or a table of public)
    table: Option<String>,
    /// Only this key, as `failed list` shows it
    #[arg(long, requires = "table")]
    key: Option<String>,
    /// Only says what would come of it: tries the rows in a transaction that is rolled back
    #[arg(long)]
    dry_run: bool,
    /// How many seconds to wait for the daemon; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(
    global: &Global,
    config: &Config,
    control: &Control,
    arguments: &Arguments,
) -> anyhow::Result<Outcome> {
    let filter = FailedFilter {
        table: arguments.table.as_deref().map(table_name),
        key: arguments.key.as_deref().map(key_of),
        id: None,
    };
    if arguments.dry_run {
        global.check(Needs {
            site: true,
            agent: true,
            whatsapp: false,
        })?;
        let rows = Box::pin(rehearse(&pipeline(config), control, &filter)).await?;
        return print_rehearsal(arguments, &rows);
    }
    retry(control, arguments, &filter).await
}

async fn retry(control: &Control, arguments: &Arguments, filter: &FailedFilter) -> anyhow::Result<Outcome> {
    let requested = control.retry_failed(filter).await?;
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
    } else if requested.is_empty() {
        writeln!(out, "{}", nothing(arguments))?;
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
    Ok(if healed == total && is_known(arguments, total) {
        Outcome::Success
    } else {
        Outcome::Problem
    })
}

/// A key that was named and is not parked is probably misspelled.
const fn is_known(arguments: &Arguments, rows: u64) -> bool {
    rows > 0 || arguments.key.is_none()
}

const fn nothing(arguments: &Arguments) -> &'static str {
    if arguments.key.is_some() {
        "no row with this key is parked: twinlog failed list shows the keys"
    } else {
        "no row is parked that would be tried"
    }
}

fn print_rehearsal(arguments: &Arguments, rows: &[RehearsedRow]) -> anyhow::Result<Outcome> {
    let heals = |row: &&RehearsedRow| matches!(row.would, Ok(Rehearsed::Heals));
    let healed = rows.iter().filter(heals).count();
    let mut out = anstream::stdout().lock();
    if arguments.json {
        let shown: Vec<Value> = rows.iter().map(in_json).collect();
        let whole = json!({ "dry_run": true, "asked": rows.len(), "would_heal": healed, "rows": shown });
        writeln!(out, "{whole}")?;
    } else if rows.is_empty() {
        writeln!(out, "{}", nothing(arguments))?;
    } else {
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["table", "key", "would", "constraint", "message"]);
        for row in rows {
            let (would, constraint, message) = match &row.would {
                Ok(Rehearsed::Heals) => ("heal".to_owned(), "", ""),
                Ok(Rehearsed::Refused {
                    sqlstate,
                    constraint,
                    message,
                }) => (
                    format!("be refused: {sqlstate}"),
                    constraint.as_deref().unwrap_or_default(),
                    message.as_str(),
                ),
                Err(why) => ("not be tried".to_owned(), "", why.as_str()),
            };
            let cells = [&row.table.to_string(), &row.key, &would, constraint, message];
            table.add_row(cells.map(|text| one_line(text).into_owned()));
        }
        writeln!(out, "{table}")?;
        writeln!(out, "{} row(s): {healed} would heal; nothing was changed", rows.len())?;
    }
    Ok(if healed == rows.len() && is_known(arguments, rows.len() as u64) {
        Outcome::Success
    } else {
        Outcome::Problem
    })
}

fn in_json(row: &RehearsedRow) -> Value {
    let (table, key) = (row.table.to_string(), &row.key);
    match &row.would {
        Ok(Rehearsed::Heals) => json!({ "table": table, "key": key, "would": "heal" }),
        Ok(Rehearsed::Refused {
            sqlstate,
            constraint,
            message,
        }) => json!({
            "table": table, "key": key, "would": "be refused",
            "sqlstate": sqlstate, "constraint": constraint, "message": message,
        }),
        Err(why) => json!({ "table": table, "key": key, "would": "not be tried", "message": why }),
    }
}
