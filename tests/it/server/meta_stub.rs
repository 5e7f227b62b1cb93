//! A Meta that keeps what it was asked, byte for byte, and knows a few objects: each can be seen with one token only.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A call that came in.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) uri: String,
    pub(super) headers: HeaderMap,
    /// The beginning of the body, and its length.
    pub(super) body: Vec<u8>,
    pub(super) length: usize,
    /// Whether the body came to its end.
    pub(super) whole: bool,
}

impl Seen {
    /// All of it as one text.
    pub(super) fn text(&self) -> String {
        format!(
            "{} {} {:?} {}",
            self.method,
            self.uri,
            self.headers,
            String::from_utf8_lossy(&self.body)
        )
    }

    fn token(&self) -> String {
        let value = self.headers.get(header::AUTHORIZATION);
        let text = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
        text.trim_start_matches("Bearer ").to_owned()
    }
}

/// An object: its path below the version, the token that sees it, and the answer; `{stub}` in it becomes the stub's URL.
type Object = (&'static str, &'static str, Value);

#[derive(Debug)]
struct Shared {
    url: String,
    seen: Mutex<Vec<Seen>>,
    objects: Vec<Object>,
}

/// The stub.
#[derive(Debug, Clone)]
pub(super) struct MetaStub(Arc<Shared>);

impl MetaStub {
    pub(super) async fn start(objects: Vec<Object>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stub = Self(Arc::new(Shared {
            url: format!("http://{}", listener.local_addr().unwrap()),
            seen: Mutex::default(),
            objects,
        }));
        let app = Router::new().fallback(answer).with_state(stub.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        stub
    }

    pub(super) fn url(&self) -> String {
        self.0.url.clone()
    }

    /// What came in since the last time.
    pub(super) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.0.seen.lock().unwrap())
    }

    fn keep(&self, seen: Seen) {
        // The server's own look whether Meta answers and takes the token.
        if seen.method == "GET" && seen.uri.ends_with("?fields=id") {
            return;
        }
        self.0.seen.lock().unwrap().push(seen);
    }
}

/// Bytes of a medium of this length.
pub(super) fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| u8::try_from(index % 251).unwrap()).collect()
}

async fn answer(State(stub): State<MetaStub>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let mut seen = Seen {
        method: head.method.to_string(),
        uri: head.uri.to_string(),
        headers: head.headers,
        body: Vec::new(),
        length: 0,
        whole: false,
    };
    let mut stream = body.into_data_stream();
    loop {
        match stream.next().await {
            Some(Ok(chunk)) => {
                seen.length += chunk.len();
                if seen.body.len() < 4096 {
                    seen.body.extend_from_slice(&chunk);
                }
            }
            Some(Err(_)) => break,
            None => {
                seen.whole = true;
                break;
            }
        }
    }
    let (path, token) = (head.uri.path().to_owned(), seen.token());
    let range = seen.headers.get(header::RANGE).cloned();
    stub.keep(seen);
    if let Some(medium) = path.strip_prefix("/bytes/") {
        return download(medium, &token, range.as_ref());
    }
    let below = path.splitn(3, '/').nth(2).unwrap_or_default();
    let id = below.split('/').next().unwrap_or_default();
    let known = stub
        .0
        .objects
        .iter()
        .find(|(path, owner, _)| *path == below && *owner == token);
    match known {
        Some((_, _, answer)) => {
            let text = answer.to_string().replace("{stub}", &stub.0.url);
            ([(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        None => {
            let message = format!("Unsupported get request. Object with ID '{id}' does not exist (asked with {token})");
            let error = json!({"error": {"message": message, "type": "GraphMethodException", "code": 100, "error_subcode": 33, "fbtrace_id": "A"}});
            (StatusCode::BAD_REQUEST, error.to_string()).into_response()
        }
    }
}

/// `{part of the token}/{length}`, in part if a range from the beginning is asked for; `elsewhere`: a redirect.
fn download(medium: &str, token: &str, range: Option<&header::HeaderValue>) -> Response {
    let (owner, length) = medium.split_once('/').unwrap();
    if length == "elsewhere" {
        return (StatusCode::FOUND, [(header::LOCATION, "http://169.254.169.254/latest")]).into_response();
    }
    if !token.contains(owner) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let bytes = bytes(length.parse().unwrap());
    match range.and_then(|range| range.to_str().ok()?.strip_prefix("bytes=0-")?.parse::<usize>().ok()) {
        Some(last) => {
            let content_range = format!("bytes 0-{last}/{}", bytes.len());
            let part = bytes[..=last].to_vec();
            (
                StatusCode::PARTIAL_CONTENT,
                [
                    (header::CONTENT_RANGE, content_range),
                    (header::CONTENT_TYPE, "image/png".to_owned()),
                ],
                part,
            )
                .into_response()
        }
        None => ([(header::CONTENT_TYPE, "image/png")], Body::from(Bytes::from(bytes))).into_response(),
    }
}
