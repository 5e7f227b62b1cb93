//! The HTTP client for the Graph API: makes one call and reports what is certain about it.
//!
//! Nothing here may send a request twice on its own: no redirects are followed, and reqwest's own retries are off. One
//! retry remains, and is safe: if hyper could not begin to write a request on a pooled connection, it uses another one.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::redirect::Policy;
use secrecy::{ExposeSecret, SecretString};

use super::media_hosts::MediaHosts;
use super::secrets::Secrets;
use super::{answer, send};
use crate::provider::answer::{Answer, Answered, Looked, Response};
use crate::provider::api_version::ApiVersion;
use crate::provider::ids::PhoneNumberId;
use crate::provider::outbound::Sending;

/// How long connecting may take; a network that works needs much less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections are closed long before Meta's edge closes them (observed: minutes): a request that meets that close
/// would end as `unknown`.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest answer to a send that is read; Meta's are a few hundred bytes.
const MAX_ANSWER: usize = 256 * 1024;
/// Longest answer that is passed on: a long page of templates is some hundred KB.
pub(super) const MAX_PASSED: usize = 16 * 1024 * 1024;
/// The type of a send's body.
const JSON: &str = "application/json";

/// Where the Graph API is, and how long we wait for it.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// The Graph API's base URL, `whatsapp.graph_url`.
    pub graph_url: url::Url,
    /// The version segment, `vN.M`, for sends whose client named none.
    pub api_version: String,
    /// A call without an answer for this long is given up.
    pub timeout: Duration,
    /// All access tokens of ours, to cut them from answers.
    pub secrets: Secrets,
    /// Hosts that media are downloaded from, `whatsapp.media_hosts`.
    pub media_hosts: Vec<String>,
}

/// The client, with its pool of connections. Cheap to clone; all clones share the pool.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    version: String,
    secrets: Arc<Secrets>,
    media: Arc<MediaHosts>,
}

/// A number of ours at the Cloud API, with its access token.
#[derive(Debug, Clone)]
pub struct Account {
    client: Client,
    phone_number_id: PhoneNumberId,
    access_token: SecretString,
}

/// The client could not be built: the system has no trusted certificates, say.
#[derive(Debug, thiserror::Error)]
#[error("set up the HTTPS client")]
pub struct ClientSetupError(#[from] reqwest::Error);

/// A call that is passed on.
#[derive(Debug, Clone)]
pub struct PassedCall {
    /// GET, POST or DELETE.
    pub method: Method,
    /// Version, path and query, without a leading slash.
    pub path: String,
    /// The media type of the body; `None`: the call has no body.
    pub content_type: Option<String>,
    /// The body; empty where `content_type` is `None`.
    pub body: Bytes,
}

/// An answer that is passed on, but for our access tokens.
#[derive(Debug, Clone)]
pub struct PassedAnswer {
    /// HTTP status.
    pub status: u16,
    /// The media type of the body, if the API named one.
    pub content_type: Option<String>,
    /// The body, without our access tokens.
    pub body: Bytes,
}

/// The Graph API gave no answer to a call that was passed on.
#[derive(Debug, thiserror::Error)]
#[error("the Graph API did not answer ({0})")]
pub struct NoAnswer(pub &'static str);

impl Client {
    /// Creates the client; does not connect yet.
    ///
    /// # Errors
    /// See [`ClientSetupError`].
    pub fn new(settings: &ClientSettings) -> Result<Self, ClientSetupError> {
        // `main` installs it too, but a user of the library may not. The error only says that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(settings.timeout)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .user_agent(concat!("twinlog/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            http,
            base: settings.graph_url.as_str().trim_end_matches('/').to_owned(),
            version: settings.api_version.clone(),
            secrets: Arc::new(settings.secrets.clone()),
            media: Arc::new(MediaHosts::new(&settings.graph_url, &settings.media_hosts)?),
        })
    }

    async fn call(
        &self,
        call: PassedCall,
        token: &SecretString,
        max_answer: usize,
    ) -> Result<(u16, HeaderMap, Bytes), Failure> {
        let url = format!("{}/{}", self.base, call.path);
        let mut request = self.http.request(call.method, url).bearer_auth(token.expose_secret());
        if let Some(content_type) = call.content_type {
            request = request.header(CONTENT_TYPE, content_type).body(call.body);
        }
        let response = request.send().await.map_err(|error| Failure::of(&error))?;
        self.answer(response, max_answer).await
    }

    /// An answer, read to its end, without our access tokens.
    async fn answer(
        &self,
        mut response: reqwest::Response,
        max_answer: usize,
    ) -> Result<(u16, HeaderMap, Bytes), Failure> {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= max_answer => body.extend_from_slice(&chunk),
                Ok(Some(_)) => return Err(Failure::Lost("the answer is too long")),
                Ok(None) => return Ok((status, headers, self.secrets.cut(body))),
                // The status alone proves nothing: it may be a proxy's.
                Err(error) => return Err(Failure::Lost(Failure::of(&error).why())),
            }
        }
    }
}

