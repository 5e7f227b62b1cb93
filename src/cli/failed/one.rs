//! `twinlog failed show` and `failed discard`: one parked row.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use crate::agent_db::{Control, Discard as Decision, FailedFilter, FailedRowDetail};
use crate::cli::Outcome;
use crate::cli::person::{person, reason};
use crate::cli::printable::one_line;
use crate::cli::row_names::{key_of, table_name};

/// Rows, and decisions, that are shown at most: those of one key in several tables, and all of one row.
const MOST: u32 = 100;

/// Which row is meant.
#[derive(Debug, Args)]
struct Which {
    /// The id of `failed list`, or the key as it shows it, such as '["5"]'; a number is an id
    #[arg(value_name = "KEY|ID")]
    row: String,
    /// The key's table (schema.table, or a table of public)
    #[arg(long)]
    table: Option<String>,
}

impl Which {
    fn filter(&self) -> FailedFilter {
        let id = self.row.parse().ok();
        FailedFilter {
            table: self.table.as_deref().map(table_name),
            key: id.is_none().then(|| key_of(&self.row)),
            id,
        }
    }

    /// What to say where there is no such row.
    fn unknown(&self) -> &'static str {
        if self.filter().id.is_some() {
            "no row with this id is parked: twinlog failed list shows the ids (a key is written as it shows it, such as '[\"5\"]')"
        } else {
            "no row with this key is parked: twinlog failed list shows the keys"
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    which: Which,
    /// Prints the row's values too
    #[arg(long)]
    show_values: bool,
    /// Prints it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Discard {
    #[command(flatten)]
    which: Which,
    /// Why; it is kept with your name
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn show(control: &Control, arguments: &Show) -> anyhow::Result<Outcome> {
    let filter = arguments.which.filter();
    let mut rows = control.failed_row_details(&filter, MOST).await?;
    let decisions = control.discards(&of_row(&filter, &rows), MOST).await?;
    let mut out = anstream::stdout().lock();
    if arguments.json {
        if !arguments.show_values {
            for row in &mut rows {
                row.image = columns(row).into();
            }
        }
        writeln!(out, "{}", json!({ "rows": rows, "discards": decisions }))?;
    } else {
        for row in &rows {
            print_row(&mut out, row, arguments.show_values)?;
        }
        if rows.is_empty() {
            writeln!(out, "{}", arguments.which.unknown())?;
        }
        for decision in &decisions {
            print_decision(&mut out, decision)?;
        }
    }
    Ok(if rows.is_empty() && decisions.is_empty() {
        Outcome::Problem
    } else {
        Outcome::Success
    })
}

/// All decisions about a row: also about entries of it that were there before.
fn of_row(filter: &FailedFilter, rows: &[FailedRowDetail]) -> FailedFilter {
    match rows {
        [FailedRowDetail { row, .. }] => FailedFilter {
            table: Some(row.table.clone()),
            key: Some(row.key.clone()),
            id: None,
        },
        _ => filter.clone(),
    }
}

/// The names of the columns that an entry knows.
fn columns(row: &FailedRowDetail) -> Vec<String> {
    let known = row.image.as_object();
    known.map_or_else(Vec::new, |known| known.keys().cloned().collect())
}

fn print_row(out: &mut impl Write, detail: &FailedRowDetail, show_values: bool) -> anyhow::Result<()> {
    let row = &detail.row;
    let or_never = |time: &Option<String>| time.clone().unwrap_or_else(|| "never".to_owned());
    let known = match &detail.image {
        Value::Object(image) if show_values => {
            let values = image.iter().map(|(name, value)| format!("{name} = {value}"));
            values.collect::<Vec<_>>().join(", ")
        }
        _ => format!("{} (--show-values prints them)", columns(detail).join(", ")),
    };
    let next = match &row.discarded_at {
        Some(at) => format!("not by itself: discarded {at}"),
        None => or_never(&row.next_attempt_at),
    };
    writeln!(
        out,
        "{} {} (id {})",
        one_line(&row.table.to_string()),
        one_line(&row.key),
        row.id
    )?;
    for (name, text) in [
        ("refused", row.fingerprint.clone()),
        ("message", row.message.clone()),
        ("parked", row.parked_at.clone()),
        (
            "changes",
            format!(
                "{} {}, from {} to {} of the Site DB's log",
                row.changes,
                row.operation,
                detail.first_lsn.as_deref().unwrap_or("-"),
                detail.last_lsn.as_deref().unwrap_or("-")
            ),
        ),
        ("columns", known),
        (
            "attempts",
            format!("{}, the last one {}", row.attempts, or_never(&detail.last_attempt_at)),
        ),
        ("next attempt", next),
    ] {
        writeln!(out, "  {name}: {}", one_line(&text))?;
    }
    Ok(())
}

fn print_decision(out: &mut impl Write, decision: &Decision) -> anyhow::Result<()> {
    let Decision {
        table,
        key,
        operation,
        reason,
        why,
        who,
        role,
        at,
        ..
    } = decision;
    let line =
        format!("{at}: {table} {key} discarded by {who} (role {role}), {operation} refused with {reason}: {why}");
    writeln!(out, "  {}", one_line(&line))?;
    Ok(())
}

pub(super) async fn discard(control: &Control, arguments: &Discard) -> anyhow::Result<Outcome> {
    let filter = arguments.which.filter();
    let rows = control.failed_rows(&filter, MOST).await?;
    let row = match rows.as_slice() {
        [] => anyhow::bail!("{}", arguments.which.unknown()),
        [row] => row,
        several => anyhow::bail!("{} rows have this key: say --table, or the id", several.len()),
    };
    let only = FailedFilter {
        table: Some(row.table.clone()),
        key: Some(row.key.clone()),
        id: Some(row.id),
    };
    let decisions = control.discard_failed(&only, &person(), &arguments.reason).await?;
    let mut out = anstream::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", json!({ "discarded": decisions }))?;
    } else if decisions.is_empty() {
        writeln!(
            out,
            "nothing is changed: the row was discarded before, or is not parked any more"
        )?;
    } else {
        writeln!(
            out,
            "discarded. The row goes on to differ from the Site DB's, and status and verify to say so; its next change is written again."
        )?;
    }
    Ok(if decisions.is_empty() {
        Outcome::Problem
    } else {
        Outcome::Success
    })
}
