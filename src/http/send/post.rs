//! The route: reads a request, stores the message, and waits for it.

use axum::extract::{Path, Request as HttpRequest, State as Extract};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;

use super::outcome;
use crate::http::budget::Family;
use crate::http::quotes::{self, QuoteError};
use crate::http::state::State;
use crate::http::{answer, auth, client_id};
use crate::outbox::{Delivered, NewMessage, SubmitError, Submitted};
use crate::provider::cloud::GraphError;
use crate::provider::cloud::client::PassedCall;
use crate::provider::cloud::send::{self, Request};
use crate::provider::{ApiVersion, PhoneNumberId, Wamid};
use crate::site_db::conversations::Author;
use crate::site_db::leads;
use crate::site_db::messages::MessageRow;

/// `POST /v{N}.{m}/{phone_number_id}/messages`.
pub(super) async fn send(
    Extract(state): Extract<State>,
    Path((version, phone_number_id)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    request: HttpRequest,
) -> Response {
    match ApiVersion::parse(&version) {
        Some(version) => take(state, version, phone_number_id, uri, headers, request).await,
        None => answer::not_found(&uri),
    }
}

/// `POST /{phone_number_id}/messages`: some clients write no version, and Meta takes that.
pub(super) async fn send_without_version(
    Extract(state): Extract<State>,
    Path(phone_number_id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    request: HttpRequest,
) -> Response {
    let version = state.settings.default_version(&phone_number_id);
    match version.cloned() {
        Some(version) => take(state, version, phone_number_id, uri, headers, request).await,
        None => answer::not_found(&uri),
    }
}

async fn take(
    state: State,
    version: ApiVersion,
    phone_number_id: String,
    uri: Uri,
    headers: HeaderMap,
    // The body is read only after the token was checked: requests without a token must not fill our memory.
    request: HttpRequest,
) -> Response {
    let Some(client) = auth::client(&state.settings.tokens, &headers, &uri) else {
        return answer::graph_unauthorized();
    };
    let number =
        PhoneNumberId::parse(&phone_number_id).filter(|id| state.outbox.has_number(id) && client.may_use(id.as_str()));
    let Some(phone_number_id) = number else {
        return answer::graph_unknown_object("post", &phone_number_id);
    };
    let held = match state.bodies.read_clients(request).await {
        Ok(held) => held,
        Err(error) => return answer::graph_body_error(error),
    };
    let Ok(_place) = state.budgets.client_place(Family::Api, &client.name) else {
        return answer::busy(&uri);
    };
    let body = held.bytes.clone();
    let Ok(client_id) = client_id::from_header(&headers) else {
        return bad_request(
            &GraphError::new(100, "Invalid parameter")
                .with_details("the Idempotency-Key header must be 1 to 255 visible characters"),
        );
    };
    let outbound = match held.parse(send::read).await {
        Ok(Request::Message(outbound)) => outbound,
        Ok(Request::MarkAsRead { wamid, typing }) => {
            return match quotes::may_name(&state, client, [&wamid]).await {
                Ok(()) => mark_as_read(&state, &phone_number_id, &version, &wamid, typing).await,
                Err(error) => not_quoted(&error),
            };
        }
        Err(error) => return bad_request(&error),
    };
    if let Err(error) = quotes::may_send(&state, client, &body).await {
        return not_quoted(&error);
    }
    let Ok(_waiting) = state.budgets.client_place(Family::Waiting, &client.name) else {
        return answer::busy(&uri);
    };
    let submitted = state
        .outbox
        .submit(NewMessage {
            phone_number_id,
            request: body,
            outbound,
            client_name: client.name.clone(),
            client_id,
            lead_id: None,
            send_within: Some(state.settings.send_wait),
            waits: true,
            api_version: Some(version),
            author: if client.automation {
                Author::Automation
            } else {
                Author::Client
            },
        })
        .await;
    match submitted {
        Ok(submitted) => {
            // Stored: nothing needs the body while its client waits.
            drop(held);
            let receipt = submitted.receipt();
            answer::if_unread(settled(&state, submitted).await, move || receipt.clone().unread())
        }
        Err(error) => not_submitted(&uri, &error),
    }
}

/// Waits for the message, and answers as Meta would.
async fn settled(state: &State, submitted: Submitted) -> Response {
    let id = submitted.id;
    // It may be another message than the submitted one: the one that this repeats.
    let (id, response) = match state.outbox.wait_or_cancel(submitted).await {
        Ok(Some(Delivered::Known(message))) => match outcome::known(&message) {
            Some(response) => (message.id, response),
            None => (message.id, echoed(state, &message).await),
        },
        Ok(Some(Delivered::Cancelled(message))) => (message.id, outcome::cancelled(&message)),
        Ok(Some(Delivered::Held(message, hold))) => (message.id, outcome::held(&message, &hold)),
        Ok(None) => (id, outcome::unknown(id, "its row was deleted")),
        Err(error) => {
            answer::log_unavailable(&error);
            let response = outcome::unknown(id, "the database went away while it was being sent");
            (id, response)
        }
    };
    answer::about(id, response)
}

/// The answer from the message's wamid and the ids of its recipient.
async fn echoed(state: &State, message: &MessageRow) -> Response {
    let address = leads::address(&state.pool, message.lead_id).await;
    if let Err(error) = &address {
        answer::log_unavailable(error);
    }
    outcome::echoed(message, address.ok().flatten().as_ref())
}

fn not_submitted(uri: &Uri, error: &SubmitError) -> Response {
    match error {
        SubmitError::ClientIdReused { id } => {
            let error = GraphError::new(100, "Invalid parameter")
                .with_details("the Idempotency-Key was used for another request; use a new one for each message");
            answer::about(*id, answer::graph_error(StatusCode::CONFLICT, &error))
        }
        SubmitError::TakenOver => {
            let error = GraphError::new(100, "Invalid parameter").with_details(
                "a person has written in this conversation: automation sends nothing into it until its automation_paused_until",
            );
            answer::graph_error(StatusCode::CONFLICT, &error)
        }
        SubmitError::Site(error) => answer::graph_unavailable(error),
        SubmitError::InDoubt { id, source } => {
            answer::log_unavailable(source);
            answer::about(*id, outcome::in_doubt(*id))
        }
        SubmitError::Overloaded => answer::busy(uri),
        // Neither can happen: the number was checked, and no lead was named.
        SubmitError::UnknownNumber | SubmitError::UnknownLead => {
            bad_request(&GraphError::new(100, "Invalid parameter").with_details(error.to_string()))
        }
    }
}

fn bad_request(error: &GraphError) -> Response {
    answer::graph_error(StatusCode::BAD_REQUEST, error)
}

fn not_quoted(error: &QuoteError) -> Response {
    match error {
        QuoteError::NotTheirs => bad_request(&quotes::unknown()),
        QuoteError::Unreadable(_) => bad_request(&quotes::unreadable()),
        QuoteError::Site(error) => answer::graph_unavailable(error),
    }
}

/// Mark as read and typing indicator: no message, so nothing is stored, and a lost answer does no harm.
async fn mark_as_read(
    state: &State,
    phone_number_id: &PhoneNumberId,
    version: &ApiVersion,
    wamid: &Wamid,
    typing: bool,
) -> Response {
    let known = |number: &PhoneNumberId| number == phone_number_id;
    let accounts = &state.settings.accounts;
    let Some(number) = accounts.iter().find(|number| known(number.account.phone_number_id())) else {
        // Cannot happen: the outbox has the number, and both lists come from the same configuration.
        return answer::graph_unknown_object("post", phone_number_id.as_str());
    };
    let call = PassedCall {
        method: Method::POST,
        path: format!("{version}/{phone_number_id}/messages"),
        content_type: Some("application/json".to_owned()),
        body: send::read_receipt(wamid, typing).into(),
    };
    match number.account.pass(call).await {
        Ok(passed) => answer::passed(passed.status, passed.content_type.as_deref(), passed.body),
        Err(error) => {
            tracing::warn!(%phone_number_id, "a message was not marked as read: {error}");
            answer::graph_error(
                StatusCode::BAD_GATEWAY,
                &GraphError::new(2, "Service temporarily unavailable").with_details(error.to_string()),
            )
        }
    }
}
