//! A message's status → the answer that Meta would give.

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;
use uuid::Uuid;

use crate::http::answer;
use crate::outbox::Hold;
use crate::provider::cloud::GraphError;
use crate::site_db::MessageStatus;
use crate::site_db::leads::Address;
use crate::site_db::messages::{MessageRow, ProblemClass};

/// How the `phone` of a group's lead begins.
const GROUP: &str = "group:";

/// The answer for a message that is settled, or was still being sent when the client's wait ended. `None`: Meta has accepted
/// it and its answer is not stored: see [`echoed`].
pub(super) fn known(message: &MessageRow) -> Option<Response> {
    use MessageStatus::{
        Accepted, Cancelled, Delivered, Failed, Held, Pending, Played, Read, Received, Sending, Sent, Unknown,
    };
    let stored = |success: bool| {
        let status = u16::try_from(message.response_status?).ok()?;
        let body = message.response.clone()?;
        let metas = if success {
            (200..300).contains(&status)
        } else {
            GraphError::from_body(body.as_bytes()).is_some()
        };
        metas.then(|| answer::passed(status, None, body))
    };
    match message.status {
        Accepted | Held | Sent | Delivered | Read | Played => stored(true),
        // If it failed after Meta had accepted it, the stored answer to the send is Meta's acceptance; if that answer was
        // lost, the report of the failure has the wamid.
        Failed if message.wamid.is_some() => stored(true),
        Failed => stored(true)
            .or_else(|| stored(false))
            .or_else(|| Some(refused(message))),
        Cancelled => Some(cancelled(message)),
        Unknown | Pending | Sending | Received => Some(unknown(
            message.id,
            message
                .error_message
                .as_deref()
                .unwrap_or("its answer is not there yet"),
        )),
    }
}

/// Meta's answer was lost or is not there yet, but a status webhook returned our id with the message's wamid. As in Meta's
/// answer, the contact has the number if the client wrote one, else the user id: clients read one of the two.
pub(super) fn echoed(message: &MessageRow, address: Option<&Address>) -> Response {
    let written = message.recipient.as_deref().unwrap_or_default();
    let phone = address.and_then(|address| address.phone.as_deref());
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
    let mut contact = json!({"input": written});
    if phone.is_some_and(|phone| phone.starts_with(GROUP)) {
        contact["wa_id"] = json!(written);
    } else if written.chars().any(|character| character.is_ascii_alphabetic()) {
        let user_id = address.and_then(|address| address.user_id.as_deref());
        contact["user_id"] = json!(user_id.unwrap_or(written));
    } else {
        contact["wa_id"] = json!(digits(phone.unwrap_or(written)));
    }
    let body = json!({
        "messaging_product": "whatsapp",
        "contacts": [contact],
        "messages": [{"id": message.wamid}],
    });
    answer::passed(200, None, body.to_string())
}

/// Refused finally by a proxy or gateway, not by the Graph API.
fn refused(message: &MessageRow) -> Response {
    let error = GraphError::new(131_000, "Something went wrong").with_details(format!(
        "the message {} was not sent: {}",
        message.id,
        message.error_message.as_deref().unwrap_or("no reason was given")
    ));
    answer::graph_error(StatusCode::BAD_GATEWAY, &error)
}

/// The answer for a message that will not be sent, because its client stopped waiting or an operator cancelled it.
pub(super) fn cancelled(message: &MessageRow) -> Response {
    if message.error_class.as_deref() != Some(ProblemClass::WaitElapsed.as_str()) {
        let error = GraphError::new(100, "Invalid parameter").with_details(format!(
            "The message {} was cancelled by an operator and will not be sent",
            message.id
        ));
        return answer::graph_error(StatusCode::CONFLICT, &error);
    }
    let why = match (message.error_code, &message.error_message) {
        (_, Some(reason)) => format!(" The last attempt brought: {reason}."),
        (Some(code), None) => format!(" The last attempt brought code {code}."),
        (None, None) => String::new(),
    };
    let error = GraphError::new(131_016, "Service unavailable").with_details(format!(
        "The message {} could not be sent in time. It is cancelled and will not be sent later: try again.{why}",
        message.id
    ));
    answer::graph_error(StatusCode::SERVICE_UNAVAILABLE, &error)
}

/// The answer for a message that will not be sent because its number is held: Meta's own answer to it if there is one, else
/// the reason for which Meta refuses the number's messages, as Meta would say it.
pub(super) fn held(message: &MessageRow, hold: &Hold) -> Response {
    let refusal = |body: &&String| GraphError::from_body(body.as_bytes()).is_some();
    if let (Some(status), Some(body)) = (message.response_status, message.response.as_ref().filter(refusal))
        && let Ok(status) = u16::try_from(status)
    {
        return answer::passed(status, None, body.clone());
    }
    let error = GraphError::repeated(i64::from(hold.code), &hold.reason).with_details(format!(
        "Meta refuses to send for this number. The message {} was not sent and will not be sent later",
        message.id
    ));
    let status = match hold.code {
        0 | 190 => StatusCode::UNAUTHORIZED,
        10 | 200..=299 | 368 | 131_005 | 131_031 => StatusCode::FORBIDDEN,
        _ => StatusCode::BAD_REQUEST,
    };
    answer::graph_error(status, &error)
}

/// The answer if it is not known whether the message was stored, and so whether it is sent.
pub(super) fn in_doubt(id: Uuid) -> Response {
    let error = GraphError::new(100, "Invalid parameter").with_details(format!(
        "It is not known whether the message {id} was stored, and so whether it is sent: the database went away while it was being          stored. If it was, the same request gets its answer for a minute, and sends nothing."
    ));
    answer::graph_error(StatusCode::CONFLICT, &error)
}

/// The answer if it is not known whether the message was sent. A status and a code that no client repeats by itself.
pub(super) fn unknown(id: Uuid, why: &str) -> Response {
    let error = GraphError::new(100, "Invalid parameter").with_details(format!(
        "It is not known whether the message {id} was sent: {why}. It is recorded and settled by its status webhook. Do not send \
         it anew: the same request gets this answer, or the message's own once it is known, and sends nothing for 15 minutes."
    ));
    answer::graph_error(StatusCode::CONFLICT, &error)
}
