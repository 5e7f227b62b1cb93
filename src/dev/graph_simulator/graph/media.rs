//! Media calls: upload, resolve to a link that needs the token as well, download, delete.

use axum::Json;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::access::unauthorised;
use super::answers::{graph_error, unknown_object};
use super::form::{boundary, parts};
use crate::dev::graph_simulator::ids::media_id;
use crate::dev::graph_simulator::media_store::Medium;
use crate::dev::graph_simulator::world::World;
use crate::provider::cloud::GraphError;

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
