//! How fast a backlog is read from a walsender, and how soon a lone change is here: the figures in the header of
//! `wire::pace`.
//!
//! `cargo bench --bench read` prints frames a second over TCP and over a Unix socket, and the time from before a lone insert
//! is sent until its frames are here. Nothing decodes or applies: what is measured is the socket and who waits for whom on
//! it. Options after `--`: `--transactions N` (a backlog's size, default 150,000), `--rounds N` (default 2).
//!
//! Nothing is asserted about time: a noisy machine may print what it likes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio_postgres::Client;
use twinlog::config::DatabaseUrl;
use twinlog::dev::postgres::{Cluster, Settings};
use twinlog::lsn::Lsn;
use twinlog::wire::{Feedback, Frame, FrameStream, ReplicationConnection, SlotName};

/// The one publication.
const PUBLICATION: &str = "bench";
/// How long a slot may take to be made.
const SLOT_TIMEOUT: Duration = Duration::from_secs(10);
/// Lone inserts that are timed.
const LONE: usize = 200;

#[tokio::main]
async fn main() -> Result<()> {
    // `cargo test --benches` runs benches as well, but only `cargo bench` says `--bench`: else there is nothing to do.
    let said = |word: &str| std::env::args().any(|argument| argument == word);
    if said("--test") || !said("--bench") {
        return Ok(());
    }
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: u32| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let cluster = Cluster::start(Settings::default()).await?;
    backlog(&cluster, number("--transactions", 150_000), number("--rounds", 2)).await?;
    lone(&cluster).await
}

/// A database with a publication, its slot, and a client.
async fn prepare(cluster: &Cluster, name: &str, schema: &str) -> Result<(Client, SlotName, DatabaseUrl)> {
    cluster.create_database(name).await?;
    let client = cluster.client(name).await?;
    client.batch_execute(schema).await?;
    client
        .batch_execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES"))
        .await?;
    let (slot, url): (SlotName, DatabaseUrl) = (name.parse()?, cluster.url(name).parse()?);
    let mut connection = ReplicationConnection::connect(&url, "twinlog-bench").await?;
    connection.create_slot(&slot, SLOT_TIMEOUT).await?;
    Ok((client, slot, url))
}

/// Nothing is acknowledged, so that each round reads the same; the feedback's handle is held all the same.
async fn stream(url: &DatabaseUrl, slot: &SlotName) -> Result<(FrameStream, Feedback)> {
    let connection = ReplicationConnection::connect(url, "twinlog-bench").await?;
    Ok(connection
        .start_replication(slot, Lsn::INVALID, &[PUBLICATION.to_owned()])
        .await?)
}

/// Reads pgbench's kind of transactions, four frames each, to their end.
async fn backlog(cluster: &Cluster, transactions: u32, rounds: u32) -> Result<()> {
    let schema = "CREATE TABLE a (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
                  CREATE TABLE h (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
                  ALTER TABLE h REPLICA IDENTITY FULL;
                  INSERT INTO a SELECT i, 1, 0, '' FROM generate_series(1, 100000) i";
    let (client, slot, tcp) = prepare(cluster, "bench_backlog", schema).await?;
    client
        .batch_execute(&format!(
            "DO $$ BEGIN FOR i IN 1..{transactions} LOOP
                UPDATE a SET abalance = abalance + i WHERE aid = 1 + (i::bigint * 7919) % 100000;
                INSERT INTO h VALUES (1, 1, i, i, now());
                COMMIT;
             END LOOP; END $$"
        ))
        .await?;
    let end: Lsn = client
        .query_one("SELECT pg_current_wal_lsn()::text", &[])
        .await?
        .get::<_, String>(0)
        .parse()?;
    let unix = cluster.socket_url("bench_backlog").parse()?;
    for _ in 0..rounds {
        for (name, url) in [("TCP", &tcp), ("Unix socket", &unix)] {
            let (mut stream, _feedback) = stream(url, &slot).await?;
            let (began, mut frames, mut batches, mut bytes) = (Instant::now(), 0_u32, 0_u32, 0_usize);
            'reading: loop {
                batches += 1;
                for frame in stream.next().await.context("the stream ended")?? {
                    match frame {
                        Frame::XLogData { payload, .. } => {
                            frames += 1;
                            bytes += payload.len();
                        }
                        Frame::KeepAlive { wal_end, .. } if wal_end >= end => break 'reading,
                        Frame::KeepAlive { .. } => {}
                    }
                }
            }
            let seconds = began.elapsed().as_secs_f64();
            println!(
                "{name:<12} {:>9.0} frames/s {:>7.1} MB/s {:>7.0} frames a batch",
                f64::from(frames) / seconds,
                bytes as f64 / seconds / 1e6,
                f64::from(frames) / f64::from(batches),
            );
            stream.close().await?;
        }
    }
    Ok(())
}

/// From before a lone insert is sent until its frames are here, behind a backlog and then on a quiet stream.
async fn lone(cluster: &Cluster) -> Result<()> {
    let (client, slot, url) = prepare(cluster, "bench_lone", "CREATE TABLE t (id int PRIMARY KEY)").await?;
    let (mut stream, _feedback) = stream(&url, &slot).await?;
    client
        .batch_execute("INSERT INTO t SELECT generate_series(-100000, -1)")
        .await?;
    let (mut commits, mut times) = (0, Vec::with_capacity(LONE));
    for id in 0..=LONE {
        let began = Instant::now();
        if id > 0 {
            client.batch_execute(&format!("INSERT INTO t VALUES ({id})")).await?;
        }
        while commits <= id {
            for frame in stream.next().await.context("the stream ended")?? {
                if let Frame::XLogData { payload, .. } = frame {
                    commits += usize::from(payload.starts_with(b"C"));
                }
            }
        }
        // The first one is the backlog.
        if id > 0 {
            times.push(began.elapsed());
        }
    }
    times.sort();
    println!(
        "lone insert: median {:?}, 99 % {:?}",
        times[LONE / 2],
        times[LONE * 99 / 100]
    );
    stream.close().await?;
    Ok(())
}
