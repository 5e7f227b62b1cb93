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

mod side_by_side;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use side_by_side::{
    Daemon, Path, create_subscription, disable_subscription, drop_subscription, ensure_equal, is_asked_for, option,
    quantile, until_streaming, wait_until, write_config,
};
use tokio_postgres::Client;
use twinlog::dev::postgres::{Cluster, Settings};

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
}

fn options() -> Options {
    Options {
        changes: option("--changes")
            .and_then(|text| text.parse().ok())
            .unwrap_or(400_000),
        rounds: option("--rounds").and_then(|text| text.parse().ok()).unwrap_or(3),
        only: option("--only"),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    if !is_asked_for() {
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
        for path in Path::asked_for() {
            let name = format!("bench_{number}_{}", u8::from(path == Path::Unix));
            let figures = measure(&source, &target, &name, workload, path, &options).await?;
            let of = |figure: fn(&Round) -> f64| quantile(figures.iter().map(figure), 0.5);
            let rate = |drain: &Drain| options.changes as f64 / drain.took.as_secs_f64();
            let (ours, theirs) = (
                quantile(figures.iter().map(|round| rate(&round.ours)), 0.5),
                quantile(figures.iter().map(|round| rate(&round.theirs)), 0.5),
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

    // Both start out equal, and both positions are behind the schema's rows.
    let folder = tempfile::tempdir()?;
    let config = write_config(folder.path(), name, &path.url(source, name), &target.url(&ours_db))?;
    let mut daemon = Daemon::start(&config)?;
    until_streaming(&ours).await?;
    daemon.stop()?;
    // Disabled, so that it can wait while the backlog grows.
    create_subscription(&site, &theirs, &path.connection(source, name)?, name).await?;

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
            ensure_equal(&site, &ours, table).await?;
            ensure_equal(&site, &theirs, table).await?;
        }
        figures.push(result);
    }
    drop_subscription(&theirs).await?;
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
    disable_subscription(site, theirs, name).await?;
    Ok(took)
}
