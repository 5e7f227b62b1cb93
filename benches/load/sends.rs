//! Sends over the plain API: how many are taken, how fast one number's go out, and in which order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::clients::{Client, post};
use super::process::{Server, Spent, TOKEN};
use super::{Figures, World};

/// How long the messages of a load may take to go out.
const PATIENCE: Duration = Duration::from_secs(120);
/// Messages a second for the latency: half of the number's limit.
pub(crate) const HALF: u64 = 500;
/// Connections that share these.
const PACED: u64 = 50;

/// Messages that the API takes, each committed before its answer. They go out meanwhile.
pub(crate) async fn taken(world: &World<'_>) -> Result<Figures> {
    let server = world.serve().await?;
    let people = world.options.people;
    let (load, spent) = world.load(&server, move |number| request(number, people)).await?;
    ensure!(load.refused == 0, "{} sends were refused", load.refused);
    let stored = world.number("SELECT count(*)::float8 FROM whatsapp_messages").await?;
    ensure!(
        stored >= load.answered(),
        "{} were answered, {stored} stored",
        load.answered()
    );
    Figures::of_load(&load, &spent, &server)
}

/// Messages of one number that wait, going out as fast as its limit allows; then, at half of the limit, the time from a
/// request to the arrival of its message at Meta.
pub(crate) async fn out(world: &World<'_>) -> Result<Figures> {
    let server = world.serve().await?;
    let people = world.options.people;
    let before = Spent::so_far(&server, world.cluster)?;
    world.load(&server, move |number| request(number, people)).await?;
    until_sent(world).await?;
    let spent = Spent::so_far(&server, world.cluster)? - before;
    let ledger = world.simulator.ledger().messages;
    let (first, last) = (
        ledger.first().context("nothing went out")?,
        ledger.last().context("nothing")?,
    );
    let rate = ledger.len() as f64 / (last.accepted_at - first.accepted_at).as_seconds_f64();
    let fastest = ledger
        .windows(1001)
        .map(|window| window[1000].accepted_at - window[0].accepted_at)
        .min();
    if let Some(fastest) = fastest {
        // Calls that were made within the limit may arrive a little closer to each other.
        ensure!(fastest.as_seconds_f64() > 0.9, "1001 messages arrived within {fastest}");
    }
    paced(&server, people, HALF).await?;
    until_sent(world).await?;
    let latencies = in_order(world, ledger.len()).await?;
    let at = |part: usize| latencies.get(latencies.len() * part / 100).copied().unwrap_or(f64::NAN);
    Ok(Figures {
        rate,
        p50: at(50),
        p99: at(99),
        server: spent.server / ledger.len() as f64 * 1e6,
        database: spent.database / ledger.len() as f64 * 1e6,
        peak_mb: server.peak_mb()?,
    })
}

/// The text says when the request was made.
fn request(number: u64, people: u64) -> Vec<u8> {
    let body = json!({"to": format!("+1650{:07}", number % people), "text": format!("{} hello", now())});
    post(
        "/v1/messages",
        &format!("authorization: Bearer {TOKEN}\r\n"),
        body.to_string().as_bytes(),
    )
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// So many messages a second, for five seconds.
pub(crate) async fn paced(server: &Server, people: u64, rate: u64) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for client in 0..PACED {
        let (next, http) = (Arc::clone(&next), server.http);
        clients.spawn(async move {
            let mut connection = Client::connect(http).await?;
            let every = Duration::from_secs(1) * u32::try_from(PACED)? / u32::try_from(rate)?;
            let mut ticks = tokio::time::interval(every);
            tokio::time::sleep(every * u32::try_from(client)? / u32::try_from(PACED)?).await;
            ticks.reset();
            for _ in 0..5 * rate / PACED {
                ticks.tick().await;
                connection
                    .send(&request(next.fetch_add(1, Ordering::Relaxed), people))
                    .await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

async fn until_sent(world: &World<'_>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let waiting = "SELECT count(*)::float8 FROM whatsapp_messages WHERE status IN ('pending', 'sending')";
    while world.number(waiting).await? > 0.0 {
        ensure!(Instant::now() < deadline, "not sent within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Checks that each person's messages arrived in their order and once, and returns the sorted latencies (ms) of those after
/// the first `skip`.
async fn in_order(world: &World<'_>, skip: usize) -> Result<Vec<f64>> {
    let rows = world
        .client
        .query(
            "SELECT id, conversation_id, split_part(body, ' ', 1)::float8, \
             row_number() OVER (PARTITION BY conversation_id ORDER BY created_at, id) FROM whatsapp_messages",
            &[],
        )
        .await?;
    let rows: HashMap<Uuid, (Uuid, f64, i64)> = rows
        .iter()
        .map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3))))
        .collect();
    let ledger = world.simulator.ledger().messages;
    ensure!(
        ledger.len() == rows.len(),
        "{} stored, {} arrived",
        rows.len(),
        ledger.len()
    );
    let (mut arrived, mut latencies) = (HashMap::new(), Vec::new());
    for (at, message) in ledger.iter().enumerate() {
        let opaque = message
            .opaque
            .as_deref()
            .and_then(|opaque| opaque.strip_prefix("tl:"))
            .context("opaque id")?;
        let (conversation, made, place) = rows.get(&opaque.parse()?).context("a message without a row")?;
        let before: &mut i64 = arrived.entry(*conversation).or_default();
        *before += 1;
        ensure!(
            *before == *place,
            "message {place} of a person arrived as number {before}"
        );
        if at >= skip {
            #[expect(clippy::cast_precision_loss, reason = "microseconds are enough")]
            let accepted = message.accepted_at.unix_timestamp_nanos() as f64 / 1e9;
            latencies.push((accepted - made) * 1e3);
        }
    }
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}
