//! `twinlog demo`: everything at once, on this machine, from nothing, and proved at the end.
//!
//! Two throwaway Postgres clusters, the Graph simulator, and the server and the daemon as `twinlog run` starts them, over
//! real sockets. [`traffic`] is the outside world; [`live`] shows what arrives in the Agent DB, on the [`screen`]; [`proof`]
//! compares. All of it goes away at the end, whatever the end is: the clusters stop and are removed when they are dropped.

mod live;
mod proof;
mod screen;
mod traffic;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::daemon::{Halves, Running};
use super::{Outcome, logging};
use crate::config::{self, LogFormat, Needs};
use crate::dev::graph_simulator::{Account, Delays, Settings as SimulatorSettings, Simulator};
use crate::dev::postgres::{Cluster, Settings};
use crate::postgres::{self, Side};
use crate::{migrations, shutdown};

use live::Live;
use screen::Screen;
use traffic::Traffic;

/// The two numbers that work.
const NUMBERS: [&str; 2] = ["106540352242922", "106540352242923"];

/// The number whose token has expired.
const EXPIRED: &str = "106540352242999";

/// Signs the simulator's webhooks.
const APP_SECRET: &str = "demo-app-secret";

/// Longest wait for anything that should happen soon.
const PATIENCE: Duration = Duration::from_secs(30);

/// The row that the Agent DB refuses for a while: a contact of this name.
const REFUSED_NAME: &str = "Refused by the Agent DB";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How many messages are sent; a third as many come in
    #[arg(long, value_name = "NUMBER", default_value_t = 240, value_parser = clap::value_parser!(u32).range(8..=100_000))]
    messages: u32,
    /// Stays up afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// What the demo runs on.
struct Stage {
    screen: Screen,
    /// Where the public API is.
    http: SocketAddr,
    /// Where health and metrics are.
    admin: SocketAddr,
    simulator: Simulator,
    token: String,
    site: Client,
    agent: Client,
    site_url: String,
    agent_url: String,
    _clusters: [Cluster; 2],
}

pub(super) async fn run(arguments: &Arguments, log_format: Option<LogFormat>) -> anyhow::Result<Outcome> {
    let screen = Screen::new();
    // Only what goes wrong: the display says the rest.
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
    screen.say("starting two throwaway Postgres clusters …");
    // A task of its own, and both to their end: what is half made when Ctrl-C comes, or when the other one fails, is
    // finished before it is removed; a process that ended meanwhile could leave it behind.
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
    // Dropped in the opposite order: those who use the databases first.
    let (stage, mut running) = tokio::select! {
        biased;
        () = stop.cancelled() => return stopped(),
        ready = Box::pin(set_up(clusters, screen, &ending)) => ready?,
    };
    let outcome = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        outcome = Box::pin(act_and_prove(arguments, &stage)) => Some(outcome?),
        error = running.failed() => return Err(error),
    };
    if outcome.is_some() {
        addresses(&stage, arguments.keep);
        if arguments.keep {
            stop.cancelled().await;
        }
    }
    ending.cancel();
    running.join().await?;
    stage.simulator.shutdown().await;
    outcome.map_or_else(stopped, Ok)
}

/// The traffic, seen live, and the proof.
async fn act_and_prove(arguments: &Arguments, stage: &Stage) -> anyhow::Result<Outcome> {
    let live = Live::start(&stage.agent_url, &stage.screen).await?;
    act(arguments, stage).await?;
    live.end().await;
    proof::prove(stage).await
}

/// Everything up to the first message.
async fn set_up(
    clusters: [Cluster; 2],
    screen: &Screen,
    ending: &CancellationToken,
) -> anyhow::Result<(Stage, Running)> {
    let [site_cluster, agent_cluster] = clusters;
    screen.say(format!(
        "  Postgres {} from {}",
        site_cluster.major(),
        site_cluster.bin().display()
    ));
    site_cluster.create_database("site").await?;
    agent_cluster.create_database("agent").await?;
    let (site_url, agent_url) = (site_cluster.url("site"), agent_cluster.url("agent"));

    let simulator = Simulator::start(SimulatorSettings {
        app_secret: SecretString::from(APP_SECRET),
        accounts: NUMBERS.into_iter().chain([EXPIRED]).map(account).collect(),
        delays: Delays {
            sent: Duration::from_millis(50),
            delivered: Some(Duration::from_millis(200)),
            read: Some(Duration::from_millis(600)),
        },
        ..SimulatorSettings::default()
    })
    .await?;
    simulator.expire_token(EXPIRED).context("expire a token")?;

    let token = format!("demo-{}", uuid::Uuid::new_v4().simple());
    let mut file = tempfile::NamedTempFile::new()
        .with_context(|| format!("make a file in {} (TMPDIR)", std::env::temp_dir().display()))?;
    file.write_all(configuration(&site_url, &agent_url, &simulator.url(), &token).as_bytes())?;
    let config = config::load(
        Some(file.path()),
        Needs {
            site: true,
            agent: true,
            whatsapp: true,
        },
    )?;
    drop(file);
    migrations::apply_site(&config.site.url).await?;
    migrations::apply_agent(&config.agent.url).await?;
    screen.say("  both schemas migrated");

    let site = postgres::connect(Side::Site, &config.site.url, "twinlog demo").await?;
    let agent = postgres::connect(Side::Agent, &config.agent.url, "twinlog demo").await?;
    let running = Running::start(Arc::new(config), Halves::Both, ending).await?;
    let http = running.http.context("the server has no address")?;
    simulator.set_callback(Some(format!("http://{http}/webhook").parse()?));
    let stage = Stage {
        screen: screen.clone(),
        http,
        admin: running.admin,
        simulator,
        token,
        site,
        agent,
        site_url,
        agent_url,
        _clusters: [site_cluster, agent_cluster],
    };
    until_ready(&stage).await?;
    stage.simulator.handshake().await.context("the webhook's handshake")?;
    screen.say("  server, daemon and Graph simulator are up");
    Ok((stage, running))
}

