//! `POST /v1/messages`: reads a request, stores the message, and waits for it if the caller asks for that.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request as HttpRequest, State as Extract};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use uuid::Uuid;

use super::at_once;
use super::graph_body::graph_body;
use super::read::{self, SendRequest};
use super::recipient::Recipient;
use super::request_error::RequestError;
use super::show;
use crate::config::ApiToken;
use crate::http::budget::Family;
use crate::http::quotes::{self, QuoteError};
use crate::http::state::State;
use crate::http::{answer, auth};
use crate::outbox::{NewMessage, SubmitError, Submitted};
use crate::provider::cloud::send::{self, Request};
use crate::provider::{Outbound, PhoneNumberId};
use crate::site_db::conversations::Author;
use crate::site_db::{MessageStatus, leads, messages};

/// What happens to a message that is not sent while its client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// It is sent later.
    Later,
    /// It is cancelled.
    Never,
}

/// The route.
pub(super) async fn post(
    Extract(state): Extract<State>,
    uri: Uri,
    headers: HeaderMap,
    // The body is read only after the token was checked.
    request: HttpRequest,
) -> Response {
    let Some(client) = auth::client(&state.settings.tokens, &headers, &uri) else {
        return answer::plain_unauthorized();
    };
    let body = match state.bodies.read_clients(request).await {
        Ok(body) => body,
        Err(error) => return answer::plain_body_error(error),
    };
    let Ok(_place) = state.budgets.client_place(Family::Api, &client.name) else {
        return answer::busy(&uri);
    };
    let (of_request, send_wait) = (headers.clone(), state.settings.send_wait);
    let request = match body.parse(move |body| read::read(body, &of_request, send_wait)).await {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    drop(body);
    match take(&state, client, request, Otherwise::Later).await {
        Ok(response) | Err(response) => response,
    }
}

/// Stores the message. `Err`: the answer to a request that left no row.
pub(super) async fn take(
    state: &State,
    client: &ApiToken,
    request: SendRequest,
    otherwise: Otherwise,
) -> Result<Response, Response> {
    let phone_number_id =
        sending_number(state, client, request.phone_number_id.clone()).map_err(RequestError::into_response)?;
    if let Some(lead_id) = request.lead_id {
        may_reach_lead(state, client, lead_id).await?;
    }
    let by_lead;
    let recipient = match (&request.to, request.lead_id) {
        (Some(to), _) => to,
        (None, Some(lead_id)) => {
            by_lead = lead_address(state, lead_id).await?;
            &by_lead
        }
        (None, None) => return Err(RequestError::field("to", "the recipient is missing").into_response()),
    };
    let body = Bytes::from(graph_body(&request, recipient).to_string());
    let outbound = outbound(&body, &request.content.kind).map_err(RequestError::into_response)?;
    quotes::may_send(state, client, &body)
        .await
        .map_err(|error| not_quoted(&error))?;
    // Without a place to wait the answer comes at once: the message is on its way.
    let waiting = request
        .wait
        .and_then(|wait| Some((wait, state.budgets.client_place(Family::Waiting, &client.name).ok()?)));
    let now_or_never = otherwise == Otherwise::Never;
    if now_or_never && waiting.is_none() {
        return Err(overloaded());
    }
    let wait = waiting.as_ref().map(|(wait, _)| *wait);
    let submitted = state
        .outbox
        .submit(NewMessage {
            phone_number_id,
            request: body,
            outbound,
            client_name: client.name.clone(),
            client_id: request.client_id,
            lead_id: request.lead_id,
            send_within: wait.filter(|_| now_or_never),
            waits: request.wait.is_some(),
            api_version: None,
            author: match request.user_id {
                _ if client.automation => Author::Automation,
                Some(person) => Author::Person(person),
                None => Author::Client,
            },
        })
        .await
        .map_err(|error| not_submitted(&error))?;
    if now_or_never {
        return Ok(at_once::answered(state, submitted).await);
    }
    Ok(answer::about(submitted.id, taken(state, submitted, wait).await))
}

/// The number to send from: the one that the caller names, else its only one.
fn sending_number(
    state: &State,
    client: &ApiToken,
    named: Option<PhoneNumberId>,
) -> Result<PhoneNumberId, RequestError> {
    let usable = |id: &PhoneNumberId| state.outbox.has_number(id) && client.may_use(id.as_str());
    if let Some(id) = named {
        return if usable(&id) {
            Ok(id)
        } else {
            Err(RequestError::unknown_number())
        };
    }
    let mut own = state
        .settings
        .accounts
        .iter()
        .map(|known| known.account.phone_number_id());
    let mut own = own.by_ref().filter(|id| usable(id));
    match (own.next(), own.next()) {
        (Some(only), None) => Ok(only.clone()),
        _ => Err(RequestError::field(
            "phone_number_id",
            "several numbers are configured: name the one to send from",
        )),
    }
}

/// Refuses a lead that only numbers of others talk to, as if it did not exist.
async fn may_reach_lead(state: &State, client: &ApiToken, lead_id: Uuid) -> Result<(), Response> {
    let Some(numbers) = &client.numbers else {
        return Ok(());
    };
    match leads::belongs_to(&state.pool, lead_id, numbers).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(RequestError::field("lead_id", "there is no such lead").into_response()),
        Err(error) => Err(answer::plain_unavailable(&error)),
    }
}

