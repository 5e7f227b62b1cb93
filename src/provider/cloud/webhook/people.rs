//! The users whom messages and reports are about: from the envelope's `contacts`, or from a history thread.

use serde_json::Value;

use crate::provider::cloud::members::{Members, scalar, value};
use crate::provider::ids::{ContactIdentity, UserId, WaId};

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

/// Adds what the envelope says about a person: of the contact with the same id, or of the only contact if the message
/// names no user.
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
