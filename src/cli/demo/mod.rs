//! `twinlog demo`: runs server and daemon on this machine with temporary databases, and compares the databases at the end.
//!
//! Two temporary Postgres clusters, the Graph simulator, and the server and the daemon as `twinlog run` starts them, over
//! real sockets. Everything is removed at the end, also after an error: the clusters stop and are removed when they are dropped.
//!
//! | file | its job |
//! |---|---|
//! | [`stage`] | sets everything up and holds it |
//! | [`traffic`] | a CRM that sends, users who write |
//! | [`screen`] | what is printed, and where the log goes |
//! | [`live`] | shows on the screen what arrives in the Agent DB |
//! | [`proof`] | compares both databases and the simulator's ledger |

mod live;
mod proof;
mod screen;
mod stage;
mod traffic;

use std::io::Write;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::logging;
use super::outcome::Outcome;
use crate::config::LogFormat;
use crate::dev::graph_simulator::Simulator;
use crate::dev::postgres::{Cluster, Settings};
use crate::postgres::Client;
use crate::shutdown;

use live::Live;
use screen::Screen;
use stage::{EXPIRED, NUMBERS, PATIENCE, POLL, Stage, WABA_ID};
use traffic::{REFUSED_NAME, Traffic};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How many messages are sent; a third as many are received
    #[arg(long, value_name = "NUMBER", default_value_t = 240, value_parser = clap::value_parser!(u32).range(8..=100_000))]
    messages: u32,
    /// Keeps everything running afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Prints nothing but one JSON object after the comparison: what differs, addresses, ids and tokens
    #[arg(long)]
    json: bool,
}

/// Runs the demo; a problem if anything differs at the end, or if it was stopped before.
pub(super) async fn run(arguments: &Arguments, log_format: Option<LogFormat>) -> anyhow::Result<Outcome> {
    let screen = if arguments.json {
        Screen::silent()
    } else {
        Screen::new()
    };
    // Only errors: the display shows the rest.
    logging::start_on(log_format.unwrap_or(LogFormat::Text), "error", screen.log())?;
    let stop = shutdown::on_signal().context("listen for signals")?;
    Box::pin(play(arguments, &screen, &stop)).await
}

async fn play(arguments: &Arguments, screen: &Screen, stop: &CancellationToken) -> anyhow::Result<Outcome> {
    let ending = CancellationToken::new();
    let stopped = || {
        screen.say("stopped before the end");
        Ok(Outcome::Problem)
    };
    screen.say("starting two temporary Postgres clusters …");
    // In a task of its own, and both until they are up: if Ctrl-C comes meanwhile, or one of them fails, the other is
    // completed before it is removed. A process that ended before could leave it behind.
    let mut clusters =
        tokio::spawn(async { tokio::join!(Cluster::start(Settings::default()), Cluster::start(Settings::default())) });
    let (site, agent) = tokio::select! {
        biased;
        () = stop.cancelled() => {
            let _ = clusters.await;
            return stopped();
        }
        made = &mut clusters => made.context("start the clusters")?,
    };
    let clusters = [site?, agent?];
    // Dropped in reverse order: the users of the databases first.
    let (stage, mut running) = tokio::select! {
        biased;
        () = stop.cancelled() => return stopped(),
        ready = Box::pin(Stage::set_up(clusters, screen, &ending)) => ready?,
    };
    let differences = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        differences = Box::pin(act_and_prove(arguments, &stage)) => Some(differences?),
        error = running.failed() => return Err(error),
    };
    if let Some(differences) = &differences {
        if arguments.json {
            described(&mut anstream::stdout().lock(), &stage, differences)?;
        } else {
            addresses(&stage, arguments.keep);
        }
        if arguments.keep {
            stop.cancelled().await;
        }
    }
    ending.cancel();
    running.join().await?;
    stage.simulator.shutdown().await;
    match differences {
        None => stopped(),
        Some(differences) if differences.is_empty() => Ok(Outcome::Success),
        Some(_) => Ok(Outcome::Problem),
    }
}

/// The traffic with its live display, and the proof: what differs.
async fn act_and_prove(arguments: &Arguments, stage: &Stage) -> anyhow::Result<Vec<String>> {
    let live = Live::start(&stage.agent_url, &stage.screen).await?;
    act(arguments, stage).await?;
    live.end().await;
    proof::prove(stage).await
}

