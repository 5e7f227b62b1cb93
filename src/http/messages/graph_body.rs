//! A request to the plain API → the same request in Meta's format, in which every message is stored and sent.

use serde_json::{Value, json};

use super::read::SendRequest;
use super::recipient::Recipient;

/// The request in Meta's format. A number gets its `+`: without it, Meta puts the business's country code in front.
pub(super) fn graph_body(request: &SendRequest, recipient: &Recipient) -> Value {
    let content = &request.content;
    let mut body = json!({
        "messaging_product": "whatsapp",
        "recipient_type": if matches!(recipient, Recipient::Group(_)) { "group" } else { "individual" },
        "type": content.kind,
        (content.kind.as_str()): content.value,
    });
    match recipient {
        Recipient::Phone(number) => body["to"] = json!(format!("+{}", number.as_str())),
        Recipient::User(user) => body["recipient"] = json!(user.as_str()),
        Recipient::Group(group) => body["to"] = json!(group),
    }
    if let Some(wamid) = &request.reply_to {
        body["context"] = json!({ "message_id": wamid });
    }
    if let Some(opaque) = &request.opaque {
        body["biz_opaque_callback_data"] = json!(opaque);
    }
    body
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::HeaderMap;

    use super::*;
    use crate::http::messages::read::read;

    fn body_of(request: &Value) -> Value {
        let wait = Duration::from_secs(4);
        let request = read(request.to_string().as_bytes(), &HeaderMap::new(), wait).unwrap();
        graph_body(&request, request.to.as_ref().unwrap())
    }

    #[test]
    fn a_text_becomes_metas_request() {
        assert_eq!(
            body_of(&json!({
                "to": "+49 (151) 12-34567", "text": "hello", "reply_to": "wamid.Q", "wait": true, "client_id": 7,
                "lead_id": null,
            })),
            json!({
                "messaging_product": "whatsapp", "recipient_type": "individual", "to": "+491511234567",
                "type": "text", "text": {"body": "hello"}, "context": {"message_id": "wamid.Q"},
            })
        );
    }

    #[test]
    fn other_types_and_recipients_pass() {
        let body = body_of(&json!({"to": "US.1abc", "type": "image", "image": {"link": "https://x/y.png"}}));
        assert_eq!(body["recipient"], "US.1abc");
        assert_eq!(body["image"]["link"], "https://x/y.png");
        let group = body_of(&json!({"to": "Y2Fw", "recipient_type": "group", "text": {"body": "x"}}));
        assert_eq!(
            (&group["to"], &group["recipient_type"]),
            (&json!("Y2Fw"), &json!("group"))
        );
    }
}
