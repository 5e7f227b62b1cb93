//! A connection that waits for notifications. It takes one of the pool's places, and is no connection of the pool's: nothing
//! else may run on it.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::timeout;

use super::store::Place;
use super::{ACQUIRE_TIMEOUT, Pool};

/// After this long without a notification the connection is given up and made anew: if the host went silent, nothing else
/// tells.
const QUIET: Duration = Duration::from_secs(60);

/// Listens on one channel.
#[derive(Debug)]
pub(in crate::site_db) struct Listening {
    listener: PgListener,
    _place: Place,
}

impl Pool {
    /// Listens on a channel from now on.
    pub(in crate::site_db) async fn listen(&self, channel: &str) -> Result<Listening, sqlx::Error> {
        let place = timeout(ACQUIRE_TIMEOUT, self.0.store.place())
            .await
            .map_err(|_| sqlx::Error::PoolTimedOut)?
            .ok_or(sqlx::Error::PoolClosed)?;
        let alone = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(self.0.opening.options().clone());
        let connected = PgListener::connect_with(&alone).await;
        let mut listener = connected.map_err(|error| self.0.opening.explained(error))?;
        listener.listen(channel).await?;
        Ok(Listening {
            listener,
            _place: place,
        })
    }
}

impl Listening {
    /// The payload of the next notification.
    ///
    /// # Errors
    /// The connection broke, or has been quiet for so long that it may have: what was said meanwhile was not heard.
    pub(in crate::site_db) async fn next(&mut self) -> Result<String, sqlx::Error> {
        match timeout(QUIET, self.listener.try_recv()).await {
            Ok(Ok(Some(notification))) => Ok(notification.payload().to_owned()),
            Ok(Ok(None)) => Err(sqlx::Error::WorkerCrashed),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
        }
    }
}
