//! How soon another process hears of what the server commits.

use std::time::Duration;

use anyhow::{Result, ensure};
use time::OffsetDateTime;
use tokio::sync::broadcast::Receiver;
use tokio_util::sync::CancellationToken;
use twinlog::config;
use twinlog::health::Health;
use twinlog::realtime::{EventLog, Heard};
use twinlog::site_db::Pool;

use super::process::Spent;
use super::{Figures, World, sends};

/// Events are kept for longer than the benchmark takes.
const KEEP: Duration = Duration::from_secs(3600);
/// When nothing is heard for so long, everything was heard.
const QUIET: Duration = Duration::from_secs(2);

/// Sends at half of a number's limit; this process listens, over the same delay. The time is from the change (before its
/// commit) to the moment at which the event is heard here.
pub(crate) async fn heard(world: &World<'_>) -> Result<Figures> {
    let server = world.serve().await?;
    let stop = CancellationToken::new();
    let pool = Pool::connect(&config::Site {
        url: world.url().parse()?,
        max_connections: 4,
    });
    let (log, tasks) = EventLog::start(pool, KEEP, Health::default().component("events"), stop.clone());
    let listening = tokio::spawn(listen(log.subscribe()));
    let before = Spent::so_far(&server, world.cluster)?;
    sends::paced(&server, world.options.people, sends::HALF).await?;
    let spent = Spent::so_far(&server, world.cluster)? - before;
    let (rows, took, mut latencies) = listening.await?;
    stop.cancel();
    tasks.join_all().await;
    let written = "SELECT coalesce(sum(cardinality(ids)), 0)::float8 FROM twinlog.events";
    let written = world.number(written).await?;
    // The first ones may have been before this process began to read.
    ensure!(written - rows < written / 10.0, "{written} were written, {rows} heard");
    latencies.sort_by(f64::total_cmp);
    let at = |part: usize| latencies.get(latencies.len() * part / 100).copied().unwrap_or(f64::NAN);
    Ok(Figures {
        rate: rows / took,
        p50: at(50),
        p99: at(99),
        server: spent.server / rows * 1e6,
        database: spent.database / rows * 1e6,
        peak_mb: server.peak_mb()?,
    })
}

/// How many changed rows were heard of, the seconds from the first to the last, and how late each was, in ms.
async fn listen(mut events: Receiver<Heard>) -> (f64, f64, Vec<f64>) {
    let (mut first, mut last) = (None, OffsetDateTime::UNIX_EPOCH);
    let mut latencies = Vec::new();
    // Until the first one.
    let mut wait = QUIET * 10;
    while let Ok(Ok(Heard::Event(event))) = tokio::time::timeout(wait, events.recv()).await {
        last = OffsetDateTime::now_utc();
        first.get_or_insert(last);
        let late = (last - event.written_at).as_seconds_f64() * 1e3;
        latencies.extend(event.ids.iter().map(|_| late));
        wait = QUIET;
    }
    let took = (last - first.unwrap_or(last)).as_seconds_f64();
    (latencies.len() as f64, took, latencies)
}
