//! A message of each type that Meta documents for `messages` webhooks.

use serde_json::{Value, json};

/// The types that [`message`] has a documented sample of.
pub const KINDS: &[&str] = &[
    "text",
    "image",
    "video",
    "document",
    "audio",
    "sticker",
    "location",
    "contacts",
    "reaction",
    "interactive",
    "button",
    "order",
    "system",
    "edit",
    "revoke",
    "unsupported",
    "media_placeholder",
];

/// A message of this type without its sender, id and time. An unknown type gets an object of its own name.
#[must_use]
pub fn message(kind: &str) -> Value {
    let sha = "aGVsbG8gd29ybGQgaGVsbG8gd29ybGQgaGVsbG8gd29ybGQ=";
    match kind {
        "text" => json!({"type": "text", "text": {"body": "Grüße 👋 a/b"}}),
        "image" => {
            json!({"type": "image", "image": {"id": "1003383421387256", "mime_type": "image/jpeg", "sha256": sha, "caption": "A photo"}})
        }
        "video" => json!({"type": "video", "video": {"id": "1", "mime_type": "video/mp4", "sha256": sha}}),
        "document" => {
            json!({"type": "document", "document": {"id": "2", "mime_type": "application/pdf", "sha256": sha, "filename": "offer.pdf"}})
        }
        "audio" => {
            json!({"type": "audio", "audio": {"id": "3", "mime_type": "audio/ogg; codecs=opus", "sha256": sha, "voice": true}})
        }
        "sticker" => {
            json!({"type": "sticker", "sticker": {"id": "4", "mime_type": "image/webp", "sha256": sha, "animated": false}})
        }
        "location" => {
            json!({"type": "location", "location": {"latitude": 37.48, "longitude": -122.14, "name": "HQ", "address": "1 Hacker Way"}})
        }
        "contacts" => {
            json!({"type": "contacts", "contacts": [{"name": {"formatted_name": "Ada Lovelace", "first_name": "Ada"}, "phones": [{"phone": "+1 650 555 0000", "type": "WORK"}]}]})
        }
        "reaction" => {
            json!({"type": "reaction", "reaction": {"message_id": "wamid.REACTED", "emoji": "👍"}})
        }
        "interactive" => {
            json!({"type": "interactive", "context": {"from": "15550783881", "id": "wamid.ASKED"}, "interactive": {"type": "button_reply", "button_reply": {"id": "yes", "title": "Yes"}}})
        }
        "button" => {
            json!({"type": "button", "context": {"from": "15550783881", "id": "wamid.ASKED"}, "button": {"payload": "stop", "text": "Stop"}})
        }
        "order" => {
            json!({"type": "order", "order": {"catalog_id": "5", "text": "Please", "product_items": [{"product_retailer_id": "sku", "quantity": 1, "item_price": 9.5, "currency": "EUR"}]}})
        }
        "system" => {
            json!({"type": "system", "system": {"body": "The user changed the number", "wa_id": "16505550999", "type": "user_changed_number"}})
        }
        "edit" => {
            json!({"type": "edit", "edit": {"original_message_id": "wamid.EDITED", "message": {"type": "text", "text": {"body": "Better words"}}}})
        }
        "revoke" => json!({"type": "revoke", "revoke": {"original_message_id": "wamid.REVOKED"}}),
        "unsupported" => {
            json!({"type": "unsupported", "errors": [{"code": 131_051, "title": "Message type unknown", "message": "Message type unknown", "error_data": {"details": "Message type is currently not supported."}}], "unsupported": {"type": "poll"}})
        }
        "media_placeholder" => json!({"type": "media_placeholder"}),
        other => json!({"type": other, other: {"new": true}}),
    }
}
