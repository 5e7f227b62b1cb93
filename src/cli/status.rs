//! `twinlog status`: the daemon's last report, the tables, the parked rows, and the servers. Reads the Agent DB, and for the
//! servers the Site DB, so it works from any machine, whether they run or not.

use std::io::Write;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::printable::one_line;
use super::server_status::{self, ServerStatus};
use super::{Global, Outcome};
use crate::agent_db::{Control, CopyPhase, DaemonFigures, Proof, PublishedChanges, StoredDaemon, TableState};
use crate::change::{HoldCause, TableName};
use crate::config::{Config, Needs};
use crate::lsn::Lsn;
use crate::postgres::diagnosis::are_swapped;
use crate::replication::SyncError;
use crate::shutdown;

/// How long it is looked whether both URLs are swapped, where the status can't be read.
const SWAPPED_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Shows the status again every second until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Prints the status as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = global.start(Needs {
        site: false,
        agent: false,
        whatsapp: false,
    })?;
    if !config.agent.is_set() && !config.site.is_set() {
        // Says what is missing.
        global.check(Needs {
            site: true,
            agent: true,
            whatsapp: false,
        })?;
    }
    let stop = shutdown::on_signal().context("listen for signals")?;
    loop {
        let whole = Whole {
            daemon: daemon(&config).await?,
            server: server_status::read(&config).await,
        };
        let mut out = anstream::stdout().lock();
        if arguments.json {
            writeln!(out, "{}", serde_json::to_string(&whole)?)?;
        } else {
            if arguments.watch {
                // Home, and clear what is below: no flicker.
                write!(out, "\x1b[H\x1b[J")?;
            }
            if let Some(server) = &whole.server {
                server.print(&mut out)?;
            }
            if let Some(daemon) = &whole.daemon {
                print(&mut out, daemon)?;
            }
        }
        out.flush()?;
        drop(out);
        if !arguments.watch || !shutdown::sleep(Duration::from_secs(1), &stop).await {
            return Ok(if whole.is_healthy() {
                Outcome::Success
            } else {
                Outcome::Problem
            });
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Whole {
    /// `None` if the configuration names no Agent DB: this machine has only a server.
    #[serde(flatten)]
    daemon: Option<Status>,
    /// `None` if there is none to tell of.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<ServerStatus>,
}

impl Whole {
    fn is_healthy(&self) -> bool {
        self.daemon.as_ref().is_none_or(Status::is_healthy) && self.server.as_ref().is_none_or(ServerStatus::is_healthy)
    }
}

async fn daemon(config: &Config) -> anyhow::Result<Option<Status>> {
    if !config.agent.is_set() {
        return Ok(None);
    }
    match read(config).await {
        Ok(status) => Ok(Some(status)),
        Err(error) => {
            // It reads the same tables, and would wait for who has locked them.
            let swapped = timeout(
                SWAPPED_WITHIN,
                Box::pin(are_swapped(&config.site.url, &config.agent.url)),
            );
            Err(match swapped.await {
                Ok(Some(true)) => SyncError::UrlsSwapped.into(),
                _ => error,
            })
        }
    }
}

/// The daemon's part.
#[derive(Debug, Serialize)]
struct Status {
    slot: String,
    /// The state that the daemon last reported, or `never started`, or `gone`.
    state: String,
    detail: Option<String>,
    /// Why rows may be missing.
    gap: Option<String>,
    checkpoint: Option<Lsn>,
    /// `None` if no daemon ever ran.
    report: Option<DaemonFigures>,
    tables: Vec<TableStatus>,
    /// Over all tables.
    failed_rows: u64,
    /// Those of them that a person has given up: they differ, and are not tried again by themselves.
    discarded_rows: u64,
    /// When this was read, in seconds since 1970.
    at: i64,
    #[serde(skip)]
    ready_delay: Duration,
}

#[derive(Debug, Serialize)]
struct TableStatus {
    table: String,
    state: &'static str,
    phase: Option<&'static str>,
    rows_copied: i64,
    rows_estimated: Option<i64>,
    failed_rows: u64,
    /// `all`; or `inserts`, if the table has no replica identity.
    published: &'static str,
    /// What the Agent DB's table can't have as the Site DB has it.
    notes: Option<Box<str>>,
    /// Why its copy is held until an operator removes the cause.
    detail: Option<String>,
    /// The kind of fault for which the table is held.
    hold_cause: Option<&'static str>,
    /// As of when the table is proved to be equal in both databases, in seconds since 1970.
    proved_at: Option<i64>,
    /// Rows that the last verification found to differ.
    differing: u64,
    /// When a held table is looked at again.
    looked_at: Option<&'static str>,
}

impl Status {
    /// Whether the daemon is streaming.
    fn flows(&self) -> bool {
        matches!(self.state.as_str(), "streaming" | "copying")
    }

    /// Whether the Agent DB is further behind than `sync.ready_delay_ms`.
    fn is_late(&self) -> bool {
        matches!(&self.report, Some(DaemonFigures::Measured(figures)) if figures.delay_seconds > self.ready_delay.as_secs_f64())
    }

    fn is_healthy(&self) -> bool {
        self.flows()
            && !self.is_late()
            && self.failed_rows == 0
            && self
                .tables
                .iter()
                .all(|table| table.detail.is_none() && table.state != TableState::Held.as_str() && table.differing == 0)
    }
}

async fn read(config: &Config) -> anyhow::Result<Status> {
    let control = Control::connect_for_person(&config.agent.url, &config.sync.slot, "twinlog status").await?;
    let daemon = control.daemon().await?;
    let checkpoint = control.visible_checkpoint().await?;
    let tables = control.tables().await?;
    let failed = control.failed_counts().await?;
    let proofs = control.proofs().await?;
    let proof = |table: &TableName| proofs.iter().find(|proof| proof.table == *table);
    let (state, detail) = match &daemon {
        None => ("never started".to_owned(), None),
        Some(daemon) => state_line(daemon),
    };
    Ok(Status {
        slot: config.sync.slot.clone(),
        state,
        detail,
        gap: checkpoint
            .as_ref()
            .and_then(|stored| stored.gap.as_ref())
            .map(|gap| gap.reason.clone()),
        checkpoint: checkpoint.as_ref().map(|stored| stored.checkpoint.end_lsn),
        report: daemon.map(|daemon| daemon.report.figures),
        tables: tables
            .into_iter()
            .map(|table| TableStatus {
                // Before parts of the record are moved.
                differing: proof(&table.table)
                    .filter(|proof| !proof.is_outdated(&table))
                    .map_or(0, Proof::differing),
                state: table.state.as_str(),
                phase: table.phase.map(CopyPhase::as_str),
                published: table.published.as_str(),
                notes: table.notes,
                proved_at: proof(&table.table).and_then(|proof| Some(proof.proved_at?.unix_timestamp())),
                rows_copied: table.rows_copied,
                rows_estimated: table.rows_estimated,
                failed_rows: failed
                    .iter()
                    .find(|(name, _)| *name == table.table)
                    .map_or(0, |(_, rows)| *rows),
                table: table.table.to_string(),
                detail: table.detail,
                hold_cause: table.cause.map(HoldCause::as_str),
                looked_at: table.cause.map(HoldCause::looked_at),
            })
            .collect(),
        failed_rows: failed.iter().map(|(_, rows)| rows).sum(),
        discarded_rows: control.discarded_count().await?,
        at: OffsetDateTime::now_utc().unix_timestamp(),
        ready_delay: config.sync.ready_delay,
    })
}

/// The state as it is shown, and why.
fn state_line(daemon: &StoredDaemon) -> (String, Option<String>) {
    let report = &daemon.report;
    if daemon.is_silent() {
        let detail = format!(
            "no report from {} (pid {}) for {} s",
            report.hostname,
            report.pid,
            daemon.age.as_secs()
        );
        return ("gone".to_owned(), Some(detail));
    }
    (report.state.clone(), report.detail.clone())
}

/// An unknown value is shown as a dash.
fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn print(out: &mut impl Write, status: &Status) -> anyhow::Result<()> {
    const GOOD: Style = AnsiColor::Green.on_default().bold();
    const BAD: Style = AnsiColor::Red.on_default().bold();
    let style = if status.flows() { GOOD } else { BAD };
    writeln!(out, "slot {}: {style}{}{style:#}", status.slot, status.state)?;
    for (name, reason) in [("detail", &status.detail), ("gap", &status.gap)] {
        if let Some(reason) = reason {
            writeln!(out, "  {name}: {}", one_line(reason))?;
        }
    }
    if let Some(report) = &status.report {
        // A daemon that has not reached the Site DB yet has no figures.
        let figures = match report {
            DaemonFigures::Measured(figures) => Some(figures),
            DaemonFigures::None {} => None,
        };
        writeln!(
            out,
            "  delay {} s, lag {} bytes, slot keeps {} bytes of log",
            or_dash(figures.map(|figures| format!("{:.1}", figures.delay_seconds))),
            or_dash(figures.and_then(|figures| figures.lag_bytes)),
            or_dash(figures.and_then(|figures| figures.slot_retained_bytes)),
        )?;
    }
    if let Some(DaemonFigures::Measured(figures)) = &status.report
        && let Some(seconds) = figures.slot_full_in_seconds
    {
        writeln!(
            out,
            "  {BAD}slot{BAD:#}: full in {} at the present rate; then it is lost, and every table has to be read again",
            time_left(seconds)
        )?;
    }
    if status.flows() && status.is_late() {
        writeln!(
            out,
            "  {BAD}late{BAD:#}: the delay is more than sync.ready_delay_ms = {}",
            status.ready_delay.as_millis()
        )?;
    }
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["table", "state", "copied", "of about", "failed rows", "proved", ""]);
    for row in &status.tables {
        table.add_row([
            one_line(&row.table).into_owned(),
            row.state.to_owned(),
            row.rows_copied.to_string(),
            row.rows_estimated.map(|rows| rows.to_string()).unwrap_or_default(),
            row.failed_rows.to_string(),
            row.proved_at.map_or_else(|| "-".to_owned(), |at| ago(status.at - at)),
            remark(row),
        ]);
    }
    writeln!(out, "{table}")?;
    if let Some(DaemonFigures::Measured(figures)) = &status.report
        && !figures.ignored_tables.is_empty()
    {
        let tables = figures.ignored_tables.join(", ");
        let tables = one_line(&tables);
        writeln!(
            out,
            "  left out, since they can't be replicated (the log says why): {tables}"
        )?;
    }
    if status.failed_rows > 0 {
        let discarded = match status.discarded_rows {
            0 => String::new(),
            rows => format!(" ({rows} discarded: not tried again, and not as the Site DB has them)"),
        };
        writeln!(out, "  parked rows{discarded}: twinlog failed list")?;
    }
    Ok(())
}

/// An age in the largest unit that it has twice.
fn ago(seconds: i64) -> String {
    let (number, unit) = match seconds {
        ..120 => (seconds.max(0), "s"),
        120..7_200 => (seconds / 60, "min"),
        7_200..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{number} {unit} ago")
}

/// A time in its two largest units.
fn time_left(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} m"),
        (0, ..) => format!("{hours} h {minutes} m"),
        _ => format!("{days} d {hours} h"),
    }
}

