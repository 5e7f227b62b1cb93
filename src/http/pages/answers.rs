//! The answers. Rows come as JSON from the database and are put in as they are.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use tokio::sync::SemaphorePermit;

use super::place;
use crate::http::access::{Denied, Viewer};
use crate::http::budget::{Family, Place};
use crate::http::state::State;
use crate::http::{answer, auth};
use crate::site_db::SiteError;
use crate::site_db::pages::ShownRow;

/// How long a page waits for its turn: others' statements take milliseconds.
const TURN: Duration = Duration::from_secs(2);

/// Who asks, with places to be answered.
pub(super) async fn viewer(state: &State, headers: &HeaderMap, uri: &Uri) -> Result<(Viewer, [Place; 2]), Response> {
    let token = auth::bearer(headers);
    let viewer = state.access.viewer(token.as_deref()).await;
    let viewer = viewer.map_err(Denied::into_response)?;
    let place = |family| state.budgets.client_place(family, viewer.budget());
    let places = [
        place(Family::Page).map_err(|_| answer::busy(uri))?,
        place(Family::Api).map_err(|_| answer::busy(uri))?,
    ];
    Ok((viewer, places))
}

/// Waits for the right to read rows. Taken when the request was read, and held until its rows were.
pub(super) async fn turn<'s>(state: &'s State, uri: &Uri) -> Result<SemaphorePermit<'s>, Response> {
    match tokio::time::timeout(TURN, state.pages.acquire()).await {
        Ok(Ok(turn)) => Ok(turn),
        _ => Err(answer::busy(uri)),
    }
}

/// Where the events stand, as a member of an answer: who listens from there on misses nothing of what was read after this call.
pub(super) fn position(state: &State) -> String {
    match state.hub.place() {
        Some(place) => format!("\"position\":\"{place}\","),
        None => String::new(),
    }
}

/// A page, after members of its own (JSON, each with a comma at its end).
pub(super) fn page(first: &str, rows: &[ShownRow], limit: u16) -> Response {
    let shown: Vec<&str> = rows.iter().map(|row| row.shown.as_str()).collect();
    let next = match rows.last() {
        Some(last) if rows.len() == usize::from(limit) => format!("\"{}\"", place::write(last.place())),
        _ => "null".to_owned(),
    };
    json(format!("{{{first}\"data\":[{}],\"next\":{next}}}", shown.join(",")))
}

/// An object that is JSON already.
pub(super) fn json(text: String) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (headers, Body::from(text)).into_response()
}

/// There is no such row, or it is not the viewer's: the same answer for both.
pub(super) fn not_found(what: &str) -> Response {
    answer::plain_error(
        StatusCode::NOT_FOUND,
        "not_found",
        &format!("there is no such {what}"),
        None,
    )
}

/// The Site DB did not answer.
pub(super) fn unavailable(error: &SiteError) -> Response {
    answer::log_unavailable(error);
    answer::soon_if_busy(answer::plain_error(
        StatusCode::SERVICE_UNAVAILABLE,
        "storage_unavailable",
        "the database is not available; try again",
        None,
    ))
}
