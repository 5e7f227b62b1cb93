//! A subscriber of webhooks, as its author would write it: it answers the handshake and keeps what it takes.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;
use tokio::net::TcpListener;
use twinlog::config::Subscriber;
use twinlog::provider::cloud::signature;

use crate::harness::{SOON, eventually};

/// Its secret and its verify token.
const SECRET: &str = "receiver-secret";

#[derive(Debug, Default)]
struct Seen {
    taken: Vec<Bytes>,
    refused: usize,
    handshakes: usize,
}

/// A subscriber.
#[derive(Debug, Clone)]
pub(super) struct Receiver(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    url: String,
    seen: Mutex<Seen>,
    /// Bodies with this text are refused with this status.
    refuses: Mutex<Option<(String, u16)>>,
}

impl Receiver {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self(Arc::new(Shared {
            url: format!("http://{}/hook?key=1", listener.local_addr().unwrap()),
            seen: Mutex::default(),
            refuses: Mutex::default(),
        }));
        let app = Router::new()
            .route("/hook", get(handshake).post(take))
            .with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        receiver
    }

    /// Its block in the configuration.
    pub(super) fn subscriber(&self, name: &str) -> Subscriber {
        Subscriber {
            name: name.to_owned(),
            url: self.0.url.parse().unwrap(),
            secret: SECRET.into(),
            verify_token: Some(SECRET.into()),
            fields: None,
            numbers: None,
            kinds: None,
        }
    }

    /// The same as text.
    pub(super) fn section(&self, name: &str) -> String {
        let url = &self.0.url;
        format!(
            "[[subscribers]]\nname = \"{name}\"\nurl = \"{url}\"\nsecret = \"{SECRET}\"\nverify_token = \"{SECRET}\"\n"
        )
    }

    /// From now on it refuses bodies with this text; an empty one: all.
    pub(super) fn refuse(&self, text: &str, status: u16) {
        *self.0.refuses.lock().unwrap() = Some((text.to_owned(), status));
    }

    /// From now on it takes everything.
    pub(super) fn accept(&self) {
        *self.0.refuses.lock().unwrap() = None;
    }

    pub(super) fn taken(&self) -> Vec<Bytes> {
        self.0.seen.lock().unwrap().taken.clone()
    }

    pub(super) fn refused(&self) -> usize {
        self.0.seen.lock().unwrap().refused
    }

    pub(super) fn handshakes(&self) -> usize {
        self.0.seen.lock().unwrap().handshakes
    }

    /// What the messages that it took say, in their order.
    pub(super) fn texts(&self) -> Vec<String> {
        let values = self
            .taken()
            .into_iter()
            .map(|body| serde_json::from_slice::<Value>(&body).unwrap());
        values
            .filter_map(|value| {
                let text = value.pointer("/entry/0/changes/0/value/messages/0/text/body")?;
                Some(text.as_str()?.to_owned())
            })
            .collect()
    }

    /// The statuses that it took.
    pub(super) fn statuses(&self) -> Vec<Value> {
        let values = self
            .taken()
            .into_iter()
            .map(|body| serde_json::from_slice::<Value>(&body).unwrap());
        values
            .filter_map(|value| value.pointer("/entry/0/changes/0/value/statuses").cloned())
            .flat_map(|statuses| statuses.as_array().cloned().unwrap_or_default())
            .collect()
    }

    /// Waits until these texts came, in this order.
    pub(super) async fn takes(&self, texts: &[&str]) {
        eventually(&format!("{texts:?} came"), SOON, || async {
            let taken = self.texts();
            if taken == texts { Ok(()) } else { Err(taken) }
        })
        .await;
    }
}

#[derive(Debug, serde::Deserialize)]
struct Asked {
    key: String,
    #[serde(rename = "hub.mode")]
    mode: String,
    #[serde(rename = "hub.challenge")]
    challenge: String,
    #[serde(rename = "hub.verify_token")]
    token: String,
}

async fn handshake(State(receiver): State<Receiver>, Query(asked): Query<Asked>) -> Response {
    if (asked.key.as_str(), asked.mode.as_str(), asked.token.as_str()) != ("1", "subscribe", SECRET) {
        return StatusCode::FORBIDDEN.into_response();
    }
    receiver.0.seen.lock().unwrap().handshakes += 1;
    asked.challenge.into_response()
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = headers.get(signature::HEADER).map(|value| value.to_str().unwrap());
    if signature::verify(&[SECRET.into()], header, &body).is_err() {
        return StatusCode::UNAUTHORIZED;
    }
    let refuses = receiver.0.refuses.lock().unwrap().clone();
    let mut seen = receiver.0.seen.lock().unwrap();
    match refuses {
        Some((text, status)) if String::from_utf8_lossy(&body).contains(&text) => {
            seen.refused += 1;
            StatusCode::from_u16(status).unwrap()
        }
        _ => {
            seen.taken.push(body);
            StatusCode::OK
        }
    }
}
