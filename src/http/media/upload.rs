//! `POST /v{N}.{m}/{number}/media`: streams a client's form to Meta.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{BodyDataStream, Bytes};
use axum::extract::{Path, Request, State as Extract};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use futures_util::{StreamExt, stream};
use serde_json::Value;

use crate::http::budget::Family;
use crate::http::form::{self, FormCheck, FormError};
use crate::http::state::{PassthroughAccount, State};
use crate::http::{answer, auth};
use crate::provider::ApiVersion;
use crate::provider::cloud::GraphError;
use crate::provider::cloud::media::{ByteStream, Upload};
use crate::site_db::media;

/// The parts of the form.
const PARTS: &[&str] = &["messaging_product", "type", "file", "ttl_minutes"];
/// What some clients write into the query instead of the form.
const PRODUCT: (&str, &str) = ("messaging_product", "whatsapp");
/// How much of a refused form is still read, so that the client, which is still writing, gets the answer.
const DRAINED_BYTES: usize = 128 * 1024 * 1024;
/// For how long it is read.
const DRAIN_TIME: Duration = Duration::from_secs(20);
/// How long storing whose medium it is may take: the upload itself has succeeded.
const STORE_TIME: Duration = Duration::from_secs(3);

/// Why a form was not passed on to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum UploadFault {
    #[error(transparent)]
    Form(#[from] FormError),
    #[error("the medium is too large")]
    TooLarge,
    #[error("the connection broke")]
    Broken,
}

/// A client's body, of which the upload reads, and after it whoever reads the rest.
type SharedBody = Arc<tokio::sync::Mutex<BodyDataStream>>;
/// What is wrong with the body, if something is.
type Fault = Arc<Mutex<Option<UploadFault>>>;

