//! Texts that an Agent DB in any encoding can hold: parking a row, or saying why a table is held, must not fail because the
//! database has no such character.

use std::borrow::Cow;

use serde_json::Value;
use tokio_postgres::Client;

use crate::agent_db::error::AgentError;

/// What texts the Agent DB can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent_db) enum Encoding {
    /// Any character (UTF8, and SQL_ASCII, which takes bytes as they come).
    Any,
    /// Another encoding: only ASCII is certain.
    Limited,
}

impl Encoding {
    /// Reads it.
    pub(in crate::agent_db) async fn read(client: &Client) -> Result<Self, AgentError> {
        let row = client
            .query_one("SELECT pg_catalog.current_setting('server_encoding') AS encoding", &[])
            .await
            .map_err(|source| AgentError::from_driver("read the database's encoding", None, source))?;
        Ok(match row.get("encoding") {
            "UTF8" | "SQL_ASCII" => Self::Any,
            _ => Self::Limited,
        })
    }

    /// The text for people: what may be missing in the encoding is written as its number.
    pub(in crate::agent_db) fn shown(self, text: &str) -> Cow<'_, str> {
        if self == Self::Any || text.is_ascii() {
            return Cow::Borrowed(text);
        }
        let mut ascii = String::with_capacity(text.len());
        for character in text.chars() {
            match character {
                '\u{2014}' => ascii.push('-'),
                '\u{2026}' => ascii.push_str("..."),
                _ if character.is_ascii() => ascii.push(character),
                _ => ascii.extend(character.escape_unicode()),
            }
        }
        Cow::Owned(ascii)
    }

    /// A JSON document for people, as [`Self::shown`]. (Postgres reads a document's escapes, so they would not help.)
    pub(in crate::agent_db) fn document(self, document: Value) -> Value {
        match document {
            _ if self == Self::Any => document,
            Value::String(text) => Value::String(self.shown(&text).into_owned()),
            Value::Array(items) => items.into_iter().map(|item| self.document(item)).collect(),
            Value::Object(members) => members
                .into_iter()
                .map(|(name, value)| (name, self.document(value)))
                .collect(),
            other => other,
        }
    }

    /// JSON with the same meaning.
    pub(in crate::agent_db) fn json(self, json: String) -> String {
        if self == Self::Any || json.is_ascii() {
            return json;
        }
        let mut ascii = String::with_capacity(json.len());
        for character in json.chars() {
            if character.is_ascii() {
                ascii.push(character);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    ascii.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        ascii
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_encoding_may_lack_is_written_in_ascii() {
        let text = "h\u{e9} \u{1f680} \u{2014} fine";
        assert_eq!(Encoding::Any.shown(text), text);
        assert_eq!(Encoding::Limited.shown(text), "h\\u{e9} \\u{1f680} - fine");
        let json = serde_json::to_string(&[text]).unwrap();
        let ascii = Encoding::Limited.json(json);
        assert!(ascii.is_ascii());
        assert_eq!(serde_json::from_str::<Vec<String>>(&ascii).unwrap(), [text]);
    }
}
