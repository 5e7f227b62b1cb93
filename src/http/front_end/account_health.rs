//! `GET /api/whatsapp/accounts/{id}/health`: how a number does, by its row's id or by its `phone_number_id`.

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::verdict::verdict;
use crate::http::access::Denied;
use crate::http::budget::Family;
use crate::http::state::{State, is_id};
use crate::http::{answer, auth};
use crate::site_db::accounts;

pub(super) async fn get(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let viewer = match state.access.viewer(auth::bearer(&headers).as_deref()).await {
        Ok(viewer) => viewer,
        Err(denied) => return Denied::into_response(denied),
    };
    let Ok(_place) = state.budgets.client_place(Family::Api, viewer.budget()) else {
        return answer::busy(&uri);
    };
    let not_found = || answer::plain_error(StatusCode::NOT_FOUND, "not_found", "there is no such number", None);
    if !is_id(&id) && uuid::Uuid::try_parse(&id).is_err() {
        return not_found();
    }
    let signs = match accounts::signs(&state.pool, &id).await {
        Ok(signs) => signs,
        Err(error) => {
            answer::log_unavailable(&error);
            return answer::soon_if_busy(answer::plain_error(
                StatusCode::SERVICE_UNAVAILABLE,
                "storage_unavailable",
                "the database is not available; try again",
                None,
            ));
        }
    };
    let may_see = |number: &str| {
        viewer
            .numbers
            .as_ref()
            .is_none_or(|numbers| numbers.iter().any(|own| own == number))
    };
    let Some(signs) = signs.filter(|signs| may_see(&signs.phone_number_id)) else {
        return not_found();
    };
    let report = state.health.report();
    let names = [format!("number {}", signs.phone_number_id), "webhooks".to_owned()];
    let troubles = names
        .iter()
        .filter_map(|name| report.get(name))
        .filter(|part| !part.is_well());
    let troubles: Vec<String> = troubles.filter_map(|part| part.reason.clone()).collect();
    let verdict = verdict(&signs, &troubles);
    Json(json!({
        "accountId": signs.id,
        "phoneNumberId": signs.phone_number_id,
        "status": verdict.status,
        "connected": verdict.connected,
        "lastRealMessageMs": signs.last_real_ms,
        "timeSinceLastRealMs": signs.last_real_ms.map(|last| (signs.now_ms - last).max(0)),
        "isDegraded": verdict.warning.is_some(),
        "warning": verdict.warning,
    }))
    .into_response()
}
