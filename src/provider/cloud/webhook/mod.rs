//! A webhook's body → its parts: messages, statuses, echoes, history, errors, anything else.
//!
//! One POST may carry a thousand updates of several accounts. Each is a [`Part`] that can be read or not on its own: a
//! malformed one is a [`Content::Malformed`] among its neighbours, an unknown field or type is kept as it is. The body's
//! outermost layers are the only thing that all parts need; without them there is [`NotAWebhook`].
//!
//! Source: <https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks/components>

mod message;

use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::error::GraphError;
use super::members::{Members, scalar, value};
use crate::provider::ids::{ContactIdentity, PhoneNumberId, UserId, WaId, Wamid};
use crate::provider::opaque::OpaqueId;

pub use message::Message;

/// The body has no envelope: it is not JSON, or not a WhatsApp webhook. It is signed by Meta all the same, so it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not a webhook's envelope")]
pub struct NotAWebhook;

/// One update of a webhook.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The business account (`entry[].id`).
    pub waba_id: Option<String>,
    /// Our number, where the part concerns one.
    pub phone_number_id: Option<PhoneNumberId>,
    /// Our number as people dial it.
    pub display_phone_number: Option<String>,
    /// The subscribed field.
    pub field: String,
    /// What it says.
    pub content: Content,
}

/// What a part says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A user wrote to us.
    Message(Box<Message>),
    /// A message of ours got a status.
    Status(Box<Status>),
    /// We wrote to a user from the WhatsApp Business app on the phone (`smb_message_echoes`).
    Echo(Box<Message>),
    /// A message from before the number came to the API (`history`).
    History {
        /// The message.
        message: Box<Message>,
        /// Whether we wrote it.
        outbound: bool,
        /// Its status then, in lower case: `delivered`, `error`, `pending`, `played`, `read`, `sent`.
        status: Option<String>,
    },
    /// An error without a message (`value.errors`): throughput, the app, the account.
    AccountError(Box<GraphError>),
    /// A user's business-scoped id has changed (`user_id_update`): the number did.
    UserIdChanged {
        /// The id that we may know.
        previous: UserId,
        /// The id that counts from now on.
        current: UserId,
    },
    /// Anything else: account and template events, fields that are new.
    Other(Value),
    /// It could not be read; the reason names no values.
    Malformed(&'static str),
}

/// A status of a message of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The message.
    pub wamid: Wamid,
    /// Meta's word: `sent`, `delivered`, `read`, `played`, `failed`, or one that is new.
    pub status: String,
    /// When it happened, by Meta's clock, to the second.
    pub at: OffsetDateTime,
    /// Who it concerns: the participant of a group, else the recipient. Empty if Meta does not say.
    pub recipient: String,
    /// The recipient, as far as Meta tells.
    pub contact: ContactIdentity,
    /// `biz_opaque_callback_data` as it came.
    pub opaque: Option<String>,
    /// The first of its errors, for `failed`.
    pub error: Option<GraphError>,
    /// The whole object.
    pub raw: Value,
}

impl Part {
    /// Whether people are writing to each other here; all else (statuses, history, system notices, account events) is
    /// protocol, and says nothing about whether messages still arrive.
    #[must_use]
    pub fn is_real(&self) -> bool {
        match &self.content {
            Content::Message(message) | Content::Echo(message) => message.kind != "system",
            _ => false,
        }
    }
}

impl Status {
    /// The row of ours that the status settles, if the echo is ours.
    #[must_use]
    pub fn opaque_id(&self) -> Option<OpaqueId> {
        self.opaque.as_deref().and_then(OpaqueId::parse)
    }
}

/// Reads a webhook's body, in the order in which it was written.
///
/// # Errors
/// [`NotAWebhook`].
pub fn parse(body: &[u8]) -> Result<Vec<Part>, NotAWebhook> {
    // Bytes that are no text can stand in strings only, where a replacement character costs one character.
    let body = String::from_utf8_lossy(body);
    let envelope = Members::read(&body).ok_or(NotAWebhook)?;
    let entries = envelope.array("entry").ok_or(NotAWebhook)?;
    let mut parts = Vec::new();
    for entry in entries {
        let Some(entry) = Members::read(entry.get()) else {
            parts.push(Part::malformed(None, "", "an entry is not an object"));
            continue;
        };
        let waba_id = entry.string("id");
        let Some(changes) = entry.array("changes") else {
            parts.push(Part::malformed(waba_id.as_ref(), "", "an entry has no changes"));
            continue;
        };
        for change in changes {
            read_change(waba_id.as_ref(), change, &mut parts);
        }
    }
    Ok(parts)
}

