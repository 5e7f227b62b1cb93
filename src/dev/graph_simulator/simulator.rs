//! The handle of a running simulator: start it, switch faults, let users write, read the ledger, stop it.

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

use super::actions::{self, HandshakeError, UnknownNumber};
use super::fault::{ActiveFault, Fault};
use super::ledger::Ledger;
use super::reset::{Reset, ResettableListener};
use super::settings::Settings;
use super::webhooks::{History, IdentityChange, Inbound, delivery};
use super::world::World;
use super::{control, graph};

/// Longest request body: a medium of 100 MB with its form.
const MAX_BODY: usize = 101 * 1024 * 1024;

/// How long the simulator's own tasks may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// Why the simulator could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is in use, or is not one of this machine's.
    #[error("the simulator cannot listen on {address}")]
    Listen {
        /// From [`Settings::listen`].
        address: SocketAddr,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The HTTP client for the webhooks could not be built.
    #[error("the simulator's HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}

/// A running simulator. Dropping it stops it.
pub struct Simulator {
    world: Arc<World>,
    address: SocketAddr,
    _stop: DropGuard,
}

impl Simulator {
    /// Binds the listener and starts the routes and the deliveries.
    ///
    /// # Errors
    /// The address cannot be bound, or no HTTP client can be built.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let address = settings.listen;
        let listen = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        // Media have a host of their own, as at Meta.
        let media_host = TcpListener::bind(SocketAddr::new(address.ip(), 0))
            .await
            .map_err(listen)?;
        let media_port = media_host.local_addr().map_err(listen)?.port();
        // One provider per process; if one is installed already, it is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Meta follows no redirects; a proxy from the environment must not come between two sockets of this machine.
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(StartError::Client)?;
        let stop = CancellationToken::new();
        let (queue, updates) = mpsc::channel(delivery::QUEUE);
        let world = Arc::new(World::new(settings, client, queue, stop.clone()));
        world.set_media_port(media_port);
        world.tasks.spawn(delivery::run(Arc::clone(&world), updates));
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
        let media = Router::new().fallback(graph::download).with_state(Arc::clone(&world));
        let serve_media = axum::serve(media_host, media).with_graceful_shutdown(stop.clone().cancelled_owned());
        world.tasks.spawn(async move {
            let _ = serve_media.await;
        });
        Ok(Self {
            world,
            address,
            _stop: stop.drop_guard(),
        })
    }

    /// The address that it listens on, with the port that it took.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL, for `whatsapp.graph_url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where webhooks go from now on.
    pub fn set_callback(&self, url: Option<Url>) {
        self.world.set_callback(url);
    }

    /// Switches a fault on for all sends of a number until it is cleared; it replaces one of the same kind.
    ///
    /// # Errors
    /// The simulator has no such number.
    pub fn set_fault(&self, phone_number_id: &str, fault: Fault) -> Result<(), UnknownNumber> {
        self.switch(phone_number_id, fault, None, None)
    }

    /// Switches a fault on for sends to one recipient, as the requests write it, until it is cleared.
    ///
    /// # Errors
    /// The simulator has no such number.
    pub fn set_fault_for(&self, phone_number_id: &str, to: &str, fault: Fault) -> Result<(), UnknownNumber> {
        self.switch(phone_number_id, fault, Some(to), None)
    }

    /// Switches a fault on for the next `times` sends of a number.
    ///
    /// # Errors
    /// The simulator has no such number.
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
    /// The simulator has no such number.
    pub fn clear_faults(&self, phone_number_id: &str) -> Result<(), UnknownNumber> {
        actions::clear_faults(&self.world, phone_number_id)
    }

    /// Lets the present token of a number expire: calls get 190, subcode 463.
    ///
    /// # Errors
    /// The simulator has no such number.
    pub fn expire_token(&self, phone_number_id: &str) -> Result<(), UnknownNumber> {
        actions::expire_token(&self.world, phone_number_id)
    }

    /// Gives a number a new token, which has not expired.
    ///
    /// # Errors
    /// The simulator has no such number.
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

    /// A user's ids change; returns the notice's wamid. The webhook is on its way.
    pub async fn change_identity(&self, phone_number_id: &str, change: &IdentityChange) -> String {
        actions::change_identity(&self.world, phone_number_id, change).await
    }

    /// Reports what was said with a user before the number joined the API.
    ///
    /// # Errors
    /// The simulator has no such number.
    pub async fn history(&self, phone_number_id: &str, history: &History) -> Result<(), UnknownNumber> {
        actions::history(&self.world, phone_number_id, history).await
    }

    /// Reports anything about a number: `members` is the change's value without the metadata.
    pub async fn update(&self, phone_number_id: &str, field: &str, members: Value) {
        actions::emit(&self.world, phone_number_id, field, members).await;
    }

    /// Posts these bytes once, signed with the app secret; the HTTP status of the answer, if there is one.
    pub async fn post_webhook(&self, body: &[u8]) -> Option<u16> {
        delivery::post(&self.world, body, &self.world.settings.app_secret).await
    }

    /// Posts these bytes signed with another secret, as a caller that is not Meta would.
    pub async fn post_forged(&self, body: &[u8], secret: &SecretString) -> Option<u16> {
        delivery::post(&self.world, body, secret).await
    }

    /// Verifies the callback as Meta's dashboard does.
    ///
    /// # Errors
    /// No callback is set, it cannot be reached, or it does not answer with the challenge.
    pub async fn handshake(&self) -> Result<(), HandshakeError> {
        actions::handshake(&self.world).await
    }

    /// A copy of everything that was accepted so far.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.world.ledger().clone()
    }

    /// How many updates are due later or on their way; 0 when the callback has taken everything.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.world.pending()
    }

    /// Stops it: hanging requests end, statuses that are due are not reported any more.
    pub async fn shutdown(self) {
        self.world.stop.cancel();
        self.world.tasks.close();
        // A client that keeps its connection open must not delay the stop.
        let _ = tokio::time::timeout(GRACE, self.world.tasks.wait()).await;
    }
}
