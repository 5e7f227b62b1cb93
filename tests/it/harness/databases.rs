//! Two shared clusters and a fresh pair of databases for each test.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use tokio::sync::OnceCell;
use tokio_postgres::Client;
use twinlog::config::DatabaseUrl;
use twinlog::dev::postgres::{Cluster, ClusterError, Settings};
use twinlog::migrations;

use super::wait::{SOON, eventually};

static SITE: OnceCell<Arc<Cluster>> = OnceCell::const_new();
static AGENT: OnceCell<Arc<Cluster>> = OnceCell::const_new();
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A Site DB and an Agent DB, empty. Dropped, with their slots, soon after the end of the test.
pub(crate) struct Databases {
    pub(crate) site: Database,
    pub(crate) agent: Database,
}

/// One database: a `tokio_postgres::Client` (by deref), its URL and its cluster.
pub(crate) struct Database {
    /// Its name, unique in the cluster and within `[a-z0-9_]`, so that a slot can have it too.
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
        SITE.get_or_init(|| start(shared())),
        AGENT.get_or_init(|| start(agent_programs(shared())))
    );
    Databases::on(site, agent).await
}

/// The shared clusters keep their files in the machine's memory where there is plenty and nobody has named a folder: each
/// test makes and drops some 600 files, and ext4 spends a fifth of the suite's CPU time on finding inodes for them that were
/// not freed a moment ago.
fn shared() -> Settings {
    const MEMORY: &str = "/dev/shm";
    /// Ten times what they have at most.
    const ROOM: u64 = 8 << 30;
    let room = statvfs(MEMORY).map_or(0, |memory| memory.blocks_available() * memory.fragment_size());
    if room >= ROOM && std::env::var_os("TMPDIR").is_none() {
        Settings::default().folder(MEMORY)
    } else {
        Settings::default()
    }
}

/// A fresh pair on two clusters of the test's own, which it may restart, kill and reconfigure.
pub(crate) async fn private_databases(site: Settings, agent: Settings) -> Databases {
    let (site, agent) = tokio::join!(start(site), start(agent_programs(agent)));
    Databases::on(&site, &agent).await
}