fn not_quoted(error: &QuoteError) -> Response {
    match error {
        QuoteError::NotTheirs => {
            RequestError::field("reply_to", "a message or a medium that is named does not exist").into_response()
        }
        QuoteError::Unreadable(error) => RequestError::malformed(error.to_string()).into_response(),
        QuoteError::Site(error) => answer::plain_unavailable(error),
    }
}

/// The recipient for a lead that the caller named instead.
async fn lead_address(state: &State, lead_id: Uuid) -> Result<Recipient, Response> {
    let leads::Address { phone, user_id } = leads::address(&state.pool, lead_id)
        .await
        .map_err(|error| answer::plain_unavailable(&error))?
        .ok_or_else(|| RequestError::field("lead_id", "there is no such lead").into_response())?;
    Recipient::of_lead(phone.as_deref(), user_id.as_deref())
        .ok_or_else(|| RequestError::field("lead_id", "the lead has neither a number nor a user id").into_response())
}

/// Reads the body in Meta's format in the same way as a Graph client's.
fn outbound(body: &[u8], kind: &str) -> Result<Outbound, RequestError> {
    match send::read(body) {
        Ok(Request::Message(outbound)) => Ok(outbound),
        Ok(Request::MarkAsRead { .. }) => Err(RequestError::field("type", "this is not a message")),
        Err(error) => Err(RequestError::field(kind, error.summary())),
    }
}

fn overloaded() -> Response {
    answer::soon_if_busy(answer::plain_error(
        StatusCode::SERVICE_UNAVAILABLE,
        "overloaded",
        "too many requests wait; nothing was stored or sent; try again",
        None,
    ))
}

fn not_submitted(error: &SubmitError) -> Response {
    match error {
        SubmitError::Site(error) => answer::plain_unavailable(error),
        SubmitError::InDoubt { id, source } => {
            answer::log_unavailable(source);
            let said = format!(
                "it is not known whether the message was stored, and so whether it is sent: look at GET /v1/messages/{id} before you                  send it anew; with a client_id the same request is safe"
            );
            answer::about(
                *id,
                answer::plain_error(StatusCode::CONFLICT, "outcome_unknown", &said, None),
            )
        }
        SubmitError::Overloaded => overloaded(),
        SubmitError::UnknownNumber => RequestError::field("phone_number_id", error.to_string()).into_response(),
        SubmitError::UnknownLead => RequestError::field("lead_id", "there is no such lead").into_response(),
        SubmitError::TakenOver => answer::plain_error(
            StatusCode::CONFLICT,
            "taken_over",
            "a person has written in this conversation: automation sends nothing into it until its automation_paused_until",
            None,
        ),
        SubmitError::ClientIdReused { id } => answer::about(
            *id,
            answer::plain_error(
                StatusCode::CONFLICT,
                "client_id_reused",
                "this client_id was used for another message; use a new one for each message",
                Some("client_id"),
            ),
        ),
    }
}

/// The message's current state, after the wait that the caller asked for.
async fn taken(state: &State, mut submitted: Submitted, wait: Option<Duration>) -> Response {
    let (id, duplicate) = (submitted.id, submitted.is_duplicate());
    let number = wait.map(|_| submitted.phone_number_id.clone());
    let found = match (wait, submitted.fresh.take_if(|_| wait.is_none())) {
        (Some(patience), _) => state.outbox.wait(submitted, patience).await,
        (None, Some(row)) => Ok(Some(*row)),
        (None, None) => messages::find(&state.pool, id).await.map_err(Arc::new),
    };
    let Ok(Some(message)) = found else {
        // The message is committed and will be sent; only its state is not known now.
        let shown = json!({"id": id, "status": "pending", "duplicate": duplicate});
        return (StatusCode::ACCEPTED, Json(shown)).into_response();
    };
    let status = if message.status.is_settled() {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let mut shown = show::message(&message);
    if duplicate {
        shown["duplicate"] = json!(true);
    }
    if let (MessageStatus::Pending, Some(hold)) = (message.status, number.and_then(|number| state.outbox.held(&number)))
    {
        shown["held"] = json!({"code": hold.code, "reason": hold.reason});
    }
    (status, Json(shown)).into_response()
}
