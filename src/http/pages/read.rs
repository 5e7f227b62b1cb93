//! `POST /v1/conversations/{id}/read`: its messages were read, all, or those up to the message that the body names
//! (`{"up_to": "…"}`): what came since the page was loaded stays unread. WhatsApp is not told; that is a call of the Graph API's.

use axum::extract::{Path, Request, State as Extract};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use serde::Deserialize;
use uuid::Uuid;

use super::answers;
use crate::http::answer;
use crate::http::state::State;
use crate::site_db::{conversations, pages};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    up_to: Option<Uuid>,
}

pub(super) async fn post(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    // The body is read only after the token was checked.
    request: Request,
) -> Response {
    let answered = async {
        let (viewer, _place) = answers::viewer(&state, &headers, &uri).await?;
        let body = state.bodies.read_clients(request).await;
        let body = body.map_err(answer::plain_body_error)?;
        let Body { up_to } = match &body.bytes[..] {
            [] => Body::default(),
            bytes => serde_json::from_slice(bytes).map_err(|_| malformed())?,
        };
        let not_found = || answers::not_found("conversation");
        let id = Uuid::try_parse(&id).map_err(|_| not_found())?;
        let _turn = answers::turn(&state, &uri).await?;
        let numbers = viewer.numbers.as_deref();
        let unavailable = |error| answers::unavailable(&error);
        let found = pages::conversation(&state.pool, id, numbers)
            .await
            .map_err(unavailable)?;
        let id = found.ok_or_else(not_found)?.id;
        let marked = conversations::mark_read(&state.pool, id, up_to).await;
        marked
            .map_err(unavailable)?
            .ok_or_else(|| answers::not_found("message in this conversation"))?;
        let found = pages::conversation(&state.pool, id, numbers)
            .await
            .map_err(unavailable)?;
        Ok(answers::json(format!(
            "{{\"conversation\":{}}}",
            found.ok_or_else(not_found)?.shown
        )))
    };
    answered.await.unwrap_or_else(|refused: Response| refused)
}

fn malformed() -> Response {
    answer::plain_error(
        StatusCode::BAD_REQUEST,
        "malformed",
        "the body must be empty, or as in {\"up_to\": \"the id of a message\"}",
        None,
    )
}
