//! A backlog of webhooks turned into messages.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::process::Spent;
use super::{Figures, World, meta};

/// How long the backlog may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Webhooks that one statement writes.
const PORTION: u64 = 1000;

pub(crate) async fn measure(world: &World<'_>) -> Result<Figures> {
    let count = world.options.count;
    backlog(world).await?;
    world.client.batch_execute("VACUUM ANALYZE webhook_events").await?;
    let server = world.serve().await?;
    let before = Spent::so_far(&server, world.cluster)?;
    let unprocessed = "SELECT count(*)::float8 FROM webhook_events WHERE state = 'received'";
    let deadline = Instant::now() + PATIENCE;
    while world.number(unprocessed).await? > 0.0 {
        ensure!(Instant::now() < deadline, "not processed within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let spent = Spent::so_far(&server, world.cluster)? - before;
    let messages = world.number("SELECT count(*)::float8 FROM whatsapp_messages").await?;
    ensure!(messages == count as f64, "{count} webhooks became {messages} messages");
    let swapped = world
        .number(
            "SELECT count(*)::float8 FROM (SELECT split_part(body, ' ', 1)::int AS number, \
             lag(split_part(body, ' ', 1)::int) OVER (PARTITION BY lead_id ORDER BY created_at) AS before \
             FROM whatsapp_messages) AS texts WHERE number < before",
        )
        .await?;
    ensure!(
        swapped == 0.0,
        "{swapped} messages are not in the order of their webhooks"
    );
    let took = world
        .number("SELECT extract(epoch FROM max(processed_at) - min(processed_at))::float8 FROM webhook_events")
        .await?;
    Ok(Figures {
        rate: count as f64 / took,
        server: spent.server / count as f64 * 1e6,
        database: spent.database / count as f64 * 1e6,
        peak_mb: server.peak_mb()?,
        ..Figures::NONE
    })
}

/// Stores the webhooks as the server would have, received one after the other.
async fn backlog(world: &World<'_>) -> Result<()> {
    let (count, people) = (world.options.count, world.options.people);
    let mut first = 0;
    while first < count {
        let bodies: Vec<Vec<u8>> = (first..count.min(first + PORTION))
            .map(|number| meta::text(number, people))
            .collect();
        let sums: Vec<String> = bodies.iter().map(|body| hex::encode(Sha256::digest(body))).collect();
        world
            .client
            .execute(
                "INSERT INTO webhook_events (body, body_sha256, received_at, next_attempt_at) \
                 SELECT body, sum, at, at FROM (SELECT body, sum, clock_timestamp() AS at \
                 FROM unnest($1::bytea[], $2::text[]) AS given(body, sum)) AS timed",
                &[&bodies, &sums],
            )
            .await?;
        first += PORTION;
    }
    Ok(())
}
