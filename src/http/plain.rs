//! The plain JSON API: `POST /v1/messages` and `GET /v1/messages/{id}`.
//!
//! The request:
//!
//! | field | |
//! |---|---|
//! | `to` | the recipient: an international number in any usual format, or a business-scoped user id; may be left out with `lead_id` |
//! | `lead_id` | the lead that the message belongs to; else the recipient's, found or made |
//! | `type` | Meta's type; `text` where there is a `text` |
//! | `text` | the text, or Meta's object for it |
//! | `template`, `image`, … | Meta's object for the type |
//! | `reply_to` | wamid of the quoted message |
//! | `client_id` | the caller's id for the message (or the `Idempotency-Key` header): the same again never sends twice, another request under the same id is an error |
//! | `phone_number_id` | the number to send from; may be left out if there is only one |
//! | `wait` | `true` or milliseconds: answer when the message is settled, at the latest after that time |
//!
//! The answer is the message: 200 if it is settled, 202 if it is on its way; a message once taken is sent, however long
//! that takes. Errors are `{"error":{"code","message","field"?}}`, and leave no row.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Request as HttpRequest, State as Extract};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::graph::{IDEMPOTENCY_KEY, is_client_id};
use super::{State, answer, auth};
use crate::outbox::{NewMessage, SubmitError};
use crate::provider::cloud::send::{self, Request};
use crate::provider::{PhoneNumberId, UserId, WaId};
use crate::site_db::leads;
use crate::site_db::messages::{self, Message};

/// Longest that a caller may wait for.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Fields of a request beside the type's own.
const FIELDS: [&str; 10] = [
    "phone_number_id",
    "to",
    "lead_id",
    "type",
    "reply_to",
    "context",
    "client_id",
    "wait",
    "biz_opaque_callback_data",
    "recipient_type",
];

/// A request that can't be taken.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    field: Option<String>,
}

