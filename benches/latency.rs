//! How soon a committed row is visible in the second database: Twinlog and Postgres's own subscription, in one run.
//!
//! `cargo bench --bench latency` prints the median and the 99th percentile of the time between the answer to a `COMMIT` at
//! the source and the moment when a client that asks without pause sees the row in the target, for lone commits (one every
//! 20 ms) and for steady streams. Options after `--`: `--rates A,B` (commits a second, default 50,300,2000),
//! `--seconds N` (how long each stream is, default 5), `--path TCP` or `--path Unix` (how a client reaches the source).
//!
//! Nothing is asserted about time: a noisy machine may print what it likes.

mod side_by_side;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use side_by_side::{
    Daemon, Path, create_subscription, disable_subscription, drop_subscription, ensure_equal, is_asked_for, option,
    quantile, until_streaming, wait_until, write_config,
};
use tokio_postgres::Client;
use twinlog::dev::postgres::{Cluster, Settings};

#[tokio::main]
async fn main() -> Result<()> {
    if !is_asked_for() {
        return Ok(());
    }
    let rates = option("--rates").unwrap_or_else(|| "50,300,2000".to_owned());
    let rates: Vec<u32> = rates
        .split(',')
        .map(|rate| rate.trim().parse().context("--rates wants numbers with commas between"))
        .collect::<Result<_>>()?;
    let seconds: u32 = option("--seconds").map_or(Ok(5), |text| text.parse())?;

    let source = Cluster::start(Settings::default()).await?;
    let target = Cluster::start(Settings::default()).await?;
    println!("Postgres {}, ms from COMMIT's answer to visible\n", source.major());
    println!(
        "{:<6} {:>10} {:>14} {:>8} {:>18} {:>8}",
        "path", "commits/s", "Twinlog p50", "p99", "subscription p50", "p99"
    );
    for path in Path::asked_for() {
        compare(&source, &target, path, &rates, seconds).await?;
    }
    Ok(())
}

/// Measures both at each rate, one after the other, and prints a line each.
async fn compare(source: &Cluster, target: &Cluster, path: Path, rates: &[u32], seconds: u32) -> Result<()> {
    // Database, slot and publication.
    let name = format!("latency_{}", path.name().to_lowercase());
    let (ours_db, theirs_db) = (format!("{name}_twinlog"), format!("{name}_native"));
    source.create_database(&name).await?;
    target.create_database(&ours_db).await?;
    target.create_database(&theirs_db).await?;
    let site = source.client(&name).await?;
    let (ours, theirs) = (target.client(&ours_db).await?, target.client(&theirs_db).await?);
    for client in [&site, &ours, &theirs] {
        client
            .batch_execute("CREATE TABLE pings (id bigint PRIMARY KEY, note text)")
            .await?;
    }
    site.batch_execute(&format!("CREATE PUBLICATION {name} FOR ALL TABLES"))
        .await?;

    // The first start makes slot and schema; both sides begin with the same, empty table.
    let folder = tempfile::tempdir()?;
    let config = write_config(folder.path(), &name, &path.url(source, &name), &target.url(&ours_db))?;
    let mut daemon = Daemon::start(&config)?;
    until_streaming(&ours).await?;
    daemon.stop()?;
    create_subscription(&site, &theirs, &path.connection(source, &name)?, &name).await?;

    let mut next = 1_i64;
    for &rate in rates {
        let commits = i64::from(rate.saturating_mul(seconds).max(1));
        let mut daemon = Daemon::start(&config)?;
        let mine = measure(source.client(&name).await?, &ours, &mut next, commits, rate).await?;
        daemon.stop()?;
        theirs.batch_execute("ALTER SUBSCRIPTION native ENABLE").await?;
        let native = measure(source.client(&name).await?, &theirs, &mut next, commits, rate).await?;
        disable_subscription(&site, &theirs, &name).await?;
        println!(
            "{:<6} {rate:>10} {:>14.2} {:>8.2} {:>18.2} {:>8.2}",
            path.name(),
            quantile(mine.iter().copied(), 0.5),
            quantile(mine.iter().copied(), 0.99),
            quantile(native.iter().copied(), 0.5),
            quantile(native.iter().copied(), 0.99),
        );
    }
    // Each missed what the other was measured with, and gets it now.
    let mut daemon = Daemon::start(&config)?;
    theirs.batch_execute("ALTER SUBSCRIPTION native ENABLE").await?;
    for client in [&ours, &theirs] {
        wait_until(client, &format!("SELECT max(id) = {} FROM pings", next - 1)).await?;
        ensure_equal(&site, client, "pings").await?;
    }
    daemon.stop()?;
    drop_subscription(&theirs).await
}

/// Commits rows at a steady rate and watches them arrive: milliseconds from each commit's answer to its row's being seen.
async fn measure(site: Client, target: &Client, next: &mut i64, commits: i64, rate: u32) -> Result<Vec<f64>> {
    // A row of its own shows that the stream flows and has caught up: what is measured is no start.
    let warm = *next;
    site.execute("INSERT INTO pings VALUES ($1, 'warm')", &[&warm]).await?;
    wait_until(target, &format!("SELECT max(id) >= {warm} FROM pings")).await?;

    let (first, last) = (warm + 1, warm + commits);
    *next = last + 1;
    let committed: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let writer = tokio::spawn({
        let committed = Arc::clone(&committed);
        async move {
            let insert = site.prepare("INSERT INTO pings VALUES ($1, 'a note')").await?;
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
            for id in first..=last {
                ticks.tick().await;
                site.execute(&insert, &[&id]).await?;
                committed.lock().expect("no panic while locked").push(Instant::now());
            }
            Ok::<_, anyhow::Error>(())
        }
    });
    let look = target.prepare("SELECT coalesce(max(id), 0) FROM pings").await?;
    let mut seen = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(120);
    while (seen.len() as i64) < commits {
        ensure!(Instant::now() < deadline, "the rows did not arrive within 120 s");
        let newest: i64 = target.query_one(&look, &[]).await?.get(0);
        let now = Instant::now();
        while (seen.len() as i64) < newest - warm {
            seen.push(now);
        }
    }
    writer.await??;
    let committed = committed.lock().expect("no panic while locked");
    Ok(seen
        .iter()
        .zip(committed.iter())
        .map(|(seen, committed)| seen.saturating_duration_since(*committed).as_secs_f64() * 1e3)
        .collect())
}
