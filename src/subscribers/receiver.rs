//! The subscriber's address: POST of a webhook, and the handshake, with limits.
//!
//! The address is the operator's own, so it may lead anywhere; redirects are not followed, so what answers there can't lead us
//! elsewhere. An answer's body is read to its end only if it is short, and thrown away.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::config::Subscriber;
use crate::provider::cloud::signature;

/// How long a request may take in all. Meta waits for some seconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long opening a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer that are read, so that the connection can be used again.
const MAX_ANSWER: usize = 64 * 1024;

/// The HTTPS client could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("set up the HTTPS client of the subscriber {name}")]
pub struct ReceiverSetupError {
    name: String,
    #[source]
    source: reqwest::Error,
}

/// Why the subscriber did not take something. Names no part of the address: it may hold a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("it answers with status {0} instead of 200")]
    Status(u16),
    #[error("it answers with status {0}, a redirect, which is not followed: give the address that it leads to")]
    Redirect(u16),
    #[error("it does not answer within 10 s")]
    Late,
    #[error("it can't be reached: {0}")]
    Unreachable(String),
    #[error("it does not answer the handshake with hub.challenge: its verify token may be another one")]
    Handshake,
}

/// A subscriber's address.
#[derive(Debug, Clone)]
pub(super) struct Receiver {
    client: reqwest::Client,
    url: url::Url,
    secret: SecretString,
    verify_token: Option<SecretString>,
}

impl Receiver {
    pub(super) fn new(subscriber: &Subscriber) -> Result<Self, ReceiverSetupError> {
        // `main` installs it too, but a user of the library may not. The error only says that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("twinlog/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| ReceiverSetupError {
                name: subscriber.name.clone(),
                source,
            })?;
        Ok(Self {
            client,
            url: subscriber.url.clone(),
            secret: subscriber.secret.clone(),
            verify_token: subscriber.verify_token.clone(),
        })
    }

    /// What the handshake was made with, as a code that says nothing else; `None`: there is no handshake.
    pub(super) fn handshake_code(&self) -> Option<String> {
        let token = self.verify_token.as_ref()?.expose_secret();
        let made_with = format!("{}\0{token}", self.url);
        Some(signature::sign(&self.secret, made_with.as_bytes()))
    }

    /// Asks as Meta does when a callback is entered.
    pub(super) async fn handshake(&self) -> Result<(), Refused> {
        let token = self.verify_token.as_ref().map_or("", |token| token.expose_secret());
        let challenge = (Uuid::now_v7().as_u128() % 10_000_000_000).to_string();
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("hub.mode", "subscribe")
            .append_pair("hub.challenge", &challenge)
            .append_pair("hub.verify_token", token);
        let answer = answered(self.client.get(url).send().await).await?;
        if answer == challenge.as_bytes() {
            Ok(())
        } else {
            Err(Refused::Handshake)
        }
    }

    /// Delivers a webhook.
    pub(super) async fn deliver(&self, body: Bytes) -> Result<(), Refused> {
        let request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header(signature::HEADER, signature::sign(&self.secret, &body))
            .body(body);
        answered(request.send().await).await.map(|_| ())
    }
}

/// The beginning of a good answer's body.
async fn answered(sent: reqwest::Result<reqwest::Response>) -> Result<Vec<u8>, Refused> {
    let mut response = sent.map_err(|error| refused(&error))?;
    let status = response.status();
    if status.is_redirection() {
        return Err(Refused::Redirect(status.as_u16()));
    }
    if !status.is_success() {
        return Err(Refused::Status(status.as_u16()));
    }
    let mut body = Vec::new();
    // The status is the answer; a body that breaks off changes nothing.
    while let Ok(Some(piece)) = response.chunk().await {
        if body.len() + piece.len() > MAX_ANSWER {
            break;
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn refused(error: &reqwest::Error) -> Refused {
    if error.is_timeout() {
        return Refused::Late;
    }
    // The outermost error names the address.
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    Refused::Unreachable(cause.map_or_else(|| "the connection broke".to_owned(), ToString::to_string))
}
