//! The body of a webhook as Meta writes it.

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::dev::graph_simulator::update::Update;

/// The body of a POST: a change for each update; neighbours of the same account share an entry.
pub(super) fn envelope(updates: &[Update]) -> Vec<u8> {
    let mut entries: Vec<(String, Vec<Value>)> = Vec::new();
    for update in updates {
        let change = json!({"value": update.value, "field": update.field});
        match entries.last_mut() {
            Some((waba_id, changes)) if *waba_id == update.waba_id => changes.push(change),
            _ => entries.push((update.waba_id.clone(), vec![change])),
        }
    }
    let entries: Vec<_> = entries
        .into_iter()
        .map(|(id, changes)| json!({"id": id, "changes": changes}))
        .collect();
    ascii(&json!({"object": "whatsapp_business_account", "entry": entries}))
}

/// JSON in Meta's spelling: all ASCII, `\uXXXX` for the rest, `\/` for slashes. The signature is over these bytes.
fn ascii(value: &Value) -> Vec<u8> {
    let json = value.to_string();
    let mut out = String::with_capacity(json.len() + json.len() / 8);
    for character in json.chars() {
        match character {
            // A slash can stand in strings only.
            '/' => out.push_str("\\/"),
            ' '..='~' => out.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.into_bytes()
}

/// Now in Unix seconds, as Meta writes them: a text.
pub(super) fn unix_seconds() -> String {
    OffsetDateTime::now_utc().unix_timestamp().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_ascii_and_mean_the_same() {
        let value = json!({"body": "café 😀 a/b \"quoted\" \u{7f}\n"});
        let bytes = ascii(&value);
        assert!(bytes.is_ascii());
        let text = String::from_utf8(bytes).expect("ASCII");
        assert!(text.contains(r"caf\u00e9 \ud83d\ude00 a\/b"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), value);
    }
}
