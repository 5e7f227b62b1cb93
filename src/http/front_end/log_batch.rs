//! `POST /api/logging/batch`: what a front end logs, into this server's structured log: `{"logs": [{level, message, timestamp,
//! context…}, …]}`, or the list alone.
//!
//! A page's log may quote anything: a body, a number, a token. So of each record the level goes into the log, how long its message is,
//! and the names of its other members. The message itself is a line of level `debug`, with everything cut out that looks like one of
//! these.

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

/// Largest body, in bytes.
const BODY: usize = 256 * 1024;
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
    if body.bytes.len() > BODY {
        return answer::plain_error(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body",
            "the body has more than 262144 bytes",
            None,
        );
    }
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
    let accepted = state.front_end_lines.take(client, records.len());
    for record in records.iter().take(accepted) {
        write(client, record);
    }
    let dropped = records.len() - accepted;
    if dropped > 0 {
        metrics::count_front_end_records("dropped", dropped as u64);
    }
    // Once in a minute: then there are no lines left.
    if dropped > 0 && accepted > 0 {
        tracing::warn!(
            client,
            dropped,
            "front end: more records came than a client may log in a minute; the others are only counted"
        );
    }
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
    let message = record["message"].as_str().unwrap_or_default();
    let characters = message.chars().count();
    let names = names(record);
    let at = record["timestamp"]
        .as_str()
        .map(|at| at.chars().take(NAMES.1).filter(char::is_ascii).collect::<String>());
    let at = at.as_deref().filter(|at| time(at));
    match level.as_str() {
        "error" | "fatal" | "critical" => {
            metrics::count_front_end_records("error", 1);
            tracing::error!(client, at, characters, members = names, "front end: a record");
        }
        "warn" | "warning" => {
            metrics::count_front_end_records("warn", 1);
            tracing::warn!(client, at, characters, members = names, "front end: a record");
        }
        "debug" | "trace" => {
            metrics::count_front_end_records("debug", 1);
            tracing::debug!(client, at, characters, members = names, "front end: a record");
        }
        _ => {
            metrics::count_front_end_records("info", 1);
            tracing::info!(client, at, characters, members = names, "front end: a record");
        }
    }
    if tracing::enabled!(tracing::Level::DEBUG) {
        tracing::debug!(client, "front end: the record's message: {}", redacted(message));
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
            // They turn round what stands beside them.
            (
                None,
                '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}',
            ) => {}
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
    let plain = without_groups(&plain);
    plain.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// The text without numbers that are written in groups: digits with at most spaces, dashes, dots, slashes and brackets between them.
fn without_groups(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(first) = rest.find(|c: char| c.is_numeric()) {
        let (before, from) = rest.split_at(first);
        let joins =
            |c: char| c.is_numeric() || c.is_whitespace() || "-().+/,:\u{2010}\u{2011}\u{2012}\u{2013}".contains(c);
        let length = from.find(|c| !joins(c)).unwrap_or(from.len());
        let (run, after) = from.split_at(length);
        plain.push_str(before);
        if run.chars().filter(|c| c.is_numeric()).count() > 4 {
            plain.push_str("[…] ");
        } else {
            plain.push_str(run);
        }
        rest = after;
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_persons_is_cut_out() {
        for (message, logged) in [
            ("send failed with status 503", "send failed with status 503"),
            ("no answer for +4915112345678, gave up", "no answer for +[…] gave up"),
            ("no answer for +49 151 1234 5678!", "no answer for +[…] !"),
            ("call (0151) 12-34.56 7", "call ([…]"),
            ("０１５１ ２３４", "[…]"),
            ("a\u{202e}b", "ab"),
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