impl Refusal {
    fn field(field: &str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            code: "invalid_field",
            message: message.into(),
            field: Some(field.to_owned()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        answer::plain_error(self.status, self.code, &self.message, self.field.as_deref())
    }
}

/// A request, read.
#[derive(Debug)]
struct Asked {
    phone_number_id: Option<String>,
    to: Option<Recipient>,
    lead_id: Option<Uuid>,
    client_id: Option<String>,
    wait: Option<Duration>,
    kind: String,
    content: Value,
    reply_to: Option<String>,
    opaque: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Recipient {
    Phone(WaId),
    User(UserId),
    Group(String),
}

fn unauthorized() -> Response {
    answer::plain_error(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "send one of this server's API tokens as: Authorization: Bearer TOKEN",
        None,
    )
}

/// `POST /v1/messages`.
pub(super) async fn send(
    Extract(state): Extract<State>,
    uri: Uri,
    headers: HeaderMap,
    // Its body is read when we know from whom it is.
    request: HttpRequest,
) -> Response {
    let Some(client) = auth::client(&state.0.config.tokens, &headers, &uri) else {
        return unauthorized();
    };
    let body = match answer::body(request).await {
        Ok(body) => body,
        Err((status, why)) => return answer::plain_error(status, "body", why, None),
    };
    let asked = match read(&body, &headers, state.0.config.http.send_wait) {
        Ok(asked) => asked,
        Err(refusal) => return refusal.into_response(),
    };
    match submit(&state, client, asked).await {
        Ok(response) | Err(response) => response,
    }
}

async fn submit(state: &State, client: &str, mut asked: Asked) -> Result<Response, Response> {
    let outbox = &state.0.outbox;
    let phone_number_id = match asked.phone_number_id.take() {
        Some(id) if outbox.has_number(&id) => id,
        Some(_) => return Err(Refusal::field("phone_number_id", "this number is not configured").into_response()),
        None => outbox
            .only_number()
            .as_ref()
            .map(PhoneNumberId::to_string)
            .ok_or_else(|| {
                Refusal::field(
                    "phone_number_id",
                    "several numbers are configured: name the one to send from",
                )
                .into_response()
            })?,
    };
    let recipient = match (asked.to.take(), asked.lead_id) {
        (Some(to), _) => to,
        (None, Some(lead_id)) => lead_address(state, lead_id).await?,
        (None, None) => return Err(Refusal::field("to", "the recipient is missing").into_response()),
    };
    let request = Bytes::from(graph_body(&asked, &recipient).to_string());
    let outbound = match send::read(&request) {
        Ok(Request::Message(outbound)) => outbound,
        Ok(Request::MarkAsRead { .. }) => {
            return Err(Refusal::field("type", "this is not a message").into_response());
        }
        Err(error) => return Err(Refusal::field(&asked.kind, error.summary()).into_response()),
    };
    let Ok(_waiting) = state.0.waiting.try_acquire() else {
        return Err(answer::plain_error(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded",
            "too many requests wait; nothing was stored or sent; try again",
            None,
        ));
    };
    let submitted = outbox
        .submit(NewMessage {
            phone_number_id,
            request,
            outbound,
            client_name: client.to_owned(),
            client_id: asked.client_id,
            lead_id: asked.lead_id,
            send_within: None,
            api_version: None,
        })
        .await
        .map_err(|error| refused(&error))?;
    let found = match asked.wait {
        Some(patience) => outbox.wait(submitted.id, patience).await,
        None => messages::find(&state.0.pool, submitted.id).await,
    };
    let response = match found {
        Ok(Some(message)) => {
            let status = if message.status.is_settled() {
                StatusCode::OK
            } else {
                StatusCode::ACCEPTED
            };
            let mut shown = show_message(&message);
            if submitted.duplicate {
                shown["duplicate"] = json!(true);
            }
            (status, Json(shown)).into_response()
        }
        // It is committed, and so will be sent; only its state can't be told now.
        Ok(None) | Err(_) => (
            StatusCode::ACCEPTED,
            Json(json!({"id": submitted.id, "status": "pending", "duplicate": submitted.duplicate})),
        )
            .into_response(),
    };
    Ok(answer::about(submitted.id, response))
}

/// How WhatsApp knows a lead that the caller named instead of a recipient.
async fn lead_address(state: &State, lead_id: Uuid) -> Result<Recipient, Response> {
    let leads::Address { phone, user_id } = leads::address(&state.0.pool, lead_id)
        .await
        .map_err(|error| answer::plain_unavailable(&error))?
        .ok_or_else(|| Refusal::field("lead_id", "there is no such lead").into_response())?;
    let user = user_id.as_deref().and_then(UserId::parse).map(Recipient::User);
    let group = phone
        .as_deref()
        .and_then(|phone| phone.strip_prefix("group:"))
        .map(|group| Recipient::Group(group.to_owned()));
    phone
        .as_deref()
        .and_then(WaId::parse)
        .map(Recipient::Phone)
        .or(group)
        .or(user)
        .ok_or_else(|| Refusal::field("lead_id", "the lead has neither a number nor a user id").into_response())
}

fn refused(error: &SubmitError) -> Response {
    match error {
        SubmitError::Site(error) => answer::plain_unavailable(error),
        SubmitError::UnknownNumber => Refusal::field("phone_number_id", error.to_string()).into_response(),
        SubmitError::UnknownLead => Refusal::field("lead_id", "there is no such lead").into_response(),
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

/// `GET /v1/messages/{id}`: one that this client had sent.
pub(super) async fn show(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let Some(client) = auth::client(&state.0.config.tokens, &headers, &uri) else {
        return unauthorized();
    };
    let not_found = || answer::plain_error(StatusCode::NOT_FOUND, "not_found", "there is no such message", None);
    let Ok(id) = Uuid::try_parse(&id) else {
        return not_found();
    };
    match messages::find(&state.0.pool, id).await {
        Ok(Some(message)) if message.client_name.as_deref() == Some(client) => {
            Json(show_message(&message)).into_response()
        }
        // Another client's does not even exist: its recipient is none of this one's business.
        Ok(_) => not_found(),
        Err(error) => {
            answer::log_unavailable(&error);
            answer::plain_error(
                StatusCode::SERVICE_UNAVAILABLE,
                "storage_unavailable",
                "the database is not available; try again",
                None,
            )
        }
    }
}

/// Reads a request. Unknown fields are refused: a misspelt `client_id` would send twice one day.
fn read(body: &[u8], headers: &HeaderMap, default_wait: Duration) -> Result<Asked, Refusal> {
    let malformed = |message: &str| Refusal {
        status: StatusCode::BAD_REQUEST,
        code: "malformed",
        message: message.to_owned(),
        field: None,
    };
    let mut fields: Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
        malformed(&format!(
            "the body is not a JSON object (line {}, column {})",
            error.line(),
            error.column()
        ))
    })?;
    // An explicit null is a field that is not there.
    fields.retain(|_, value| !value.is_null());
    let text = |field: &str, value: Value| match value {
        Value::String(text) => Ok(text),
        _ => Err(Refusal::field(field, "must be a string")),
    };

    let kind = match fields.remove("type") {
        Some(kind) => text("type", kind)?.to_ascii_lowercase(),
        None if fields.contains_key("text") => "text".to_owned(),
        None => return Err(Refusal::field("type", "the type is missing: text, template, image, …")),
    };
    if kind.is_empty() || FIELDS.contains(&kind.as_str()) {
        return Err(Refusal::field("type", "this is no type of message"));
    }
    let content = match fields.remove(&kind) {
        Some(Value::String(body)) if kind == "text" => json!({ "body": body }),
        Some(content @ Value::Object(_)) => content,
        Some(content @ Value::Array(_)) if kind == "contacts" => content,
        Some(_) => return Err(Refusal::field(&kind, "must be an object, as in Meta's API")),
        None => {
            return Err(Refusal::field(
                &kind,
                format!("the field {kind:?} with the message's content is missing"),
            ));
        }
    };

    let to_group = match fields.remove("recipient_type") {
        Some(value) => match text("recipient_type", value)?.as_str() {
            "individual" => false,
            "group" => true,
            _ => return Err(Refusal::field("recipient_type", "must be individual or group")),
        },
        None => false,
    };
    let to = match fields.remove("to") {
        Some(Value::String(to)) => Some(recipient(&to, to_group)?),
        // A whole number: `16505551234.0`, a spreadsheet's, would have a digit more.
        Some(Value::Number(to)) if to.is_u64() => Some(recipient(&to.to_string(), to_group)?),
        Some(_) => return Err(Refusal::field("to", "must be a string")),
        None => None,
    };
    let lead_id = match fields.remove("lead_id") {
        Some(value) => {
            Some(Uuid::try_parse(&text("lead_id", value)?).map_err(|_| Refusal::field("lead_id", "must be a uuid"))?)
        }
        None => None,
    };
    let reply_to = match (fields.remove("reply_to"), fields.remove("context")) {
        (Some(value), _) => Some(text("reply_to", value)?),
        (None, Some(context)) => match context.get("message_id").and_then(Value::as_str) {
            Some(wamid) => Some(wamid.to_owned()),
            None => return Err(Refusal::field("context", "must be {\"message_id\":\"wamid…\"}")),
        },
        (None, None) => None,
    };
    let wait = match fields.remove("wait") {
        None | Some(Value::Bool(false)) => None,
        Some(Value::Bool(true)) => Some(default_wait),
        Some(Value::Number(millis)) => match millis.as_u64() {
            Some(millis) => Some(Duration::from_millis(millis).min(MAX_WAIT)),
            None => return Err(Refusal::field("wait", "must be true, false or milliseconds")),
        },
        Some(_) => return Err(Refusal::field("wait", "must be true, false or milliseconds")),
    };
    let asked = Asked {
        phone_number_id: fields
            .remove("phone_number_id")
            .map(|id| text("phone_number_id", id))
            .transpose()?,
        to,
        lead_id,
        client_id: client_id(fields.remove("client_id"), headers)?,
        wait,
        content,
        reply_to,
        opaque: fields
            .remove("biz_opaque_callback_data")
            .map(|opaque| text("biz_opaque_callback_data", opaque))
            .transpose()?,
        kind,
    };
    // Clients of Meta's API send it along.
    fields.remove("messaging_product");
    match fields.keys().next() {
        Some(field) => Err(Refusal::field(field, "this field is not known")),
        None => Ok(asked),
    }
}

/// The caller's id for the message, from the field or the header.
fn client_id(field: Option<Value>, headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let valid = |id: &str, name: &str| {
        if is_client_id(id) {
            Ok(id.to_owned())
        } else {
            Err(Refusal::field(name, "must be 1 to 255 visible characters"))
        }
    };
    let header = match headers.get(IDEMPOTENCY_KEY) {
        Some(value) => Some(valid(value.to_str().unwrap_or_default(), "Idempotency-Key")?),
        None => None,
    };
    let field = match field {
        Some(Value::String(id)) => Some(valid(&id, "client_id")?),
        Some(Value::Number(id)) => Some(id.to_string()),
        Some(_) => return Err(Refusal::field("client_id", "must be a string")),
        None => None,
    };
    match (field, header) {
        (Some(field), Some(header)) if field != header => Err(Refusal::field(
            "client_id",
            "the Idempotency-Key header says otherwise: send one of the two",
        )),
        (field, header) => Ok(field.or(header)),
    }
}

/// The recipient as Meta can't misunderstand it: without a `+`, Meta puts the business's country code in front.
fn recipient(to: &str, to_group: bool) -> Result<Recipient, Refusal> {
    let to = to.trim();
    if to_group {
        return if to.is_empty() || to.len() > 255 || to.contains(char::is_control) {
            Err(Refusal::field("to", "must be the group's id"))
        } else {
            Ok(Recipient::Group(to.to_owned()))
        };
    }
    if let Some(user) = UserId::parse(to) {
        return Ok(Recipient::User(user));
    }
    // No country code begins with 0: this is a national number, and nobody knows of which nation.
    WaId::parse(to)
        .filter(|number| !number.as_str().starts_with('0'))
        .map(Recipient::Phone)
        .ok_or_else(|| {
            Refusal::field(
                "to",
                "must be a phone number with its country code (+49…) or a business-scoped user id",
            )
        })
}

/// The Graph API's request.
fn graph_body(asked: &Asked, recipient: &Recipient) -> Value {
    let mut body = json!({
        "messaging_product": "whatsapp",
        "recipient_type": if matches!(recipient, Recipient::Group(_)) { "group" } else { "individual" },
        "type": asked.kind,
        (asked.kind.as_str()): asked.content,
    });
    match recipient {
        Recipient::Phone(number) => body["to"] = json!(format!("+{}", number.as_str())),
        Recipient::User(user) => body["recipient"] = json!(user.as_str()),
        Recipient::Group(group) => body["to"] = json!(group),
    }
    if let Some(wamid) = &asked.reply_to {
        body["context"] = json!({ "message_id": wamid });
    }
    if let Some(opaque) = &asked.opaque {
        body["biz_opaque_callback_data"] = json!(opaque);
    }
    body
}

/// A message as the API shows it.
fn show_message(message: &Message) -> Value {
    let at = |at: Option<OffsetDateTime>| at.and_then(|at| at.format(&Rfc3339).ok());
    let mut shown = json!({
        "id": message.id,
        "status": message.status.as_str(),
        "direction": message.direction.as_str(),
        "type": message.kind,
        "phone_number_id": message.phone_number_id,
        "to": message.recipient,
        "wamid": message.wamid,
        "conversation_id": message.conversation_id,
        "lead_id": message.lead_id,
        "client_id": message.client_id,
        "attempt": message.attempt,
        "created_at": at(Some(message.created_at)),
    });
    for (step, time) in [
        ("sending_at", message.sending_at),
        ("accepted_at", message.accepted_at),
        ("held_at", message.held_at),
        ("sent_at", message.sent_at),
        ("delivered_at", message.delivered_at),
        ("read_at", message.read_at),
        ("played_at", message.played_at),
        ("failed_at", message.failed_at),
        ("unknown_at", message.unknown_at),
        ("cancelled_at", message.cancelled_at),
    ] {
        if let Some(time) = at(time) {
            shown[step] = json!(time);
        }
    }
    if !message.status.is_settled() {
        shown["next_attempt_at"] = json!(at(message.next_attempt_at));
    }
    if message.error_code.is_some() || message.error_class.is_some() {
        shown["error"] = json!({
            "code": message.error_code,
            "class": message.error_class,
            "message": message.error_message,
        });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(4);

    fn asked(body: Value) -> Result<Asked, Refusal> {
        read(body.to_string().as_bytes(), &HeaderMap::new(), WAIT)
    }

    #[test]
    fn a_text_becomes_metas_request() {
        let asked = asked(json!({
            "to": "+49 (151) 12-34567", "text": "hello", "reply_to": "wamid.Q", "wait": true, "client_id": 7,
            "lead_id": null,
        }))
        .unwrap();
        assert_eq!(asked.wait, Some(WAIT));
        assert_eq!(asked.client_id.as_deref(), Some("7"));
        let recipient = recipient("0049 151 1234567", false).unwrap();
        assert_eq!(asked.to.as_ref(), Some(&recipient));
        assert_eq!(
            graph_body(&asked, &recipient),
            json!({
                "messaging_product": "whatsapp", "recipient_type": "individual", "to": "+491511234567",
                "type": "text", "text": {"body": "hello"}, "context": {"message_id": "wamid.Q"},
            })
        );
    }

    #[test]
    fn other_types_and_recipients_pass() {
        let image = asked(json!({"to": "US.1abc", "type": "image", "image": {"link": "https://x/y.png"}})).unwrap();
        let body = graph_body(&image, image.to.as_ref().unwrap());
        assert_eq!(body["recipient"], "US.1abc");
        assert_eq!(body["image"]["link"], "https://x/y.png");
        let group =
            asked(json!({"to": "Y2Fw", "recipient_type": "group", "text": {"body": "x"}, "wait": 90_000})).unwrap();
        assert_eq!(group.to, Some(Recipient::Group("Y2Fw".to_owned())));
        assert_eq!(group.wait, Some(MAX_WAIT));
    }

    #[test]
    fn what_can_not_be_taken_is_named() {
        for (body, field) in [
            (json!({"to": "+4915112345", "type": "image"}), "image"),
            (json!({"to": "+4915112345"}), "type"),
            (json!({"to": "+4915112345", "type": "to"}), "type"),
            (json!({"to": "0151 12345", "text": "x"}), "to"),
            (json!({"to": "anna", "text": "x"}), "to"),
            (json!({"to": ["+49"], "text": "x"}), "to"),
            (json!({"to": 4_915_112_345.0, "text": "x"}), "to"),
            (json!({"to": -4_915_112_345_i64, "text": "x"}), "to"),
            (json!({"to": "+4915112345", "text": 5}), "text"),
            (json!({"to": "+4915112345", "text": "x", "clientid": "1"}), "clientid"),
            (json!({"to": "+4915112345", "text": "x", "client_id": ""}), "client_id"),
            (json!({"to": "+4915112345", "text": "x", "lead_id": "1"}), "lead_id"),
            (json!({"to": "+4915112345", "text": "x", "wait": "yes"}), "wait"),
            (json!({"to": "+4915112345", "text": "x", "wait": -1}), "wait"),
            (json!({"to": "+4915112345", "text": "x", "context": {}}), "context"),
        ] {
            let refusal = asked(body.clone()).unwrap_err();
            assert_eq!(refusal.field.as_deref(), Some(field), "{body}");
        }
        for body in ["", "[]", "{", "\"x\""] {
            let refusal = read(body.as_bytes(), &HeaderMap::new(), WAIT).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn the_header_and_the_field_must_agree() {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, "a".parse().unwrap());
        assert_eq!(client_id(None, &headers).unwrap().as_deref(), Some("a"));
        assert_eq!(client_id(Some(json!("a")), &headers).unwrap().as_deref(), Some("a"));
        assert!(client_id(Some(json!("b")), &headers).is_err());
    }
}
