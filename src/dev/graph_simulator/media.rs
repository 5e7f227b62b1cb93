//! Media as the Graph API keeps them: uploaded as multipart/form-data, resolved to a link that needs the token as well,
//! deleted.

use std::collections::VecDeque;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, http::HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::graph::{graph_error, unauthorised, unknown_object};
use super::world::World;
use crate::provider::cloud::GraphError;

/// Media that a number keeps; the oldest goes when another one comes. Meta keeps them for 30 days.
const MAX: usize = 16;

/// What was uploaded to a number.
#[derive(Debug, Default)]
pub(super) struct Media(VecDeque<Medium>);

#[derive(Debug, Clone)]
struct Medium {
    id: String,
    mime_type: String,
    bytes: Bytes,
}

/// `POST /{number}/media`.
pub(super) fn upload(world: &World, number: &str, headers: &HeaderMap, query: &str, body: &[u8]) -> Response {
    if let Some(refused) = unauthorised(world, number, headers, query) {
        return refused;
    }
    let missing = |parameter| {
        let error = GraphError::new(100, &format!("The parameter {parameter} is required."));
        graph_error(&error)
    };
    let content_type = text(headers, &header::CONTENT_TYPE);
    let parts = content_type
        .and_then(boundary)
        .map_or_else(Vec::new, |boundary| parts(body, boundary));
    let part = |name: &str| parts.iter().find(|part| part.name == name);
    if part("messaging_product").is_none_or(|part| part.content != b"whatsapp") {
        return missing("messaging_product");
    }
    let Some(file) = part("file") else {
        return missing("file");
    };
    let kind = part("type").and_then(|part| std::str::from_utf8(part.content).ok());
    let medium = Medium {
        id: rand::rng()
            .random_range(1_000_000_000_000_000_u64..10_000_000_000_000_000)
            .to_string(),
        mime_type: kind
            .or(file.content_type)
            .unwrap_or("application/octet-stream")
            .to_owned(),
        bytes: Bytes::copy_from_slice(file.content),
    };
    let answer = json!({"id": medium.id});
    if let Some(number) = world.numbers().get_mut(number) {
        let Media(media) = &mut number.media;
        media.truncate(MAX - 1);
        media.push_front(medium);
    }
    Json(answer).into_response()
}

/// Whether this is a medium's id: then calls about it are not about a number.
pub(super) fn is_one(world: &World, id: &str) -> bool {
    owner(world, id).is_some()
}

/// `GET /{medium}`.
pub(super) fn resolve(world: &World, id: &str, headers: &HeaderMap, query: &str) -> Response {
    let host = text(headers, &header::HOST).unwrap_or("localhost").to_owned();
    about(world, id, headers, query, |medium| {
        let url = format!("http://{host}/whatsapp_business/attachments/?mid={id}");
        Json(describe(medium, &url)).into_response()
    })
}

/// `GET` of the link.
pub(super) fn download(world: &World, id: &str, headers: &HeaderMap, query: &str) -> Response {
    about(world, id, headers, query, |medium| {
        let mut response = medium.bytes.clone().into_response();
        if let Ok(kind) = HeaderValue::from_str(&medium.mime_type) {
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        response
    })
}

/// `DELETE /{medium}`.
pub(super) fn delete(world: &World, id: &str, headers: &HeaderMap, query: &str) -> Response {
    let answer = about(world, id, headers, query, |_| {
        Json(json!({"success": true})).into_response()
    });
    if answer.status() == StatusCode::OK {
        for number in world.numbers().values_mut() {
            number.media.0.retain(|medium| medium.id != id);
        }
    }
    answer
}

fn describe(medium: &Medium, url: &str) -> Value {
    json!({"messaging_product": "whatsapp", "url": url, "mime_type": medium.mime_type,
        "sha256": STANDARD.encode(Sha256::digest(&medium.bytes)), "file_size": medium.bytes.len(), "id": medium.id})
}

/// Does something with a medium, for whoever has its number's token.
fn about(world: &World, id: &str, headers: &HeaderMap, query: &str, act: impl FnOnce(&Medium) -> Response) -> Response {
    let Some((number, medium)) = owner(world, id) else {
        return unknown_object(id);
    };
    unauthorised(world, &number, headers, query).unwrap_or_else(|| act(&medium))
}

fn owner(world: &World, id: &str) -> Option<(String, Medium)> {
    world.numbers().iter().find_map(|(number, state)| {
        let medium = state.media.0.iter().find(|medium| medium.id == id)?;
        Some((number.clone(), medium.clone()))
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A part of a form.
#[derive(Debug, PartialEq, Eq)]
struct Part<'a> {
    name: &'a str,
    content_type: Option<&'a str>,
    content: &'a [u8],
}

fn boundary(content_type: &str) -> Option<&str> {
    let (kind, parameters) = content_type.split_once(';')?;
    let boundary = parameters
        .split(';')
        .find_map(|parameter| parameter.trim().strip_prefix("boundary="))?;
    let boundary = boundary.trim_matches('"');
    (kind.trim().eq_ignore_ascii_case("multipart/form-data") && !boundary.is_empty()).then_some(boundary)
}

/// The parts of a form, as RFC 7578 has them; what is no part is left out.
fn parts<'a>(body: &'a [u8], boundary: &str) -> Vec<Part<'a>> {
    // The first delimiter may stand at the very beginning, without its line break.
    let delimiter = format!("\r\n--{boundary}");
    let mut rest = body.strip_prefix(&delimiter.as_bytes()[2..]).unwrap_or_default();
    let mut parts = Vec::new();
    while let Some(end) = find(rest, delimiter.as_bytes()) {
        parts.extend(part(&rest[..end]));
        rest = &rest[end + delimiter.len()..];
    }
    parts
}

fn part(bytes: &[u8]) -> Option<Part<'_>> {
    let end = find(bytes, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let line = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.trim().eq_ignore_ascii_case(name).then_some(value.trim())
        })
    };
    let (_, name) = line("content-disposition")?.split_once("; name=\"")?;
    Some(Part {
        name: name.split('"').next()?,
        content_type: line("content-type"),
        content: &bytes[end + 4..],
    })
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_taken_apart() {
        let body = b"--b\r\nContent-Disposition: form-data; name=\"messaging_product\"\r\n\r\nwhatsapp\r\n--b\r\n\
            content-disposition: form-data; name=\"file\"; filename=\"x.png\"\r\nContent-Type: image/png\r\n\r\n\x89P\r\n--\r\n--b--\r\n";
        let found = parts(body, "b");
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            (found[0].name, found[0].content),
            ("messaging_product", &b"whatsapp"[..])
        );
        assert_eq!(found[1].content_type, Some("image/png"));
        assert_eq!(found[1].content, b"\x89P\r\n--");
        assert_eq!(
            boundary("multipart/form-data; charset=x; boundary=\"a b\""),
            Some("a b")
        );
        assert_eq!(boundary("application/json"), None);
        for junk in [&b""[..], b"--b", b"--b--", b"--b\r\n\r\n\r\n--b--", b"x--b\r\n"] {
            assert_eq!(parts(junk, "b"), [], "{junk:?}");
        }
    }
}
