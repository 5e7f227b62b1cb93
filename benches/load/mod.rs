//! What the parts of the server's benchmark share: options, a world (database, delay, configuration), figures.

pub(crate) mod clients;
mod delay;
pub(crate) mod events;
pub(crate) mod heard;
pub(crate) mod listeners;
mod meta;
pub(crate) mod pgbench;
mod process;
pub(crate) mod sends;
pub(crate) mod webhooks;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio_postgres::Client;
use twinlog::dev::graph_simulator::{self, Simulator};
use twinlog::dev::postgres::Cluster;
use twinlog::migrations;

use self::clients::Load;
use self::delay::DelayingProxy;
use self::process::{Server, Spent};

/// What the command line asks for.
pub(crate) struct Options {
    pub(crate) delays: Vec<Duration>,
    pub(crate) only: Option<String>,
    pub(crate) durable: bool,
    pub(crate) connections: u32,
    /// How long a load is.
    length: Duration,
    clients: Option<usize>,
    /// Webhooks that wait in the database.
    count: u64,
    /// People who write.
    people: u64,
    /// How many listen to events.
    listeners: usize,
}

impl Options {
    pub(crate) fn from_arguments() -> Result<Self> {
        let arguments: Vec<String> = std::env::args().collect();
        let text = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            arguments.get(at + 1).cloned()
        };
        let number =
            |name: &str, default: u64| text(name).map_or(Ok(default), |text| text.parse().context(name.to_owned()));
        let delays = match text("--delay") {
            Some(delay) => vec![Duration::from_millis(delay.parse().context("--delay")?)],
            None => [0, 2, 20].map(Duration::from_millis).to_vec(),
        };
        Ok(Self {
            delays,
            only: text("--only"),
            durable: arguments.iter().any(|argument| argument == "--durable"),
            connections: u32::try_from(number("--connections", 10)?)?,
            length: Duration::from_secs(number("--seconds", 8)?),
            clients: text("--clients")
                .map(|text| text.parse())
                .transpose()
                .context("--clients")?,
            count: number("--count", 40_000)?,
            people: number("--people", 5_000)?.max(1),
            listeners: usize::try_from(number("--listeners", 10_000)?)?,
        })
    }

    /// How many clients wait for an answer at a time.
    fn clients(&self, delay: Duration) -> usize {
        let more = usize::try_from(delay.as_millis()).unwrap_or(0).saturating_mul(10);
        self.clients.unwrap_or(128 + more)
    }
}

/// A migrated database behind a delay, and Meta's simulator: what a server needs.
pub(crate) struct World<'a> {
    cluster: &'a Cluster,
    options: &'a Options,
    delay: Duration,
    database: String,
    /// On the cluster itself, without a delay.
    pub(crate) client: Client,
    proxy: DelayingProxy,
    simulator: Simulator,
}

impl<'a> World<'a> {
    pub(crate) async fn new(cluster: &'a Cluster, part: &str, delay: Duration, options: &'a Options) -> Result<Self> {
        let database = format!("{part}_{}", delay.as_millis());
        cluster.create_database(&database).await?;
        migrations::apply_site(&cluster.url(&database).parse()?).await?;
        Ok(Self {
            cluster,
            options,
            delay,
            client: cluster.client(&database).await?,
            database,
            proxy: DelayingProxy::start(cluster.port(), delay)?,
            simulator: Simulator::start(graph_simulator::Settings::default()).await?,
        })
    }

    /// The server, when it is ready.
    pub(crate) async fn serve(&self) -> Result<Server> {
        Server::start(&self.url(), self.options.connections, &self.simulator.url()).await
    }

    /// The database's URL, over the delay.
    fn url(&self) -> String {
        let direct = self.cluster.url(&self.database);
        direct.replace(
            &format!(":{}/", self.cluster.port()),
            &format!(":{}/", self.proxy.port()),
        )
    }

    /// Puts a load on a server, and returns it with what it cost.
    pub(crate) async fn load<R>(&self, server: &Server, request: R) -> Result<(Load, Spent)>
    where
        R: Fn(u64) -> Vec<u8> + Send + Sync + 'static,
    {
        let before = Spent::so_far(server, self.cluster)?;
        let clients = self.options.clients(self.delay);
        let load = clients::load(server.http, clients, self.options.length, request).await?;
        Ok((load, Spent::so_far(server, self.cluster)? - before))
    }

    /// One number of a query.
    pub(crate) async fn number(&self, query: &str) -> Result<f64> {
        Ok(self.client.query_one(query, &[]).await?.get(0))
    }
}

/// A line of the table; what a part does not measure stays NaN and is printed as a dash.
pub(crate) struct Figures {
    pub(crate) rate: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// µs of CPU time for each item.
    pub(crate) server: f64,
    pub(crate) database: f64,
    pub(crate) peak_mb: f64,
}

impl Figures {
    const NONE: Self = Self {
        rate: f64::NAN,
        p50: f64::NAN,
        p99: f64::NAN,
        server: f64::NAN,
        database: f64::NAN,
        peak_mb: f64::NAN,
    };

    /// Of a load on a server.
    pub(crate) fn of_load(load: &Load, spent: &Spent, server: &Server) -> Result<Self> {
        Ok(Self {
            rate: load.rate(),
            p50: load.latency_ms(0.5),
            p99: load.latency_ms(0.99),
            server: spent.server / load.answered() * 1e6,
            database: spent.database / load.answered() * 1e6,
            peak_mb: server.peak_mb()?,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |figure: f64, digits: usize| {
            if figure.is_nan() {
                "-".to_owned()
            } else {
                format!("{figure:.digits$}")
            }
        };
        write!(
            f,
            "{:>10} {:>9} {:>9} {:>12} {:>12} {:>9}",
            cell(self.rate, 0),
            cell(self.p50, 1),
            cell(self.p99, 1),
            cell(self.server, 0),
            cell(self.database, 0),
            cell(self.peak_mb, 0)
        )
    }
}
