//! Starts the whole server (pool, outbox, inbox and listener), and ends its parts in a fixed order.
//!
//! The Site DB need not be up at start: until it is, requests are refused with 503 (Meta and the clients try again), and
//! `/readyz` says why.
//!
//! | file | its job |
//! |---|---|
//! | `from_config` | the configuration → the settings of each part |
//! | `light` | what the parts report about themselves, in the log |
//! | `report` | the same, in the Site DB |
//! | `templates` | the templates that Meta has stopped, or will |
//! | `watch` | checks every few seconds that the Site DB answers |

mod from_config;
mod light;
mod report;
mod templates;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::from_config::Settings;
use super::state::State;
use super::{listener as connections, router};
use crate::config::Config;
use crate::health::Health;
use crate::inbox::{Inbox, Worker};
use crate::outbox::Outbox;
use crate::provider::cloud::ClientSetupError;
use crate::realtime::{EventLog, Hub};
use crate::shutdown;
use crate::site_db::Pool;
use crate::subscribers::{self, ReceiverSetupError};

/// Why the server could not start, or ended before its stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The client for the Graph API could not be set up.
    #[error("start the outbox")]
    Client(#[source] ClientSetupError),
    /// A client for a subscriber could not be set up.
    #[error("start to hand webhooks on")]
    Subscribers(#[source] ReceiverSetupError),
    /// A part panicked: a bug in Twinlog.
    #[error("a part of the server ended by itself")]
    Part(#[source] tokio::task::JoinError),
}

/// A round of the reader of events takes less: a time-out, and the longest wait after an error.
const EVENTS_ROUND: Duration = Duration::from_secs(12);

/// How long closing the pool may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the server until the stop, and then until all work under way has ended (see [`shutdown::GRACE`]).
///
/// # Errors
/// See [`ServerError`]. If the Site DB is down, that is not an error: the server waits for it.
pub async fn run_server(
    config: Arc<Config>,
    health: Health,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let settings = Settings::new(&config).map_err(ServerError::Client)?;
    let pool = Pool::connect(&config.site);
    // A stop of our own, so that a part that fails can stop the others cleanly.
    let stop = stop.child_token();
    let (events, reading) = EventLog::start(
        pool.clone(),
        config.events.keep,
        health.component(light::EVENTS).reports_every(EVENTS_ROUND),
        stop.clone(),
    );
    let (outbox, sending) = Outbox::start(pool.clone(), settings.outbox, &events, &health, stop.clone());
    let (hub, telling) = Hub::start(
        pool.clone(),
        &events,
        config.events.heartbeat,
        health.component(light::LISTENERS).reports_every(EVENTS_ROUND),
        stop.clone(),
    );
    let inbox = Inbox::new(pool.clone(), settings.inbox);
    let undelivered = Duration::from_secs(24 * 3600) * config.retention.undelivered_days;
    let (handing_on, noted) =
        subscribers::start(&pool, &config.subscribers, undelivered, &inbox.stored(), &health, &stop)
            .map_err(ServerError::Subscribers)?;

    let mut parts: JoinSet<Result<(), ServerError>> = JoinSet::new();
    let watching = watch::site_db(pool.clone(), health.component(light::SITE_DB), stop.clone());
    parts.spawn(async move {
        watching.await;
        Ok(())
    });
    parts.spawn(join(sending));
    parts.spawn(join(reading));
    parts.spawn(join(telling));
    parts.spawn(join(handing_on));
    let reporting = report::run(health.clone(), pool.clone(), stop.clone());
    parts.spawn(async move {
        reporting.await;
        Ok(())
    });
    let templates = templates::run(pool.clone(), health.component(light::TEMPLATES), stop.clone());
    parts.spawn(async move {
        templates.await;
        Ok(())
    });
    let lighting = light::run(health.clone(), pool.clone(), inbox.clone(), stop.clone());
    parts.spawn(async move {
        lighting.await;
        Ok(())
    });
    let worker = Worker::new(inbox.clone(), health.component(light::INBOX));
    let worker_stop = stop.clone();
    parts.spawn(async move {
        worker.run(worker_stop).await;
        Ok(())
    });
    let state = State::new(settings.http, pool.clone(), outbox, inbox, hub, noted, health.clone());
    let listening = health.component("http");
    listening.ready(json!({"listen": listener.local_addr().ok().map(|address| address.to_string())}));
    let serving_stop = stop.clone();
    parts.spawn(async move {
        serve(listener, state, serving_stop).await;
        listening.not_ready("stopped", json!(null));
        Ok(())
    });

    let mut result = Ok(());
    while let Some(ended) = parts.join_next().await {
        let ended = ended.unwrap_or_else(|error| Err(ServerError::Part(error)));
        if let Err(error) = ended {
            stop.cancel();
            if result.is_ok() {
                result = Err(error);
            }
        }
    }
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, pool.close()).await;
    result
}

/// Waits for the tasks of a part. If one panics, the server must end: it would accept messages and not send them, or tell nobody.
async fn join(mut tasks: JoinSet<()>) -> Result<(), ServerError> {
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(ServerError::Part)?;
    }
    Ok(())
}

/// Serves the public listener until the stop; then requests under way have [`shutdown::GRACE`] to end.
async fn serve(listener: TcpListener, state: State, stop: CancellationToken) {
    let bounds = state.settings.connections;
    let (router, socket_io) = router::router(state);
    let serving = connections::serve(listener, router, bounds, stop.clone());
    let closing = async {
        stop.cancelled().await;
        socket_io.close().await;
    };
    let out_of_time = async {
        stop.cancelled().await;
        tokio::time::sleep(shutdown::GRACE + Duration::from_secs(1)).await;
    };
    tokio::select! {
        _ = async { tokio::join!(serving, closing) } => {}
        () = out_of_time => {}
    }
}
