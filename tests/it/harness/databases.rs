//! Two shared clusters and a fresh pair of databases for each test.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio_postgres::Client;
use twinlog::config::DatabaseUrl;
use twinlog::dev::postgres::{Cluster, Settings};
use twinlog::migrations;

static SITE: OnceCell<Arc<Cluster>> = OnceCell::const_new();
static AGENT: OnceCell<Arc<Cluster>> = OnceCell::const_new();
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A Site DB and an Agent DB, empty. Dropped, with their slots, at the end of the test.
pub(crate) struct Databases {
    pub(crate) site: Database,
    pub(crate) agent: Database,
}

/// One database: a `tokio_postgres::Client` (by deref), its URL and its cluster.
pub(crate) struct Database {
    /// Its name, also a good one for a slot: unique in the cluster and within `[a-z0-9_]`.
    pub(crate) name: String,
    /// Its URL over TCP, as superuser.
    pub(crate) url: String,
    /// A connection of the test's own.
    pub(crate) client: Client,
    /// The server.
    pub(crate) cluster: Arc<Cluster>,
}

impl Deref for Database {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A fresh pair on the two shared clusters.
pub(crate) async fn databases() -> Databases {
    let (site, agent) = tokio::join!(
        SITE.get_or_init(|| start(Settings::default())),
        AGENT.get_or_init(|| start(agent_programs(Settings::default())))
    );
    Databases::on(site, agent).await
}

/// A fresh pair on two clusters of the test's own, which it may restart, kill and reconfigure.
pub(crate) async fn private_databases(site: Settings, agent: Settings) -> Databases {
    let (site, agent) = tokio::join!(start(site), start(agent_programs(agent)));
    Databases::on(&site, &agent).await
}

/// Environment variable that names other server programs for the Agent DB than for the Site DB, as `TWINLOG_PG_BIN` names
/// those of both: two databases need not be of one version.
const AGENT_BIN_VARIABLE: &str = "TWINLOG_AGENT_PG_BIN";

fn agent_programs(settings: Settings) -> Settings {
    match std::env::var_os(AGENT_BIN_VARIABLE).filter(|folder| !folder.is_empty()) {
        Some(folder) => settings.bin(folder),
        None => settings,
    }
}

async fn start(settings: Settings) -> Arc<Cluster> {
    match Cluster::start(settings).await {
        Ok(cluster) => Arc::new(cluster),
        Err(error) => panic!("{error}: {:?}; {:?}", std::error::Error::source(&error), error.hint()),
    }
}

impl Databases {
    async fn on(site: &Arc<Cluster>, agent: &Arc<Cluster>) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (site, agent) = tokio::join!(
            Database::create(site, format!("site_{number}")),
            Database::create(agent, format!("agent_{number}")),
        );
        Self { site, agent }
    }

    /// A further fresh pair on the same two clusters.
    pub(crate) async fn another(&self) -> Self {
        Self::on(&self.site.cluster, &self.agent.cluster).await
    }

    /// Twinlog's own tables on both sides, as `twinlog migrate` makes them.
    pub(crate) async fn migrate(&self) {
        migrations::apply_site(&self.site.database_url()).await.unwrap();
        migrations::apply_agent(&self.agent.database_url()).await.unwrap();
    }

    /// Runs the same statements on both sides.
    pub(crate) async fn both(&self, sql: &str) {
        let (site, agent) = tokio::join!(self.site.batch_execute(sql), self.agent.batch_execute(sql));
        site.unwrap();
        agent.unwrap();
    }
}

impl Database {
    /// A further fresh database on a cluster.
    pub(crate) async fn create(cluster: &Arc<Cluster>, name: String) -> Self {
        cluster.create_database(&name).await.unwrap();
        Self {
            url: cluster.url(&name),
            client: cluster.client(&name).await.unwrap(),
            name,
            cluster: Arc::clone(cluster),
        }
    }

    /// Its URL as the configuration has it.
    pub(crate) fn database_url(&self) -> DatabaseUrl {
        self.url.parse().unwrap()
    }

    /// Its URL through something that listens on another port (a [`super::Proxy`]).
    pub(crate) fn url_through(&self, port: u16) -> String {
        self.url.replace(
            &format!("@127.0.0.1:{}/", self.cluster.port()),
            &format!("@127.0.0.1:{port}/"),
        )
    }

    /// One more connection.
    pub(crate) async fn connect(&self) -> Client {
        self.cluster.client(&self.name).await.unwrap()
    }

    /// After a restart of the server: a new connection in place of the dead one.
    pub(crate) async fn reconnect(&mut self) {
        self.client = self.connect().await;
    }

    /// One value of a query without parameters, as text (NULL: `None`).
    ///
    /// # Panics
    /// If the query fails or does not give one row.
    pub(crate) async fn text(&self, query: &str) -> Option<String> {
        self.client
            .query_one(&format!("SELECT (({query}))::text"), &[])
            .await
            .unwrap()
            .get(0)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.cluster.pid().is_none() {
            return;
        }
        // Slots hold back the whole cluster's WAL and are few; a drop is not async, so this takes a thread and a
        // runtime of its own.
        let (cluster, name) = (Arc::clone(&self.cluster), self.name.clone());
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            // A server that the test has stopped in mid-air must not hang the suite.
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), remove(&cluster, &name)).await })
        });
        match cleaning.join() {
            Ok(Ok(Ok(()))) => {}
            other => eprintln!("database {} is left behind: {other:?}", self.name),
        }
    }
}

async fn remove(cluster: &Cluster, name: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let client = cluster.client("postgres").await?;
    let slots = "SELECT slot_name::text, active_pid FROM pg_replication_slots WHERE database = $1";
    loop {
        let rows = client.query(slots, &[&name]).await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            let (slot, pid): (String, Option<i32>) = (row.get(0), row.get(1));
            if let Some(pid) = pid {
                client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await?;
            }
            // Still active for a moment, or gone by itself (temporary): look again.
            let _ = client.execute("SELECT pg_drop_replication_slot($1)", &[&slot]).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client
        .batch_execute(&format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)"))
        .await?;
    Ok(())
}
