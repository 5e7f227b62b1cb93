//! `GET` of a link: streams a medium's bytes from Meta's media host.

use axum::body::Body;
use axum::extract::State as Extract;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, IF_RANGE, RANGE};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;

use crate::http::budget::{Family, Place};
use crate::http::media_link::LinkError;
use crate::http::state::State;
use crate::http::{answer, auth};
use crate::provider::cloud::GraphError;
use crate::provider::cloud::media::{Download, DownloadError};

/// The route.
pub(super) async fn get(Extract(state): Extract<State>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(client) = auth::client(&state.settings.tokens, &headers, &uri) else {
        return answer::graph_unauthorized();
    };
    let medium = match state.settings.links.check(uri.query().unwrap_or_default()) {
        Ok(medium) => medium,
        Err(error) => return not_found(error),
    };
    let account = state
        .settings
        .accounts
        .iter()
        .map(|known| &known.account)
        .find(|account| account.phone_number_id().as_str() == medium.phone_number_id)
        .filter(|account| client.may_use(account.phone_number_id().as_str()));
    let Some(account) = account else {
        return not_found(LinkError::Forged);
    };
    let Ok(place) = state.budgets.client_place(Family::Media, &client.name) else {
        return answer::graph_overloaded();
    };
    let mut asked = HeaderMap::new();
    for name in [RANGE, IF_RANGE] {
        if let Some(value) = headers.get(&name) {
            asked.insert(name, value.clone());
        }
    }
    match account.download(&medium.source, &asked).await {
        Ok(download) => stream(download, place),
        Err(error) => {
            tracing::warn!(
                phone_number_id = %account.phone_number_id(),
                host = (error == DownloadError::Host).then(|| medium.source.host_str().unwrap_or_default()),
                "a medium was not downloaded: {error}"
            );
            let error = GraphError::new(2, "Service temporarily unavailable").with_details(error.to_string());
            answer::graph_error(StatusCode::BAD_GATEWAY, &error)
        }
    }
}

/// The answer while its bytes come in.
fn stream(download: Download, place: Place) -> Response {
    let status = StatusCode::from_u16(download.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let is_medium = status.is_success() || matches!(status.as_u16(), 304 | 416);
    if !is_medium {
        // The media host's own words are a page for people.
        let error = GraphError::new(100, "Unsupported get request. The media host refused the medium").with_details(
            format!("it answered with status {}; ask for the medium again", status.as_u16()),
        );
        let status = if status.is_client_error() {
            StatusCode::NOT_FOUND
        } else {
            StatusCode::BAD_GATEWAY
        };
        return answer::graph_error(status, &error);
    }
    let bytes = download.body.map(move |chunk| {
        // The place is taken until the last byte.
        let _ = &place;
        chunk
    });
    let mut response = (status, Body::from_stream(bytes)).into_response();
    response.headers_mut().remove(CONTENT_TYPE);
    for (name, value) in &download.headers {
        response.headers_mut().insert(name, value.clone());
    }
    // A document that a person sent must not run as a page of this server's.
    response.headers_mut().insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox; default-src 'none'"),
    );
    response
}

fn not_found(error: LinkError) -> Response {
    let error = GraphError::new(100, "Unsupported get request. Object does not exist")
        .with_subcode(33)
        .with_details(error.to_string());
    answer::graph_error(StatusCode::NOT_FOUND, &error)
}
