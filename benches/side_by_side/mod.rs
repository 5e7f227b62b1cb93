//! What the benchmarks that compare Twinlog with Postgres's own subscription share: the daemon as a process, the
//! subscription, waiting, comparing, medians.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;
use twinlog::dev::postgres::Cluster;

/// How long anything may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(600);

/// How a client reaches the source.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    Tcp,
    Unix,
}

impl Path {
    /// The paths that `--path NAME` asks for: both if it is not given.
    pub(crate) fn asked_for() -> Vec<Self> {
        let only = option("--path");
        [Self::Tcp, Self::Unix]
            .into_iter()
            .filter(|path| only.as_ref().is_none_or(|only| only == path.name()))
            .collect()
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Unix => "Unix",
        }
    }

    /// The address in the URL form that Twinlog takes.
    pub(crate) fn url(self, source: &Cluster, database: &str) -> String {
        match self {
            Self::Tcp => source.url(database),
            Self::Unix => source.socket_url(database),
        }
    }

    /// The address in the form that a subscription takes.
    pub(crate) fn connection(self, source: &Cluster, database: &str) -> Result<String> {
        Ok(match self {
            Self::Tcp => format!(
                "host=127.0.0.1 port={} user=postgres password={} dbname={database}",
                source.port(),
                source.password()
            ),
            Self::Unix => {
                let folder = source.data();
                let folder = folder.parent().context("the cluster's folder")?;
                format!(
                    "host={} port={} user=postgres dbname={database}",
                    folder.display(),
                    source.port()
                )
            }
        })
    }
}

/// The value of `--NAME VALUE` among the arguments.
pub(crate) fn option(name: &str) -> Option<String> {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.get(at + 1).cloned()
}

/// Whether this is a run of `cargo bench`: `cargo test --benches` starts benches too, and then there is nothing to do.
pub(crate) fn is_asked_for() -> bool {
    let said = |word: &str| std::env::args().any(|argument| argument == word);
    said("--bench") && !said("--test")
}

/// The value below which the given share of the figures lies: 0.5 is the median. NaN without figures.
pub(crate) fn quantile(figures: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share between 0 and 1 of a length"
    )]
    let at = (figures.len() as f64 * share) as usize;
    figures
        .get(at.min(figures.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

/// A configuration of the daemon alone, written into `folder`. The slot and the publication are both called `name`.
pub(crate) fn write_config(
    folder: &std::path::Path,
    name: &str,
    site: &str,
    agent: &str,
) -> Result<std::path::PathBuf> {
    let config = folder.join("twinlog.toml");
    std::fs::write(
        &config,
        format!(
            "[site]\nurl = \"{site}\"\n[agent]\nurl = \"{agent}\"\n[sync]\nslot = \"{name}\"\npublication = \"{name}\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n[log]\nfilter = \"warn\"\n",
        ),
    )?;
    Ok(config)
}

/// Waits until every table's first copy is done.
pub(crate) async fn until_streaming(agent: &Client) -> Result<()> {
    wait_until(
        agent,
        "SELECT count(*) > 0 AND bool_and(state = 'streaming') FROM twinlog.tables",
    )
    .await
}

/// Creates the subscription `native`, disabled, on a slot that it makes by hand: so changes made from now on wait in the
/// slot until the subscription is enabled.
pub(crate) async fn create_subscription(
    site: &Client,
    target: &Client,
    connection: &str,
    publication: &str,
) -> Result<()> {
    site.batch_execute(&format!(
        "SELECT pg_create_logical_replication_slot('{publication}_native', 'pgoutput')"
    ))
    .await?;
    target
        .batch_execute(&format!(
            "CREATE SUBSCRIPTION native CONNECTION '{connection}' PUBLICATION {publication} \
             WITH (copy_data = false, create_slot = false, slot_name = '{publication}_native', enabled = false)"
        ))
        .await?;
    Ok(())
}

/// Switches the subscription off and waits until its slot is free.
pub(crate) async fn disable_subscription(site: &Client, target: &Client, publication: &str) -> Result<()> {
    target.batch_execute("ALTER SUBSCRIPTION native DISABLE").await?;
    wait_until(
        site,
        &format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{publication}_native'"),
    )
    .await
}

/// Removes the subscription; its slot goes with the cluster.
pub(crate) async fn drop_subscription(target: &Client) -> Result<()> {
    target
        .batch_execute(
            "ALTER SUBSCRIPTION native DISABLE; ALTER SUBSCRIPTION native SET (slot_name = NONE); \
             DROP SUBSCRIPTION native",
        )
        .await?;
    Ok(())
}

/// Polls until a condition is true. An error counts as "not yet": the daemon makes the schema `twinlog` itself.
pub(crate) async fn wait_until(client: &Client, condition: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !client
        .query_one(condition, &[])
        .await
        .is_ok_and(|row| row.get::<_, Option<bool>>(0).unwrap_or(false))
    {
        ensure!(
            Instant::now() < deadline,
            "not reached within {PATIENCE:?}: {condition}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Compares a table in two databases; a benchmark whose results differ has no figures.
pub(crate) async fn ensure_equal(site: &Client, target: &Client, table: &str) -> Result<()> {
    let digest =
        format!("SELECT count(*)::text || ' ' || coalesce(sum(hashtextextended(t::text, 0))::text, '') FROM {table} t");
    let left: String = site.query_one(&digest, &[]).await?.get(0);
    let right: String = target.query_one(&digest, &[]).await?.get(0);
    ensure!(left == right, "{table} differs: {left} and {right}");
    Ok(())
}

/// The binary under measurement. Killed when dropped.
pub(crate) struct Daemon(Child);

impl Daemon {
    pub(crate) fn start(config: &std::path::Path) -> Result<Self> {
        let child = Command::new(env!("CARGO_BIN_EXE_twinlog"))
            .arg("--config")
            .arg(config)
            .arg("sync")
            .stdin(Stdio::null())
            .spawn()
            .context("start twinlog")?;
        Ok(Self(child))
    }

    pub(crate) fn stop(&mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "twinlog ended with {status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
