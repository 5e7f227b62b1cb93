//! The set-up of every test of the daemon: two databases, a table, and a daemon that makes them equal.

use std::ops::{Deref, DerefMut};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use twinlog::dev::postgres::Settings;

use super::config_file::ConfigFile;
use super::databases::{Databases, databases, private_databases};
use super::process::Process;
use super::wait::{SOON, eventually, eventually_is};

/// A simple table, for tests that need any table.
pub(crate) const NOTES: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int)";

/// Short pauses between attempts; else tests would wait for them.
const QUICK: &str = "
    sync.retry_initial_ms = 50
    sync.retry_max_ms = 500
    sync.reconnect_max_ms = 500";

/// Two databases, and the configuration of a daemon on them. Derefs to [`Databases`].
pub(crate) struct Twins {
    databases: Databases,
    site_url: String,
    agent_url: String,
    more: String,
    config: Arc<ConfigFile>,
}

impl Deref for Twins {
    type Target = Databases;

    fn deref(&self) -> &Databases {
        &self.databases
    }
}

impl DerefMut for Twins {
    fn deref_mut(&mut self) -> &mut Databases {
        &mut self.databases
    }
}

impl Twins {
    /// Fresh databases on the shared clusters, with this schema on both sides.
    pub(crate) async fn new(schema: &str) -> Self {
        Self::on(databases().await, schema).await
    }

    /// Fresh databases with [`NOTES`], and `rows` rows of it on the Site DB.
    pub(crate) async fn with_notes(rows: u32) -> Self {
        let twins = Self::new(NOTES).await;
        twins
            .on_site(&format!(
                "INSERT INTO notes SELECT i, 'old', i FROM generate_series(1, {rows}) i"
            ))
            .await;
        twins
    }

    /// Fresh databases on two clusters of the test's own.
    pub(crate) async fn private(schema: &str) -> Self {
        Self::private_with(Settings::default(), Settings::default(), schema).await
    }

    /// The same with settings of the test's own.
    pub(crate) async fn private_with(site: Settings, agent: Settings, schema: &str) -> Self {
        Self::on(private_databases(site, agent).await, schema).await
    }

    /// On existing databases.
    pub(crate) async fn on(databases: Databases, schema: &str) -> Self {
        databases.on_both(schema).await;
        let (site_url, agent_url) = (databases.site.url.clone(), databases.agent.url.clone());
        Self {
            config: Arc::new(config(&databases, &site_url, &agent_url, "")),
            databases,
            site_url,
            agent_url,
            more: String::new(),
        }
    }

    /// Waits until `twinlog status` says all of these words.
    pub(crate) async fn until_status_says(&self, words: &[&str], deadline: Duration) {
        eventually(&format!("the status says {words:?}"), deadline, || async {
            let (_, output) = self.run(&["status", "--json"]).await;
            if words.iter().all(|word| output.contains(word)) {
                Ok(())
            } else {
                Err(output)
            }
        })
        .await;
    }

    /// Waits until `twinlog status` finds nothing wrong, and returns what it printed. (It reads the daemon's last report,
    /// which is about a second old.)
    pub(crate) async fn until_status_is_good(&self, options: &[&str]) -> String {
        let arguments = [&["status"], options].concat();
        let (_, output) = eventually_is(
            "the status is good",
            2 * SOON,
            || self.run(&arguments),
            |(status, _)| status.success(),
        )
        .await;
        output
    }

    /// Overrides keys of the daemon's configuration with TOML such as `sync.batch_rows = 7`, for daemons and commands that
    /// start from now on.
    pub(crate) fn configure(&mut self, more: &str) {
        more.clone_into(&mut self.more);
        self.renew_config();
    }

    /// [`Self::configure`] for use in the expression that creates the twins.
    pub(crate) fn with(mut self, more: &str) -> Self {
        self.configure(more);
        self
    }

    /// The daemon reaches the Site DB by this URL from now on: as another role, through a proxy.
    pub(crate) fn set_site_url(&mut self, url: &str) {
        url.clone_into(&mut self.site_url);
        self.renew_config();
    }

    /// The daemon reaches the Agent DB by this URL from now on.
    pub(crate) fn set_agent_url(&mut self, url: &str) {
        url.clone_into(&mut self.agent_url);
        self.renew_config();
    }

    /// The daemon is a role of the Agent DB that owns the database and has no other right, as on a managed service. What the
    /// test itself does there from now on it does as this role.
    pub(crate) async fn agent_is_owner(&mut self) {
        let database = &self.agent.name;
        let owner = format!("ALTER DATABASE \"{database}\" OWNER TO {{role}}; SET ROLE {{role}}");
        let role = self.agent.create_role("owner", &owner).await;
        self.set_agent_url(&self.agent.url_as(&role));
    }

    fn renew_config(&mut self) {
        self.config = Arc::new(self.another_config());
    }

