//! What a message names beside its recipient: the message that it quotes or reacts to, and the media that it sends.

use serde_json::Value;

use super::members::scalar;
use crate::provider::ids::Wamid;

/// What a message names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct References {
    /// The quoted message, and the one that a reaction is to.
    pub messages: Vec<Wamid>,
    /// Ids of the media that it sends.
    pub media: Vec<String>,
}

/// Reads a body that [`send::read`](super::send::read) has read.
#[must_use]
pub fn of_message(body: &[u8]) -> References {
    let mut references = References::default();
    if let Ok(body) = serde_json::from_slice(body) {
        collect("", &body, &mut references);
    }
    references
}

/// A template or a message with buttons has media further inside.
fn collect(name: &str, value: &Value, found: &mut References) {
    const MEDIA: [&str; 5] = ["image", "video", "audio", "document", "sticker"];
    match value {
        Value::Object(members) => {
            let kind = name.to_ascii_lowercase();
            if MEDIA.contains(&kind.as_str()) {
                found.media.extend(members.get("id").and_then(scalar));
            }
            if matches!(kind.as_str(), "context" | "reaction") {
                let wamid = members.get("message_id").and_then(Value::as_str).and_then(Wamid::parse);
                found.messages.extend(wamid);
            }
            for (name, value) in members {
                collect(name, value, found);
            }
        }
        Value::Array(values) => {
            for value in values {
                collect(name, value, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_reactions_and_media_are_found_wherever_they_stand() {
        for (body, messages, media) in [
            (
                r#"{"type":"text","text":{"body":"x"},"context":{"message_id":"wamid.A"}}"#,
                &["wamid.A"][..],
                &[][..],
            ),
            (
                r#"{"type":"reaction","reaction":{"message_id":"wamid.B","emoji":"x"}}"#,
                &["wamid.B"],
                &[],
            ),
            (r#"{"type":"IMAGE","image":{"id":77,"caption":"x"}}"#, &[], &["77"]),
            (
                r#"{"type":"template","template":{"components":[{"parameters":[{"type":"image","image":{"id":"78"}}]}]}}"#,
                &[],
                &["78"],
            ),
            (r#"{"type":"text","text":{"body":"x"},"id":"1"}"#, &[], &[]),
            ("no json", &[], &[]),
        ] {
            let found = of_message(body.as_bytes());
            let named: Vec<_> = found.messages.iter().map(Wamid::as_str).collect();
            assert_eq!(named, messages, "{body}");
            assert_eq!(found.media, media, "{body}");
        }
    }
}