fn account(phone_number_id: &str) -> Account {
    Account {
        phone_number_id: phone_number_id.to_owned(),
        waba_id: "102290129340398".to_owned(),
        display_phone_number: format!("1555078{}", &phone_number_id[phone_number_id.len() - 4..]),
        access_token: format!("token-of-{phone_number_id}"),
    }
}

/// The configuration as a person would write it.
fn configuration(site: &str, agent: &str, graph: &str, token: &str) -> String {
    let accounts: String = NUMBERS
        .into_iter()
        .chain([EXPIRED])
        .map(|number| {
            format!(
                "[[whatsapp.accounts]]\nphone_number_id = \"{number}\"\nwaba_id = \"102290129340398\"\naccess_token = \"token-of-{number}\"\n"
            )
        })
        .collect();
    let hash = hex::encode(Sha256::digest(token));
    format!(
        "[site]\nurl = \"{site}\"\n[agent]\nurl = \"{agent}\"\n\
         [sync]\nretry_initial_ms = 500\nretry_max_ms = 2000\n\
         [http]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [whatsapp]\ngraph_url = \"{graph}\"\napp_secrets = [\"{APP_SECRET}\"]\nverify_token = \"simulator-verify-token\"\n\
         {accounts}\
         [[auth.tokens]]\nname = \"demo\"\nsha256 = \"{hash}\"\n"
    )
}

async fn until_ready(stage: &Stage) -> anyhow::Result<()> {
    let client = traffic::client()?;
    let address = format!("http://{}/readyz", stage.admin);
    let ready = async {
        loop {
            if client
                .get(&address)
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success())
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, ready).await.is_err() {
        let reasons = client.get(&address).send().await?.text().await?;
        bail!("not ready after {} s: {reasons}", PATIENCE.as_secs());
    }
    Ok(())
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

    until(stage, "a row is parked", "SELECT count(*) = 1 FROM twinlog.failed_rows").await?;
    stage
        .screen
        .say("  one row is parked: only the Agent DB refuses it, and its neighbours went on");
    stage
        .agent
        .batch_execute("ALTER TABLE public.leads DROP CONSTRAINT demo_refuses")
        .await
        .context("drop the constraint again")?;
    until(
        stage,
        "the parked row is healed",
        "SELECT count(*) = 0 FROM twinlog.failed_rows",
    )
    .await?;
    stage
        .screen
        .say("  the constraint is gone, and the row was healed from the Site DB");

    // Everything that Meta reports has been reported, and has been taken in.
    let settled = async {
        while stage.simulator.pending() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, settled).await.is_err() {
        bail!("not within {} s: Meta's last status was taken", PATIENCE.as_secs());
    }
    let unfinished = "SELECT count(*) = 0 FROM public.webhook_events WHERE state = 'received'";
    let taken_in = async {
        while !stage.site.query_one(unfinished, &[]).await?.get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok::<_, tokio_postgres::Error>(())
    };
    match tokio::time::timeout(PATIENCE, taken_in).await {
        Ok(taken_in) => taken_in.context("wait for the last webhook"),
        Err(_) => bail!("not within {} s: the last webhook was taken in", PATIENCE.as_secs()),
    }
}

/// Waits until a condition holds in the Agent DB.
async fn until(stage: &Stage, what: &'static str, condition: &str) -> anyhow::Result<()> {
    let holds = async {
        while !stage.agent.query_one(condition, &[]).await?.get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, tokio_postgres::Error>(())
    };
    match tokio::time::timeout(PATIENCE, holds).await {
        Ok(held) => held.with_context(|| format!("wait until {what}")),
        Err(_) => bail!("not within {} s: {what}", PATIENCE.as_secs()),
    }
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
