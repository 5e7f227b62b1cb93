//! Checks what a message of each type must have, so that a message that Meta would certainly refuse leaves no row.
//!
//! Nothing else is checked: real requests follow no strict schema, and Meta knows best what it accepts. Content that is
//! a string (Graph clients may send any object as a string) is left to Meta.

use serde_json::Value;

use super::error::{GraphError, invalid, missing};
use super::members::scalar;

/// Meta's limit for a text, in characters.
const MAX_TEXT: usize = 4096;

/// Checks the member that the type names.
pub(super) fn check(kind: &str, content: &Value) -> Result<(), GraphError> {
    if kind == "text" {
        let body = content.get("body").and_then(Value::as_str).unwrap_or_default();
        return match body.chars().count() {
            0 => Err(missing("text.body")),
            1..=MAX_TEXT => Ok(()),
            _ => Err(invalid("text.body")
                .with_details(format!("Parameter 'text.body' is longer than {MAX_TEXT} characters"))),
        };
    }
    if content.is_string() {
        return Ok(());
    }
    let has = |pointer: &str| {
        let found = content.pointer(pointer);
        found.is_some_and(|value| value.is_number() || scalar(value).is_some_and(|text| !text.is_empty()))
    };
    let required: &[&str] = match kind {
        "image" | "video" | "audio" | "document" | "sticker" if has("/id") || has("/link") => &[],
        "image" | "video" | "audio" | "document" | "sticker" => &["/id"],
        "location" => &["/latitude", "/longitude"],
        "reaction" => &["/message_id"],
        "interactive" => &["/type"],
        "template" => &["/name", "/language/code"],
        "contacts" if content.as_array().is_none_or(Vec::is_empty) => return Err(missing("contacts")),
        _ => &[],
    };
    match required.iter().find(|pointer| !has(pointer)) {
        Some(pointer) => Err(missing(&format!("{kind}{}", pointer.replace('/', ".")))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_meta_needs_must_be_there_and_what_it_may_take_passes() {
        for (kind, content, missing) in [
            ("text", json!({"body": "x"}), None),
            ("text", json!({"body": ""}), Some("text.body")),
            ("text", json!("x"), Some("text.body")),
            ("image", json!({"link": "https://x/y.png", "id": null}), None),
            ("audio", json!({"id": 1_003_383_421_387_256_u64}), None),
            ("sticker", json!({"id": ""}), Some("sticker.id")),
            ("document", json!([]), Some("document.id")),
            ("location", json!({"latitude": "37.48", "longitude": -122.14}), None),
            ("location", json!({"latitude": 1}), Some("location.longitude")),
            ("reaction", json!({"message_id": "wamid.X", "emoji": ""}), None),
            ("reaction", json!({"emoji": "x"}), Some("reaction.message_id")),
            ("template", json!({"name": "order", "language": {"code": "en"}}), None),
            (
                "template",
                json!({"name": "order", "language": "en"}),
                Some("template.language.code"),
            ),
            ("template", json!("{\"name\":\"order\"}"), None),
            ("interactive", json!({"type": "BUTTON"}), None),
            ("interactive", json!({}), Some("interactive.type")),
            ("contacts", json!([{"name": {}}]), None),
            ("contacts", json!([]), Some("contacts")),
            ("contacts", json!({}), Some("contacts")),
            ("hologram", json!({}), None),
        ] {
            let error = check(kind, &content).err();
            let expected = missing.map(|parameter| format!("Parameter '{parameter}' is missing"));
            assert_eq!(error.and_then(|error| error.details), expected, "{kind} {content}");
        }
        let text = |length| check("text", &json!({"body": "😀".repeat(length)}));
        assert!(text(MAX_TEXT).is_ok());
        assert_eq!(text(MAX_TEXT + 1).unwrap_err().code, 131_009);
    }
}