fn read_change(waba_id: Option<&String>, change: &RawValue, parts: &mut Vec<Part>) {
    let Some(change) = Members::read(change.get()) else {
        parts.push(Part::malformed(waba_id, "", "a change is not an object"));
        return;
    };
    let field = change.string("field").unwrap_or_default();
    let Some(raw) = change.get("value") else {
        parts.push(Part::malformed(waba_id, &field, "a change has no value"));
        return;
    };
    let members = Members::read(raw.get());
    let metadata = members.as_ref().and_then(|members| members.value("metadata"));
    let from_metadata = |key: &str| {
        metadata
            .as_ref()
            .and_then(|metadata| metadata.get(key))
            .and_then(scalar)
    };
    let origin = Part {
        waba_id: waba_id.cloned(),
        phone_number_id: from_metadata("phone_number_id").and_then(|id| PhoneNumberId::parse(&id)),
        display_phone_number: from_metadata("display_phone_number"),
        field,
        content: Content::Malformed("empty"),
    };
    let before = parts.len();
    if let Some(members) = &members {
        let people = message::contacts(members);
        let business = origin.display_phone_number.as_deref().and_then(WaId::parse);
        match origin.field.as_str() {
            "messages" | "message_echoes" | "smb_message_echoes" => {
                origin.each(members, "messages", parts, |raw| {
                    message::read(raw, &people)
                        .map_or_else(Content::Malformed, |message| Content::Message(Box::new(message)))
                });
                origin.each(members, "message_echoes", parts, |raw| {
                    message::read_outbound(raw, &people)
                        .map_or_else(Content::Malformed, |message| Content::Echo(Box::new(message)))
                });
                origin.each(members, "statuses", parts, |raw| {
                    read_status(raw, &people)
                        .map_or_else(Content::Malformed, |status| Content::Status(Box::new(status)))
                });
                origin.each(members, "errors", parts, read_error);
            }
            "user_id_update" => origin.each(members, "user_id_update", parts, read_user_id_change),
            "history" => origin.history(members, business.as_ref(), parts),
            _ => {}
        }
    }
    if parts.len() == before {
        let content = value(raw).map_or(Content::Malformed("the value is not readable JSON"), Content::Other);
        parts.push(Part { content, ..origin });
    }
}

impl Part {
    fn malformed(waba_id: Option<&String>, field: &str, why: &'static str) -> Self {
        Self {
            waba_id: waba_id.cloned(),
            phone_number_id: None,
            display_phone_number: None,
            field: field.to_owned(),
            content: Content::Malformed(why),
        }
    }

    fn with(&self, content: Content) -> Self {
        // A message or a status of no number has no account to belong to.
        let homeless = self.phone_number_id.is_none()
            && !matches!(
                content,
                Content::Other(_) | Content::Malformed(_) | Content::AccountError(_)
            );
        Self {
            content: if homeless {
                Content::Malformed("no phone_number_id")
            } else {
                content
            },
            ..self.clone()
        }
    }

    fn each(&self, members: &Members<'_>, key: &str, parts: &mut Vec<Self>, read: impl Fn(&RawValue) -> Content) {
        if members.get(key).is_none() {
            return;
        }
        match members.array(key) {
            Some(elements) => parts.extend(elements.into_iter().map(|raw| self.with(read(raw)))),
            None => parts.push(self.with(Content::Malformed("not an array"))),
        }
    }

    fn history(&self, members: &Members<'_>, business: Option<&WaId>, parts: &mut Vec<Self>) {
        for chunk in members.array("history").unwrap_or_default() {
            let Some(chunk) = Members::read(chunk.get()) else {
                parts.push(self.with(Content::Malformed("a history chunk is not an object")));
                continue;
            };
            self.each(&chunk, "errors", parts, read_error);
            for thread in chunk.array("threads").unwrap_or_default() {
                let Some(thread) = Members::read(thread.get()) else {
                    parts.push(self.with(Content::Malformed("a history thread is not an object")));
                    continue;
                };
                let contact = message::thread_contact(&thread);
                self.each(&thread, "messages", parts, |raw| {
                    message::read_history(raw, &contact, business).map_or_else(
                        Content::Malformed,
                        |(message, outbound, status)| Content::History {
                            message: Box::new(message),
                            outbound,
                            status,
                        },
                    )
                });
            }
        }
    }
}

fn read_error(raw: &RawValue) -> Content {
    value(raw)
        .as_ref()
        .and_then(GraphError::from_value)
        .map_or(Content::Malformed("an error without a code"), |error| {
            Content::AccountError(Box::new(error))
        })
}

fn read_user_id_change(raw: &RawValue) -> Content {
    let change = value(raw).unwrap_or(Value::Null);
    let id = |pointer: &str| change.pointer(pointer).and_then(Value::as_str).and_then(UserId::parse);
    match (id("/user_id/previous"), id("/user_id/current")) {
        (Some(previous), Some(current)) => Content::UserIdChanged { previous, current },
        _ => Content::Malformed("a change of a user id without the two ids"),
    }
}

fn read_status(raw: &RawValue, people: &[ContactIdentity]) -> Result<Status, &'static str> {
    let raw = value(raw).ok_or("a status is not readable JSON")?;
    let string = |key: &str| raw.get(key).and_then(scalar).filter(|text| !text.is_empty());
    let mut contact = ContactIdentity {
        wa_id: string("recipient_id").and_then(|id| WaId::parse(&id)),
        user_id: string("recipient_user_id").and_then(|id| UserId::parse(&id)),
        ..ContactIdentity::default()
    };
    message::complete(&mut contact, people);
    let status = string("status").ok_or("a status without a status")?;
    if status.len() > 64 || status.contains(char::is_control) {
        return Err("a status with an unusable status");
    }
    Ok(Status {
        wamid: string("id")
            .and_then(|id| Wamid::parse(&id))
            .ok_or("a status without an id")?,
        status: status.to_ascii_lowercase(),
        at: string("timestamp")
            .and_then(|at| message::timestamp(&at))
            .ok_or("a status without a timestamp")?,
        recipient: ["recipient_participant_id", "recipient_id", "recipient_user_id"]
            .into_iter()
            .find_map(string)
            .filter(|recipient| recipient.len() <= 512)
            .unwrap_or_default(),
        contact,
        opaque: string("biz_opaque_callback_data"),
        error: raw.pointer("/errors/0").and_then(GraphError::from_value),
        raw,
    })
}

#[cfg(test)]
mod tests;
