//! `POST /api/logging/batch`: what a front end logs, into this server's structured log: `{"logs": [{level, message, timestamp,
//! context…}, …]}`, or the list alone.
//!
//! A page's log may quote anything: a body, a number, a token. So of each record the level goes into the log, and its message with
//! everything in it cut out that looks like one of these; the other members by their names alone.

use axum::Json;
use axum::extract::{Request, State as Extract};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::http::access::{Denied, Who};
use crate::http::budget::Family;
use crate::http::state::State;
use crate::http::{answer, auth};
use crate::metrics;

/// Most records of a batch that are logged; the others are counted.
const RECORDS: usize = 100;
/// Longest message, in characters.
const MESSAGE: usize = 500;
/// Most members of a record whose names are logged, and the longest name.
const NAMES: (usize, usize) = (20, 40);

pub(super) async fn post(
    Extract(state): Extract<State>,
    uri: Uri,
    headers: HeaderMap,
    // The body is read only after the token was checked.
    request: Request,
) -> Response {
    let viewer = match state.access.viewer(auth::bearer(&headers).as_deref()).await {
        Ok(viewer) => viewer,
        Err(denied) => return Denied::into_response(denied),
    };
    let body = match state.bodies.read_clients(request).await {
        Ok(body) => body,
        Err(error) => return answer::plain_body_error(error),
    };
    let Ok(_place) = state.budgets.client_place(Family::Api, viewer.budget()) else {
        return answer::busy(&uri);
    };
    let parsed = body.parse(|bytes| serde_json::from_slice::<Value>(bytes).ok()).await;
    let records = match parsed {
        Some(Value::Array(records)) => records,
        Some(Value::Object(mut batch)) => match batch.remove("logs") {
            Some(Value::Array(records)) => records,
            _ => return malformed(),
        },
        _ => return malformed(),
    };
    let client = match &viewer.who {
        Who::Client(name) => name.as_str(),
        Who::User(_) => "(a user)",
    };
    for record in records.iter().take(RECORDS) {
        write(client, record);
    }
    let dropped = records.len().saturating_sub(RECORDS);
    if dropped > 0 {
        metrics::count_front_end_records("dropped", dropped as u64);
        tracing::warn!(
            client,
            dropped,
            "front end: a batch had more records than are logged at once"
        );
    }
    let accepted = records.len() - dropped;
    Json(json!({"success": true, "received": records.len(), "accepted": accepted})).into_response()
}

fn malformed() -> Response {
    answer::plain_error(
        StatusCode::BAD_REQUEST,
        "malformed",
        "the body must be as in {\"logs\": [{\"level\": \"error\", \"message\": \"…\"}]}",
        None,
    )
}

fn write(client: &str, record: &Value) {
    let level = record["level"].as_str().unwrap_or("info").to_ascii_lowercase();
    let message = redacted(record["message"].as_str().unwrap_or_default());
    let names = names(record);
    let at = record["timestamp"]
        .as_str()
        .map(|at| at.chars().take(NAMES.1).filter(char::is_ascii).collect::<String>());
    let at = at.as_deref().filter(|at| time(at));
    match level.as_str() {
        "error" | "fatal" | "critical" => {
            metrics::count_front_end_records("error", 1);
            tracing::error!(client, at, members = names, "front end: {message}");
        }
        "warn" | "warning" => {
            metrics::count_front_end_records("warn", 1);
            tracing::warn!(client, at, members = names, "front end: {message}");
        }
        "debug" | "trace" => {
            metrics::count_front_end_records("debug", 1);
            tracing::debug!(client, at, members = names, "front end: {message}");
        }
        _ => {
            metrics::count_front_end_records("info", 1);
            tracing::info!(client, at, members = names, "front end: {message}");
        }
    }
}

/// Whether a text is a time and nothing else.
fn time(text: &str) -> bool {
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).is_ok()
}

/// The names of the record's other members, in case they say what its values may not.
fn names(record: &Value) -> String {
    let members = record.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let other = members.filter(|name| !["level", "message", "timestamp"].contains(name));
    let plain = other
        .filter(|name| name.len() <= NAMES.1 && name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_'));
    plain.take(NAMES.0).collect::<Vec<_>>().join(" ")
}

/// The message without line breaks, quoted texts, addresses, and words that have digits in them or are long: numbers, ids, tokens.
fn redacted(message: &str) -> String {
    let mut quote: Option<char> = None;
    let mut plain = String::new();
    for c in message.chars().take(MESSAGE) {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (Some(_), _) => {}
            (None, '"' | '`' | '“' | '„' | '«') => {
                quote = Some(match c {
                    '“' | '„' => '”',
                    '«' => '»',
                    other => other,
                });
                plain.push_str("[…]");
            }
            (None, c) if c.is_control() => plain.push(' '),
            (None, c) => plain.push(c),
        }
    }
    let word = |word: &str| {
        let digits = word.chars().filter(char::is_ascii_digit).count();
        // A status, a line or a port is told; what is longer may be a person's.
        if digits > 4 || word.len() > 40 || word.contains('@') || (digits > 0 && word.len() > 16) {
            "[…]".to_owned()
        } else {
            word.to_owned()
        }
    };
    plain.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_persons_is_cut_out() {
        for (message, logged) in [
            ("send failed with status 503", "send failed with status 503"),
            ("no answer for +4915112345678, gave up", "no answer for […] gave up"),
            ("token eyJhbGciOiJIUzI1NiJ9.e30.x refused", "token […] refused"),
            (
                "could not send \"meet me at six\" to ada@example.com",
                "could not send […] to […]",
            ),
            ("an unfinished \"quote", "an unfinished […]"),
            ("two\nlines\u{1b}[31m", "two lines [31m"),
            ("wamid.HBgLMTY1MDU1NTEyMzQVAgARGBI5QTNDQTVCM0Q0Q0Q2RTY3RTcA", "[…]"),
        ] {
            assert_eq!(redacted(message), logged);
        }
        assert_eq!(redacted(&"x".repeat(10_000)), "[…]");
        let record = json!({"level": "error", "userName": 1, "+49151": 2, "stack": "…", "message": "m"});
        assert_eq!(names(&record), "stack userName");
    }
}
