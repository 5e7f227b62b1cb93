//! How much the server takes and does, with every round trip to the Site DB delayed as a hosted database's is.
//!
//! `cargo bench --bench server` starts a cluster, a proxy that delays each direction by half of the round trip, and
//! `twinlog serve` as a process on that proxy. It prints, for round trips of 0, 2 and 20 ms:
//!
//! - `pgbench`: commits a second of single rows, by `pgbench` on as many connections as the server has, over the same proxy;
//! - `webhooks`: signed webhooks of keep-alive clients, each committed before its 200;
//! - `taken`: messages over the plain API, each committed before its answer, going out meanwhile;
//! - `out`: the same messages until the last one has arrived at Meta, from one number with a limit of 1,000 a second; `p50` and
//!   `p99` then at half of that, from the request to the arrival. Checked: each message arrived once, each person's in order;
//! - `heard`: rows whose change another process hears of, while 500 messages a second go out; `p50` and `p99` from the change;
//! - `listeners`: events that `--listeners` clients of `GET /v1/events` hear, each of one conversation and 20 of all, while about
//!   500 rows of events a second are written; `p50` and `p99` from the `created_at` of a message to its event;
//! - `events`: webhooks that wait in the database, turned into messages; from the first that is processed to the last.
//!
//! Rates are in items a second; `p50` and `p99` in ms, from the request to its answer. CPU time is that of the server's process
//! and of the database's, in µs for each item; `peak` is the process's largest resident memory. Options after `--`:
//! `--delay MS` (only this round trip), `--only PART`, `--seconds N` (length of a load, default 8), `--clients N` (default 128
//! and 10 more for each ms), `--count N` (events, default 40,000), `--people N` (who write them, default 5,000),
//! `--listeners N` (default 10,000; each needs a file descriptor in this process and in the server), `--connections N` (`[site] max_connections`, default 10), `--durable` (the cluster waits for the disk).
//!
//! Nothing is asserted about time; that nothing answered is lost is.

mod load;

use anyhow::Result;
use load::{Options, World, events, heard, listeners, pgbench, sends, webhooks};
use twinlog::dev::postgres::{Cluster, Settings};

/// What is measured, in this order.
const PARTS: &[&str] = &["pgbench", "webhooks", "events", "taken", "out", "heard", "listeners"];

#[tokio::main]
async fn main() -> Result<()> {
    // `cargo test --benches` runs benches as well, but only `cargo bench` says `--bench`: else there is nothing to do.
    let said = |word: &str| std::env::args().any(|argument| argument == word);
    if said("--test") || !said("--bench") {
        return Ok(());
    }
    let options = Options::from_arguments()?;
    let settings = Settings::default()
        .parameter("max_wal_size", "8GB")
        .parameter("checkpoint_timeout", "1h");
    let settings = if options.durable { settings.durable() } else { settings };
    let cluster = Cluster::start(settings).await?;
    println!("Postgres {}, {} connections\n", cluster.major(), options.connections);
    println!(
        "{:<10} {:>8} {:>10} {:>9} {:>9} {:>12} {:>12} {:>9}",
        "", "delay ms", "per second", "p50 ms", "p99 ms", "µs server", "µs database", "peak MB"
    );
    for &delay in &options.delays {
        for &part in PARTS {
            if options.only.as_ref().is_some_and(|only| only != part) {
                continue;
            }
            let world = World::new(&cluster, part, delay, &options).await?;
            let figures = match part {
                "pgbench" => pgbench::measure(&world)?,
                "webhooks" => webhooks::measure(&world).await?,
                "taken" => sends::taken(&world).await?,
                "out" => sends::out(&world).await?,
                "heard" => heard::heard(&world).await?,
                "listeners" => listeners::measure(&world).await?,
                _ => events::measure(&world).await?,
            };
            println!("{part:<10} {:>8} {figures}", delay.as_millis());
        }
    }
    Ok(())
}
