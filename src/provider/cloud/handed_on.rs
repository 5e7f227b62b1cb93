//! A webhook as it is handed on to another receiver: Meta's bytes, of which only what must change does.
//!
//! - What the receiver did not choose (other fields, numbers, kinds) is left out.
//! - Statuses echo the id that we put into a send as `biz_opaque_callback_data`; the receiver gets the client's own value back, or
//!   none where the client sent none.
//!
//! An element of which nothing changes is copied byte for byte, with Meta's own escapes. Where nothing changes at all, so is the
//! whole body.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use serde_json::value::RawValue;
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use uuid::Uuid;

use super::members::{Members, scalar, value};
use crate::provider::OpaqueId;

/// The member of a status that carries our id.
const OPAQUE: &str = "biz_opaque_callback_data";

/// What a part of a webhook tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    /// Messages of people.
    Messages,
    /// What became of messages of ours.
    Statuses,
    /// Messages that were sent with the phone.
    Echoes,
    /// Messages from before the number came here.
    History,
    /// Everything else: about numbers, accounts, templates; errors.
    Notices,
}

/// What a receiver gets. `None`: all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// `changes[].field`: `messages`, `account_update`, …
    pub fields: Option<Vec<String>>,
    /// `phone_number_id`s; then also nothing that belongs to no number.
    pub numbers: Option<Vec<String>>,
    /// See [`Kind`].
    pub kinds: Option<Vec<Kind>>,
}

/// A webhook for a receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedOn {
    /// The body.
    pub body: Bytes,
    /// Whom it is about, as hashes that mean something in this process only: two webhooks that share one must stay in order.
    pub about: Vec<u64>,
}

/// Our ids in the statuses of a webhook.
#[must_use]
pub fn opaque_ids(body: &[u8]) -> Vec<Uuid> {
    let mut ids = Vec::new();
    // Most webhooks have none.
    if memchr_of(body, b"tl:") {
        let mut note = |opaque: OpaqueId| {
            ids.push(opaque.0);
            None
        };
        let _ = edited(body, &Selection::default(), &mut note, &mut Vec::new());
    }
    ids
}

/// The webhook for a receiver; `None`: nothing in it is for this one. `own`: the clients' own values by our ids; an id that is not
/// in it is not one of this Site DB's, and stays.
#[must_use]
pub fn hand_on(body: &Bytes, selection: &Selection, own: &HashMap<Uuid, Option<String>>) -> Option<HandedOn> {
    let mut about = Vec::new();
    let mut restore = |opaque: OpaqueId| own.get(&opaque.0).cloned();
    let body = match edited(body, selection, &mut restore, &mut about) {
        Edited::Same => body.clone(),
        Edited::Changed(text) => Bytes::from(text),
        Edited::Nothing => return None,
    };
    about.sort_unstable();
    about.dedup();
    Some(HandedOn { body, about })
}

fn memchr_of(body: &[u8], needle: &[u8]) -> bool {
    body.windows(needle.len()).any(|window| window == needle)
}

/// The client's own value for an id of ours: `Some(None)`: it sent none; `None`: the id is not known.
type Restore<'r> = &'r mut dyn FnMut(OpaqueId) -> Option<Option<String>>;

enum Edited {
    Same,
    Changed(String),
    Nothing,
}

fn edited(body: &[u8], selection: &Selection, restore: Restore<'_>, about: &mut Vec<u64>) -> Edited {
    let all = selection.fields.is_none() && selection.numbers.is_none() && selection.kinds.is_none();
    // What can't be read can't be sorted: only who gets everything gets it.
    let unreadable = if all { Edited::Same } else { Edited::Nothing };
    let Ok(text) = std::str::from_utf8(body) else {
        return unreadable;
    };
    let Some(envelope) = Members::read(text) else {
        return unreadable;
    };
    if envelope.array("entry").is_none() {
        return unreadable;
    }
    let mut editor = Editor {
        selection,
        all,
        restore,
        about,
    };
    match object(text, &envelope, |key, raw| match key {
        "entry" => editor.entries(raw),
        _ => Member::Same,
    }) {
        Some(Cow::Borrowed(_)) => Edited::Same,
        Some(Cow::Owned(text)) => Edited::Changed(text),
        None => Edited::Nothing,
    }
}

/// What becomes of an object's member.
enum Member<'a> {
    Same,
    Value(Cow<'a, str>),
    /// It is left out.
    Out,
    /// The whole object is.
    NoObject,
}

