//! The same backlog drained by Twinlog and by Postgres's own subscription, alternating, in one run.
//!
//! `cargo bench --bench drain` prints rows a second of both and their ratio, for three kinds of traffic, over TCP and over a
//! Unix socket. Both read the same WAL from the same cluster (each through its own slot) and write into the same second
//! cluster (each into its own database); what they wrote is compared before a figure counts. Options after `--`:
//! `--changes N` (a backlog's size, default 400,000), `--rounds N` (default 3; the median is printed), `--only NAME`,
//! `--path TCP` or `--path Unix`.
//!
//! Beside the rate stands what a change cost in CPU time, of all processes together (decoding, reading, applying): that figure
//! hardly depends on what else the machine is doing.
//!
//! Nothing is asserted about time: a noisy machine may print what it likes.

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;
use twinlog::dev::postgres::{Cluster, Settings};

/// How a client reaches the source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    Tcp,
    Unix,
}

impl Path {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Unix => "Unix",
        }
    }
}

/// One kind of traffic: tables, and how a backlog of about so many changes is made.
struct Workload {
    name: &'static str,
    tables: &'static [&'static str],
    schema: &'static str,
    /// SQL with `{n}` for the number of changes.
    backlog: &'static str,
}

const WORKLOADS: &[Workload] = &[
    Workload {
        name: "chat",
        tables: &["messages", "conversations"],
        schema: "CREATE TABLE messages (id bigint PRIMARY KEY, conversation int NOT NULL, direction text NOT NULL,
                     status text NOT NULL, body text, created_at timestamptz NOT NULL DEFAULT now());
                 CREATE TABLE conversations (id int PRIMARY KEY, unread int NOT NULL, last_message_at timestamptz);
                 INSERT INTO conversations SELECT i, 0, now() FROM generate_series(0, 999) i",
        // A message, its conversation, and a status of an earlier message: three changes a transaction.
        backlog: "DO $$ DECLARE start bigint := coalesce((SELECT max(id) FROM messages), 0); BEGIN
                  FOR i IN 1..{n} / 3 LOOP
                      INSERT INTO messages VALUES (start + i, i % 1000, 'inbound', 'received', 'message number ' || i);
                      UPDATE conversations SET unread = unread + 1, last_message_at = now() WHERE id = i % 1000;
                      UPDATE messages SET status = 'read' WHERE id = start + i - 1;
                      COMMIT;
                  END LOOP; END $$",
    },
    Workload {
        name: "pgbench",
        tables: &["accounts", "branches", "history"],
        schema: "CREATE TABLE accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
                 CREATE TABLE branches (bid int PRIMARY KEY, bbalance int, filler char(88));
                 CREATE TABLE history (id bigint PRIMARY KEY, aid int, bid int, delta int, mtime timestamp, filler char(22));
                 INSERT INTO accounts SELECT i, i % 10, 0, '' FROM generate_series(1, 100000) i;
                 INSERT INTO branches SELECT i, 0, '' FROM generate_series(0, 9) i",
        backlog: "DO $$ DECLARE start bigint := coalesce((SELECT max(id) FROM history), 0); BEGIN
                  FOR i IN 1..{n} / 3 LOOP
                      UPDATE accounts SET abalance = abalance + i % 7 WHERE aid = 1 + (i::bigint * 7919) % 100000;
                      UPDATE branches SET bbalance = bbalance + i % 7 WHERE bid = i % 10;
                      INSERT INTO history VALUES (start + i, i % 100000, i % 10, i % 7, now(), '');
                      COMMIT;
                  END LOOP; END $$",
    },
    Workload {
        name: "bulk insert",
        tables: &["facts"],
        schema: "CREATE TABLE facts (id bigint PRIMARY KEY, kind int, name text, amount numeric, at timestamptz, note text)",
        backlog: "INSERT INTO facts SELECT s.m + i, i % 10, 'name ' || i, i * 1.5, now(), 'a note about ' || i
                  FROM (SELECT coalesce(max(id), 0) AS m FROM facts) s, generate_series(1, {n}) i",
    },
];

struct Options {
    changes: u64,
    rounds: usize,
    only: Option<String>,
    path: Option<String>,
}

