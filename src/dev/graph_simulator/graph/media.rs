//! Media calls: upload, resolve to a link that needs the token as well, download, delete. The link leads to a host of its own
//! (the same one with another port) and expires, as Meta's does.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::access::unauthorised;
use super::answers::{graph_error, unknown_object};
use super::form::{boundary, parts};
use super::query::parameter;
use crate::dev::graph_simulator::ids::media_id;
use crate::dev::graph_simulator::media_store::Medium;
use crate::dev::graph_simulator::world::World;
use crate::provider::cloud::GraphError;

/// How long a link can be used, as with Meta's.
const LINK_SECONDS: i64 = 5 * 60;

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
    let product = match part("messaging_product") {
        Some(part) => part.content == b"whatsapp",
        None => parameter(query, "messaging_product").as_deref() == Some("whatsapp"),
    };
    if !product {
        return missing("messaging_product");
    }
    let Some(file) = part("file") else {
        return missing("file");
    };
    let kind = part("type").and_then(|part| std::str::from_utf8(part.content).ok());
    let medium = Medium {
        id: media_id(),
        mime_type: kind
            .or(file.content_type)
            .unwrap_or("application/octet-stream")
            .to_owned(),
        bytes: Bytes::copy_from_slice(file.content),
    };
    let answer = json!({"id": medium.id});
    if let Some(number) = world.numbers().get_mut(number) {
        number.media.keep(medium);
    }
    Json(answer).into_response()
}

/// Whether this is a medium's id, so that a call about it names no number.
pub(super) fn is_one(world: &World, id: &str) -> bool {
    owner(world, id).is_some()
}

/// `GET /{medium}`.
pub(super) fn resolve(world: &World, id: &str, headers: &HeaderMap, query: &str) -> Response {
    let host = text(headers, &header::HOST).unwrap_or("localhost");
    let host = host.rsplit_once(':').map_or(host, |(name, _)| name);
    // With this parameter, Meta knows only the media of that number.
    let named = parameter(query, "phone_number_id");
    if named.is_some_and(|named| owner(world, id).is_none_or(|(number, _)| number != named)) {
        return unknown_object(id);
    }
    about(world, id, headers, query, |medium| {
        let expires = OffsetDateTime::now_utc().unix_timestamp() + LINK_SECONDS;
        let (port, hash) = (world.media_port(), hash(id, expires));
        let url = format!("http://{host}:{port}/whatsapp_business/attachments/?mid={id}&ext={expires}&hash={hash}");
        Json(describe(medium, &url)).into_response()
    })
}

/// All requests to the media host: `GET` of a link, whole or a range.
pub(in crate::dev::graph_simulator) async fn download(
    State(world): State<Arc<World>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let query = uri.query().unwrap_or_default();
    let id = parameter(query, "mid").unwrap_or_default();
    let expires = parameter(query, "ext")
        .and_then(|expires| expires.parse().ok())
        .unwrap_or(0);
    let genuine = parameter(query, "hash").is_some_and(|given| given == hash(&id, expires));
    if !genuine || expires < OffsetDateTime::now_utc().unix_timestamp() {
        return StatusCode::NOT_FOUND.into_response();
    }
    about(&world, &id, &headers, query, |medium| {
        let range = text(&headers, &header::RANGE).and_then(|range| part(range, medium.bytes.len()));
        let mut response = match range {
            Some((first, end)) => {
                let content_range = format!("bytes {first}-{}/{}", end - 1, medium.bytes.len());
                let mut part = medium.bytes.slice(first..end).into_response();
                *part.status_mut() = StatusCode::PARTIAL_CONTENT;
                if let Ok(value) = HeaderValue::from_str(&content_range) {
                    part.headers_mut().insert(header::CONTENT_RANGE, value);
                }
                part
            }
            None => medium.bytes.clone().into_response(),
        };
        if let Ok(kind) = HeaderValue::from_str(&medium.mime_type) {
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        response
    })
}

/// The first byte of a range `bytes=a-b` or `bytes=a-`, and the byte after its last.
fn part(range: &str, length: usize) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let first: usize = first.parse().ok()?;
    let end = if last.is_empty() {
        length
    } else {
        last.parse::<usize>().ok()?.saturating_add(1).min(length)
    };
    (first < end).then_some((first, end))
}

/// What makes a link one of ours.
fn hash(id: &str, expires: i64) -> String {
    hex::encode(Sha256::digest(format!("{id} {expires}")))
}

/// `DELETE /{medium}`.
pub(super) fn delete(world: &World, id: &str, headers: &HeaderMap, query: &str) -> Response {
    let answer = about(world, id, headers, query, |_| {
        Json(json!({"success": true})).into_response()
    });
    if answer.status() == StatusCode::OK {
        for number in world.numbers().values_mut() {
            number.media.remove(id);
        }
    }
    answer
}

fn describe(medium: &Medium, url: &str) -> Value {
    json!({"messaging_product": "whatsapp", "url": url, "mime_type": medium.mime_type,
        "sha256": STANDARD.encode(Sha256::digest(&medium.bytes)), "file_size": medium.bytes.len(), "id": medium.id})
}

/// Answers a call about a medium, if the caller has the token of the medium's number.
fn about(world: &World, id: &str, headers: &HeaderMap, query: &str, act: impl FnOnce(&Medium) -> Response) -> Response {
    let Some((number, medium)) = owner(world, id) else {
        return unknown_object(id);
    };
    unauthorised(world, &number, headers, query).unwrap_or_else(|| act(&medium))
}

fn owner(world: &World, id: &str) -> Option<(String, Medium)> {
    world
        .numbers()
        .iter()
        .find_map(|(number, state)| Some((number.clone(), state.media.find(id)?.clone())))
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
