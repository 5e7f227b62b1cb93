//! Webhook bodies as Meta writes them.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::fault::title;

/// One update on its way to the callback.
#[derive(Debug, Clone)]
pub(super) struct Update {
    pub(super) waba_id: String,
    pub(super) field: String,
    pub(super) value: Value,
}

/// A message from a user, to be reported to the callback.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// The business number that it goes to.
    pub phone_number_id: String,
    /// The user's number; `None` for a user who hides it.
    pub from: Option<String>,
    /// The user's business-scoped id.
    pub user_id: Option<String>,
    /// The name of the profile.
    pub name: Option<String>,
    /// `type` and its object, and whatever else the message should have (`id`, `timestamp`, `context`, …).
    pub message: Value,
    /// Whether the envelope has `contacts`; system notices come without.
    pub with_contacts: bool,
}

impl Inbound {
    /// A text.
    #[must_use]
    pub fn text(phone_number_id: &str, from: &str, body: &str) -> Self {
        Self {
            phone_number_id: phone_number_id.to_owned(),
            from: Some(from.to_owned()),
            user_id: None,
            name: Some("Simulated User".to_owned()),
            message: json!({"type": "text", "text": {"body": body}}),
            with_contacts: true,
        }
    }

    /// A text of a user who hides the number.
    #[must_use]
    pub fn hidden(phone_number_id: &str, user_id: &str, body: &str) -> Self {
        Self {
            from: None,
            user_id: Some(user_id.to_owned()),
            ..Self::text(phone_number_id, "", body)
        }
    }

    /// A message of a type of Meta's (see [`super::samples`]), or of one that nobody knows.
    #[must_use]
    pub fn sample(phone_number_id: &str, from: &str, kind: &str) -> Self {
        Self {
            message: super::samples::message(kind),
            with_contacts: kind != "system",
            ..Self::text(phone_number_id, from, "")
        }
    }

    /// The message's object.
    pub(super) fn object(&self, wamid: &str) -> Value {
        let mut object = Map::new();
        if let Some(from) = &self.from {
            object.insert("from".to_owned(), json!(from));
        }
        if let Some(user_id) = &self.user_id {
            object.insert("from_user_id".to_owned(), json!(user_id));
        }
        object.insert("id".to_owned(), json!(wamid));
        object.insert("timestamp".to_owned(), json!(now()));
        if let Value::Object(message) = &self.message {
            object.extend(message.clone());
        }
        Value::Object(object)
    }

    /// The members of the change's value, beside the metadata.
    pub(super) fn value(&self, wamid: &str) -> Value {
        let mut value = json!({"messages": [self.object(wamid)]});
        if self.with_contacts {
            let mut contact = json!({"profile": {"name": self.name}});
            if let Some(from) = &self.from {
                contact["wa_id"] = json!(from);
            }
            if let Some(user_id) = &self.user_id {
                contact["user_id"] = json!(user_id);
            }
            value["contacts"] = json!([contact]);
        }
        value
    }
}

/// What a status says.
#[derive(Debug, Clone)]
pub(super) struct StatusOf<'a> {
    pub(super) wamid: &'a str,
    pub(super) to: &'a str,
    pub(super) status: &'a str,
    pub(super) opaque: Option<&'a str>,
    pub(super) code: Option<i64>,
}

/// The members of a change's value for a status.
pub(super) fn status(of: &StatusOf<'_>) -> Value {
    let mut status = json!({"id": of.wamid, "status": of.status, "timestamp": now()});
    let digits: String = of.to.chars().filter(char::is_ascii_digit).collect();
    let hidden = of.to.contains('.');
    if hidden {
        status["recipient_user_id"] = json!(of.to);
    } else {
        status["recipient_id"] = json!(digits);
    }
    if let Some(opaque) = of.opaque {
        status["biz_opaque_callback_data"] = json!(opaque);
    }
    if of.status == "sent" {
        status["pricing"] = json!({"billable": true, "pricing_model": "PMP", "type": "regular", "category": "service"});
    }
    if let Some(code) = of.code {
        status["errors"] = json!([{"code": code, "title": title(code), "message": title(code),
            "error_data": {"details": "simulated failure"},
            "href": "https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes/"}]);
    }
    let mut value = json!({"statuses": [status]});
    // Meta leaves the contacts out of failures.
    if of.status != "failed" {
        value["contacts"] = if hidden {
            json!([{"user_id": of.to}])
        } else {
            json!([{"wa_id": digits}])
        };
    }
    value
}

/// A whole body, a change for each update, an entry for each run of the same account.
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
pub(super) fn ascii(value: &Value) -> Vec<u8> {
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

/// Unix seconds as Meta writes them.
fn now() -> String {
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
