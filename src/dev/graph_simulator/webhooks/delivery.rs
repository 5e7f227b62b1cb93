//! Delivery to the callback as Meta does it: signed, in batches, several at a time, repeated until a 200.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::envelope::envelope;
use crate::dev::graph_simulator::update::Queued;
use crate::dev::graph_simulator::world::World;
use crate::provider::cloud::signature;

/// Updates that may wait for the callback; a caller that adds more has to wait.
pub(crate) const QUEUE: usize = 10_000;

/// Delivers until the simulator stops.
pub(crate) async fn run(world: Arc<World>, mut queue: mpsc::Receiver<Queued>) {
    let slots = Arc::new(Semaphore::new(world.settings.webhooks.concurrency.max(1)));
    loop {
        let first = tokio::select! {
            biased;
            () = world.stop.cancelled() => return,
            first = queue.recv() => match first {
                Some(first) => first,
                None => return,
            },
        };
        let mut paused = world.paused.subscribe();
        let slot = tokio::select! {
            biased;
            () = world.stop.cancelled() => return,
            slot = async {
                // Never closed: the world holds the sender, and the semaphore is never closed.
                let _ = paused.wait_for(|paused| !*paused).await;
                Arc::clone(&slots).acquire_owned().await
            } => slot,
        };
        let Ok(slot) = slot else { return };
        let mut batch = vec![first];
        while batch.len() < world.batch() {
            let Ok(next) = queue.try_recv() else { break };
            batch.push(next);
        }
        let world = Arc::clone(&world);
        let task = Arc::clone(&world);
        world.tasks.spawn(async move {
            // A batch that the callback refuses waits without holding up the others.
            deliver(&task, batch, slot).await;
        });
    }
}

/// Posts a batch until the callback answers 200, or until it is given up.
async fn deliver(world: &World, batch: Vec<Queued>, slot: OwnedSemaphorePermit) {
    let count = batch.len();
    let mut slot = Some(slot);
    let (updates, mut waiting): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .map(|queued| (queued.update, queued.attempted))
        .unzip();
    let body = envelope(&updates);
    let started = Instant::now();
    let mut attempt = 0_usize;
    loop {
        let delivered = match world.callback() {
            // Without a callback there is nothing to deliver to.
            None => true,
            Some(_) => post(world, &body, &world.settings.app_secret).await == Some(200),
        };
        for attempted in waiting.drain(..).flatten() {
            // Ignore errors: the task that waits for the result may have been cancelled.
            let _ = attempted.send(());
        }
        drop(slot.take());
        if delivered || started.elapsed() > world.settings.webhooks.give_up_after {
            world.done(count);
            return;
        }
        let retries = &world.settings.webhooks.retries;
        let wait = retries
            .get(attempt)
            .or(retries.last())
            .copied()
            .unwrap_or(Duration::from_secs(1));
        attempt += 1;
        if !crate::shutdown::sleep(wait, &world.stop).await {
            return;
        }
    }
}

/// One signed POST; the status of the answer, if there is one.
pub(crate) async fn post(world: &World, body: &[u8], secret: &SecretString) -> Option<u16> {
    let callback = world.callback()?;
    let request = world
        .client
        .post(callback)
        .timeout(world.settings.webhooks.timeout)
        .header("content-type", "application/json")
        .header("user-agent", "facebookexternalua")
        .header(signature::HEADER, signature::sign(secret, body))
        .body(body.to_vec());
    let answer = tokio::select! {
        biased;
        () = world.stop.cancelled() => return None,
        answer = request.send() => answer.ok()?,
    };
    Some(answer.status().as_u16())
}
