//! The daemon's second connection: its bookkeeping rows, and the commands that people write for it.
//!
//! Separate from the applier's, so that a report or a command never waits for a long transaction, and so that what it
//! reads is committed. It writes no synchronised row.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_postgres::Client;

use super::encoding::Encoding;
use crate::agent_db::error::AgentError;
use crate::config::DatabaseUrl;
use crate::postgres::session_settings::SessionKind;
use crate::postgres::{Side, connect, refuse_pooler};

/// The channel by which a command wakes the daemon.
const CHANNEL: &str = "twinlog";

/// The daemon's second connection.
#[derive(Debug)]
pub struct Control {
    pub(in crate::agent_db) client: Client,
    pub(in crate::agent_db) slot: String,
    pub(super) encoding: Encoding,
    notified: Arc<Notify>,
}

/// Wraps the driver's error met while doing something with the bookkeeping.
pub(super) fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> AgentError {
    move |source| AgentError::from_driver(action, None, source)
}

impl Control {
    /// Opens the connection and listens for commands.
    ///
    /// # Errors
    /// The connection's.
    pub async fn connect(url: &DatabaseUrl, slot: &str, application_name: &str) -> Result<Self, AgentError> {
        refuse_pooler(Side::Agent, url).await?;
        let notified = Arc::new(Notify::new());
        let (client, _) = connect::open(
            Side::Agent,
            url,
            application_name,
            SessionKind::Reading,
            Some(Arc::clone(&notified)),
        )
        .await?;
        client
            .batch_execute(&format!("LISTEN {CHANNEL}"))
            .await
            .map_err(failed("listen for commands"))?;
        Ok(Self {
            encoding: Encoding::read(&client).await?,
            client,
            slot: slot.to_owned(),
            notified,
        })
    }

    /// [`Self::connect`] for a person, who waits for the answer: a lock on the daemon's tables is an error after three seconds.
    ///
    /// # Errors
    /// The connection's.
    pub async fn connect_for_person(url: &DatabaseUrl, slot: &str, application_name: &str) -> Result<Self, AgentError> {
        let control = Self::connect(url, slot, application_name).await?;
        control
            .client
            .batch_execute("SET lock_timeout = '3s'")
            .await
            .map_err(failed("set up the session"))?;
        Ok(control)
    }

    /// Waits until somebody notifies the daemon (`NOTIFY twinlog`) or the connection ends. A notification that came while
    /// nobody waited is not lost. Can be dropped and called again. Returns at once on a connection that has ended, so look
    /// at [`Control::is_closed`].
    pub async fn notified(&self) {
        if !self.is_closed() {
            self.notified.notified().await;
        }
    }

    /// Lets commits return before they are on disk, or at a standby: for reports that are written again a second later, and
    /// must tell that a standby is waited for.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn commit_without_waiting(&self) -> Result<(), AgentError> {
        self.client
            .batch_execute("SET synchronous_commit = off")
            .await
            .map_err(failed("set up the session for reports"))
    }

    /// Whether the connection has ended: open another one.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}
