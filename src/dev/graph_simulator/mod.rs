//! The Graph API of WhatsApp on a socket of our own: accepts sends, reports statuses, lets users write, and fails on demand.
//!
//! For `twinlog demo`, `twinlog simulate` and the tests. It is Meta's side of the wire and nothing else: it shares the
//! error type and the signature with [`crate::whatsapp`], but judges bodies by its own code, so that a fault in ours
//! shows. Its [`Ledger`] is the oracle: what was accepted was sent, whatever its sender came to know of it.
//!
//! ```text
//! client ─ POST /v25.0/{number}/messages ─→ graph ─→ ledger ─→ timetable of statuses ─┐
//! person ─ /_simulator/… or the handle ───→ faults, inbound messages ─────────────────┴─→ webhooks ─→ callback
//! ```
//!
//! Faults are values ([`Fault`]) that one function folds into what happens to a send, so a new one is a variant and an arm.

mod actions;
mod connection;
mod control;
mod fault;
mod graph;
mod ledger;
mod limits;
mod media;
mod payload;
pub mod samples;
mod validate;
mod webhooks;
mod world;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use secrecy::SecretString;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

pub use actions::{HandshakeError, UnknownNumber};
pub use control::CONTROL_ROUTES;
pub use fault::Fault;
pub use ledger::{Accepted, Ledger, Reported};
pub use limits::Limits;
pub use payload::Inbound;
pub use webhooks::WebhookSettings;

use connection::{Reset, ResettableListener};
use fault::ActiveFault;
use world::World;

/// Longest request body: Meta's webhooks reach 3 MB, its requests don't.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// How the simulator is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Signs the webhooks.
    pub app_secret: SecretString,
    /// For the handshake.
    pub verify_token: String,
    /// The business numbers.
    pub accounts: Vec<Account>,
    /// Where webhooks go; can be set later.
    pub callback_url: Option<Url>,
    /// When statuses are reported.
    pub delays: Delays,
    /// How webhooks are delivered.
    pub webhooks: WebhookSettings,
    /// Meta's rate limits; `None`: unlimited.
    pub limits: Option<Limits>,
}

/// A business number of the simulator's.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its id.
    pub phone_number_id: String,
    /// Its business account.
    pub waba_id: String,
    /// The number itself.
    pub display_phone_number: String,
    /// The token that its calls need.
    pub access_token: String,
}

/// How long after its acceptance a message's statuses are reported.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    /// `sent`.
    pub sent: Duration,
    /// `delivered`; `None`: never.
    pub delivered: Option<Duration>,
    /// `read`; `None`: never.
    pub read: Option<Duration>,
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            sent: Duration::from_millis(20),
            delivered: Some(Duration::from_millis(60)),
            read: Some(Duration::from_millis(120)),
        }
    }
}

impl Default for Settings {
    /// One number (`106540352242922`, token `simulator-token`) on a free loopback port, without a callback.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            app_secret: SecretString::from("simulator-secret"),
            verify_token: "simulator-verify-token".to_owned(),
            accounts: vec![Account {
                phone_number_id: "106540352242922".to_owned(),
                waba_id: "102290129340398".to_owned(),
                display_phone_number: "15550783881".to_owned(),
                access_token: "simulator-token".to_owned(),
            }],
            callback_url: None,
            delays: Delays::default(),
            webhooks: WebhookSettings::default(),
            limits: None,
        }
    }
}

/// Why it could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not ours.
    #[error("the simulator cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The client for the webhooks.
    #[error("the simulator has no HTTP client")]
    Client(#[source] reqwest::Error),
}

/// A simulator that runs. Dropping it stops it.
pub struct Simulator {
    world: Arc<World>,
    address: SocketAddr,
    _stop: DropGuard,
}

