//! The state that all routes share, and their settings.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::Semaphore;

use super::access::{Access, USERS};
use super::body::Bodies;
use super::budget::Budgets;
use super::line_rates::LineRates;
use super::listener::Bounds;
use super::listener_places::ListenerPlaces;
use super::media_link::MediaLinks;
use crate::config::{ApiToken, CorsOrigins, Jwt, SocketIo};
use crate::health::Health;
use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::provider::{ApiVersion, cloud};
use crate::realtime::Hub;
use crate::site_db::Pool;
use crate::subscribers::Noted;

/// The settings of the routes.
#[derive(Debug)]
pub(super) struct HttpSettings {
    /// Our API tokens, one for each client.
    pub(super) tokens: Vec<ApiToken>,
    /// Which JSON Web Tokens are accepted; `None`: none.
    pub(super) jwt: Option<Jwt>,
    /// Which web pages may call the API.
    pub(super) cors_origins: CorsOrigins,
    /// Token of the webhook's handshake; `None`: every handshake is refused.
    pub(super) verify_token: Option<SecretString>,
    /// How long a client of the Graph-compatible route waits for its answer.
    pub(super) send_wait: Duration,
    /// The connections of Socket.IO's clients.
    pub(super) socket_io: SocketIo,
    /// How many may listen to events.
    pub(super) max_listeners: usize,
    /// How many connections the listener has.
    pub(super) connections: Bounds,
    /// Longest body of a request, in bytes.
    pub(super) max_body_bytes: usize,
    /// Longest upload of a medium, in bytes.
    pub(super) max_media_bytes: u64,
    /// Where clients reach this server; `None`: as their requests say.
    pub(super) public_url: Option<url::Url>,
    /// Signs links to media.
    pub(super) links: MediaLinks,
    /// The Graph API's version for calls that name none. Always there: the configuration is checked.
    pub(super) api_version: Option<ApiVersion>,
    /// The numbers whose token may be used to pass calls on.
    pub(super) accounts: Vec<PassthroughAccount>,
}

impl HttpSettings {
    /// The version of a call whose path begins with an id instead of one: as with Meta, it may be left out.
    pub(super) fn default_version(&self, first: &str) -> Option<&ApiVersion> {
        self.api_version.as_ref().filter(|_| is_id(first))
    }
}

/// Whether a part of a path is an id of Meta's.
pub(super) fn is_id(part: &str) -> bool {
    (1..=32).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// A number whose token may be used to pass calls on.
#[derive(Debug)]
pub(super) struct PassthroughAccount {
    pub(super) account: cloud::Account,
    /// Its WhatsApp Business account, if the configuration names it.
    pub(super) waba_id: Option<String>,
}

/// The state that all routes share. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct State(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: HttpSettings,
    pub(super) pool: Pool,
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    /// What the parts of the server say about themselves.
    pub(super) health: Health,
    /// Tells listeners what happens.
    pub(super) hub: Hub,
    /// Whether webhooks may be stored.
    pub(super) noted: Noted,
    /// One for each listener.
    pub(super) listeners: Arc<ListenerPlaces>,
    /// How many lines front ends may log.
    pub(super) front_end_lines: LineRates,
    /// Who may look.
    pub(super) access: Access,
    /// How many requests are answered at a time.
    pub(super) budgets: Budgets,
    /// Reads the requests' bodies.
    pub(super) bodies: Bodies,
    /// One permit for each page whose rows are being read: a quarter of the connections to the Site DB, so that webhooks and sends
    /// always find one.
    pub(super) pages: Semaphore,
}

impl State {
    pub(super) fn new(
        settings: HttpSettings,
        pool: Pool,
        outbox: Outbox,
        inbox: Inbox,
        hub: Hub,
        noted: Noted,
        health: Health,
    ) -> Self {
        let numbers = settings.accounts.iter().map(|known| known.account.phone_number_id());
        let configured = numbers.map(|number| number.as_str().to_owned()).collect();
        Self(Arc::new(Shared {
            access: Access::new(settings.tokens.clone(), settings.jwt.clone(), configured),
            budgets: Budgets::new(
                settings.connections.connections,
                // Users share the places of one client: otherwise they could take all of them.
                (settings.tokens.iter().map(|token| token.name.as_str())).chain(settings.jwt.as_ref().map(|_| USERS)),
            ),
            listeners: ListenerPlaces::new(
                settings.max_listeners,
                settings.tokens.len() + usize::from(settings.jwt.is_some()),
            ),
            front_end_lines: LineRates::default(),
            hub,
            noted,
            health,
            bodies: Bodies::new(settings.max_body_bytes),
            pages: Semaphore::new((pool.figures().places / 4).max(1)),
            settings,
            pool,
            outbox,
            inbox,
        }))
    }
}

impl Deref for State {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
