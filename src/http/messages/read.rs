//! A request to the plain API, read field by field.
//!
//! Unknown fields are refused: with a misspelt `client_id`, a repeated request would send the message twice.

use std::time::Duration;

use axum::http::HeaderMap;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::recipient::{Recipient, RecipientType};
use super::request_error::RequestError;
use crate::http::client_id;
use crate::http::limits::MAX_WAIT;
use crate::provider::PhoneNumberId;

/// The fields of a request, without the one that is named after the type.
const FIELDS: [&str; 11] = [
    "phone_number_id",
    "to",
    "lead_id",
    "type",
    "reply_to",
    "context",
    "client_id",
    "user_id",
    "wait",
    "biz_opaque_callback_data",
    "recipient_type",
];

/// A request, read.
#[derive(Debug)]
pub(super) struct SendRequest {
    /// The number to send from.
    pub(super) phone_number_id: Option<PhoneNumberId>,
    pub(super) to: Option<Recipient>,
    pub(super) lead_id: Option<Uuid>,
    pub(super) client_id: Option<String>,
    /// The person who wrote it.
    pub(super) user_id: Option<String>,
    pub(super) wait: Option<Duration>,
    pub(super) content: TypedContent,
    /// Wamid of the quoted message.
    pub(super) reply_to: Option<String>,
    /// The client's own `biz_opaque_callback_data`.
    pub(super) opaque: Option<String>,
}

/// Meta's type of a message, and the object for it.
#[derive(Debug)]
pub(super) struct TypedContent {
    pub(super) kind: String,
    pub(super) value: Value,
}

/// The fields that have not been read yet.
struct Fields(Map<String, Value>);

/// Reads a request. `default_wait` is what `"wait": true` means.
pub(super) fn read(body: &[u8], headers: &HeaderMap, default_wait: Duration) -> Result<SendRequest, RequestError> {
    let mut fields = Fields::parse(body)?;
    let content = fields.content()?;
    let kind = fields.recipient_type()?;
    let request = SendRequest {
        to: fields.to(kind)?,
        lead_id: fields.lead_id()?,
        reply_to: fields.reply_to()?,
        wait: fields.wait(default_wait)?,
        phone_number_id: fields.phone_number_id()?,
        client_id: fields.client_id(headers)?,
        user_id: fields.user_id()?,
        opaque: fields.string("biz_opaque_callback_data")?,
        content,
    };
    fields.end()?;
    Ok(request)
}

