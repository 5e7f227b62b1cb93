//! The checks that Meta makes before it accepts a send, with Meta's codes and words.

use serde_json::Value;

use crate::provider::cloud::GraphError;

/// What a valid body asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Send {
    Message {
        to: String,
        kind: String,
        opaque: Option<String>,
    },
    MarkAsRead,
}

const KINDS: &[&str] = &[
    "audio",
    "contacts",
    "document",
    "image",
    "interactive",
    "location",
    "reaction",
    "sticker",
    "template",
    "text",
    "video",
];
/// Meta's limit for a text, in characters.
const MAX_TEXT: usize = 4096;
/// Meta's limit for the opaque data, in characters.
const MAX_OPAQUE: usize = 512;

/// Checks a body as Meta does.
pub(super) fn validate(body: &[u8]) -> Result<Send, GraphError> {
    let body: Value = serde_json::from_slice(body).map_err(|_| parameter("(#100) Invalid parameter"))?;
    if !body.is_object() {
        return Err(parameter("The request body must be a JSON object."));
    }
    if body.get("messaging_product").and_then(Value::as_str) != Some("whatsapp") {
        return Err(parameter("The parameter messaging_product is required."));
    }
    if text(&body, "status").is_some() {
        return match text(&body, "message_id") {
            Some(wamid) if wamid.starts_with("wamid.") => Ok(Send::MarkAsRead),
            Some(_) => Err(invalid("Invalid message_id")),
            None => Err(missing("message_id")),
        };
    }
    let to = text(&body, "to")
        .or_else(|| text(&body, "recipient"))
        .filter(|to| !to.is_empty())
        .ok_or_else(|| parameter("The parameter to is required."))?;
    let group = text(&body, "recipient_type").as_deref() == Some("group");
    let digits = to.chars().filter(char::is_ascii_digit).count();
    if !group && !to.is_ascii() {
        return Err(invalid("Recipient phone number is not valid"));
    }
    if !group && !to.contains('.') && !(4..=20).contains(&digits) {
        return Err(invalid("Recipient phone number is not valid"));
    }
    let kind = match body.get("type") {
        None | Some(Value::Null) => "text".to_owned(),
        Some(kind) => kind.as_str().unwrap_or_default().to_ascii_lowercase(),
    };
    if !KINDS.contains(&kind.as_str()) {
        return Err(parameter(&format!(
            "Param type must be one of {{{}}}",
            KINDS.join(", ").to_uppercase()
        )));
    }
    let content = body
        .get(&kind)
        .filter(|content| !content.is_null())
        .ok_or_else(|| missing(&kind))?;
    check_content(&kind, content)?;
    let opaque = text(&body, "biz_opaque_callback_data");
    if opaque
        .as_ref()
        .is_some_and(|opaque| opaque.chars().count() > MAX_OPAQUE)
    {
        return Err(parameter(
            "Param biz_opaque_callback_data must be at most 512 characters long.",
        ));
    }
    Ok(Send::Message { to, kind, opaque })
}

fn check_content(kind: &str, content: &Value) -> Result<(), GraphError> {
    match kind {
        "text" => {
            let line = text(content, "body")
                .filter(|line| !line.is_empty())
                .ok_or_else(|| missing("text['body']"))?;
            if line.chars().count() > MAX_TEXT {
                return Err(parameter("Param text['body'] must be at most 4096 characters long."));
            }
        }
        "image" | "video" | "audio" | "document" | "sticker" => match (text(content, "id"), text(content, "link")) {
            (None, None) => return Err(missing(&format!("{kind}['id'] or {kind}['link']"))),
            (_, Some(link)) if !link.starts_with("http") => return Err(invalid("The media link is not valid")),
            _ => {}
        },
        "template" => {
            text(content, "name").ok_or_else(|| missing("template['name']"))?;
            content
                .pointer("/language/code")
                .and_then(Value::as_str)
                .ok_or_else(|| missing("template['language']['code']"))?;
        }
        "reaction" => {
            text(content, "message_id").ok_or_else(|| missing("reaction['message_id']"))?;
        }
        "interactive" => {
            text(content, "type").ok_or_else(|| missing("interactive['type']"))?;
        }
        _ => {}
    }
    Ok(())
}

/// A string, or a number instead of one: Meta accepts both.
fn text(object: &Value, key: &str) -> Option<String> {
    match object.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn parameter(message: &str) -> GraphError {
    GraphError::new(100, message)
}

fn missing(parameter: &str) -> GraphError {
    GraphError::new(131_008, "Required parameter is missing")
        .with_details(format!("The parameter {parameter} is required."))
}

fn invalid(details: &str) -> GraphError {
    GraphError::new(131_009, "Parameter value is not valid").with_details(details)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bodies_are_judged_with_metas_codes() {
        let base = |rest: Value| {
            let mut body = json!({"messaging_product": "whatsapp", "to": "+16505551234"});
            body.as_object_mut()
                .expect("an object")
                .extend(rest.as_object().expect("an object").clone());
            body
        };
        for (body, code) in [
            (json!([]), Some(100)),
            (json!({"to": "1"}), Some(100)),
            (json!({"messaging_product": "whatsapp"}), Some(100)),
            (base(json!({"type": "hologram"})), Some(100)),
            (base(json!({"type": {}, "text": {"body": "x"}})), Some(100)),
            (base(json!({"type": "text"})), Some(131_008)),
            (base(json!({"type": "text", "text": {"body": ""}})), Some(131_008)),
            (
                base(json!({"type": "text", "text": {"body": "x".repeat(4097)}})),
                Some(100),
            ),
            (base(json!({"to": "nobody", "text": {"body": "x"}})), Some(131_009)),
            (base(json!({"type": "image", "image": {}})), Some(131_008)),
            (
                base(json!({"type": "image", "image": {"link": "ftp://x"}})),
                Some(131_009),
            ),
            (
                base(json!({"type": "template", "template": {"name": "x"}})),
                Some(131_008),
            ),
            (base(json!({"status": "read", "message_id": "x"})), Some(131_009)),
            (base(json!({"status": "read", "message_id": "wamid.x"})), None),
            (base(json!({"text": {"body": "x".repeat(4096)}})), None),
            (base(json!({"type": "TEXT", "text": {"body": "x"}})), None),
            (
                base(json!({"type": "template", "template": {"name": "x", "language": {"code": "en"}}})),
                None,
            ),
            (
                base(json!({"type": "reaction", "reaction": {"message_id": "wamid.x", "emoji": ""}})),
                None,
            ),
        ] {
            let judged = validate(body.to_string().as_bytes());
            assert_eq!(judged.as_ref().err().map(|error| error.code), code, "{body}");
        }
    }
}
