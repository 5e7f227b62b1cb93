//! One call to the Graph API, and what can be said of it afterwards.
//!
//! Nothing here may send a request twice on its own: no redirects are followed, and reqwest's own retries are off. What
//! remains is hyper's: a request that it could not start to write on a pooled connection goes out on another one.

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::outcome::Answer;
use crate::config::Whatsapp;
use crate::provider::cloud::{GraphError, send};
use crate::site_db::messages::Response;

/// How long a connection may take: below it the address is fine, beyond it the network is not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections go well before Meta's edge closes them (observed: minutes), as a request that meets the close is
/// lost without need.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest answer to a send that is read; Meta's are a few hundred bytes.
const MAX_ANSWER: usize = 256 * 1024;
/// Longest answer that is passed on: a long page of templates is some hundred KB.
const MAX_PASSED: usize = 16 * 1024 * 1024;
/// The type of a send's body.
const JSON: &str = "application/json";

/// The client for the Graph API.
#[derive(Debug, Clone)]
pub(super) struct Graph {
    client: reqwest::Client,
    base: String,
    version: String,
}

/// The client could not be built: the system has no trusted certificates, say.
#[derive(Debug, thiserror::Error)]
#[error("set up the HTTPS client")]
pub struct GraphSetupError(#[from] reqwest::Error);

/// A call that is passed on.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Version, path and query, without a slash in front.
    pub path: String,
    /// Its body's type; `None`: it has no body.
    pub content_type: Option<String>,
    /// Its body.
    pub body: Bytes,
}

/// An answer that is passed on as it is.
#[derive(Debug, Clone)]
pub struct Passed {
    /// HTTP status.
    pub status: u16,
    /// Its type.
    pub content_type: Option<String>,
    /// Its body.
    pub body: Bytes,
}

/// A call that is passed on brought no answer.
#[derive(Debug, thiserror::Error)]
#[error("the Graph API did not answer ({0})")]
pub struct NoAnswer(pub &'static str);

impl Graph {
    pub(super) fn new(config: &Whatsapp) -> Result<Self, GraphSetupError> {
        // Main installs it too; a library user may not have. A second time is no error that matters.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(config.send_timeout)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .user_agent(concat!("twinlog/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            client,
            base: config.graph_url.as_str().trim_end_matches('/').to_owned(),
            version: config.api_version.clone(),
        })
    }

    /// Sends a message: the one call that must not happen twice.
    pub(super) async fn send(
        &self,
        version: Option<&str>,
        phone_number_id: &str,
        token: &SecretString,
        body: Vec<u8>,
    ) -> (Answer, Response) {
        let version = version.unwrap_or(&self.version);
        let url = format!("{}/{version}/{phone_number_id}/messages", self.base);
        let sent = self
            .call(Method::POST, url, token, Some(JSON), body.into(), MAX_ANSWER)
            .await;
        let (status, headers, body) = match sent {
            Ok(answer) => answer,
            Err(failure) => return (failure.into_answer(), Response::default()),
        };
        let response = Response {
            status: Some(status),
            body: Some(crate::site_db::storable(&String::from_utf8_lossy(&body))),
        };
        let retry_after = retry_after(&headers);
        let answer = if let Some(error) = GraphError::from_body(&body) {
            Answer::Refused {
                status,
                error,
                retry_after,
            }
        } else if let (200..=299, Some(accepted)) = (status, send::accepted(&body)) {
            Answer::Accepted(accepted)
        } else {
            Answer::Foreign { status, retry_after }
        };
        (answer, response)
    }

    /// Passes a call on that sends no message. `path` begins with the version and may have a query.
    pub(super) async fn pass(&self, token: &SecretString, call: Call) -> Result<Passed, NoAnswer> {
        let url = format!("{}/{}", self.base, call.path);
        let (status, headers, body) = self
            .call(
                call.method,
                url,
                token,
                call.content_type.as_deref(),
                call.body,
                MAX_PASSED,
            )
            .await
            .map_err(|failure| NoAnswer(failure.why()))?;
        Ok(Passed {
            status,
            content_type: headers
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .map(ToOwned::to_owned),
            body,
        })
    }

    async fn call(
        &self,
        method: Method,
        url: String,
        token: &SecretString,
        content_type: Option<&str>,
        body: Bytes,
        max_answer: usize,
    ) -> Result<(u16, HeaderMap, Bytes), Failure> {
        let mut request = self.client.request(method, url).bearer_auth(token.expose_secret());
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type).body(body);
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
                Err(error) => {
                    return Err(match Failure::of(&error) {
                        Failure::NotSent(why) | Failure::Lost(why) => Failure::Lost(why),
                    });
                }
            }
        }
    }
}

/// An answer without our access token: Meta writes it into its links to the next page, and quotes one that it can't
/// read in its errors; neither a client of ours nor a row or a log line may have it.
fn without(token: &SecretString, body: Vec<u8>) -> Bytes {
    const INSTEAD: &str = "ACCESS_TOKEN";
    let token = token.expose_secret();
    // What is no text is no answer of the API's.
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

/// A call without an answer. The words are constants: error texts of HTTP clients quote URLs.
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

/// What kept the connection from coming about, from the chain of causes.
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

/// `Retry-After` in seconds or as a date; Meta's business usage header, in minutes, where that is missing.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    if let Some(value) = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()) {
        if let Ok(seconds) = value.trim().parse() {
            return Some(Duration::from_secs(seconds));
        }
        // An HTTP date ends in GMT, RFC 2822 wants an offset.
        let date = value.trim().replace("GMT", "+0000");
        if let Ok(at) = OffsetDateTime::parse(&date, &Rfc2822) {
            return Some(Duration::try_from(at - OffsetDateTime::now_utc()).unwrap_or(Duration::ZERO));
        }
    }
    let usage = headers.get("x-business-use-case-usage")?.to_str().ok()?;
    let usage: serde_json::Value = serde_json::from_str(usage).ok()?;
    let minutes = usage
        .as_object()?
        .values()
        .filter_map(|uses| uses.as_array())
        .flatten()
        .filter_map(|usage| usage.get("estimated_time_to_regain_access")?.as_u64())
        .max()?;
    (minutes > 0).then(|| Duration::from_secs(minutes.saturating_mul(60)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().expect("a header"));
        headers
    }

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

    #[test]
    fn waits_are_read_in_every_form() {
        let read = |name, value: &str| retry_after(&headers(name, value)).map(|wait| wait.as_secs());
        assert_eq!(read("retry-after", "7"), Some(7));
        assert_eq!(read("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        let in_a_minute = OffsetDateTime::now_utc() + Duration::from_secs(60);
        let date = in_a_minute.format(&Rfc2822).expect("a date").replace("+0000", "GMT");
        assert!((55..=60).contains(&read("retry-after", &date).expect("a wait")));
        assert_eq!(read("retry-after", "soon"), None);
        let usage = r#"{"1":[{"type":"whatsapp","estimated_time_to_regain_access":3}]}"#;
        assert_eq!(read("x-business-use-case-usage", usage), Some(180));
        let idle = r#"{"1":[{"estimated_time_to_regain_access":0}]}"#;
        assert_eq!(read("x-business-use-case-usage", idle), None);
    }
}
