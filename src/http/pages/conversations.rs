//! Pages of conversations, and of one's messages.

use axum::extract::{Path, State as Extract};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::answers;
use super::parameters::{Parameters, WrongParameter};
use crate::http::state::State;
use crate::site_db::pages::{self, Wanted};

/// `GET /v1/conversations`
pub(super) async fn all(Extract(state): Extract<State>, uri: Uri, headers: HeaderMap) -> Response {
    let answered = async {
        let (viewer, _place) = answers::viewer(&state, &headers, &uri).await?;
        let asked = Parameters::read(&uri, &["limit", "before", "number", "lead_id", "unread"])
            .map_err(WrongParameter::into_response)?;
        let numbers = asked.numbers(&viewer);
        let wanted = Wanted {
            numbers: numbers.as_deref(),
            unread: asked.unread,
        };
        let _turn = answers::turn(&state, &uri).await?;
        let position = answers::position(&state);
        let rows = match asked.lead_id {
            Some(lead) => pages::conversations_of(&state.pool, lead, &wanted, asked.before, asked.limit).await,
            None => pages::conversations(&state.pool, &wanted, asked.before, asked.limit).await,
        };
        let rows = rows.map_err(|error| answers::unavailable(&error))?;
        Ok(answers::page(&position, &rows, asked.limit))
    };
    answered.await.unwrap_or_else(|refused: Response| refused)
}

/// `GET /v1/conversations/{id}/messages`
pub(super) async fn messages(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let answered = async {
        let (viewer, _place) = answers::viewer(&state, &headers, &uri).await?;
        let asked = Parameters::read(&uri, &["limit", "before"]).map_err(WrongParameter::into_response)?;
        let not_found = || answers::not_found("conversation");
        let id = Uuid::try_parse(&id).map_err(|_| not_found())?;
        let _turn = answers::turn(&state, &uri).await?;
        let position = answers::position(&state);
        let found = pages::conversation(&state.pool, id, viewer.numbers.as_deref()).await;
        let found = found
            .map_err(|error| answers::unavailable(&error))?
            .ok_or_else(not_found)?;
        let rows = pages::messages(&state.pool, found.id, asked.before, asked.limit).await;
        let rows = rows.map_err(|error| answers::unavailable(&error))?;
        let conversation = format!("\"conversation\":{},{position}", found.shown);
        Ok(answers::page(&conversation, &rows, asked.limit))
    };
    answered.await.unwrap_or_else(|refused: Response| refused)
}
