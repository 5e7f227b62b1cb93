//! What users write, as Meta reports it.

use serde_json::{Map, Value, json};

use super::envelope::unix_seconds;
use super::samples;

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
    /// `type` and its object, and further members of the message (`id`, `timestamp`, `context`, …).
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

    /// A message of a type of Meta's (see [`samples`]), or of a type that does not exist.
    #[must_use]
    pub fn sample(phone_number_id: &str, from: &str, kind: &str) -> Self {
        Self {
            message: samples::message(kind),
            with_contacts: kind != "system",
            ..Self::text(phone_number_id, from, "")
        }
    }

    /// The message's object.
    fn object(&self, wamid: &str) -> Value {
        let mut object = Map::new();
        if let Some(from) = &self.from {
            object.insert("from".to_owned(), json!(from));
        }
        if let Some(user_id) = &self.user_id {
            object.insert("from_user_id".to_owned(), json!(user_id));
        }
        object.insert("id".to_owned(), json!(wamid));
        object.insert("timestamp".to_owned(), json!(unix_seconds()));
        if let Value::Object(message) = &self.message {
            object.extend(message.clone());
        }
        Value::Object(object)
    }

    /// The members of the change's value, without the metadata.
    pub(crate) fn value(&self, wamid: &str) -> Value {
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