/// A fresh pair of which the Site DB has a cluster of the test's own, in memory as the shared ones.
pub(crate) async fn databases_with_private_site() -> Databases {
    let (site, agent) = tokio::join!(start(shared()), AGENT.get_or_init(|| start(agent_programs(shared()))));
    Databases::on(&site, agent).await
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

    /// The same with another Agent DB, whose encoding is LATIN1.
    pub(crate) async fn with_latin1_agent(mut self) -> Self {
        let cluster = Arc::clone(&self.agent.cluster);
        let name = format!("{}_latin1", self.agent.name);
        let postgres = cluster.client("postgres").await.unwrap();
        let create = format!("CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        postgres.batch_execute(&create).await.unwrap();
        self.agent = Database {
            url: cluster.url(&name),
            client: cluster.client(&name).await.unwrap(),
            name,
            cluster,
        };
        self
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

    /// Runs statements on the Site DB.
    pub(crate) async fn on_site(&self, sql: &str) {
        self.site.run(sql).await;
    }

    /// Runs statements on the Agent DB.
    pub(crate) async fn on_agent(&self, sql: &str) {
        self.agent.run(sql).await;
    }

    /// Runs the same statements on both sides.
    pub(crate) async fn on_both(&self, sql: &str) {
        tokio::join!(self.on_site(sql), self.on_agent(sql));
    }

    /// After a restart of the servers: new connections in place of the dead ones.
    pub(crate) async fn reconnect(&mut self) {
        tokio::join!(self.site.reconnect(), self.agent.reconnect());
    }

    /// The process id of the walsender that serves the test's slot (it is named as the Site DB is).
    pub(crate) async fn walsender(&self) -> Option<String> {
        let slot = &self.site.name;
        self.site
            .text(&format!(
                "SELECT max(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'"
            ))
            .await
    }

    /// Ends the walsender, as an administrator or a proxy's failover may do.
    pub(crate) async fn terminate_walsender(&self) {
        let slot = &self.site.name;
        self.on_site(&format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active"
        ))
        .await;
    }

    /// Drops the slot as soon as no connection uses it.
    pub(crate) async fn drop_slot(&self) {
        eventually("the slot is dropped", 2 * SOON, || async {
            self.site
                .execute("SELECT pg_drop_replication_slot($1)", &[&self.site.name])
                .await
                .map_err(|error| error.to_string())
        })
        .await;
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

    /// Its URL through another port, such as that of a [`super::Proxy`].
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

    /// Runs statements without parameters.
    ///
    /// # Panics
    /// If one fails, with all of them.
    pub(crate) async fn run(&self, sql: &str) {
        if let Err(error) = self.client.batch_execute(sql).await {
            panic!("{}: {error:?} in {sql}", self.name);
        }
    }

    /// Creates a role that may log in and has no other right; `more` are statements with `{role}` for its name. Roles belong
    /// to the whole cluster, so its name ends in the database's.
    pub(crate) async fn create_role(&self, prefix: &str, more: &str) -> String {
        let role = format!("{prefix}_{}", self.name);
        let more = more.replace("{role}", &role);
        self.run(&format!("CREATE ROLE {role} LOGIN PASSWORD '{role}'; {more}"))
            .await;
        role
    }

    /// Its URL as such a role.
    pub(crate) fn url_as(&self, role: &str) -> String {
        let (_, host) = self.url.split_once('@').unwrap();
        format!("postgresql://{role}:{role}@{host}")
    }

    /// One value of a query without parameters, as text.
    ///
    /// # Panics
    /// If the query fails, does not give one row, or gives NULL.
    pub(crate) async fn value(&self, query: &str) -> String {
        let value = self.text(query).await;
        value.unwrap_or_else(|| panic!("{}: NULL from {query}", self.name))
    }

    /// One value of a query without parameters, as text (NULL: `None`).
    ///
    /// # Panics
    /// If the query fails or does not give one row.
    pub(crate) async fn text(&self, query: &str) -> Option<String> {
        self.client
            .query_one(&format!("SELECT (({query}))::text AS value"), &[])
            .await
            .unwrap_or_else(|error| panic!("{}: {error:?} in {query}", self.name))
            .get("value")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A cluster of the test's own is removed as a whole.
        if ![&SITE, &AGENT]
            .iter()
            .any(|shared| shared.get().is_some_and(|shared| Arc::ptr_eq(shared, &self.cluster)))
        {
            return;
        }
        // Slots hold back the whole cluster's WAL and are few. A drop is not async, so this takes a thread and a runtime of
        // its own; nobody waits for it, because a database's end writes a checkpoint.
        let (cluster, name) = (Arc::clone(&self.cluster), self.name.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            match runtime.block_on(async { tokio::time::timeout(REMOVED, remove(&cluster, &name)).await }) {
                Ok(Ok(())) => {}
                other => eprintln!("database {name} is left behind: {other:?}"),
            }
        });
    }
}

/// Longest wait for the removal of a database: a server that a test has stopped must not hang the suite.
const REMOVED: Duration = Duration::from_secs(10);

async fn remove(cluster: &Cluster, name: &str) -> Result<(), ClusterError> {
    let client = cluster.client("postgres").await?;
    let drop_slots = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active";
    eventually("no connection uses the slots", REMOVED, || async {
        // A slot is active for a moment after its process was told to end, and a temporary one goes by itself.
        let _ = client.execute(drop_slots, &[&name]).await;
        let dropped = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1";
        client.execute(dropped, &[&name]).await
    })
    .await;
    client
        .batch_execute(&format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)"))
        .await?;
    Ok(())
}