impl Simulator {
    /// Starts it.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let listen = |source| StartError::Listen {
            address: settings.listen,
            source,
        };
        let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        // One provider per process; if somebody has installed it already, it is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Meta follows no redirects, and a proxy of the environment has no business between two of our own sockets.
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(StartError::Client)?;
        let stop = CancellationToken::new();
        let (queue, updates) = mpsc::channel(webhooks::QUEUE);
        let world = Arc::new(World::new(settings, client, queue, stop.clone()));
        world.tasks.spawn(webhooks::run(Arc::clone(&world), updates));
        let app = Router::new()
            .merge(control::router())
            .fallback(graph::route)
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(Arc::clone(&world));
        let serve = axum::serve(
            ResettableListener(listener),
            app.into_make_service_with_connect_info::<Reset>(),
        )
        .with_graceful_shutdown(stop.clone().cancelled_owned());
        world.tasks.spawn(async move {
            // Ends with the stop; an accept error is handled inside.
            let _ = serve.await;
        });
        Ok(Self {
            world,
            address,
            _stop: stop.drop_guard(),
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL, for `whatsapp.graph_url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sends webhooks there from now on.
    pub fn set_callback(&self, url: Option<Url>) {
        self.world.set_callback(url);
    }

    /// Switches a fault on until it is cleared; a fault of the same kind is replaced.
    ///
    /// # Errors
    /// There is no such number.
    pub fn set_fault(&self, phone_number_id: &str, fault: Fault) -> Result<(), UnknownNumber> {
        self.switch(phone_number_id, fault, None, None)
    }

    /// Switches a fault on for sends to one recipient, as the requests write it, until it is cleared.
    ///
    /// # Errors
    /// There is no such number.
    pub fn set_fault_for(&self, phone_number_id: &str, to: &str, fault: Fault) -> Result<(), UnknownNumber> {
        self.switch(phone_number_id, fault, Some(to), None)
    }

    /// Switches a fault on for the next sends.
    ///
    /// # Errors
    /// There is no such number.
    pub fn set_fault_times(&self, phone_number_id: &str, fault: Fault, times: u32) -> Result<(), UnknownNumber> {
        self.switch(phone_number_id, fault, None, Some(times))
    }

    fn switch(
        &self,
        phone_number_id: &str,
        fault: Fault,
        to: Option<&str>,
        remaining: Option<u32>,
    ) -> Result<(), UnknownNumber> {
        let to = to.map(ToOwned::to_owned);
        actions::set_fault(&self.world, phone_number_id, ActiveFault { fault, to, remaining })
    }

    /// Switches all faults of a number off.
    ///
    /// # Errors
    /// There is no such number.
    pub fn clear_faults(&self, phone_number_id: &str) -> Result<(), UnknownNumber> {
        actions::clear_faults(&self.world, phone_number_id)
    }

    /// The present token of a number expires (190, subcode 463).
    ///
    /// # Errors
    /// There is no such number.
    pub fn expire_token(&self, phone_number_id: &str) -> Result<(), UnknownNumber> {
        actions::expire_token(&self.world, phone_number_id)
    }

    /// Gives a number a new token.
    ///
    /// # Errors
    /// There is no such number.
    pub fn set_token(&self, phone_number_id: &str, token: &str) -> Result<(), UnknownNumber> {
        actions::set_token(&self.world, phone_number_id, token)
    }

    /// Holds all webhooks back, or lets them go.
    pub fn pause_webhooks(&self, paused: bool) {
        self.world.paused.send_replace(paused);
    }

    /// How many updates a POST may carry from now on.
    pub fn set_batch(&self, updates: usize) {
        self.world.set_batch(updates);
    }

    /// A user writes; returns the message's wamid. The webhook is on its way.
    pub async fn inbound(&self, message: Inbound) -> String {
        actions::inbound(&self.world, &message).await
    }

    /// Reports anything about a number: `members` is the change's value without the metadata.
    pub async fn update(&self, phone_number_id: &str, field: &str, members: Value) {
        self.world.emit(phone_number_id, field, members, None).await;
    }

    /// POSTs these bytes once, signed with the app secret; the status of the answer, if there is one.
    pub async fn post_webhook(&self, body: &[u8]) -> Option<u16> {
        webhooks::post(&self.world, body, &self.world.settings.app_secret).await
    }

    /// The same with another secret: somebody who is not Meta.
    pub async fn post_forged(&self, body: &[u8], secret: &SecretString) -> Option<u16> {
        webhooks::post(&self.world, body, secret).await
    }

    /// Asks the callback for Meta's handshake.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub async fn handshake(&self) -> Result<(), HandshakeError> {
        actions::handshake(&self.world).await
    }

    /// Everything that was accepted so far.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.world.ledger().clone()
    }

    /// Updates that are due later or on their way; 0 when the callback has taken everything.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.world.pending()
    }

    /// Stops it: hanging requests end, statuses that are due are not reported any more.
    pub async fn shutdown(self) {
        self.world.stop.cancel();
        self.world.tasks.close();
        // A client that keeps its connection open must not keep us.
        let _ = tokio::time::timeout(graph::GRACE, self.world.tasks.wait()).await;
    }
}

#[cfg(test)]
mod tests;
