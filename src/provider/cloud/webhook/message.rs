//! A message of a webhook, and who it is from: the message's own fields first, then the envelope's `contacts`.

use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::provider::cloud::members::{Members, scalar, value};
use crate::provider::cloud::text;
use crate::provider::ids::{ContactIdentity, UserId, WaId, Wamid};

/// A message, in either direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Meta's id of it.
    pub wamid: Wamid,
    /// The user: its sender, or its recipient if we wrote it.
    pub contact: ContactIdentity,
    /// Meta's id of the group that it was written in.
    pub group: Option<String>,
    /// Meta's name of the type; `unknown` if there is none.
    pub kind: String,
    /// What a person reads of it.
    pub text: Option<String>,
    /// The message that it answers, reacts to, edits or revokes.
    pub context: Option<Wamid>,
    /// When it was written, by WhatsApp's clock, to the second.
    pub at: Option<OffsetDateTime>,
    /// The advertisement that brought the user.
    pub referral: Option<Value>,
    /// The whole object.
    pub raw: Value,
}

/// The people of an envelope. An element that can't be read is left out: the messages name their sender themselves.
pub(super) fn contacts(members: &Members<'_>) -> Vec<ContactIdentity> {
    let contacts = members.array("contacts").unwrap_or_default();
    contacts
        .into_iter()
        .filter_map(value)
        .map(|contact| {
            let string = |pointer: &str| {
                contact
                    .pointer(pointer)
                    .and_then(scalar)
                    .filter(|text| !text.is_empty())
            };
            ContactIdentity {
                wa_id: string("/wa_id").and_then(|id| WaId::parse(&id)),
                user_id: string("/user_id").and_then(|id| UserId::parse(&id)),
                name: string("/profile/name"),
                username: string("/profile/username"),
            }
        })
        .filter(ContactIdentity::is_known)
        .collect()
}

/// The user of a history thread.
pub(super) fn thread_contact(thread: &Members<'_>) -> ContactIdentity {
    let context = thread.value("context").unwrap_or(Value::Null);
    let string = |key: &str| context.get(key).and_then(scalar).filter(|text| !text.is_empty());
    ContactIdentity {
        wa_id: string("wa_id")
            .or_else(|| thread.string("id"))
            .and_then(|id| WaId::parse(&id)),
        user_id: string("user_id").and_then(|id| UserId::parse(&id)),
        name: None,
        username: string("username"),
    }
}

/// Adds what the envelope knows of a person: the one with the same id, or the only one if the message names none.
pub(super) fn complete(contact: &mut ContactIdentity, people: &[ContactIdentity]) {
    let same = |person: &&ContactIdentity| {
        (person.user_id.is_some() && person.user_id == contact.user_id)
            || (person.wa_id.is_some() && person.wa_id == contact.wa_id)
    };
    let person = match people {
        [only] if !contact.is_known() => Some(only),
        _ => people.iter().find(same),
    };
    if let Some(person) = person {
        contact.wa_id = contact.wa_id.take().or_else(|| person.wa_id.clone());
        contact.user_id = contact.user_id.take().or_else(|| person.user_id.clone());
        contact.name = contact.name.take().or_else(|| person.name.clone());
        contact.username = contact.username.take().or_else(|| person.username.clone());
    }
}

/// A message from a user.
pub(super) fn read(raw: &RawValue, people: &[ContactIdentity]) -> Result<Message, &'static str> {
    read_as(raw, ["from", "from_user_id"], people)
}

/// A message of ours to a user.
pub(super) fn read_outbound(raw: &RawValue, people: &[ContactIdentity]) -> Result<Message, &'static str> {
    read_as(raw, ["to", "to_user_id"], people)
}

/// A message of a history thread: ours if it comes from the business's number or names a recipient.
pub(super) fn read_history(
    raw: &RawValue,
    thread: &ContactIdentity,
    business: Option<&WaId>,
) -> Result<(Message, bool, Option<String>), &'static str> {
    let mut message = read_as(raw, ["", ""], std::slice::from_ref(thread))?;
    let string = |pointer: &str| message.raw.pointer(pointer).and_then(scalar);
    let from = string("/from").and_then(|from| WaId::parse(&from));
    let outbound = match (&from, business) {
        (Some(from), Some(business)) if from == business => true,
        (Some(from), _) if Some(from) == thread.wa_id.as_ref() => false,
        _ => string("/to").is_some() || string("/to_user_id").is_some(),
    };
    let status = string("/history_context/status").map(|status| status.to_ascii_lowercase());
    if !message.contact.is_known() && !outbound {
        message.contact.wa_id = from;
    }
    Ok((message, outbound, status))
}

fn read_as(raw: &RawValue, [number, user]: [&str; 2], people: &[ContactIdentity]) -> Result<Message, &'static str> {
    let raw = value(raw).ok_or("a message is not readable JSON")?;
    let string = |pointer: &str| raw.pointer(pointer).and_then(scalar).filter(|text| !text.is_empty());
    let wamid = string("/id")
        .and_then(|id| Wamid::parse(&id))
        .ok_or("a message without an id")?;
    let mut contact = ContactIdentity {
        wa_id: string(&format!("/{number}")).and_then(|id| WaId::parse(&id)),
        user_id: string(&format!("/{user}")).and_then(|id| UserId::parse(&id)),
        ..ContactIdentity::default()
    };
    complete(&mut contact, people);
    if !contact.is_known() {
        // A system notice comes without contacts, and of a user who hides the number without `from`.
        contact.wa_id = string("/system/wa_id").and_then(|id| WaId::parse(&id));
        contact.user_id = string("/system/user_id").and_then(|id| UserId::parse(&id));
    }
    if !contact.is_known() {
        return Err("a message without a user");
    }
    let kind = string("/type")
        .filter(|kind| kind.len() <= 64 && !kind.contains(char::is_control))
        .unwrap_or_else(|| "unknown".to_owned());
    let context = [
        "/context/id",
        "/context/message_id",
        "/reaction/message_id",
        "/edit/original_message_id",
        "/revoke/original_message_id",
    ]
    .into_iter()
    .find_map(string)
    .and_then(|id| Wamid::parse(&id));
    Ok(Message {
        wamid,
        contact,
        text: text::of_message(&kind, &raw),
        group: string("/group_id").filter(|id| id.len() <= 512 && !id.contains(char::is_control)),
        kind,
        context,
        at: string("/timestamp").and_then(|at| timestamp(&at)),
        referral: raw.get("referral").filter(|referral| referral.is_object()).cloned(),
        raw,
    })
}

/// Meta's timestamps: Unix seconds, in a string or a number.
pub(super) fn timestamp(seconds: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds.parse().ok()?).ok()
}
