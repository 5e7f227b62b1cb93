//! `twinlog cutover --check`: whether the Agent DB could take over now, and what lacks. Changes nothing.
//!
//! The end of the Site DB's log is read first, and waited for; everything else is read after it has come, so that what the last
//! changes have done (a row that is parked, a table that is held) is seen.

use std::io::Write;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::pipelines::pipeline;
use super::printable::one_line;
use super::{Global, Outcome};
use crate::agent_db::{Control, DaemonFigures, Proof, StoredDaemon, TableRecord, TableState};
use crate::config::Needs;
use crate::lsn::Lsn;
use crate::migrations;
use crate::replication::{SyncError, log_end, unfit_sequences};

/// A delay above this means that changes wait, in seconds.
const DELAY: f64 = 1.0;

/// How long it is waited until everything that stands in the Site DB's log is applied: the daemon says each second how far it is.
const WAIT: Duration = Duration::from_secs(5);

/// Interval between two looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Says whether the Agent DB could take over now, and what lacks
    #[arg(long, required = true)]
    check: bool,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

/// Something that keeps the Agent DB from taking over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lack {
    /// site, daemon, rows, table, proof or sequence.
    kind: &'static str,
    what: String,
    remedy: String,
}

fn lack(kind: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Lack {
    Lack {
        kind,
        what: what.into(),
        remedy: remedy.into(),
    }
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    // There is nothing else yet that it could do.
    anyhow::ensure!(arguments.check, "say --check");
    let config = global.start(Needs {
        site: true,
        agent: true,
        whatsapp: false,
    })?;
    migrations::apply_twinlog(&config.agent.url).await?;
    let control = Control::connect_for_person(&config.agent.url, &config.sync.slot, "twinlog cutover").await?;
    let settings = pipeline(&config);
    let mut lacks = of_log(&control, Box::pin(log_end(&settings)).await).await?;
    let records = control.tables().await?;
    let proofs = control.proofs().await?;
    lacks.extend(of_daemon(&control).await?);
    let mut proved = Vec::new();
    if records.is_empty() {
        lacks.push(lack(
            "table",
            "no table is replicated",
            "start the daemon: twinlog sync",
        ));
    }
    for record in &records {
        let proof = proofs.iter().find(|proof| proof.table == record.table);
        lacks.extend(of_table(record, proof));
        if let Some(at) = proof.and_then(|proof| proof.proves(record)) {
            proved.push((record.table.to_string(), at));
        }
    }
    for (table, rows) in control.failed_counts().await? {
        let what = format!("{rows} row(s) of {table} are parked, and not as the Site DB has them");
        lacks.push(lack("rows", what, format!("twinlog failed list {table}")));
    }
    let names: Vec<_> = records.iter().map(|record| &record.table).collect();
    match Box::pin(unfit_sequences(&settings, &control, &names)).await {
        Ok(unfit) => lacks.extend(unfit.into_iter().map(|what| {
            lack(
                "sequence",
                what,
                "the running daemon moves sequences within seconds; rights and defaults are for the tables' owner",
            )
        })),
        Err(error) => lacks.push(lack(
            "sequence",
            format!("the sequences can't be compared: {}", error.explain()),
            "twinlog doctor",
        )),
    }
    print(arguments, &lacks, &proved)
}

/// Waits until the Agent DB has everything up to the end of the Site DB's log.
async fn of_log(control: &Control, end: Result<Lsn, SyncError>) -> anyhow::Result<Vec<Lack>> {
    let end = match end {
        Ok(end) => end,
        Err(error) => {
            let what = format!("the Site DB can't be asked what it has: {}", error.explain());
            return Ok(vec![lack("site", what, "twinlog doctor")]);
        }
    };
    let since = Instant::now();
    loop {
        let is_applied = control
            .visible_checkpoint()
            .await?
            .is_some_and(|stored| stored.checkpoint.end_lsn >= end);
        let running = control.daemon().await?.filter(StoredDaemon::is_running);
        // Where nothing is to be applied its report says how far it is.
        let is_passed = running.as_ref().is_some_and(|daemon| match &daemon.report.figures {
            DaemonFigures::Measured(figures) => figures.durable_lsn >= end,
            DaemonFigures::None {} => false,
        });
        if is_applied || is_passed {
            return Ok(Vec::new());
        }
        if running.is_none() || since.elapsed() >= WAIT {
            let what = format!("not everything that the Site DB has is applied: its log ends at {end}");
            return Ok(vec![lack(
                "rows",
                what,
                "end the writes to the Site DB, and wait: twinlog status",
            )]);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn of_daemon(control: &Control) -> anyhow::Result<Vec<Lack>> {
    let mut lacks = Vec::new();
    let status = "twinlog status";
    match control.daemon().await? {
        Some(daemon) if daemon.is_running() && daemon.report.state == "streaming" => {
            let DaemonFigures::Measured(figures) = &daemon.report.figures else {
                return Ok(vec![lack(
                    "daemon",
                    "the daemon has measured nothing yet",
                    "look again in a second",
                )]);
            };
            if figures.delay_seconds > DELAY {
                let what = format!("changes of {:.1} s are on their way", figures.delay_seconds);
                lacks.push(lack("daemon", what, "end the writes to the Site DB, and wait"));
            }
            for table in &figures.ignored_tables {
                lacks.push(lack(
                    "table",
                    format!("{table} is left out, since it can't be replicated"),
                    status,
                ));
            }
        }
        Some(daemon) if daemon.is_running() => {
            lacks.push(lack(
                "daemon",
                format!("the daemon is {}, not streaming", daemon.report.state),
                status,
            ));
        }
        _ => lacks.push(lack(
            "daemon",
            "no daemon runs, so later changes are missing",
            "start it: twinlog sync",
        )),
    }
    if let Some(gap) = control.visible_checkpoint().await?.and_then(|stored| stored.gap) {
        let what = format!("rows may be missing: {}", gap.reason);
        lacks.push(lack("rows", what, "twinlog resync --all"));
    }
    Ok(lacks)
}

fn of_table(record: &TableRecord, proof: Option<&Proof>) -> Vec<Lack> {
    let table = &record.table;
    let verify = format!("twinlog verify {table}");
    let mut lacks = Vec::new();
    match (record.state, &record.detail) {
        (TableState::Held, detail) => {
            let why = detail.as_deref().unwrap_or("no reason is known");
            lacks.push(lack("table", format!("{table} is held: {why}"), "twinlog status"));
        }
        (TableState::Streaming, None) => {}
        (state, detail) => {
            let why = detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
            lacks.push(lack(
                "table",
                format!("{table} is {}{why}", state.as_str()),
                "wait: twinlog status",
            ));
        }
    }
    match proof {
        Some(proof) if proof.differing() > 0 && !proof.is_outdated(record) => {
            let what = format!("{} row(s) of {table} differ", proof.differing());
            lacks.push(lack("proof", what, format!("{verify} --repair")));
        }
        Some(proof) if proof.proves(record).is_some() => {}
        Some(proof) if proof.proved_at.is_some() => {
            let what =
                format!("{table} was not proved to be equal since it was read again, or verified, the last time");
            lacks.push(lack("proof", what, verify));
        }
        _ => lacks.push(lack("proof", format!("{table} was never proved to be equal"), verify)),
    }
    lacks
}

/// Seconds since then, by the clock of this machine.
fn age(at: OffsetDateTime) -> i64 {
    (OffsetDateTime::now_utc() - at).whole_seconds().max(0)
}

fn print(arguments: &Arguments, lacks: &[Lack], proved: &[(String, OffsetDateTime)]) -> anyhow::Result<Outcome> {
    let mut out = anstream::stdout().lock();
    if arguments.json {
        let shown: Vec<Value> = lacks
            .iter()
            .map(|lack| json!({ "kind": lack.kind, "what": lack.what, "remedy": lack.remedy }))
            .collect();
        let proofs = proved
            .iter()
            .map(|(table, at)| {
                Ok(json!({ "table": table, "proved_at": at.format(&Rfc3339)?, "age_seconds": age(*at) }))
            })
            .collect::<anyhow::Result<Vec<Value>>>()?;
        let answer = json!({ "ready": lacks.is_empty(), "lacks": shown, "proofs": proofs });
        writeln!(out, "{answer}")?;
    } else if lacks.is_empty() {
        writeln!(
            out,
            "the Agent DB could take over: end the writes to the Site DB, and check once more"
        )?;
    } else {
        writeln!(out, "the Agent DB can't take over now:")?;
        for lack in lacks {
            writeln!(out, "  {}\n    → {}", one_line(&lack.what), one_line(&lack.remedy))?;
        }
    }
    if !arguments.json
        && let Some((table, at)) = proved.iter().min_by_key(|(_, at)| *at)
    {
        let (table, at, age) = (one_line(table), at.format(&Rfc3339)?, age(*at));
        writeln!(out, "the oldest proof is {table}'s: equal as of {at}, {age} s ago")?;
    }
    Ok(if lacks.is_empty() {
        Outcome::Success
    } else {
        Outcome::Problem
    })
}
