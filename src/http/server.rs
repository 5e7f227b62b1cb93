//! The server put together: pool, numbers, outbox, inbox and listener, started in any order and ended in one.
//!
//! The Site DB need not be there at start: requests are refused with 503 (Meta and the clients come back), and the
//! readiness says why, until it is.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::State;
use crate::config::Config;
use crate::health::{Component, Health};
use crate::inbox::{Inbox, InboxSettings, Worker};
use crate::outbox::{GraphSetupError, Outbox};
use crate::shutdown;
use crate::site_db::{self, Pool, SiteError};

/// Why the server ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The outbox could not be set up.
    #[error("start the outbox")]
    Outbox(#[source] GraphSetupError),
    /// A part ended although nobody told it to: a fault of ours.
    #[error("a part of the server ended by itself")]
    Part(#[source] tokio::task::JoinError),
}

/// How often the Site DB is looked at: half of what a person needs to notice.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often while it is missing, so that the start does not wait for it longer than it must.
const LOOK_EVERY_WHILE_MISSING: Duration = Duration::from_secs(1);
/// A look that takes longer than that says that it is not there: a hanging connection is no answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the pool's goodbyes may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the server until the stop, and then until everything that was under way has ended (see
/// [`shutdown::GRACE`]).
///
/// # Errors
/// See [`ServerError`]. A Site DB that is missing is not one: it is waited for.
pub async fn run_server(
    config: Arc<Config>,
    health: Health,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let pool = Pool::connect(&config.site);
    // Our own stop: a part that fails takes the others down in good order.
    let stop = stop.child_token();
    let (outbox, sending) =
        Outbox::start(pool.clone(), Arc::clone(&config), &health, stop.clone()).map_err(ServerError::Outbox)?;
    let inbox = Inbox::new(pool.clone(), InboxSettings::new(config.whatsapp.app_secrets.clone()));

    let mut parts: JoinSet<Result<(), ServerError>> = JoinSet::new();
    parts.spawn(watch(pool.clone(), health.component("site_db"), stop.clone()));
    parts.spawn(join(sending));
    let worker = Worker::new(inbox.clone(), health.component("inbox"));
    let worker_stop = stop.clone();
    parts.spawn(async move {
        worker.run(worker_stop).await;
        Ok(())
    });
    let state = State::new(Arc::clone(&config), pool.clone(), outbox, inbox);
    let listening = health.component("http");
    listening.ready(json!({"listen": listener.local_addr().ok().map(|address| address.to_string())}));
    let serving_stop = stop.clone();
    parts.spawn(async move {
        super::serve(listener, state, serving_stop).await;
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

/// Waits for the outbox's tasks; one that panics is a fault that must end the server, not leave it deaf.
async fn join(mut tasks: JoinSet<()>) -> Result<(), ServerError> {
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(ServerError::Part)?;
    }
    Ok(())
}

/// Looks at the Site DB now and then, and says in the readiness and once in the log when it goes and when it is back.
async fn watch(pool: Pool, health: Component, stop: CancellationToken) -> Result<(), ServerError> {
    let mut last: Option<bool> = None;
    loop {
        let looked = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            looked = tokio::time::timeout(LOOK_TIMEOUT, site_db::check(&pool)) => {
                looked.unwrap_or(Err(SiteError::timed_out()))
            }
        };
        let ready = looked.is_ok();
        match looked {
            Ok(()) => {
                health.ready(json!(null));
                if last == Some(false) {
                    tracing::info!("the Site DB is ready");
                }
            }
            Err(error) => {
                let hint = error.hint().unwrap_or("see the Site DB's log");
                health.not_ready(format!("{error}: {hint}"), json!({"sqlstate": error.sqlstate()}));
                if last != Some(false) {
                    tracing::error!(
                        sqlstate = error.sqlstate(),
                        hint,
                        "PERSISTENCE: the Site DB is not ready, requests are refused until it is: {error}"
                    );
                }
            }
        }
        last = Some(ready);
        let wait = if ready { LOOK_EVERY } else { LOOK_EVERY_WHILE_MISSING };
        if !shutdown::sleep(wait, &stop).await {
            return Ok(());
        }
    }
}