/// The traffic, with the two faults in the middle of it.
async fn act(arguments: &Arguments, stage: &Stage) -> anyhow::Result<()> {
    stage
        .agent
        .batch_execute(&format!(
            "ALTER TABLE public.leads ADD CONSTRAINT demo_refuses CHECK (name IS DISTINCT FROM '{REFUSED_NAME}')"
        ))
        .await
        .context("add the constraint that only the Agent DB has")?;
    stage.screen.say(format!(
        "sending {} messages and receiving {} through the public HTTP API …",
        arguments.messages,
        arguments.messages / 3
    ));
    let traffic = Traffic::new(stage)?;
    stage
        .screen
        .say("  one number's token has expired; the log tells an operator so:");
    traffic.expired_account().await?;
    traffic.refused_contact().await;
    traffic.drive(arguments.messages).await?;

    until(
        &stage.agent,
        "a row is parked",
        "SELECT count(*) = 1 FROM twinlog.failed_rows",
    )
    .await?;
    stage
        .screen
        .say("  one row is parked: only the Agent DB refuses it; all other rows are applied");
    stage
        .agent
        .batch_execute("ALTER TABLE public.leads DROP CONSTRAINT demo_refuses")
        .await
        .context("drop the constraint again")?;
    until(
        &stage.agent,
        "the parked row is healed",
        "SELECT count(*) = 0 FROM twinlog.failed_rows",
    )
    .await?;
    stage
        .screen
        .say("  the constraint is gone, and the row was healed from the Site DB");

    until_reported(&stage.simulator).await?;
    until(
        &stage.site,
        "the last webhook is processed",
        "SELECT count(*) = 0 FROM public.webhook_events WHERE state = 'received'",
    )
    .await
}

/// Waits until the simulator has reported every status and every message, and each was answered with 200.
async fn until_reported(simulator: &Simulator) -> anyhow::Result<()> {
    let reported = async {
        while simulator.pending() > 0 {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(PATIENCE, reported).await.is_err() {
        bail!("not within {} s: Meta's last status is taken", PATIENCE.as_secs());
    }
    Ok(())
}

/// Waits until a condition holds in a database.
async fn until(client: &Client, what: &'static str, condition: &str) -> anyhow::Result<()> {
    let holds = async {
        while !client.query_one(condition, &[]).await?.get::<_, bool>(0) {
            tokio::time::sleep(POLL).await;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(PATIENCE, holds).await {
        Ok(held) => held.with_context(|| format!("wait until {what}")),
        Err(_) => bail!("not within {} s: {what}", PATIENCE.as_secs()),
    }
}

/// Prints the result, and all that a program needs to use what runs, as one line of JSON.
fn described(out: &mut impl Write, stage: &Stage, differences: &[String]) -> anyhow::Result<()> {
    let (admin, http) = (stage.admin, stage.http);
    let description = json!({
        "differences": differences,
        "api": format!("http://{http}"),
        "webhook": format!("http://{http}/webhook"),
        "health": format!("http://{admin}/health"),
        "metrics": format!("http://{admin}/metrics"),
        "simulator": stage.simulator.url(),
        "token": stage.token,
        "waba_id": WABA_ID,
        "phone_number_ids": NUMBERS,
        "expired_phone_number_id": EXPIRED,
        "site_url": stage.site_url,
        "agent_url": stage.agent_url,
    });
    writeln!(out, "{description}")?;
    out.flush()?;
    Ok(())
}

fn addresses(stage: &Stage, keep: bool) {
    let (admin, http) = (stage.admin, stage.http);
    stage.screen.say("");
    stage.screen.say(format!(
        "API      http://{http}/v1/messages   (Authorization: Bearer {})",
        stage.token
    ));
    stage.screen.say(format!("webhook  http://{http}/webhook"));
    stage.screen.say(format!("health   http://{admin}/health"));
    stage.screen.say(format!("metrics  http://{admin}/metrics"));
    if keep {
        stage.screen.say(format!("Site DB  {}", stage.site_url));
        stage.screen.say(format!("Agent DB {}", stage.agent_url));
        stage.screen.say("everything stays up until Ctrl-C");
    }
}