impl<'a> Member<'a> {
    /// A member that makes the whole object go if nothing is left of it.
    fn needed(edited: Option<Cow<'a, str>>) -> Self {
        edited.map_or(Self::NoObject, Self::Value)
    }
}

/// An object with its members edited; borrowed if nothing has changed.
fn object<'a>(
    text: &'a str,
    members: &Members<'a>,
    mut edit: impl FnMut(&str, &'a RawValue) -> Member<'a>,
) -> Option<Cow<'a, str>> {
    let (mut written, mut changed) = (Vec::new(), false);
    for (key, raw) in members.iter() {
        let value = match edit(key, raw) {
            Member::Same => Cow::Borrowed(raw.get()),
            Member::Value(value) => value,
            Member::Out => {
                changed = true;
                continue;
            }
            Member::NoObject => return None,
        };
        changed |= matches!(value, Cow::Owned(_));
        written.push((key, value));
    }
    if !changed {
        return Some(Cow::Borrowed(text));
    }
    let members: Vec<String> = written
        .into_iter()
        .map(|(key, value)| format!("{}:{value}", json_text(key)))
        .collect();
    Some(Cow::Owned(format!("{{{}}}", members.join(","))))
}

/// An array with its elements edited, without those of which nothing is left; borrowed if nothing has changed. `None`: it is empty
/// now.
fn array<'a>(raw: &'a RawValue, mut edit: impl FnMut(&'a RawValue) -> Option<Cow<'a, str>>) -> Option<Cow<'a, str>> {
    let Ok(elements) = serde_json::from_str::<Vec<&'a RawValue>>(raw.get()) else {
        return Some(Cow::Borrowed(raw.get()));
    };
    let count = elements.len();
    let kept: Vec<_> = elements.into_iter().filter_map(&mut edit).collect();
    if kept.len() == count && kept.iter().all(|element| matches!(element, Cow::Borrowed(_))) {
        return Some(Cow::Borrowed(raw.get()));
    }
    (!kept.is_empty()).then(|| Cow::Owned(format!("[{}]", kept.join(","))))
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

struct Editor<'e> {
    selection: &'e Selection,
    /// Whether everything is selected.
    all: bool,
    restore: Restore<'e>,
    about: &'e mut Vec<u64>,
}

impl Editor<'_> {
    fn entries<'a>(&mut self, raw: &'a RawValue) -> Member<'a> {
        Member::needed(array(raw, |entry| {
            let Some(members) = Members::read(entry.get()) else {
                return self.unreadable(entry);
            };
            if members.array("changes").is_none() {
                return self.unreadable(entry);
            }
            object(entry.get(), &members, |key, raw| match key {
                "changes" => Member::needed(array(raw, |change| self.change(change))),
                _ => Member::Same,
            })
        }))
    }

    fn unreadable<'a>(&self, raw: &'a RawValue) -> Option<Cow<'a, str>> {
        self.all.then(|| Cow::Borrowed(raw.get()))
    }

    fn change<'a>(&mut self, raw: &'a RawValue) -> Option<Cow<'a, str>> {
        let Some(change) = Members::read(raw.get()) else {
            return self.unreadable(raw);
        };
        let field = change.string("field").unwrap_or_default();
        let content = change.get("value").and_then(|value| Members::read(value.get()));
        let number = content.as_ref().and_then(|content| {
            let metadata = content.value("metadata")?;
            metadata.get("phone_number_id").and_then(scalar)
        });
        let wanted = |list: &Option<Vec<String>>, one: Option<&str>| {
            list.as_ref()
                .is_none_or(|list| one.is_some_and(|one| list.iter().any(|wanted| wanted == one)))
        };
        if !wanted(&self.selection.fields, Some(&field)) || !wanted(&self.selection.numbers, number.as_deref()) {
            return None;
        }
        let parts: Vec<Kind> = content
            .iter()
            .flat_map(Members::names)
            .filter_map(|name| part(&field, name))
            .collect();
        if parts.is_empty() {
            self.note(number.as_deref(), &field);
            return self.selects(Kind::Notices).then(|| Cow::Borrowed(raw.get()));
        }
        if !parts.iter().any(|kind| self.selects(*kind)) {
            return None;
        }
        object(raw.get(), &change, |key, value| {
            match (key, Members::read(value.get())) {
                ("value", Some(content)) => Member::needed(object(value.get(), &content, |name, raw| {
                    self.content(&field, number.as_deref(), name, raw)
                })),
                _ => Member::Same,
            }
        })
    }

    /// A member of `changes[].value`.
    fn content<'a>(&mut self, field: &str, number: Option<&str>, name: &str, raw: &'a RawValue) -> Member<'a> {
        let Some(kind) = part(field, name) else {
            return Member::Same;
        };
        if !self.selects(kind) {
            return Member::Out;
        }
        let edited = array(raw, |element| {
            self.note_people(number, element);
            match (kind, Members::read(element.get())) {
                (Kind::Statuses, Some(status)) => self.status(element.get(), &status),
                _ => Some(Cow::Borrowed(element.get())),
            }
        });
        edited.map_or(Member::Same, Member::Value)
    }

    fn status<'a>(&mut self, text: &'a str, status: &Members<'a>) -> Option<Cow<'a, str>> {
        object(text, status, |key, raw| {
            let opaque = (key == OPAQUE).then(|| value(raw)).flatten();
            let ours = opaque.as_ref().and_then(|text| OpaqueId::parse(text.as_str()?));
            match ours.and_then(|ours| (self.restore)(ours)) {
                None => Member::Same,
                Some(None) => Member::Out,
                Some(Some(own)) => Member::Value(Cow::Owned(json_text(&own))),
            }
        })
    }

    fn selects(&self, kind: Kind) -> bool {
        self.selection.kinds.as_ref().is_none_or(|kinds| kinds.contains(&kind))
    }

    /// The people that a message or a status names.
    fn note_people(&mut self, number: Option<&str>, element: &RawValue) {
        const PEOPLE: [&str; 8] = [
            "from",
            "from_user_id",
            "to",
            "to_user_id",
            "recipient_id",
            "recipient_user_id",
            "group_id",
            "recipient_group_id",
        ];
        let Some(members) = Members::read(element.get()) else {
            return;
        };
        for name in PEOPLE {
            if let Some(person) = members.string(name).filter(|person| !person.is_empty()) {
                self.note(number, &person);
            }
        }
    }

    fn note(&mut self, number: Option<&str>, whom: &str) {
        let mut hasher = DefaultHasher::new();
        (number, whom).hash(&mut hasher);
        self.about.push(hasher.finish());
    }
}

