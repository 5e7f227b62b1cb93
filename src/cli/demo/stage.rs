//! What the demo runs on: two databases, the simulator, the server and the daemon, all up and ready.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::screen::Screen;
use crate::cli::daemon::{Halves, Running};
use crate::config::{self, Config, Needs};
use crate::dev::graph_simulator::{Account, Delays, Settings, Simulator};
use crate::dev::postgres::Cluster;
use crate::migrations;
use crate::postgres::{self, Client, Side};

/// The two numbers that work.
pub(super) const NUMBERS: [&str; 2] = ["106540352242922", "106540352242923"];

/// The number whose token has expired.
pub(super) const EXPIRED: &str = "106540352242999";

/// Longest wait for anything that should happen soon.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Interval of the checks whether something has happened.
pub(super) const POLL: Duration = Duration::from_millis(50);

/// Signs the simulator's webhooks.
const APP_SECRET: &str = "demo-app-secret";

/// The business account of all numbers.
pub(super) const WABA_ID: &str = "102290129340398";

/// What the demo's parts share.
pub(super) struct Stage {
    pub(super) screen: Screen,
    /// The public API.
    pub(super) http: SocketAddr,
    /// Health and metrics.
    pub(super) admin: SocketAddr,
    pub(super) simulator: Simulator,
    /// The API token of the demo's client.
    pub(super) token: String,
    pub(super) site: Client,
    pub(super) agent: Client,
    pub(super) site_url: String,
    pub(super) agent_url: String,
    /// Dropped last: the parts above use them.
    _clusters: [Cluster; 2],
}

impl Stage {
    /// Everything up to the first message. The server and the daemon run until `ending` is cancelled.
    pub(super) async fn set_up(
        clusters: [Cluster; 2],
        screen: &Screen,
        ending: &CancellationToken,
    ) -> anyhow::Result<(Self, Running)> {
        let [site_cluster, agent_cluster] = &clusters;
        screen.say(format!(
            "  Postgres {} from {}",
            site_cluster.major(),
            site_cluster.bin().display()
        ));
        site_cluster.create_database("site").await?;
        agent_cluster.create_database("agent").await?;
        let (site_url, agent_url) = (site_cluster.url("site"), agent_cluster.url("agent"));

        let simulator = start_simulator().await?;
        let token = format!("demo-{}", uuid::Uuid::new_v4().simple());
        let config = load_configuration(&site_url, &agent_url, &simulator.url(), &token)?;
        migrations::apply_site(&config.site.url).await?;
        migrations::apply_agent(&config.agent.url).await?;
        screen.say("  both schemas migrated");

        let site = postgres::connect(Side::Site, &config.site.url, "twinlog demo").await?;
        let agent = postgres::connect(Side::Agent, &config.agent.url, "twinlog demo").await?;
        let running = Running::start(Arc::new(config), Halves::Both, ending).await?;
        let http = running.http.context("the server has no address")?;
        simulator.set_callback(Some(format!("http://{http}/webhook").parse()?));
        let stage = Self {
            screen: screen.clone(),
            http,
            admin: running.admin,
            simulator,
            token,
            site,
            agent,
            site_url,
            agent_url,
            _clusters: clusters,
        };
        stage.until_ready().await?;
        stage.simulator.handshake().await.context("the webhook's handshake")?;
        screen.say("  server, daemon and Graph simulator are up");
        Ok((stage, running))
    }

    async fn until_ready(&self) -> anyhow::Result<()> {
        let client = http_client()?;
        let address = format!("http://{}/readyz", self.admin);
        let ready = async {
            loop {
                let answer = client.get(&address).send().await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(PATIENCE, ready).await.is_err() {
            let reasons = client.get(&address).send().await?.text().await?;
            bail!("not ready after {} s: {reasons}", PATIENCE.as_secs());
        }
        Ok(())
    }
}

/// A client for sockets on this machine: a proxy from the environment must not be used.
pub(super) fn http_client() -> anyhow::Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(20))
        .build()?)
}

/// The numbers with the token that the simulator knows.
fn accounts() -> impl Iterator<Item = Account> {
    NUMBERS.into_iter().chain([EXPIRED]).map(|number| Account {
        phone_number_id: number.to_owned(),
        waba_id: WABA_ID.to_owned(),
        display_phone_number: format!("1555078{}", &number[number.len() - 4..]),
        access_token: format!("token-of-{number}"),
    })
}

async fn start_simulator() -> anyhow::Result<Simulator> {
    let simulator = Simulator::start(Settings {
        app_secret: SecretString::from(APP_SECRET),
        accounts: accounts().collect(),
        delays: Delays {
            sent: Duration::from_millis(50),
            delivered: Some(Duration::from_millis(200)),
            read: Some(Duration::from_millis(600)),
        },
        ..Settings::default()
    })
    .await?;
    simulator.expire_token(EXPIRED).context("expire a token")?;
    Ok(simulator)
}

/// Loads the configuration from a file, as in production.
fn load_configuration(site: &str, agent: &str, graph: &str, token: &str) -> anyhow::Result<Config> {
    let mut file = tempfile::NamedTempFile::new()
        .with_context(|| format!("make a file in {} (TMPDIR)", std::env::temp_dir().display()))?;
    file.write_all(configuration(site, agent, graph, token).as_bytes())?;
    let needs = Needs {
        site: true,
        agent: true,
        whatsapp: true,
    };
    Ok(config::load(Some(file.path()), needs)?)
}

/// The configuration as an operator would write it.
fn configuration(site: &str, agent: &str, graph: &str, token: &str) -> String {
    let accounts: String = accounts()
        .map(|account| {
            format!(
                "[[whatsapp.accounts]]\nphone_number_id = \"{}\"\nwaba_id = \"{}\"\naccess_token = \"{}\"\n",
                account.phone_number_id, account.waba_id, account.access_token
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
