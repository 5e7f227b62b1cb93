//! A webhook's body → its events: messages, statuses, echoes, history, errors, anything else.
//!
//! One POST may carry a thousand updates of several accounts. Each becomes an [`Event`]. A malformed one becomes
//! [`Content::Malformed`] and does not affect the others; an unknown field or type is kept unchanged. Only if the body's
//! outermost layers can't be read, there are no events at all: [`NotAWebhook`].
//!
//! | module | its job |
//! |---|---|
//! | `people` | the users of an envelope and of a history thread |
//! | `message` | one message |
//! | `change` | the notice that a user has other ids |
//! | `report` | one status of a message, one error of an account |
//! | `template` | what Meta tells of a template |
//!
//! Source: <https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks/components>

mod change;
mod message;
mod people;
mod report;
mod template;

use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::members::{Members, scalar, value};
use crate::provider::event::{Content, Event, IdentityChange};
use crate::provider::ids::{ContactIdentity, PhoneNumberId, UserId, WaId};

/// Fields that say whether we may send at all.
const ACCOUNT_NOTICES: [&str; 5] = [
    "account_update",
    "account_alerts",
    "phone_number_quality_update",
    "security",
    // A template of another category costs another price, and some people get no marketing.
    "template_category_update",
];

/// Most events of a webhook. Meta sends a thousand at most; a body of the greatest length has more only if they are nearly
/// empty.
const MAX_EVENTS: usize = 20_000;

/// Most events that could not be read, of a webhook: they tell what is wrong with it, and no more would help.
const MAX_MALFORMED: usize = 100;

/// Longest name of a field, and longest id of an account: each event has its own copy.
const MAX_NAME: usize = 64;

/// The body has no envelope: it is not JSON, or not a WhatsApp webhook. Its signature is Meta's, so it is kept anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not a webhook's envelope")]
pub struct NotAWebhook;

/// Reads a webhook's body, in the order in which it was written.
///
/// # Errors
/// [`NotAWebhook`].
pub fn parse(body: &[u8]) -> Result<Vec<Event>, NotAWebhook> {
    // Bytes that are not UTF-8 can only be inside strings, where each becomes one replacement character.
    let body = String::from_utf8_lossy(body);
    let envelope = Members::read(&body).ok_or(NotAWebhook)?;
    let entries = envelope.array("entry").ok_or(NotAWebhook)?;
    let mut events = Events::default();
    for entry in entries {
        let Some(entry) = Members::read(entry.get()) else {
            events.push(malformed(None, "", "an entry is not an object"));
            continue;
        };
        let waba_id = entry.string("id").filter(|id| id.len() <= MAX_NAME);
        let written_at = entry.string("time").and_then(|at| message::timestamp(&at));
        let Some(changes) = entry.array("changes") else {
            events.push(malformed(waba_id.as_ref(), "", "an entry has no changes"));
            continue;
        };
        for change in changes {
            read_change(waba_id.as_ref(), written_at, change, &mut events);
        }
    }
    Ok(events.list)
}

/// The events of a webhook, bounded in number.
#[derive(Default)]
struct Events {
    list: Vec<Event>,
    malformed: usize,
    /// What was left out is named already.
    more: Option<&'static str>,
}

impl Events {
    fn push(&mut self, event: Event) {
        let is_malformed = matches!(event.content, Content::Malformed(_));
        let left_out = if self.list.len() >= MAX_EVENTS {
            Some("the webhook has more than 20,000 events; the further ones are not processed")
        } else if is_malformed && self.malformed >= MAX_MALFORMED {
            Some("more than 100 events could not be read; the further ones are not listed")
        } else {
            None
        };
        self.malformed += usize::from(is_malformed);
        match left_out {
            None => self.list.push(event),
            Some(why) if self.more != Some(why) => {
                self.more = Some(why);
                self.list.push(malformed(None, "", why));
            }
            Some(_) => {}
        }
    }

    const fn count(&self) -> usize {
        self.list.len() + self.malformed
    }
}

fn malformed(waba_id: Option<&String>, field: &str, why: &'static str) -> Event {
    Event {
        waba_id: waba_id.cloned(),
        phone_number_id: None,
        display_phone_number: None,
        field: field.to_owned(),
        content: Content::Malformed(why),
    }
}

fn read_change(waba_id: Option<&String>, written_at: Option<OffsetDateTime>, change: &RawValue, events: &mut Events) {
    let Some(change) = Members::read(change.get()) else {
        events.push(malformed(waba_id, "", "a change is not an object"));
        return;
    };
    let mut field = change.string("field").unwrap_or_default();
    field.truncate(field.floor_char_boundary(MAX_NAME));
    let Some(raw) = change.get("value") else {
        events.push(malformed(waba_id, &field, "a change has no value"));
        return;
    };
    let members = Members::read(raw.get());
    let metadata = members.as_ref().and_then(|members| members.value("metadata"));
    let from_metadata = |key: &str| metadata.as_ref()?.get(key).and_then(scalar);
    let before = events.count();
    let mut change = Change {
        origin: Event {
            waba_id: waba_id.cloned(),
            phone_number_id: from_metadata("phone_number_id").and_then(|id| PhoneNumberId::parse(&id)),
            display_phone_number: from_metadata("display_phone_number").filter(|number| number.len() <= MAX_NAME),
            field,
            content: Content::Malformed("empty"),
        },
        events,
    };
    if let Some(members) = &members {
        change.read(members);
    }
    if change.events.count() == before {
        change.push(match value(raw) {
            None => Content::Malformed("the value is not readable JSON"),
            Some(value) => whole(&change.origin.field, value, written_at),
        });
    }
}

