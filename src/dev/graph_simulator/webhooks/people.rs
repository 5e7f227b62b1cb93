//! What Meta reports about users beside what they write: that their ids changed; and what was said before the number joined the
//! API.

use serde::Deserialize;
use serde_json::{Value, json};

use super::envelope::unix_seconds;

/// A user's ids change.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct IdentityChange {
    /// The number before; `None` for a user who hides it.
    pub from: Option<String>,
    /// The number from now on; `None` if it did not change, or is hidden.
    pub to: Option<String>,
    /// The business-scoped id before.
    pub previous_user_id: Option<String>,
    /// The business-scoped id from now on.
    pub user_id: Option<String>,
}

impl IdentityChange {
    /// The members of the change's value, without the metadata.
    pub(crate) fn value(&self, wamid: &str) -> Value {
        let kind = if self.to.is_some() {
            "user_changed_number"
        } else {
            "user_changed_user_id"
        };
        let mut notice = json!({"id": wamid, "timestamp": unix_seconds(), "type": "system",
            "system": {"type": kind, "body": "The user has other ids"}});
        for (pointer, id) in [
            ("from", &self.from),
            ("from_user_id", &self.previous_user_id),
            ("system/wa_id", &self.to),
            ("system/user_id", &self.user_id),
            ("system/previous_user_id", &self.previous_user_id),
        ] {
            if let Some(id) = id {
                match pointer.strip_prefix("system/") {
                    Some(member) => notice["system"][member] = json!(id),
                    None => notice[pointer] = json!(id),
                }
            }
        }
        json!({"messages": [notice]})
    }
}

/// A part of the history with one user: texts by turns, and a picture of the user, whose medium is in an event of its own.
#[derive(Debug, Clone, Deserialize)]
pub struct History {
    /// The user's number.
    pub user: String,
    /// How many texts.
    pub texts: usize,
}

impl History {
    /// The two values, without the metadata: the messages, then the medium. `business` is the number of ours.
    pub(crate) fn values(&self, business: &str, wamid: impl Fn() -> String) -> [Value; 2] {
        let picture = wamid();
        let mut messages: Vec<Value> = (0..self.texts)
            .map(|number| {
                let ours = number % 2 == 1;
                let mut message = json!({"from": if ours { business } else { &self.user }, "id": wamid(),
                    "timestamp": unix_seconds(), "type": "text", "text": {"body": format!("Before {number}")},
                    "history_context": {"status": "READ"}});
                if ours {
                    message["to"] = json!(self.user);
                }
                message
            })
            .collect();
        messages.push(json!({"from": self.user, "id": picture, "timestamp": unix_seconds(),
            "type": "media_placeholder", "history_context": {"status": "READ"}}));
        [
            json!({"history": [{"metadata": {"phase": 0, "chunk_order": 1, "progress": 100},
                "threads": [{"id": self.user, "context": {"wa_id": self.user}, "messages": messages}]}]}),
            json!({"messages": [{"from": self.user, "id": picture, "timestamp": unix_seconds(), "type": "image",
                "image": {"id": "1003383421387256", "mime_type": "image/jpeg", "caption": "A photo"}}]}),
        ]
    }
}
