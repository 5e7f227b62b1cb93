//! The HTTP client for the Graph API: makes one call and reports what is certain about it.
//!
//! Nothing here may send a request twice on its own: no redirects are followed, and reqwest's own retries are off. One
//! retry remains, and is safe: if hyper could not begin to write a request on a pooled connection, it uses another one.

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::redirect::Policy;
use secrecy::{ExposeSecret, SecretString};

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
const MAX_PASSED: usize = 16 * 1024 * 1024;
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
}

/// The client, with its pool of connections. Cheap to clone; all clones share the pool.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    version: String,
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

/// An answer that is passed on unchanged.
#[derive(Debug, Clone)]
pub struct PassedAnswer {
    /// HTTP status.
    pub status: u16,
    /// The media type of the body, if the API named one.
    pub content_type: Option<String>,
    /// The body, without our access token.
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
        let mut response = request.send().await.map_err(|error| Failure::of(&error))?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= max_answer => body.extend_from_slice(&chunk),
                Ok(Some(_)) => return Err(Failure::Lost("the answer is too long")),
                Ok(None) => return Ok((status, headers, without(token, body))),
                // The status alone proves nothing: it may be a proxy's.
                Err(error) => return Err(Failure::Lost(Failure::of(&error).why())),
            }
        }
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
        Ok(PassedAnswer {
            status,
            content_type: headers
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .map(ToOwned::to_owned),
            body,
        })
    }
}

/// Removes our access token from an answer. Meta puts the token into links to the next page, and quotes an unreadable
/// token in its errors; it must not reach a client, a row or a log line.
fn without(token: &SecretString, body: Vec<u8>) -> Bytes {
    const INSTEAD: &str = "ACCESS_TOKEN";
    let token = token.expose_secret();
    // The API's answers are text.
    let mut body = match String::from_utf8(body) {
        Ok(body) if !token.is_empty() => body,
        Ok(body) => return body.into(),
        Err(error) => return error.into_bytes().into(),
    };
    let in_urls: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
    let in_json = serde_json::Value::from(token).to_string();
    for written in [token, &in_urls, in_json.trim_matches('"')] {
        if body.contains(written) {
            body = body.replace(written, INSTEAD);
        }
    }
    body.into()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_taken_out_of_answers_however_it_is_written() {
        let token = SecretString::from("EAA|1\"2");
        for (body, clean) in [
            (
                r#"{"message":"Malformed access token EAA|1\"2"}"#,
                r#"{"message":"Malformed access token ACCESS_TOKEN"}"#,
            ),
            (
                "next?access_token=EAA%7C1%222&after=x",
                "next?access_token=ACCESS_TOKEN&after=x",
            ),
            ("EAA|1\"2", "ACCESS_TOKEN"),
            ("{\"data\":[]}", "{\"data\":[]}"),
        ] {
            assert_eq!(without(&token, body.into()), clean);
        }
        assert_eq!(without(&token, vec![0xff, b'E']), &[0xff, b'E'][..]);
        assert_eq!(without(&SecretString::from(""), b"x".to_vec()), "x");
    }
}
