//! A JSON object as a list of members whose values are not parsed yet.
//!
//! Why not a derived struct: duplicate keys and values of the wrong type would fail the whole object. Why not
//! `serde_json::Value`: so would a lone surrogate or a number out of range deep inside. Here, a value is parsed only when
//! it is needed, and if that fails, only that value is lost.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// The members of an object in the order in which they came, duplicates included.
#[derive(Debug)]
pub(super) struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Reads an object; `None` if the text is anything else.
    pub(super) fn read(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// The value of a key; of duplicates the last, as most parsers do, Meta's among them. JSON's `null` counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'a RawValue> {
        let value = self
            .0
            .iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|&(_, value)| value)?;
        (value.get() != "null").then_some(value)
    }

    /// All members as they came, duplicates and `null` included.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// The keys, duplicates included.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// All values of a key.
    pub(super) fn all<'s>(&'s self, key: &'s str) -> impl Iterator<Item = &'a RawValue> + 's {
        self.0
            .iter()
            .filter(move |(name, _)| name == key)
            .map(|&(_, value)| value)
    }

    /// Whether the object is `{}`.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A member that is a string, or a number where a string was meant.
    pub(super) fn string(&self, key: &str) -> Option<String> {
        scalar(&value(self.get(key)?)?)
    }

    /// A member, parsed as a whole.
    pub(super) fn value(&self, key: &str) -> Option<Value> {
        value(self.get(key)?)
    }

    /// A member's elements, each raw; `None` if it is absent or no array.
    pub(super) fn array(&self, key: &str) -> Option<Vec<&'a RawValue>> {
        serde_json::from_str(self.get(key)?.get()).ok()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Collect).map(Self)
    }
}

/// Parses a raw value. If needed, first repairs escapes that are not valid text (see [`repair`]).
pub(super) fn value(raw: &RawValue) -> Option<Value> {
    let json = raw.get();
    if !json.contains("\\u0000")
        && let Ok(value) = serde_json::from_str(json)
    {
        return Some(value);
    }
    serde_json::from_str(&repair(json)).ok()
}

/// A string, or a whole number written out: Meta and its clients use both for the same field. Not `16505551234.0`, a
/// spreadsheet's number: written out, it would have a digit more.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}

/// Replaces lone surrogates (`\ud83d` without its other half: a text that was cut inside an emoji) by `\ufffd`. They are
/// valid JSON but not valid text, and would make the whole message unreadable. `\u0000` is replaced too: Postgres's text
/// and jsonb can't hold it.
fn repair(json: &str) -> Cow<'_, str> {
    let mut repaired = String::new();
    let mut rest = json;
    let mut changed = false;
    while let Some(position) = rest.find('\\') {
        let (before, escape) = rest.split_at(position);
        repaired.push_str(before);
        let unit = |at: usize| {
            let digits = escape.get(at..at + 6)?.strip_prefix("\\u")?;
            u16::from_str_radix(digits, 16).ok()
        };
        let length = match (unit(0), unit(6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(0 | 0xD800..=0xDFFF), _) => {
                repaired.push_str("\\ufffd");
                changed = true;
                rest = &escape[6..];
                continue;
            }
            (Some(_), _) => 6,
            // A two-character escape; its second character may be a backslash, which must not start another.
            (None, _) => 1 + escape[1..].chars().next().map_or(0, char::len_utf8),
        };
        repaired.push_str(&escape[..length]);
        rest = &escape[length..];
    }
    if !changed {
        return Cow::Borrowed(json);
    }
    repaired.push_str(rest);
    Cow::Owned(repaired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_surrogate_costs_one_character_and_not_the_message() {
        for (json, text) in [
            (r#""cut \ud83d""#, "cut \u{fffd}"),
            (r#""\ude00 cut""#, "\u{fffd} cut"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (r#""\\ud83d \ud83d""#, "\\ud83d \u{fffd}"),
            (r#""é\ud83dé""#, "é\u{fffd}é"),
            (r#""\ud83d\u00e9""#, "\u{fffd}é"),
            (r#""nul \u0000 \\u0000""#, "nul \u{fffd} \\u0000"),
        ] {
            let raw: &RawValue = serde_json::from_str(json).expect("a JSON string");
            assert_eq!(value(raw), Some(Value::String(text.to_owned())), "{json}");
        }
    }

    #[test]
    fn of_duplicate_keys_the_last_counts_and_null_is_absent() {
        let members = Members::read(r#"{"a":1,"a":"2","b":null}"#).expect("an object");
        assert_eq!(members.string("a").as_deref(), Some("2"));
        assert_eq!(members.all("a").count(), 2);
        assert!(members.get("b").is_none());
        assert!(Members::read("[]").is_none());
    }

    proptest::proptest! {
        #[test]
        fn repairing_never_panics_and_leaves_good_json_alone(text in ".*", junk in "[\\\\ud83é\"]{0,40}") {
            let json = Value::String(text.replace('\0', "")).to_string();
            proptest::prop_assert_eq!(repair(&json).into_owned(), json);
            let _ = repair(&junk);
        }
    }
}