/// What there is to say about a table.
fn remark(row: &TableStatus) -> String {
    if let Some(detail) = &row.detail {
        return one_line(detail).into_owned();
    }
    if row.differing > 0 {
        return format!(
            "{} row(s) differ in the Agent DB: twinlog verify {} lists them, --repair writes them",
            row.differing,
            one_line(&row.table)
        );
    }
    let inserts_only = row.published == PublishedChanges::Inserts.as_str();
    let inserts_only = inserts_only.then_some("inserts only: no replica identity");
    let remarks: Vec<&str> = inserts_only.into_iter().chain(row.notes.as_deref()).collect();
    one_line(&remarks.join("; ")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_db::SyncFigures;

    fn shown(report: DaemonFigures) -> String {
        let status = Status {
            slot: "s".to_owned(),
            state: "held".to_owned(),
            detail: None,
            gap: None,
            checkpoint: None,
            report: Some(report),
            tables: Vec::new(),
            failed_rows: 0,
            discarded_rows: 0,
            at: 0,
            ready_delay: Duration::from_secs(10),
        };
        let mut out = anstream::StripStream::new(Vec::new());
        print(&mut out, &status).unwrap();
        String::from_utf8(out.into_inner()).unwrap()
    }

    #[test]
    fn what_the_daemon_does_not_know_is_a_dash() {
        assert!(shown(DaemonFigures::None {}).contains("delay - s, lag - bytes, slot keeps - bytes"));
        let figures = SyncFigures {
            delay_seconds: 0.04,
            settled_at_micros: None,
            lag_bytes: Some(7),
            received_lsn: Lsn(0),
            settled_lsn: Lsn(0),
            durable_lsn: Lsn(0),
            site_reachable: false,
            slot_active: None,
            slot_retained_bytes: None,
            slot_headroom_bytes: None,
            slot_full_in_seconds: Some(11_405),
            held_tables: 0,
            ignored_tables: Vec::new(),
            failed_rows: 0,
            changes_received: 0,
        };
        let shown = shown(DaemonFigures::Measured(figures));
        assert!(shown.contains("delay 0.0 s, lag 7 bytes, slot keeps - bytes"));
        assert!(shown.contains("slot: full in 3 h 10 m at the present rate"), "{shown}");
    }

    #[test]
    fn a_time_is_shown_in_its_two_largest_units() {
        let shown = [59, 60, 3_599, 3_600, 90_000].map(time_left);
        assert_eq!(shown, ["59 s", "1 m", "59 m", "1 h 0 m", "1 d 1 h"]);
    }
}
