//! `twinlog status`: what the daemon last said, the tables, the parked rows. Reads the Agent DB only, so it works from any
//! machine and whatever state the daemon is in.

use std::io::Write;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Global, Outcome};
use crate::agent_db::{Control, StoredDaemon};
use crate::config::{Config, Needs};
use crate::shutdown;

/// A report older than this is not a running daemon's: it writes one every second, or three time-outs later.
const STALE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Shows it again every second until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Prints it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = global.start(Needs {
        site: false,
        agent: true,
        whatsapp: false,
    })?;
    let stop = shutdown::on_signal().context("listen for signals")?;
    loop {
        let (status, outcome) = read(&config).await?;
        let mut out = anstream::stdout().lock();
        if arguments.json {
            writeln!(out, "{}", serde_json::to_string(&status)?)?;
        } else {
            if arguments.watch {
                // Home, and clear what is below: no flicker.
                write!(out, "\x1b[H\x1b[J")?;
            }
            print(&mut out, &status)?;
        }
        out.flush()?;
        drop(out);
        if !arguments.watch || !shutdown::sleep(Duration::from_secs(1), &stop).await {
            return Ok(outcome);
        }
    }
}

async fn read(config: &Config) -> anyhow::Result<(Value, Outcome)> {
    let control = Control::connect(&config.agent.url, &config.sync.slot, "twinlog status").await?;
    let daemon = control.daemon().await?;
    let checkpoint = control.visible_checkpoint().await?;
    let tables = control.tables().await?;
    let failed = control.failed_counts().await?;
    let now = OffsetDateTime::now_utc();
    let (state, detail, report) = match &daemon {
        None => ("never started".to_owned(), None, Value::Null),
        Some(daemon) => describe(daemon),
    };
    let healthy = matches!(state.as_str(), "streaming" | "copying")
        && failed.is_empty()
        && tables.iter().all(|table| table.detail.is_none());
    let status = json!({
        "slot": config.sync.slot,
        "state": state,
        "detail": detail,
        "gap": checkpoint.as_ref().and_then(|stored| stored.gap.as_ref()).map(|gap| &gap.reason),
        "checkpoint": checkpoint.as_ref().map(|stored| stored.checkpoint.end_lsn),
        "report": report,
        "tables": tables.iter().map(|table| json!({
            "table": table.table.to_string(),
            "state": table.state.as_str(),
            "phase": table.phase.map(crate::agent_db::CopyPhase::as_str),
            "rows_copied": table.rows_copied,
            "rows_estimated": table.rows_estimated,
            "failed_rows": failed.iter().find(|(name, _)| *name == table.table).map_or(0, |(_, rows)| *rows),
            "detail": table.detail,
        })).collect::<Vec<_>>(),
        "failed_rows": failed.iter().map(|(_, rows)| rows).sum::<u64>(),
        "at": now.unix_timestamp(),
    });
    Ok((status, if healthy { Outcome::Success } else { Outcome::Problem }))
}

fn describe(daemon: &StoredDaemon) -> (String, Option<String>, Value) {
    let StoredDaemon { report, age } = daemon;
    if *age > STALE && report.state != "stopped" {
        let words = format!(
            "no word from {} (pid {}) for {} s",
            report.hostname,
            report.pid,
            age.as_secs()
        );
        return ("gone".to_owned(), Some(words), report.report.clone());
    }
    (report.state.clone(), report.detail.clone(), report.report.clone())
}

fn print(out: &mut impl Write, status: &Value) -> anyhow::Result<()> {
    const GOOD: Style = AnsiColor::Green.on_default().bold();
    const BAD: Style = AnsiColor::Red.on_default().bold();
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let state = text(&status["state"]);
    let style = if matches!(state.as_str(), "streaming" | "copying") {
        GOOD
    } else {
        BAD
    };
    writeln!(out, "slot {}: {style}{state}{style:#}", text(&status["slot"]))?;
    for key in ["detail", "gap"] {
        if !status[key].is_null() {
            writeln!(out, "  {key}: {}", text(&status[key]))?;
        }
    }
    let report = &status["report"];
    if report.is_object() {
        writeln!(
            out,
            "  delay {} s, lag {} bytes, slot keeps {} bytes of log",
            // A daemon that has not reached the Site DB yet knows nothing.
            report["delay_seconds"]
                .as_f64()
                .map_or_else(|| "-".to_owned(), |delay| format!("{delay:.1}")),
            text(&report["lag_bytes"]),
            text(&report["slot_retained_bytes"]),
        )?;
    }
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["table", "state", "copied", "of about", "failed rows", ""]);
    for row in status["tables"].as_array().into_iter().flatten() {
        let cells = [
            "table",
            "state",
            "rows_copied",
            "rows_estimated",
            "failed_rows",
            "detail",
        ]
        .map(|key| text(&row[key]));
        table.add_row(cells.map(|cell| if cell == "-" { String::new() } else { cell }));
    }
    writeln!(out, "{table}")?;
    if status["failed_rows"].as_u64().unwrap_or(0) > 0 {
        writeln!(out, "  parked rows: twinlog failed list")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_daemon_does_not_know_is_a_dash() {
        let shown = |report: Value| {
            let mut out = anstream::StripStream::new(Vec::new());
            print(&mut out, &json!({ "slot": "s", "state": "held", "report": report })).unwrap();
            String::from_utf8(out.into_inner()).unwrap()
        };
        assert!(shown(json!({})).contains("delay - s, lag - bytes, slot keeps - bytes"));
        assert!(shown(json!({ "delay_seconds": 0.04, "lag_bytes": 7 })).contains("delay 0.0 s, lag 7 bytes"));
    }
}