/// What a member of `changes[].value` tells; `None`: it is about the others.
fn part(field: &str, name: &str) -> Option<Kind> {
    match (field, name) {
        ("history", "messages" | "history") => Some(Kind::History),
        (_, "messages") => Some(Kind::Messages),
        (_, "statuses") => Some(Kind::Statuses),
        (_, "message_echoes") => Some(Kind::Echoes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = r#"{"from":"49151","id":"wamid.A","text":{"body":"caf\u00e9 \/ x"},"type":"text"}"#;

    fn envelope(changes: &[String]) -> Bytes {
        let changes = changes.join(",");
        Bytes::from(format!(
            r#"{{"object":"whatsapp_business_account", "entry":[{{"id":"1","changes":[{changes}]}}]}}"#
        ))
    }

    fn change(field: &str, number: &str, content: &str) -> String {
        format!(
            r#"{{"value":{{"messaging_product":"whatsapp","metadata":{{"phone_number_id":"{number}"}},{content}}},"field":"{field}"}}"#
        )
    }

    fn messages(number: &str) -> String {
        change("messages", number, &format!(r#""messages":[{MESSAGE}]"#))
    }

    fn status(opaque: &str) -> String {
        format!(r#"{{"id":"wamid.B","recipient_id":"49151","status":"sent"{opaque}}}"#)
    }

    fn handed(body: &Bytes, selection: &Selection) -> Option<Bytes> {
        hand_on(body, selection, &HashMap::new()).map(|handed| handed.body)
    }

    fn list(texts: &[&str]) -> Option<Vec<String>> {
        Some(texts.iter().map(|&text| text.to_owned()).collect())
    }

    #[test]
    fn what_is_not_changed_is_the_same_bytes_and_odd_bodies_go_to_those_who_get_everything() {
        let all = Selection::default();
        let some = Selection {
            numbers: list(&["1"]),
            ..Selection::default()
        };
        for body in [
            envelope(&[messages("1"), change("account_update", "1", r#""event":"x""#)]),
            Bytes::from_static(b"no JSON"),
            Bytes::from_static(b"\xff"),
            Bytes::from_static(b"{\"entry\": 1}"),
            Bytes::from_static(b"{\"entry\":[1, {\"changes\":2}, {\"changes\":[3]}]}"),
        ] {
            assert_eq!(handed(&body, &all), Some(body.clone()), "{body:?}");
            let for_one = handed(&body, &some);
            assert_eq!(
                for_one.is_some(),
                body.starts_with(b"{\"object"),
                "{body:?} {for_one:?}"
            );
        }
    }

    #[test]
    fn only_what_was_chosen_is_handed_on() {
        let both = change(
            "messages",
            "1",
            &format!(r#""messages":[{MESSAGE}],"statuses":[{}]"#, status("")),
        );
        let notice = r#"{"value":{"event":"x"},"field":"account_update"}"#.to_owned();
        let body = envelope(&[both.clone(), messages("2"), notice.clone()]);
        let of = |selection: Selection| handed(&body, &selection);
        let fields = |fields| Selection {
            fields: list(fields),
            ..Selection::default()
        };
        let numbers = |numbers| Selection {
            numbers: list(numbers),
            ..Selection::default()
        };
        let kinds = |kinds: &[Kind]| Selection {
            kinds: Some(kinds.to_vec()),
            ..Selection::default()
        };
        let compact = |changes: &[String]| {
            let text = String::from_utf8(envelope(changes).to_vec()).unwrap();
            Some(Bytes::from(text.replace(", \"entry", ",\"entry")))
        };
        assert_eq!(of(fields(&["account_update"])), compact(std::slice::from_ref(&notice)));
        assert_eq!(of(numbers(&["2"])), compact(&[messages("2")]));
        assert_eq!(of(kinds(&[Kind::Messages])), compact(&[messages("1"), messages("2")]));
        let statuses = change("messages", "1", &format!(r#""statuses":[{}]"#, status("")));
        assert_eq!(of(kinds(&[Kind::Statuses])), compact(&[statuses]));
        assert_eq!(of(kinds(&[Kind::Notices])), compact(&[notice]));
        assert_eq!(of(kinds(&[Kind::Echoes])), None);
        assert_eq!(of(numbers(&["3"])), None);
        assert_eq!(
            of(kinds(&[Kind::Messages, Kind::Statuses, Kind::Notices])),
            Some(body.clone())
        );
    }

    #[test]
    fn statuses_carry_the_clients_own_value_again() {
        let id = Uuid::from_u128(7);
        let echoed = |opaque: &str| {
            let opaque = format!(r#","{OPAQUE}":{opaque}"#);
            envelope(&[change("messages", "1", &format!(r#""statuses":[{}]"#, status(&opaque)))])
        };
        let ours = echoed(&format!("\"tl:{id}\""));
        assert_eq!(opaque_ids(&ours), [id]);
        let given = |own: Option<Option<&str>>| {
            let own = own.map(|own| (id, own.map(ToOwned::to_owned))).into_iter().collect();
            let body = hand_on(&ours, &Selection::default(), &own).unwrap().body;
            String::from_utf8(body.to_vec())
                .unwrap()
                .replace(",\"entry", ", \"entry")
        };
        let expected = |body: Bytes| String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(given(Some(Some("order \"17\""))), expected(echoed(r#""order \"17\"""#)));
        let none = envelope(&[change("messages", "1", &format!(r#""statuses":[{}]"#, status("")))]);
        assert_eq!(given(Some(None)), expected(none));
        // Another server's id, and what was never ours.
        assert_eq!(given(None), expected(ours.clone()));
        assert!(opaque_ids(&echoed("\"order-17\"")).is_empty());
    }

    #[test]
    fn webhooks_about_one_person_share_a_hash_and_others_do_not() {
        let about = |body: &Bytes| hand_on(body, &Selection::default(), &HashMap::new()).unwrap().about;
        let message = about(&envelope(&[messages("1")]));
        let report = about(&envelope(&[change(
            "messages",
            "1",
            &format!(r#""statuses":[{}]"#, status("")),
        )]));
        assert_eq!((message.len(), &message), (1, &report));
        assert_ne!(message, about(&envelope(&[messages("2")])));
        assert_eq!(about(&envelope(&[messages("1"), messages("2")])).len(), 2);
    }

    proptest::proptest! {
        #[test]
        fn any_body_is_handed_on_or_left_out_without_a_panic(text in "[\\[\\]{}\",:a-z0-9 ]{0,80}|\\{\"entry\":\\[\\{\"changes\":\\[.{0,60}") {
            let body = Bytes::from(text);
            let _ = hand_on(&body, &Selection { kinds: Some(vec![Kind::Messages]), ..Selection::default() }, &HashMap::new());
            proptest::prop_assert_eq!(handed(&body, &Selection::default()), Some(body));
        }
    }
}