/// A change that is one event.
fn whole(field: &str, value: Value, written_at: Option<OffsetDateTime>) -> Content {
    match template::read(field, &value, written_at) {
        Some(notice) => Content::Template(Box::new(notice)),
        None if ACCOUNT_NOTICES.contains(&field) => Content::AccountNotice(value),
        None => Content::Other(value),
    }
}

/// A change that is being read.
struct Change<'e> {
    /// The fields that all its events share; `content` is replaced for each event.
    origin: Event,
    events: &'e mut Events,
}

impl Change<'_> {
    fn read(&mut self, members: &Members<'_>) {
        match self.origin.field.as_str() {
            "messages" | "message_echoes" | "smb_message_echoes" => {
                let people = people::contacts(members);
                self.each(members, "messages", |raw| {
                    content(message::read_inbound(raw, &people), Content::Message)
                });
                self.each(members, "message_echoes", |raw| {
                    content(message::read_outbound(raw, &people), Content::Echo)
                });
                self.each(members, "statuses", |raw| {
                    content(report::read(raw, &people), Content::Status)
                });
                self.each(members, "errors", report::read_error);
            }
            "user_id_update" => self.each(members, "user_id_update", read_user_id_change),
            "history" => self.history(members),
            _ => {}
        }
    }

    fn history(&mut self, members: &Members<'_>) {
        let business = self.origin.display_phone_number.as_deref().and_then(WaId::parse);
        // Media of the history come as events of their own, after or before the message that stands for them.
        let people = people::contacts(members);
        self.each(members, "messages", |raw| {
            message::read_history_media(raw, &people, business.as_ref()).unwrap_or_else(Content::Malformed)
        });
        self.each(members, "errors", report::read_error);
        for chunk in members.array("history").unwrap_or_default() {
            let Some(chunk) = Members::read(chunk.get()) else {
                self.push(Content::Malformed("a history chunk is not an object"));
                continue;
            };
            self.each(&chunk, "errors", report::read_error);
            for thread in chunk.array("threads").unwrap_or_default() {
                let Some(thread) = Members::read(thread.get()) else {
                    self.push(Content::Malformed("a history thread is not an object"));
                    continue;
                };
                let with = people::thread(&thread);
                self.each(&thread, "messages", |raw| {
                    message::read_history(raw, &with, business.as_ref()).unwrap_or_else(Content::Malformed)
                });
            }
        }
    }

    /// Reads each element of an array, if it is there.
    fn each(&mut self, members: &Members<'_>, key: &str, read: impl Fn(&RawValue) -> Content) {
        if members.get(key).is_none() {
            return;
        }
        match members.array(key) {
            Some(elements) => elements.into_iter().for_each(|raw| self.push(read(raw))),
            None => self.push(Content::Malformed("not an array")),
        }
    }

    fn push(&mut self, content: Content) {
        // A message or a status without a number cannot be assigned to an account.
        let needs_number = matches!(
            content,
            Content::Message(_)
                | Content::Status(_)
                | Content::Echo(_)
                | Content::History { .. }
                | Content::IdentityChanged(_)
        );
        let content = if needs_number && self.origin.phone_number_id.is_none() {
            Content::Malformed("no phone_number_id")
        } else {
            content
        };
        self.events.push(Event {
            content,
            ..self.origin.clone()
        });
    }
}

fn content<T>(read: Result<T, &'static str>, of: impl Fn(Box<T>) -> Content) -> Content {
    read.map_or_else(Content::Malformed, |read| of(Box::new(read)))
}

fn read_user_id_change(raw: &RawValue) -> Content {
    let change = value(raw).unwrap_or(Value::Null);
    let string = |pointer: &str| change.pointer(pointer).and_then(scalar);
    let id = |pointer: &str| string(pointer).and_then(|id| UserId::parse(&id));
    let (Some(previous), Some(current)) = (id("/user_id/previous"), id("/user_id/current")) else {
        return Content::Malformed("a change of a user id without the two ids");
    };
    let user = |user_id| ContactIdentity {
        user_id: Some(user_id),
        ..ContactIdentity::default()
    };
    Content::IdentityChanged(Box::new(IdentityChange {
        previous: user(previous),
        current: user(current),
        other: ContactIdentity {
            wa_id: string("/wa_id").and_then(|id| WaId::parse(&id)),
            ..ContactIdentity::default()
        },
        at: string("/timestamp").and_then(|at| message::timestamp(&at)),
    }))
}

#[cfg(test)]
mod tests;
