//! How soon many listeners to `GET /v1/events` hear of what the server commits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::meta::NUMBER;
use super::process::{Spent, TOKEN};
use super::{Figures, World, sends};

/// Sends a second: with their statuses and conversations about 500 rows of events.
const SENDS: u64 = 80;
/// Listeners that hear of everything; the others hear of one conversation each.
const TO_ALL: usize = 20;
/// Listeners that connect at a time.
const CONNECTING: usize = 100;
/// When a listener hears nothing for so long, everything was heard.
const QUIET: Duration = Duration::from_secs(8);

/// Many listeners, each to one conversation, and [`TO_ALL`] to all. The time is from a message's `created_at` (before its commit)
/// to the moment at which a listener has its event. `rate`: events that were heard, a second.
pub(crate) async fn measure(world: &World<'_>) -> Result<Figures> {
    let server = world.serve().await?;
    // Each of them gets a message, so that each listener hears something.
    let people = world.options.people.min(SENDS * 5);
    let conversations = conversations(world, people).await?;
    let connected = Arc::new(AtomicUsize::new(0));
    let mut listening = JoinSet::new();
    for listener in 0..world.options.listeners {
        let query = match listener {
            listener if listener < TO_ALL => String::new(),
            listener => format!("?conversation={}", conversations[listener % conversations.len()]),
        };
        listening.spawn(listen(server.http, query, Arc::clone(&connected)));
        while listener >= CONNECTING + connected.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    while connected.load(Ordering::Relaxed) < world.options.listeners {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before = Spent::so_far(&server, world.cluster)?;
    let began = OffsetDateTime::now_utc();
    sends::paced(&server, people, SENDS).await?;
    let took = (OffsetDateTime::now_utc() - began).as_seconds_f64();
    let spent = Spent::so_far(&server, world.cluster)? - before;
    let (mut latencies, mut events) = (Vec::new(), 0);
    while let Some(listened) = listening.join_next().await {
        let (of_one, heard) = listened??;
        latencies.extend(of_one);
        events += heard;
    }
    let rows = world
        .number("SELECT sum(cardinality(ids))::float8 FROM twinlog.events")
        .await?;
    println!(
        "           {} listeners, {:.0} rows of events a second",
        world.options.listeners,
        rows / took
    );
    latencies.sort_by(f64::total_cmp);
    ensure!(!latencies.is_empty(), "nothing was heard");
    let at = |part: usize| latencies.get(latencies.len() * part / 100).copied().unwrap_or(f64::NAN);
    let events = events as f64;
    Ok(Figures {
        rate: events / took,
        p50: at(50),
        p99: at(99),
        server: spent.server / events * 1e6,
        database: spent.database / events * 1e6,
        peak_mb: server.peak_mb()?,
    })
}

/// The conversations with the people of the load.
async fn conversations(world: &World<'_>, people: u64) -> Result<Vec<Uuid>> {
    world
        .client
        .batch_execute(&format!(
            "INSERT INTO whatsapp_accounts (phone_number_id) VALUES ('{NUMBER}') ON CONFLICT DO NOTHING;
             INSERT INTO leads (wa_id, phone) SELECT '1650' || lpad(n::text, 7, '0'), '1650' || lpad(n::text, 7, '0')
               FROM generate_series(0, {people} - 1) AS n;
             INSERT INTO conversations (account_id, lead_id) SELECT a.id, l.id FROM whatsapp_accounts a, leads l;
             ANALYZE"
        ))
        .await?;
    let rows = world.client.query("SELECT id FROM conversations", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// How late each new message was heard, in ms, and how many events.
async fn listen(http: SocketAddr, query: String, connected: Arc<AtomicUsize>) -> Result<(Vec<f64>, usize)> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET /v1/events{query} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let (mut text, mut buffer) = (Vec::new(), vec![0; 4096]);
    let (mut latencies, mut events, mut begun) = (Vec::new(), 0, false);
    loop {
        // Before the load begins, others connect.
        let wait = if events > 0 { QUIET } else { QUIET * 15 };
        let Ok(read) = tokio::time::timeout(wait, stream.read(&mut buffer)).await else {
            return Ok((latencies, events));
        };
        let read = read?;
        ensure!(read > 0, "a listener was let go");
        let now = OffsetDateTime::now_utc();
        text.extend_from_slice(&buffer[..read]);
        if !begun && text.windows(4).any(|bytes| bytes == b"id: ") {
            ensure!(text.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&text));
            connected.fetch_add(1, Ordering::Relaxed);
            begun = true;
        }
        while let Some(end) = text.windows(2).position(|bytes| bytes == b"\n\n") {
            let block: Vec<u8> = text.drain(..end + 2).collect();
            let block = std::str::from_utf8(&block)?;
            events += usize::from(block.contains("\nevent: "));
            if block.contains("event: message.created") {
                let (_, at) = block.split_once("\"created_at\"").context("created_at")?;
                let at = at.split('"').nth(1).context("created_at")?;
                let late = now - OffsetDateTime::parse(at, &Rfc3339)?;
                latencies.push(late.as_seconds_f64() * 1e3);
            }
        }
    }
}
