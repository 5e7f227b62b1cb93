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

/// Whom a thread of the history is with.
pub(super) enum Thread {
    Person(ContactIdentity),
    /// The provider's id of the group.
    Group(String),
}

impl Thread {
    /// The person; `None` if it is a group.
    pub(super) fn contact(&self) -> Option<ContactIdentity> {
        match self {
            Self::Person(contact) => Some(contact.clone()),
            Self::Group(_) => None,
        }
    }

    /// The group, if it is one.
    pub(super) fn group(&self) -> Option<&str> {
        match self {
            Self::Person(_) => None,
            Self::Group(id) => Some(id),
        }
    }
}

/// Whether an id is a group's: the Cloud API's are base64 of `capi_group:…`, the app's end in `@g.us`.
pub(super) fn is_group(id: &str) -> bool {
    id.starts_with("Y2FwaV9ncm91cDo") || id.ends_with("@g.us")
}

/// Reads whom a thread of the history is with. Its id is the person's number or user id, or a group's.
pub(super) fn thread(thread: &Members<'_>) -> Thread {
    let context = thread.value("context").unwrap_or(Value::Null);
    let string = |key: &str| context.get(key).and_then(scalar).filter(|text| !text.is_empty());
    let id = thread.string("id");
    let named_group = string("group_id").or_else(|| id.clone().filter(|id| is_group(id)));
    if let Some(group) = named_group.filter(|id| id.len() <= 512 && !id.contains(char::is_control)) {
        return Thread::Group(group);
    }
    Thread::Person(ContactIdentity {
        wa_id: string("wa_id").or_else(|| id.clone()).and_then(|id| WaId::parse(&id)),
        user_id: string("user_id").or(id).and_then(|id| UserId::parse(&id)),
        name: None,
        username: string("username"),
    })
}

/// Whether both have one line, written in its two forms, and not different user ids.
fn is_same_line(one: &ContactIdentity, other: &ContactIdentity) -> bool {
    let (Some(number), Some(same)) = (&one.wa_id, &other.wa_id) else {
        return false;
    };
    let others = one.user_id.is_some() && other.user_id.is_some() && one.user_id != other.user_id;
    !others && (number.other_form().as_ref() == Some(same) || same.other_form().as_ref() == Some(number))
}

/// Adds what the envelope says about a person: of the contact with the same id, or with the number in the other form of its line,
/// or of the only contact if the message names no user.
pub(super) fn complete(contact: &mut ContactIdentity, people: &[ContactIdentity]) {
    let same = |person: &&ContactIdentity| {
        (person.user_id.is_some() && person.user_id == contact.user_id)
            || (person.wa_id.is_some() && person.wa_id == contact.wa_id)
    };
    let person = match people {
        [only] if !contact.is_known() => Some(only),
        _ => people
            .iter()
            .find(same)
            .or_else(|| people.iter().find(|person| is_same_line(person, contact))),
    };
    if let Some(person) = person {
        contact.wa_id = contact.wa_id.take().or_else(|| person.wa_id.clone());
        contact.user_id = contact.user_id.take().or_else(|| person.user_id.clone());
        contact.name = contact.name.take().or_else(|| person.name.clone());
        contact.username = contact.username.take().or_else(|| person.username.clone());
    }
}