impl Fields {
    fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields: Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
            RequestError::malformed(format!(
                "the body is not a JSON object (line {}, column {})",
                error.line(),
                error.column()
            ))
        })?;
        // An explicit null counts as a missing field.
        fields.retain(|_, value| !value.is_null());
        Ok(Self(fields))
    }

    fn string(&mut self, name: &str) -> Result<Option<String>, RequestError> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(RequestError::field(name, "must be a string")),
        }
    }

    fn content(&mut self) -> Result<TypedContent, RequestError> {
        let kind = match self.string("type")? {
            Some(kind) => kind.to_ascii_lowercase(),
            None if self.0.contains_key("text") => "text".to_owned(),
            None => {
                return Err(RequestError::field(
                    "type",
                    "the type is missing: text, template, image, …",
                ));
            }
        };
        if kind.is_empty() || FIELDS.contains(&kind.as_str()) {
            return Err(RequestError::field("type", "this is no type of message"));
        }
        let value = match self.0.remove(&kind) {
            Some(Value::String(body)) if kind == "text" => json!({ "body": body }),
            Some(object @ Value::Object(_)) => object,
            Some(array @ Value::Array(_)) if kind == "contacts" => array,
            Some(_) => return Err(RequestError::field(&kind, "must be an object, as in Meta's API")),
            None => {
                return Err(RequestError::field(
                    &kind,
                    format!("the field {kind:?} with the message's content is missing"),
                ));
            }
        };
        Ok(TypedContent { kind, value })
    }

    fn recipient_type(&mut self) -> Result<RecipientType, RequestError> {
        match self.string("recipient_type")?.as_deref() {
            None | Some("individual") => Ok(RecipientType::Individual),
            Some("group") => Ok(RecipientType::Group),
            Some(_) => Err(RequestError::field("recipient_type", "must be individual or group")),
        }
    }

    fn to(&mut self, kind: RecipientType) -> Result<Option<Recipient>, RequestError> {
        match self.0.remove("to") {
            None => Ok(None),
            Some(Value::String(to)) => Recipient::parse(&to, kind).map(Some),
            // A whole number: `16505551234.0`, a spreadsheet's, would have a digit more.
            Some(Value::Number(to)) if to.is_u64() => Recipient::parse(&to.to_string(), kind).map(Some),
            Some(_) => Err(RequestError::field("to", "must be a string")),
        }
    }

    fn phone_number_id(&mut self) -> Result<Option<PhoneNumberId>, RequestError> {
        self.string("phone_number_id")?
            .map(|id| PhoneNumberId::parse(&id).ok_or_else(RequestError::unknown_number))
            .transpose()
    }

    fn lead_id(&mut self) -> Result<Option<Uuid>, RequestError> {
        self.string("lead_id")?
            .map(|id| Uuid::try_parse(&id).map_err(|_| RequestError::field("lead_id", "must be a uuid")))
            .transpose()
    }

    /// `reply_to`, or Meta's `context`.
    fn reply_to(&mut self) -> Result<Option<String>, RequestError> {
        let context = self.0.remove("context");
        if let Some(wamid) = self.string("reply_to")? {
            return Ok(Some(wamid));
        }
        match context {
            None => Ok(None),
            Some(context) => match context.get("message_id").and_then(Value::as_str) {
                Some(wamid) => Ok(Some(wamid.to_owned())),
                None => Err(RequestError::field("context", "must be {\"message_id\":\"wamid…\"}")),
            },
        }
    }

    fn wait(&mut self, default_wait: Duration) -> Result<Option<Duration>, RequestError> {
        let millis = match self.0.remove("wait") {
            None | Some(Value::Bool(false)) => return Ok(None),
            Some(Value::Bool(true)) => return Ok(Some(default_wait)),
            Some(Value::Number(millis)) => millis.as_u64(),
            Some(_) => None,
        };
        match millis {
            Some(millis) => Ok(Some(Duration::from_millis(millis).min(MAX_WAIT))),
            None => Err(RequestError::field("wait", "must be true, false or milliseconds")),
        }
    }

    /// The person who wrote the message, as their program knows them.
    fn user_id(&mut self) -> Result<Option<String>, RequestError> {
        const RULE: &str = "must be 1 to 255 visible characters";
        match self.string("user_id")? {
            Some(id) if !client_id::is_valid(&id) => Err(RequestError::field("user_id", RULE)),
            id => Ok(id),
        }
    }

    /// The caller's id for the message, from the field or the header.
    fn client_id(&mut self, headers: &HeaderMap) -> Result<Option<String>, RequestError> {
        const RULE: &str = "must be 1 to 255 visible characters";
        let header = client_id::from_header(headers).map_err(|_| RequestError::field("Idempotency-Key", RULE))?;
        let field = match self.0.remove("client_id") {
            Some(Value::String(id)) if client_id::is_valid(&id) => Some(id),
            Some(Value::String(_)) => return Err(RequestError::field("client_id", RULE)),
            Some(Value::Number(id)) => Some(id.to_string()),
            Some(_) => return Err(RequestError::field("client_id", "must be a string")),
            None => None,
        };
        match (field, header) {
            (Some(field), Some(header)) if field != header => Err(RequestError::field(
                "client_id",
                "the Idempotency-Key header says otherwise: send one of the two",
            )),
            (field, header) => Ok(field.or(header)),
        }
    }

    /// Refuses fields that were not read.
    fn end(mut self) -> Result<(), RequestError> {
        // Clients that are used to Meta's API send it too.
        self.0.remove("messaging_product");
        match self.0.keys().next() {
            Some(field) => Err(RequestError::field(field, "this field is not known")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;
    use crate::http::client_id::IDEMPOTENCY_KEY;

    const WAIT: Duration = Duration::from_secs(4);

    fn asked(body: &Value) -> Result<SendRequest, RequestError> {
        read(body.to_string().as_bytes(), &HeaderMap::new(), WAIT)
    }

    #[test]
    fn a_request_is_read() {
        let request = asked(&json!({
            "to": "+49 (151) 12-34567", "text": "hello", "reply_to": "wamid.Q", "wait": true, "client_id": 7,
            "lead_id": null,
        }))
        .unwrap();
        assert_eq!(request.wait, Some(WAIT));
        assert_eq!(request.client_id.as_deref(), Some("7"));
        assert_eq!(
            request.to,
            Recipient::parse("0049 151 1234567", RecipientType::Individual).ok()
        );
        for (to, number) in [
            ("+44 (0)20 7946 0958", "442079460958"),
            ("tel:+1-650-555-1234", "16505551234"),
            ("+\u{664}\u{669}151", "49151"),
        ] {
            let request = asked(&json!({"to": to, "text": "x"})).unwrap();
            assert_eq!(
                request.to,
                crate::provider::WaId::parse(number).map(Recipient::Phone),
                "{to}"
            );
        }
        let group =
            asked(&json!({"to": "Y2Fw", "recipient_type": "group", "text": {"body": "x"}, "wait": 90_000})).unwrap();
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
            let error = asked(&body).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(field), "{body}");
        }
        for body in ["", "[]", "{", "\"x\""] {
            let error = read(body.as_bytes(), &HeaderMap::new(), WAIT).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn the_header_and_the_field_must_agree() {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, "a".parse().unwrap());
        let read = |field: Value| {
            let fields = json!({ "client_id": field });
            Fields::parse(fields.to_string().as_bytes())
                .unwrap()
                .client_id(&headers)
        };
        assert_eq!(read(Value::Null).unwrap().as_deref(), Some("a"));
        assert_eq!(read(json!("a")).unwrap().as_deref(), Some("a"));
        assert!(read(json!("b")).is_err());
    }
}