/// The route.
pub(super) async fn post(
    Extract(state): Extract<State>,
    Path((version, phone_number_id)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Response {
    match ApiVersion::parse(&version) {
        Some(version) => upload(&state, &version, &phone_number_id, &uri, &headers, request).await,
        None => answer::not_found(&uri),
    }
}

/// The route without a version.
pub(super) async fn post_without_version(
    Extract(state): Extract<State>,
    Path(phone_number_id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Response {
    match state.settings.default_version(&phone_number_id) {
        Some(version) => upload(&state, version, &phone_number_id, &uri, &headers, request).await,
        None => answer::not_found(&uri),
    }
}

async fn upload(
    state: &State,
    version: &ApiVersion,
    phone_number_id: &str,
    uri: &Uri,
    headers: &HeaderMap,
    request: Request,
) -> Response {
    let Some(client) = auth::client(&state.settings.tokens, headers, uri) else {
        return answer::graph_unauthorized();
    };
    let body = Arc::new(tokio::sync::Mutex::new(request.into_body().into_data_stream()));
    let known = state
        .settings
        .accounts
        .iter()
        .find(|known| known.account.phone_number_id().as_str() == phone_number_id)
        .filter(|_| client.may_use(phone_number_id));
    let response = match known {
        None => answer::graph_unknown_object("post", phone_number_id),
        Some(account) => match query(uri) {
            Some(query) => {
                let path = format!("{version}/{phone_number_id}/media{query}");
                take(state, &client.name, account, path, headers, &body).await
            }
            None => bad_request("an upload has no parameters but messaging_product; its form says everything else"),
        },
    };
    if !response.status().is_success() {
        drain(&body).await;
    }
    response
}

/// The query that is passed on; `None`: it has a parameter that is not.
fn query(uri: &Uri) -> Option<&'static str> {
    let mut passed = "";
    for (name, value) in auth::other_parameters(uri) {
        if (name.as_ref(), value.as_ref()) != PRODUCT {
            return None;
        }
        passed = "?messaging_product=whatsapp";
    }
    Some(passed)
}

/// Checks what the headers say, and passes the form on.
async fn take(
    state: &State,
    client: &str,
    known: &PassthroughAccount,
    path: String,
    headers: &HeaderMap,
    body: &SharedBody,
) -> Response {
    let text = |name| headers.get(name)?.to_str().ok();
    let Some(boundary) = text(CONTENT_TYPE).and_then(form::boundary) else {
        return bad_request(&FormError::Malformed.to_string());
    };
    let limit = state.settings.max_media_bytes;
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit) {
        return refused(UploadFault::TooLarge);
    }
    let Ok(_place) = state.budgets.client_place(Family::Media, client) else {
        return answer::graph_overloaded();
    };
    let fault = Fault::default();
    let checked = checked(
        Arc::clone(body),
        FormCheck::new(boundary, PARTS),
        limit,
        Arc::clone(&fault),
    );
    let uploaded = known
        .account
        .upload(Upload {
            path,
            content_type: format!("multipart/form-data; boundary=\"{boundary}\""),
            length,
            body: checked,
        })
        .await;
    let fault = *fault.lock().unwrap_or_else(PoisonError::into_inner);
    match (uploaded, fault) {
        (_, Some(fault)) => refused(fault),
        (Ok(passed), None) => {
            if passed.status == 200 {
                remember(state, known, &passed.body).await;
            }
            answer::passed(passed.status, passed.content_type.as_deref(), passed.body)
        }
        (Err(error), None) => {
            tracing::warn!(phone_number_id = %known.account.phone_number_id(), "an upload was not passed on: {error}");
            let error = GraphError::new(2, "Service temporarily unavailable").with_details(error.to_string());
            answer::graph_error(StatusCode::BAD_GATEWAY, &error)
        }
    }
}

/// The body for Meta: each piece as soon as it is checked.
fn checked(body: SharedBody, check: FormCheck, limit: u64, fault: Fault) -> ByteStream<UploadFault> {
    let state = Some((body, check, 0_u64, fault));
    Box::pin(stream::unfold(state, move |state| async move {
        let (body, mut check, mut bytes, fault) = state?;
        loop {
            let next = body.lock().await.next().await;
            let judged = match next {
                Some(Ok(chunk)) => {
                    bytes = bytes.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
                    if bytes > limit {
                        Err(UploadFault::TooLarge)
                    } else {
                        check.push(&chunk).map_err(UploadFault::Form)
                    }
                }
                Some(Err(_)) => Err(UploadFault::Broken),
                None => match check.end() {
                    Ok(()) => return None,
                    Err(error) => Err(error.into()),
                },
            };
            match judged {
                Ok(passed) if passed.is_empty() => {}
                Ok(passed) => return Some((Ok(Bytes::from(passed)), Some((body, check, bytes, fault)))),
                Err(error) => {
                    *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return Some((Err(error), None));
                }
            }
        }
    }))
}

/// Stores whose medium it is, so that a later call about it uses the right token.
async fn remember(state: &State, known: &PassthroughAccount, body: &[u8]) {
    let answer: Option<Value> = serde_json::from_slice(body).ok();
    let Some(id) = answer.as_ref().and_then(|answer| answer.get("id")?.as_str()) else {
        return;
    };
    let stored = media::remember(&state.pool, id, known.account.phone_number_id());
    match tokio::time::timeout(STORE_TIME, stored).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("whose medium was uploaded is not stored: {error}"),
        Err(_) => tracing::warn!("whose medium was uploaded is not stored: the Site DB does not answer"),
    }
}

/// Reads the rest of a body that is not passed on.
async fn drain(body: &SharedBody) {
    let reading = async {
        let mut body = body.lock().await;
        let mut read = 0;
        while let Some(Ok(chunk)) = body.next().await {
            read += chunk.len();
            if read > DRAINED_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}

fn refused(fault: UploadFault) -> Response {
    let status = match fault {
        UploadFault::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        UploadFault::Form(_) | UploadFault::Broken => StatusCode::BAD_REQUEST,
    };
    answer::graph_error(
        status,
        &GraphError::new(100, "Invalid parameter").with_details(fault.to_string()),
    )
}

fn bad_request(details: &str) -> Response {
    answer::graph_error(
        StatusCode::BAD_REQUEST,
        &GraphError::new(100, "Invalid parameter").with_details(details),
    )
}