    /// The same configuration with other ports, for one more daemon at the same time.
    pub(crate) fn another_config(&self) -> ConfigFile {
        config(&self.databases, &self.site_url, &self.agent_url, &self.more)
    }

    /// Starts a daemon, and waits until it is streaming.
    pub(crate) async fn start(&self) -> Daemon {
        let mut daemon = self.launch();
        daemon.until_flowing().await;
        daemon
    }

    /// Starts a daemon, and does not wait until it is streaming.
    pub(crate) fn launch(&self) -> Daemon {
        self.launch_with("")
    }

    /// The same with failpoints, as in `agent.before_commit=return(abort)`.
    pub(crate) fn launch_with(&self, failpoints: &str) -> Daemon {
        Daemon::launch(Arc::clone(&self.config), failpoints)
    }

    /// Starts a daemon that ends at a failpoint, and waits for its end.
    pub(crate) async fn dies_at(&self, failpoints: &str) {
        let mut daemon = self.launch_with(failpoints);
        let status = daemon.wait(2 * SOON).await;
        assert!(!status.success(), "{failpoints} was reached: {status}");
    }

    /// Starts a command of the binary.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Process {
        Process::start(&self.config, arguments, "")
    }

    /// Runs a command of the binary to its end: its status and all that it printed.
    pub(crate) async fn run(&self, arguments: &[&str]) -> (ExitStatus, String) {
        let mut process = self.spawn(arguments);
        let status = process.wait(2 * SOON).await;
        (status, process.output())
    }

    /// Runs a command that must succeed; what it printed.
    pub(crate) async fn succeeds(&self, arguments: &[&str]) -> String {
        let (status, output) = self.run(arguments).await;
        assert!(status.success(), "{arguments:?}: {status}: {output}");
        output
    }

    /// Runs a command that must fail; what it printed.
    pub(crate) async fn fails(&self, arguments: &[&str]) -> String {
        let (status, output) = self.run(arguments).await;
        assert!(!status.success(), "{arguments:?}: {status}: {output}");
        output
    }
}

fn config(databases: &Databases, site_url: &str, agent_url: &str, more: &str) -> ConfigFile {
    ConfigFile::layered(site_url, agent_url, &databases.site.name, &[QUICK, more])
}

/// A running `twinlog sync`. Derefs to [`Process`].
pub(crate) struct Daemon {
    config: Arc<ConfigFile>,
    process: Process,
}

impl Deref for Daemon {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Daemon {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Daemon {
    /// Starts it with any configuration.
    pub(crate) fn launch(config: impl Into<Arc<ConfigFile>>, failpoints: &str) -> Self {
        let config = config.into();
        Self {
            process: Process::start(&config, &["sync"], failpoints),
            config,
        }
    }

    /// `kill -9`; then starts another one with the same configuration, and waits until it is streaming.
    pub(crate) async fn restart(&mut self) {
        self.relaunch_with("");
        self.until_flowing().await;
    }

    /// `kill -9`; then starts another one, and does not wait until it is streaming.
    pub(crate) fn relaunch_with(&mut self, failpoints: &str) {
        self.process.kill9();
        *self = Self::launch(Arc::clone(&self.config), failpoints);
    }

    /// Waits until it is streaming.
    pub(crate) async fn until_flowing(&mut self) {
        self.process
            .wait_for_output("the stream flows", Duration::from_secs(30))
            .await;
    }

    /// SIGTERM; it must exit with 0.
    pub(crate) async fn stop(mut self) {
        self.process.terminate();
        let status = self.process.wait(SOON).await;
        assert!(status.success(), "{status}");
    }

    /// What an admin route answers: the status code and the body; `None` if nothing listens.
    pub(crate) async fn admin(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.config.admin_port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// A metric without labels; `None` if nothing answers.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let (_, page) = self.admin("/metrics").await?;
        page.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .and_then(|value| value.trim().parse().ok())
    }

    /// Waits until the metrics show this state and no other.
    pub(crate) async fn until_state(&self, state: &str) {
        let wanted = [format!("twinlog_sync_state{{state=\"{state}\"}} 1")];
        let states = || async {
            let (_, page) = self.admin("/metrics").await.unwrap_or_default();
            page.lines()
                .filter(|line| line.starts_with("twinlog_sync_state{") && line.ends_with(" 1"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        eventually_is(&format!("the state is {state}"), 2 * SOON, states, |states| {
            *states == wanted
        })
        .await;
    }

    /// Waits until `/readyz` answers with this status code and a body that contains each of these words.
    pub(crate) async fn until_ready(&self, code: u16, words: &[&str]) {
        eventually(&format!("readyz answers {code} with {words:?}"), SOON, || async {
            let (status, body) = self.admin("/readyz").await.unwrap_or_default();
            // Escaped as in JSON.
            let said = words.iter().all(|word| body.contains(&word.replace('"', "\\\"")));
            if status == code && said {
                Ok(())
            } else {
                Err((status, body))
            }
        })
        .await;
    }
}
