//! `twinlog cutover --check`: whether the Agent DB could take over now, and what lacks. Changes nothing.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use super::pipelines::pipeline;
use super::printable::one_line;
use super::{Global, Outcome};
use crate::agent_db::{Control, DaemonFigures, Proof, TableRecord, TableState};
use crate::config::Needs;
use crate::migrations;
use crate::replication::unfit_sequences;

/// A delay above this means that changes wait, in seconds.
const DELAY: f64 = 1.0;

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
    /// daemon, rows, table, proof or sequence.
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
    let records = control.tables().await?;
    let proofs = control.proofs().await?;
    let mut lacks = of_daemon(&control).await?;
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
    }
    for (table, rows) in control.failed_counts().await? {
        let what = format!("{rows} row(s) of {table} are parked, and not as the Site DB has them");
        lacks.push(lack("rows", what, format!("twinlog failed list {table}")));
    }
    let names: Vec<_> = records.iter().map(|record| &record.table).collect();
    let unfit = Box::pin(unfit_sequences(&pipeline(&config), &control, &names)).await?;
    lacks.extend(unfit.into_iter().map(|what| {
        lack(
            "sequence",
            what,
            "the running daemon moves sequences within seconds; rights and defaults are for the tables' owner",
        )
    }));
    print(arguments, &lacks)
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
        Some(proof) if proof.differing() > 0 && !proof.is_outdated(record.finished_at) => {
            let what = format!("{} row(s) of {table} differ", proof.differing());
            lacks.push(lack("proof", what, format!("{verify} --repair")));
        }
        Some(proof) if proof.proved_at.is_some() => {}
        _ => lacks.push(lack("proof", format!("{table} was never proved to be equal"), verify)),
    }
    lacks
}

fn print(arguments: &Arguments, lacks: &[Lack]) -> anyhow::Result<Outcome> {
    let mut out = anstream::stdout().lock();
    if arguments.json {
        let shown: Vec<Value> = lacks
            .iter()
            .map(|lack| json!({ "kind": lack.kind, "what": lack.what, "remedy": lack.remedy }))
            .collect();
        writeln!(out, "{}", json!({ "ready": lacks.is_empty(), "lacks": shown }))?;
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
    Ok(if lacks.is_empty() {
        Outcome::Success
    } else {
        Outcome::Problem
    })
}
