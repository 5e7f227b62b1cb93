//! `GET /v1/leads/{id}`: a lead with its conversations, of which it has at most one with each of our numbers.

use axum::extract::{Path, State as Extract};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::answers;
use super::parameters::{Parameters, WrongParameter};
use crate::http::state::State;
use crate::site_db::pages::{self, Wanted};

/// More conversations than a business has numbers.
const CONVERSATIONS: u16 = 200;

pub(super) async fn get(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let answered = async {
        let (viewer, _place) = answers::viewer(&state, &headers, &uri).await?;
        Parameters::read(&uri, &[]).map_err(WrongParameter::into_response)?;
        let not_found = || answers::not_found("lead");
        let id = Uuid::try_parse(&id).map_err(|_| not_found())?;
        let _turn = answers::turn(&state, &uri).await?;
        let position = answers::position(&state);
        let numbers = viewer.numbers.as_deref();
        let found = pages::lead(&state.pool, id, numbers).await;
        let (lead_id, lead) = found
            .map_err(|error| answers::unavailable(&error))?
            .ok_or_else(not_found)?;
        let wanted = Wanted { numbers, unread: false };
        let rows = pages::conversations_of(&state.pool, lead_id, &wanted, None, CONVERSATIONS).await;
        let rows = rows.map_err(|error| answers::unavailable(&error))?;
        let shown: Vec<&str> = rows.iter().map(|row| row.shown.as_str()).collect();
        Ok(answers::json(format!(
            "{{{position}\"lead\":{lead},\"conversations\":[{}]}}",
            shown.join(",")
        )))
    };
    answered.await.unwrap_or_else(|refused: Response| refused)
}
