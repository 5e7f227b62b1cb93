//! What a message names beside its recipient: the message that it quotes or reacts to, and the media that it sends.
//!
//! Meta decides what a body means, and its parser is not known. So everything is found that some parser could find: of members
//! that stand there twice all, in objects that are written as strings too; and what can't be read is an error, never nothing.

use serde_json::Value;
use serde_json::value::RawValue;

use super::members::{self, Members, scalar};
use crate::provider::ids::Wamid;

/// What a message names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct References {
    /// The quoted message, and the one that a reaction is to.
    pub messages: Vec<Wamid>,
    /// Ids of the media that it sends.
    pub media: Vec<String>,
}

/// A part of the body can't be read, so that it is not known what it names.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("it can't be read which messages and media the message names")]
pub struct Unreadable;

/// Most objects, lists and texts inside each other; Meta's messages have a dozen.
const MAX_DEPTH: usize = 64;
/// Members whose texts people see: never objects.
const TEXTS: [&str; 2] = ["body", "caption"];

/// Reads a body that [`send::read`](super::send::read) has read.
///
/// # Errors
/// [`Unreadable`].
pub fn of_message(body: &[u8]) -> Result<References, Unreadable> {
    let mut references = References::default();
    let body: &RawValue = serde_json::from_slice(body).map_err(|_| Unreadable)?;
    collect(Kind::Other, body, MAX_DEPTH, &mut references)?;
    Ok(references)
}

/// What an object is, by its member's name.
#[derive(Clone, Copy)]
enum Kind {
    Medium,
    /// A quote or a reaction.
    Answer,
    Other,
}

impl Kind {
    fn named(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "image" | "video" | "audio" | "document" | "sticker" => Self::Medium,
            "context" | "reaction" => Self::Answer,
            _ => Self::Other,
        }
    }
}

/// A template or a message with buttons has media further inside.
fn collect(kind: Kind, value: &RawValue, depth: usize, found: &mut References) -> Result<(), Unreadable> {
    let depth = depth.checked_sub(1).ok_or(Unreadable)?;
    match value.get().as_bytes().first() {
        Some(b'{') => {
            let object = Members::read(value.get()).ok_or(Unreadable)?;
            for (name, value) in object.iter() {
                match kind {
                    Kind::Medium if name.eq_ignore_ascii_case("id") => found.media.extend(id(value)?),
                    Kind::Answer if name.eq_ignore_ascii_case("message_id") => {
                        let id = id(value)?.map(|id| Wamid::parse(&id).ok_or(Unreadable));
                        found.messages.extend(id.transpose()?);
                    }
                    _ if TEXTS.contains(&name) && value.get().starts_with('"') => {}
                    _ => collect(Kind::named(name), value, depth, found)?,
                }
            }
        }
        Some(b'[') => {
            let values: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(|_| Unreadable)?;
            for value in values {
                collect(kind, value, depth, found)?;
            }
        }
        Some(b'"') => {
            let Some(Value::String(text)) = members::value(value) else {
                return Err(Unreadable);
            };
            let text = text.trim();
            if text.starts_with(['{', '[', '"']) {
                match serde_json::from_str(text) {
                    Ok(inner) => collect(kind, inner, depth, found)?,
                    // A text, unless an object belongs here.
                    Err(_) if matches!(kind, Kind::Other) => {}
                    Err(_) => return Err(Unreadable),
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// An id; `None` where there is none.
fn id(value: &RawValue) -> Result<Option<String>, Unreadable> {
    match members::value(value) {
        Some(Value::Null) => Ok(None),
        Some(value) => {
            let id = scalar(&value).ok_or(Unreadable)?;
            let id = id.trim();
            Ok((!id.is_empty()).then(|| id.to_owned()))
        }
        None => Err(Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_reactions_and_media_are_found_wherever_they_stand() {
        let deep = format!("{}1{}", "[".repeat(20), "]".repeat(20));
        let among = |x: &str| format!(r#"{{"x":{x},"reaction":{{"message_id":"wamid.B","emoji":"x"}}}}"#);
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
            // What only some parsers read.
            (&among(r#""\ud83d""#), &["wamid.B"], &[]),
            (&among("1e999"), &["wamid.B"], &[]),
            (&among(&deep), &["wamid.B"], &[]),
            (r#"{"image":{"id":"77","caption":"cut \ud83d"}}"#, &[], &["77"]),
            (r#"{"context":"{\"message_id\":\"wamid.A\"}"}"#, &["wamid.A"], &[]),
            (r#"{"image":" {\"id\":\"77\"}"}"#, &[], &["77"]),
            (
                r#"{"interactive":"{\"header\":{\"image\":{\"id\":\"77\"}}}"}"#,
                &[],
                &["77"],
            ),
            (
                r#"{"reaction":{"message_id":"wamid.A","emoji":"x","message_id":"wamid.B"}}"#,
                &["wamid.A", "wamid.B"],
                &[],
            ),
            (r#"{"\u0063ontext":{"message_id":" wamid.A"}}"#, &["wamid.A"], &[]),
            // No references.
            (
                r#"{"text":{"body":"{\"context\":{\"message_id\":\"wamid.A\"}}"}}"#,
                &[],
                &[],
            ),
            (r#"{"text":{"body":"[{ no json"},"context":null}"#, &[], &[]),
            (
                r#"{"image":{"link":"https://x","id":null},"context":{"message_id":""}}"#,
                &[],
                &[],
            ),
        ] {
            let found = of_message(body.as_bytes()).unwrap_or_else(|error| panic!("{body}: {error}"));
            let named: Vec<_> = found.messages.iter().map(Wamid::as_str).collect();
            assert_eq!(named, messages, "{body}");
            assert_eq!(found.media, media, "{body}");
        }
    }

    #[test]
    fn what_can_not_be_read_is_an_error_and_not_nothing() {
        let deep = format!("{{\"x\":{}1{}}}", "[".repeat(200), "]".repeat(200));
        for body in [
            "no json",
            r#"{"context":"{\"message_id\":wamid}"}"#,
            r#"{"context":{"message_id":["wamid.A"]}}"#,
            r#"{"image":{"id":1e999}}"#,
            r#"{"image":{"id":77.0}}"#,
            r#"{"x":{"\ud83d":1}}"#,
            &deep,
        ] {
            assert_eq!(of_message(body.as_bytes()), Err(Unreadable), "{body}");
        }
    }
}