/// For `media`, which makes its calls itself.
impl Client {
    pub(super) const fn http(&self) -> &reqwest::Client {
        &self.http
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn media(&self) -> &MediaHosts {
        &self.media
    }

    pub(super) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// An answer that is passed on.
    pub(super) async fn read(&self, response: reqwest::Response, max_answer: usize) -> Result<PassedAnswer, NoAnswer> {
        let (status, headers, body) = self
            .answer(response, max_answer)
            .await
            .map_err(|failure| NoAnswer(failure.why()))?;
        Ok(self.passed(status, &headers, body))
    }

    fn passed(&self, status: u16, headers: &HeaderMap, body: Bytes) -> PassedAnswer {
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        PassedAnswer {
            status,
            content_type: content_type
                .filter(|text| self.secrets.cut_text(text).is_none())
                .map(ToOwned::to_owned),
            body,
        }
    }
}

impl NoAnswer {
    pub(super) fn of(error: &reqwest::Error) -> Self {
        Self(Failure::of(error).why())
    }
}

impl Account {
    /// A number with the token for its calls.
    #[must_use]
    pub const fn new(client: Client, phone_number_id: PhoneNumberId, access_token: SecretString) -> Self {
        Self {
            client,
            phone_number_id,
            access_token,
        }
    }

    /// Meta's id of the number.
    #[must_use]
    pub const fn phone_number_id(&self) -> &PhoneNumberId {
        &self.phone_number_id
    }

    /// The token that every call carries.
    #[must_use]
    pub const fn access_token(&self) -> &SecretString {
        &self.access_token
    }

    /// Sends a message. Never call it twice for one attempt: the user could get the message twice.
    pub async fn send(&self, message: Sending<'_>) -> Answered {
        let body = match send::outgoing(message.request, message.id) {
            Ok(body) => body,
            // Only possible for a row that another program wrote: refuse it as Meta would.
            Err(error) => return Answer::Refused(error.refusal(400, None)).into(),
        };
        let version = message
            .api_version
            .map_or(self.client.version.as_str(), ApiVersion::as_str);
        let call = PassedCall {
            method: Method::POST,
            path: format!("{version}/{}/messages", self.phone_number_id),
            content_type: Some(JSON.to_owned()),
            body: body.into(),
        };
        match self.client.call(call, &self.access_token, MAX_ANSWER).await {
            Ok((status, headers, body)) => Answered {
                answer: answer::read(status, &headers, &body, message.request),
                response: Some(Response {
                    status,
                    body: String::from_utf8_lossy(&body).into_owned(),
                }),
            },
            Err(failure) => failure.into_answer().into(),
        }
    }

    /// Asks for the number's own id: needs no permission but the one to send.
    pub async fn look(&self) -> Looked {
        let call = PassedCall {
            method: Method::GET,
            path: format!("{}/{}?fields=id", self.client.version, self.phone_number_id),
            content_type: None,
            body: Bytes::new(),
        };
        match self.client.call(call, &self.access_token, MAX_ANSWER).await {
            Ok((status, headers, body)) => answer::looked(status, &headers, &body),
            Err(failure) => Looked::NoAnswer(failure.why()),
        }
    }

    /// Passes a call on. The caller has checked that the call sends no message.
    ///
    /// # Errors
    /// The Graph API did not answer.
    pub async fn pass(&self, call: PassedCall) -> Result<PassedAnswer, NoAnswer> {
        let (status, headers, body) = self
            .client
            .call(call, &self.access_token, MAX_PASSED)
            .await
            .map_err(|failure| NoAnswer(failure.why()))?;
        Ok(self.client.passed(status, &headers, body))
    }

    /// Whether a link leads to a host that media are downloaded from.
    #[must_use]
    pub fn has_media_at(&self, link: &url::Url) -> bool {
        self.client.media.allows(link)
    }

    /// The version segment of calls that no client has made.
    pub(super) fn version(&self) -> &str {
        &self.client.version
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    /// The base URL of the Graph API, without a trailing slash.
    #[must_use]
    pub fn graph_url(&self) -> &str {
        &self.client.base
    }
}

/// A call without an answer. The texts are constants, because the HTTP client's own error texts quote URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    NotSent(&'static str),
    Lost(&'static str),
}

impl Failure {
    fn of(error: &reqwest::Error) -> Self {
        if error.is_builder() {
            return Self::NotSent("the request can't be made: check whatsapp.graph_url and the access token");
        }
        if error.is_connect() {
            return Self::NotSent(if error.is_timeout() {
                "the Graph API can't be reached: the connection timed out"
            } else {
                connect_failure(error)
            });
        }
        if error.is_timeout() {
            return Self::Lost("the Graph API did not answer in time");
        }
        Self::Lost("the connection broke before the answer")
    }

    const fn why(self) -> &'static str {
        match self {
            Self::NotSent(why) | Self::Lost(why) => why,
        }
    }

    const fn into_answer(self) -> Answer {
        match self {
            Self::NotSent(why) => Answer::NotSent(why),
            Self::Lost(why) => Answer::Lost(why),
        }
    }
}

/// Why the connection failed, from the chain of causes.
fn connect_failure(error: &reqwest::Error) -> &'static str {
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if error.is::<rustls::Error>() || text.contains("certificate") {
            return "the Graph API can't be reached: TLS failed";
        }
        if text.contains("dns") {
            return "the Graph API can't be reached: its name does not resolve";
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return "the Graph API can't be reached: the connection was refused";
        }
        cause = error.source();
    }
    "the Graph API can't be reached"
}
