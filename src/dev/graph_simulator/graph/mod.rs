//! The Graph API's routes, as clients call them.
//!
//! | file | calls |
//! |---|---|
//! | `send` | `POST /{number}/messages`: checks (`validate`), faults, the ledger |
//! | `media` | upload (`form`), resolve, download, delete |
//! | `nodes` | reads of numbers and accounts, templates, message history |
//! | `access`, `answers`, `query` | tokens, error bodies, URL parameters, for all of them |

mod access;
mod answers;
mod form;
mod media;
mod nodes;
mod query;
mod send;
mod validate;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;

use super::reset::Reset;
use super::world::World;
use answers::unknown_object;
pub(super) use media::download;

/// Every path that is not the simulator's own.
pub(super) async fn route(
    State(world): State<Arc<World>>,
    ConnectInfo(connection): ConnectInfo<Reset>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut segments: Vec<&str> = uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
    // Meta also takes a request without a version.
    if segments.first().is_some_and(|&first| is_version(first)) {
        segments.remove(0);
    }
    let query = uri.query().unwrap_or_default();
    match (&method, segments.as_slice()) {
        (&Method::POST, &[number, "messages"]) => send::send(&world, &connection, number, &headers, query, &body).await,
        (&Method::POST, &[number, "media"]) => media::upload(&world, number, &headers, query, &body),
        (&Method::GET, &[id]) if media::is_one(&world, id) => media::resolve(&world, id, &headers, query),
        (&Method::DELETE, &[id]) => media::delete(&world, id, &headers, query),
        (&Method::GET, &["debug_token"]) => nodes::debug_token(&world, query),
        (&Method::GET, &[nodes::APP, "subscriptions"]) => nodes::app_subscriptions(&world, &headers, query),
        (&Method::GET, &[node]) => nodes::node(&world, node, &headers, query),
        (&Method::GET, &[node, "message_history"]) => nodes::history(&world, node, &headers, query),
        (&Method::GET, &[node, "message_templates"]) => nodes::message_templates(&world, node, &headers, query),
        (&Method::GET, &[node, "subscribed_apps"]) => nodes::subscribed_apps(&world, node, &headers, query),
        (&Method::POST, &[node, "subscribed_apps"]) => nodes::subscribe(&world, node, &headers, query),
        (
            &Method::POST,
            &[
                node,
                "register" | "request_code" | "verify_code" | "whatsapp_business_profile",
            ],
        ) => nodes::subscribe(&world, node, &headers, query),
        (&Method::POST | &Method::DELETE, &[node, "block_users"]) => {
            nodes::block(&world, node, &method, &headers, &body)
        }
        (&Method::POST, &[node, "message_qrdls"]) => nodes::qr_code(&world, node, &headers, query),
        (&Method::GET, &[node, edge]) if nodes::has_edge(edge) => nodes::edge(&world, node, edge, &headers, query),
        _ => unknown_object(segments.first().copied().unwrap_or_default()),
    }
}

fn is_version(segment: &str) -> bool {
    segment
        .strip_prefix('v')
        .and_then(|version| version.split_once('.'))
        .is_some_and(|(major, minor)| {
            let number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            number(major) && number(minor)
        })
}