fn options() -> Options {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    Options {
        changes: value("--changes").and_then(|text| text.parse().ok()).unwrap_or(400_000),
        rounds: value("--rounds").and_then(|text| text.parse().ok()).unwrap_or(3),
        only: value("--only"),
        path: value("--path"),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    // `cargo test --benches` runs benches as well, but only `cargo bench` says `--bench`: else there is nothing to do.
    let said = |word: &str| std::env::args().any(|argument| argument == word);
    if said("--test") || !said("--bench") {
        return Ok(());
    }
    let options = options();
    // Neither shall pay for vacuuming what the other wrote; and without the last one, a subscription that was disabled a moment
    // ago waits up to 5 s before it works again.
    let tuned = || {
        Settings::default()
            .parameter("max_wal_size", "8GB")
            .parameter("checkpoint_timeout", "1h")
            .parameter("autovacuum", "off")
            .parameter("wal_retrieve_retry_interval", "20ms")
    };
    let source = Cluster::start(tuned().parameter("synchronous_commit", "off")).await?;
    let target = Cluster::start(tuned()).await?;
    println!(
        "Postgres {}, {} changes a backlog, median of {} rounds, rows a second\n",
        source.major(),
        options.changes,
        options.rounds
    );
    println!(
        "{:<12} {:<12} {:>12} {:>14} {:>7}   {:>12} {:>12}",
        "workload", "path", "Twinlog", "subscription", "ratio", "µs CPU ours", "theirs"
    );
    for (number, workload) in WORKLOADS.iter().enumerate() {
        if options.only.as_ref().is_some_and(|only| only != workload.name) {
            continue;
        }
        for path in [Path::Tcp, Path::Unix] {
            if options.path.as_ref().is_some_and(|only| *only != path.name()) {
                continue;
            }
            let name = format!("bench_{number}_{}", u8::from(path == Path::Unix));
            let figures = measure(&source, &target, &name, workload, path, &options).await?;
            let of = |figure: fn(&Round) -> f64| median(figures.iter().map(figure));
            let rate = |drain: &Drain| options.changes as f64 / drain.took.as_secs_f64();
            let (ours, theirs) = (
                median(figures.iter().map(|round| rate(&round.ours))),
                median(figures.iter().map(|round| rate(&round.theirs))),
            );
            println!(
                "{:<12} {:<12} {ours:>12.0} {theirs:>14.0} {:>6.2}x   {:>12.2} {:>12.2}",
                workload.name,
                path.name(),
                ours / theirs,
                of(|round| round.ours.cpu) / options.changes as f64 * 1e6,
                of(|round| round.theirs.cpu) / options.changes as f64 * 1e6,
            );
        }
    }
    Ok(())
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One drain of a backlog.
#[derive(Default)]
struct Drain {
    took: Duration,
    /// CPU seconds of all processes.
    cpu: f64,
}

/// The same backlog, drained by both.
#[derive(Default)]
struct Round {
    ours: Drain,
    theirs: Drain,
}

/// CPU seconds that the clusters' processes and our own ended children have used so far (Linux; 0 elsewhere).
fn cpu_seconds(clusters: &[&Cluster]) -> Result<f64> {
    /// `/proc/PID/stat` counts in these.
    const TICKS_PER_SECOND: f64 = 100.0;
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Ok(0.0);
    };
    // pid → (parent, own ticks, ended children's ticks)
    let mut stats: HashMap<u32, (u32, f64, f64)> = HashMap::new();
    for entry in processes {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while we look.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let Some((_, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |index: usize| {
            fields
                .get(index)
                .and_then(|text| text.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        let parent = fields.get(1).and_then(|text| text.parse().ok()).unwrap_or(0);
        stats.insert(pid, (parent, ticks(11) + ticks(12), ticks(13) + ticks(14)));
    }
    // The servers' processes may have a launcher between us and them: whatever descends from a cluster's process counts,
    // and what it has waited for. Of ourselves only the ended children count, which are the daemons.
    let roots: Vec<u32> = clusters.iter().filter_map(|cluster| cluster.pid()).collect();
    let belongs = |pid: u32| {
        std::iter::successors(Some(pid), |pid| {
            stats.get(pid).map(|(parent, ..)| *parent).filter(|&parent| parent > 1)
        })
        .any(|pid| roots.contains(&pid))
    };
    let own = std::process::id();
    let ticks: f64 = stats
        .iter()
        .map(|(&pid, (_, used, ended))| match pid {
            pid if pid == own => *ended,
            pid if belongs(pid) => used + ended,
            _ => 0.0,
        })
        .sum();
    Ok(ticks / TICKS_PER_SECOND)
}

/// What each round took of Twinlog and of the subscription.
async fn measure(
    source: &Cluster,
    target: &Cluster,
    name: &str,
    workload: &Workload,
    path: Path,
    options: &Options,
) -> Result<Vec<Round>> {
    let (ours_db, theirs_db) = (format!("{name}_twinlog"), format!("{name}_native"));
    source.create_database(name).await?;
    target.create_database(&ours_db).await?;
    target.create_database(&theirs_db).await?;
    let (site, ours, theirs) = (
        source.client(name).await?,
        target.client(&ours_db).await?,
        target.client(&theirs_db).await?,
    );
    for client in [&site, &ours, &theirs] {
        client.batch_execute(workload.schema).await?;
    }
    site.batch_execute(&format!("CREATE PUBLICATION {name} FOR ALL TABLES"))
        .await?;

    let url = match path {
        Path::Tcp => source.url(name),
        Path::Unix => source.socket_url(name),
    };
    // Both start out equal, and both positions are behind the schema's rows.
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("twinlog.toml");
    std::fs::write(
        &config,
        format!(
            "[site]\nurl = \"{url}\"\n[agent]\nurl = \"{}\"\n[sync]\nslot = \"{name}\"\npublication = \"{name}\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n[log]\nfilter = \"warn\"\n",
            target.url(&ours_db)
        ),
    )?;
    let mut daemon = Daemon::start(&config)?;
    wait_until(
        &ours,
        "SELECT count(*) > 0 AND bool_and(state = 'streaming') FROM twinlog.tables",
    )
    .await?;
    daemon.stop()?;
    let connection = match path {
        Path::Tcp => format!(
            "host=127.0.0.1 port={} user=postgres password={} dbname={name}",
            source.port(),
            source.password()
        ),
        Path::Unix => {
            let folder = source.data();
            let folder = folder.parent().context("the cluster's folder")?;
            format!(
                "host={} port={} user=postgres dbname={name}",
                folder.display(),
                source.port()
            )
        }
    };
    // The slot is made by hand, so that the subscription can wait, disabled, while the backlog grows.
    site.batch_execute(&format!(
        "SELECT pg_create_logical_replication_slot('{name}_native', 'pgoutput')"
    ))
    .await?;
    theirs
        .batch_execute(&format!(
            "CREATE SUBSCRIPTION native CONNECTION '{connection}' PUBLICATION {name} \
             WITH (copy_data = false, create_slot = false, slot_name = '{name}_native', enabled = false)"
        ))
        .await?;

    let mut figures = Vec::new();
    for round in 0..options.rounds {
        site.batch_execute(&workload.backlog.replace("{n}", &options.changes.to_string()))
            .await?;
        // The last commit's end, before anything else is written: Twinlog moves an idle checkpoint past other records only
        // every few seconds, which is no work of draining.
        let end: String = site
            .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
            .await?
            .get(0);
        site.batch_execute("CHECKPOINT").await?;
        // Alternating, so that neither always has the warmer machine.
        let clusters = [source, target];
        let first = round % 2 == 0;
        let mut result = Round::default();
        for ours_turn in [first, !first] {
            let before = cpu_seconds(&clusters)?;
            let drain = if ours_turn {
                &mut result.ours
            } else {
                &mut result.theirs
            };
            drain.took = if ours_turn {
                drain_ours(&config, &ours, &end).await?
            } else {
                drain_theirs(&site, &theirs, name, &end).await?
            };
            drain.cpu = cpu_seconds(&clusters)? - before;
        }
        for table in workload.tables {
            equal(&site, &ours, table).await?;
            equal(&site, &theirs, table).await?;
        }
        figures.push(result);
    }
    theirs.batch_execute("ALTER SUBSCRIPTION native DISABLE; ALTER SUBSCRIPTION native SET (slot_name = NONE); DROP SUBSCRIPTION native").await?;
    Ok(figures)
}

/// From the start of the process to the last change durable in the target.
async fn drain_ours(config: &std::path::Path, ours: &Client, end: &str) -> Result<Duration> {
    let began = Instant::now();
    let mut daemon = Daemon::start(config)?;
    wait_until(
        ours,
        &format!("SELECT end_lsn >= '{end}'::pg_lsn FROM twinlog.checkpoint"),
    )
    .await?;
    let took = began.elapsed();
    daemon.stop()?;
    Ok(took)
}

/// From the moment it is enabled to the last change acknowledged.
async fn drain_theirs(site: &Client, theirs: &Client, name: &str, end: &str) -> Result<Duration> {
    let began = Instant::now();
    theirs.batch_execute("ALTER SUBSCRIPTION native ENABLE").await?;
    wait_until(
        site,
        &format!(
            "SELECT coalesce(bool_or(replay_lsn >= '{end}'::pg_lsn), false) FROM pg_stat_replication r \
             JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.slot_name = '{name}_native'"
        ),
    )
    .await?;
    let took = began.elapsed();
    theirs.batch_execute("ALTER SUBSCRIPTION native DISABLE").await?;
    wait_until(
        site,
        &format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{name}_native'"),
    )
    .await?;
    Ok(took)
}

async fn wait_until(client: &Client, condition: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(600);
    // An error is "not yet": the schema twinlog is made by the daemon itself.
    while !client
        .query_one(condition, &[])
        .await
        .is_ok_and(|row| row.get::<_, Option<bool>>(0).unwrap_or(false))
    {
        ensure!(Instant::now() < deadline, "not reached within 600 s: {condition}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn equal(site: &Client, target: &Client, table: &str) -> Result<()> {
    let digest =
        format!("SELECT count(*)::text || ' ' || coalesce(sum(hashtextextended(t::text, 0))::text, '') FROM {table} t");
    let left: String = site.query_one(&digest, &[]).await?.get(0);
    let right: String = target.query_one(&digest, &[]).await?.get(0);
    ensure!(left == right, "{table} differs: {left} and {right}");
    Ok(())
}

/// The binary under measurement. Killed when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(config: &std::path::Path) -> Result<Self> {
        let child = Command::new(env!("CARGO_BIN_EXE_twinlog"))
            .arg("--config")
            .arg(config)
            .arg("sync")
            .stdin(Stdio::null())
            .spawn()
            .context("start twinlog")?;
        Ok(Self(child))
    }

    fn stop(&mut self) -> Result<()> {
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
