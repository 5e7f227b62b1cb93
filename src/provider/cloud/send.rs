//! A send request: reads the few fields that we need, and puts our opaque id into the client's body.
//!
//! Except for that id (and marks that nobody sees in a recipient), the body is sent byte for byte. Parsing and writing it again would break some clients: pywa sends
//! explicit nulls, others upper-case enums or coordinates as strings, and Meta accepts them all. So we check only what we
//! need, and leave the rest to Meta.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::error::{GraphError, invalid, missing};
use super::members::{Members, scalar};
use super::parameters;
use super::text;
use super::validate;
use crate::provider::copied;
use crate::provider::ids::{ContactIdentity, Wamid};
use crate::provider::opaque::OpaqueId;
use crate::provider::outbound::Outbound;

/// The member that carries our id.
const OPAQUE_KEY: &str = "biz_opaque_callback_data";
/// Meta's limit for it, in characters.
const MAX_OPAQUE: usize = 512;
/// Longest type name that we store; Meta's longest is 17 characters.
const MAX_KIND: usize = 64;

/// A request to `POST /{phone_number_id}/messages`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A message to a user or a group.
    Message(Outbound),
    /// Mark as read, perhaps with the typing indicator: no message, nothing to store.
    MarkAsRead {
        /// The user's message.
        wamid: Wamid,
        /// Whether the user sees us typing.
        typing: bool,
    },
}

/// Reads a request.
///
/// # Errors
/// An error in Meta's shape for the client; nothing may be stored or sent.
pub fn read(body: &[u8]) -> Result<Request, GraphError> {
    let members = members(body)?;
    if members.string("messaging_product").as_deref() != Some("whatsapp") {
        return Err(GraphError::new(
            100,
            "The parameter messaging_product is required and must be whatsapp.",
        ));
    }
    if let Some(name) = members.names().find(|name| parameters::is_control(name)) {
        return Err(GraphError::new(100, "Invalid parameter").with_details(format!(
            "the member {name:?} is not passed on; the token belongs into the Authorization header"
        )));
    }
    if members.get("type").is_none()
        && members
            .string("status")
            .is_some_and(|status| status.eq_ignore_ascii_case("read"))
    {
        return mark_as_read(&members);
    }

    let recipient = members
        .string("to")
        .filter(|to| !to.trim().is_empty())
        .or_else(|| members.string("recipient").filter(|id| !id.trim().is_empty()))
        .ok_or_else(|| missing("to"))?;
    if recipient.len() > MAX_OPAQUE {
        return Err(invalid("to"));
    }
    let (recipient, contact) = if is_to_group(&members) {
        (recipient, None)
    } else {
        let contact = ContactIdentity::from_recipient(&recipient).ok_or_else(|| invalid("to"))?;
        (copied::plain(&recipient).into_owned(), Some(contact))
    };
    if recipient.contains(char::is_control) {
        return Err(invalid("to"));
    }

    // Without a type, Meta reads it as a text.
    let kind = match members.get("type") {
        Some(_) => members.string("type").ok_or_else(|| invalid("type"))?,
        None => "text".to_owned(),
    };
    if kind.is_empty() || kind.len() > MAX_KIND || kind.contains(char::is_control) {
        return Err(invalid("type"));
    }
    let kind = kind.to_ascii_lowercase();
    let content = members.value(&kind).ok_or_else(|| missing(&kind))?;
    validate::check(&kind, &content)?;

    let client_opaque = members.value(OPAQUE_KEY).as_ref().and_then(scalar);
    if client_opaque
        .as_ref()
        .is_some_and(|opaque| opaque.chars().count() > MAX_OPAQUE)
    {
        return Err(invalid(OPAQUE_KEY));
    }
    let context = members
        .value("context")
        .and_then(|context| Wamid::parse(context.get("message_id")?.as_str()?));
    let text = text::of_message(&kind, &Value::Object([(kind.clone(), content)].into_iter().collect()));
    Ok(Request::Message(Outbound {
        kind,
        recipient,
        contact,
        context,
        client_opaque,
        text,
    }))
}

/// Reads a request that marks a message as read. A member beside those of such a request is an error: what else Meta would
/// make of it is not known, and it must not become a message.
fn mark_as_read(members: &Members<'_>) -> Result<Request, GraphError> {
    // An opaque value is taken and left out: no report would bring it back.
    const MEMBERS: [&str; 5] = [
        "messaging_product",
        "status",
        "message_id",
        "typing_indicator",
        OPAQUE_KEY,
    ];
    if let Some(other) = members
        .names()
        .find(|name| !MEMBERS.contains(name) && members.get(name).is_some())
    {
        return Err(GraphError::new(100, "Invalid parameter").with_details(format!(
            "a request that marks a message as read has no member {other:?}"
        )));
    }
    let wamid = members.string("message_id").and_then(|id| Wamid::parse(&id));
    let typing = match members.value("typing_indicator") {
        None => false,
        Some(Value::Object(indicator)) if indicator.keys().all(|key| key == "type") => true,
        Some(_) => return Err(invalid("typing_indicator")),
    };
    Ok(Request::MarkAsRead {
        wamid: wamid.ok_or_else(|| missing("message_id"))?,
        typing,
    })
}

/// The body that marks a message as read: made anew, so that nothing else goes along.
#[must_use]
pub fn read_receipt(wamid: &Wamid, typing: bool) -> Vec<u8> {
    let mut body = json!({"messaging_product": "whatsapp", "status": "read", "message_id": wamid});
    if typing {
        body["typing_indicator"] = json!({"type": "text"});
    }
    body.to_string().into_bytes()
}

/// The body as it goes out: with our id as its `biz_opaque_callback_data`, and a recipient without marks that nobody sees
/// (see [`copied`]); every other byte is unchanged.
///
/// Values are replaced in place (in both places if a key is there twice, because readers differ in which one counts);
/// without a value of the client's, our id is inserted at the front. Keys are compared after unescaping, and only at the
/// top level.
///
/// # Errors
/// The body is not a JSON object.
pub fn outgoing(body: &[u8], id: OpaqueId) -> Result<Vec<u8>, GraphError> {
    let members = members(body)?;
    let ours = format!("\"{id}\"");
    // A raw value is a slice of the body, so the difference of the two addresses is its offset.
    let offset = |value: &RawValue| value.get().as_ptr().addr() - body.as_ptr().addr();
    let mut replaced: Vec<(usize, usize, String)> = members
        .all(OPAQUE_KEY)
        .map(|value| (offset(value), value.get().len(), ours.clone()))
        .collect();
    let has_id = !replaced.is_empty();
    if !is_to_group(&members) {
        for value in members.all("to").chain(members.all("recipient")) {
            replaced.extend(plain_recipient(value).map(|plain| (offset(value), value.get().len(), plain)));
        }
    }
    replaced.sort_unstable_by_key(|(start, ..)| *start);
    let mut out = Vec::with_capacity(body.len() + OPAQUE_KEY.len() + ours.len() + 4);
    let mut copied = 0;
    if !has_id {
        // The object's brace is the first byte that is not white space; `members` has seen that it is there.
        copied = body.iter().position(|&byte| byte == b'{').map_or(0, |brace| brace + 1);
        out.extend_from_slice(body.get(..copied).unwrap_or_default());
        out.extend_from_slice(format!("\"{OPAQUE_KEY}\":{ours}").as_bytes());
        if !members.is_empty() {
            out.push(b',');
        }
    }
    for (start, length, value) in replaced {
        out.extend_from_slice(body.get(copied..start).unwrap_or_default());
        out.extend_from_slice(value.as_bytes());
        copied = start + length;
    }
    out.extend_from_slice(body.get(copied..).unwrap_or_default());
    Ok(out)
}

/// A recipient's value as it goes out, if that is not as the client wrote it.
fn plain_recipient(value: &RawValue) -> Option<String> {
    let recipient: String = serde_json::from_str(value.get()).ok()?;
    if recipient.is_ascii() {
        return None;
    }
    ContactIdentity::from_recipient(&recipient)?;
    Some(Value::from(copied::plain(&recipient)).to_string())
}

fn is_to_group(members: &Members<'_>) -> bool {
    let kind = members.string("recipient_type");
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case("group"))
}

fn members(body: &[u8]) -> Result<Members<'_>, GraphError> {
    std::str::from_utf8(body)
        .ok()
        .and_then(Members::read)
        .ok_or_else(|| GraphError::new(100, "Invalid parameter").with_details("the body is not a JSON object"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::provider::ids::{UserId, WaId};

    const ID: OpaqueId = OpaqueId(Uuid::from_u128(7));
    const OURS: &str = "\"tl:00000000-0000-0000-0000-000000000007\"";

    fn message(body: &str) -> Outbound {
        match read(body.as_bytes()) {
            Ok(Request::Message(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_text_is_read() {
        let read = message(
            r#"{"messaging_product":"whatsapp","to":"+1 650 555-1234","type":"text","text":{"body":"hi"},
                "context":{"message_id":"wamid.Q"},"biz_opaque_callback_data":"mine"}"#,
        );
        assert_eq!(read.kind, "text");
        assert_eq!(read.recipient, "+1 650 555-1234");
        assert_eq!(
            read.contact.and_then(|contact| contact.wa_id),
            WaId::parse("16505551234")
        );
        assert_eq!(read.context.map(|wamid| wamid.to_string()).as_deref(), Some("wamid.Q"));
        assert_eq!(read.client_opaque.as_deref(), Some("mine"));
        assert_eq!(read.text.as_deref(), Some("hi"));
    }

    #[test]
    fn the_looseness_of_real_clients_is_taken() {
        let upper = message(
            r#"{"messaging_product":"whatsapp","to":16505551234,"type":"TEXT","text":{"body":"x"},"context":null}"#,
        );
        assert_eq!((upper.kind.as_str(), upper.recipient.as_str()), ("text", "16505551234"));
        let untyped = message(r#"{"messaging_product":"whatsapp","to":"16505551234","text":{"body":"x"}}"#);
        assert_eq!(untyped.kind, "text");
        let hidden =
            message(r#"{"messaging_product":"whatsapp","recipient":"US.1","type":"text","text":{"body":"x"}}"#);
        assert_eq!(
            hidden.contact.and_then(|contact| contact.user_id),
            UserId::parse("US.1")
        );
        let both = message(
            r#"{"messaging_product":"whatsapp","to":"16505551234","recipient":"US.1","type":"text","text":{"body":"x"}}"#,
        );
        assert_eq!(both.recipient, "16505551234");
        let group = message(
            r#"{"messaging_product":"whatsapp","recipient_type":"group","to":"Y2FwaV9ncm91cA","type":"text","text":{"body":"x"}}"#,
        );
        assert_eq!(group.contact, None);
    }

    #[test]
    fn marking_as_read_is_no_message() {
        for (body, typing) in [
            (
                r#"{"messaging_product":"whatsapp","status":"read","message_id":"wamid.I"}"#,
                false,
            ),
            (
                r#"{"messaging_product":"whatsapp","status":"read","message_id":"wamid.I","typing_indicator":{"type":"text"}}"#,
                true,
            ),
        ] {
            assert!(
                matches!(read(body.as_bytes()), Ok(Request::MarkAsRead { typing: read, .. }) if read == typing),
                "{body}"
            );
        }
    }

    #[test]
    fn a_body_that_we_cannot_work_with_is_refused_in_metas_words() {
        for (body, code) in [
            ("", 100),
            ("[]", 100),
            ("{", 100),
            ("{}", 100),
            (
                r#"{"messaging_product":"whatsapp","type":"text","text":{"body":"x"}}"#,
                131_008,
            ),
            (
                r#"{"messaging_product":"whatsapp","to":"","type":"text","text":{"body":"x"}}"#,
                131_008,
            ),
            (
                r#"{"messaging_product":"whatsapp","to":"nobody","type":"text","text":{"body":"x"}}"#,
                131_009,
            ),
            (
                r#"{"messaging_product":"whatsapp","to":"16505551234","type":"text"}"#,
                131_008,
            ),
            (r#"{"messaging_product":"whatsapp","status":"read"}"#, 131_008),
        ] {
            assert_eq!(read(body.as_bytes()).expect_err(body).code, code, "{body}");
        }
        let long = json!({"messaging_product":"whatsapp","to":"16505551234","text":{"body":"x"},"biz_opaque_callback_data":"é".repeat(513)});
        assert_eq!(read(long.to_string().as_bytes()).expect_err("too long").code, 131_009);
    }

    #[test]
    fn our_id_goes_in_and_nothing_else_changes() {
        for (body, expected) in [
            ("{}", format!("{{\"biz_opaque_callback_data\":{OURS}}}")),
            (
                " \n{ \"a\" : 1 }\t",
                format!(" \n{{\"biz_opaque_callback_data\":{OURS}, \"a\" : 1 }}\t"),
            ),
            (
                r#"{"a":{"biz_opaque_callback_data":"deep"},"t":"caf\u00e9 \/ \"biz_opaque_callback_data\":\"x\""}"#,
                format!(
                    r#"{{"biz_opaque_callback_data":{OURS},"a":{{"biz_opaque_callback_data":"deep"}},"t":"caf\u00e9 \/ \"biz_opaque_callback_data\":\"x\""}}"#
                ),
            ),
            (
                r#"{"a":1, "biz_opaque_callback_data" : "th\"ei\\rs" ,"b":[2,{"x":null}]}"#,
                format!(r#"{{"a":1, "biz_opaque_callback_data" : {OURS} ,"b":[2,{{"x":null}}]}}"#),
            ),
            (
                r#"{"biz_opaque_callback_data":"1","x":"biz_opaque_callback_data","biz_opaque_callback_dat\u0061":{"y":[1]}}"#,
                format!(
                    r#"{{"biz_opaque_callback_data":{OURS},"x":"biz_opaque_callback_data","biz_opaque_callback_dat\u0061":{OURS}}}"#
                ),
            ),
            (
                r#"{"biz_opaque_callback_data":null}"#,
                format!(r#"{{"biz_opaque_callback_data":{OURS}}}"#),
            ),
        ] {
            let out = outgoing(body.as_bytes(), ID).expect("an object");
            assert_eq!(String::from_utf8(out).expect("UTF-8"), expected);
        }
        assert!(outgoing(b"[]", ID).is_err());
        assert!(outgoing(b"{\"a\":}", ID).is_err());
        assert!(outgoing(&[b'{', 0xff, b'}'], ID).is_err());
    }

    #[test]
    fn a_recipient_goes_out_as_everybody_reads_it() {
        let message = |to: &str| {
            format!(r#"{{"messaging_product":"whatsapp","to": "{to}" ,"type":"text","text":{{"body":"\u200ex"}}}}"#)
        };
        for (copied, sent) in [
            ("\u{202a}+1 650-555-1234\u{202c}", "+1 650-555-1234"),
            (r"\u202a+1\u00a0650\u200e5551234", "+1 6505551234"),
            ("＋１６５０５５５１２３４", "+16505551234"),
            ("\u{200e}US.13", "US.13"),
        ] {
            let out = outgoing(message(copied).as_bytes(), ID).expect("an object");
            let expected = outgoing(message(sent).as_bytes(), ID).expect("an object");
            assert_eq!(out, expected, "{copied:?}");
            match read(message(copied).as_bytes()) {
                Ok(Request::Message(read)) => assert_eq!(read.recipient, sent),
                other => panic!("{other:?}"),
            }
        }
        // What Meta takes as it is, and a group's id, stay as they are.
        for body in [
            message(" +1 (650) 555-1234 "),
            message("caf\u{e9}"),
            r#"{"recipient_type":"group","to":"\u200eabc"}"#.to_owned(),
        ] {
            let out = String::from_utf8(outgoing(body.as_bytes(), ID).expect("an object")).expect("UTF-8");
            assert!(out.ends_with(&body[1..]), "{out}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key(), inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn key() -> impl Strategy<Value = String> {
        prop_oneof![3 => ".{0,8}", 1 => Just(OPAQUE_KEY.to_owned())]
    }

    proptest! {
        #[test]
        fn surgery_changes_one_member_and_no_other_byte(
            members in prop::collection::vec((key(), any_json(), "[ \n\t\r]{0,3}"), 0..6),
        ) {
            // An object written with free white space, and duplicates where they come.
            let mut body = String::from(" {");
            for (index, (key, value, space)) in members.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                body.push_str(&format!("{comma}{space}{}{space}:{space}{value}{space}", Value::from(key.as_str())));
            }
            body.push('}');
            let out = String::from_utf8(outgoing(body.as_bytes(), ID).expect("an object")).expect("UTF-8");

            // Read again, our id is there, and all else means the same.
            let before: Value = serde_json::from_str(&body).expect("JSON");
            let mut after: Value = serde_json::from_str(&out).expect("JSON");
            prop_assert_eq!(&after[OPAQUE_KEY], &Value::from(ID.to_string()));
            let theirs = before.get(OPAQUE_KEY).cloned();
            match theirs {
                Some(theirs) => after[OPAQUE_KEY] = theirs,
                None => { after.as_object_mut().expect("an object").remove(OPAQUE_KEY); }
            }
            prop_assert_eq!(&after, &before);

            // Byte for byte: without the client's key, taking ours out gives the body back.
            if before.get(OPAQUE_KEY).is_none() {
                let member = format!("\"{OPAQUE_KEY}\":{OURS}");
                let restored = out.replacen(&format!("{member},"), "", 1).replacen(&member, "", 1);
                prop_assert_eq!(restored, body);
            } else {
                // With it, what we replaced are exactly its values.
                let mut expected = body.clone();
                let values: Vec<_> = Members::read(&body).expect("an object").all(OPAQUE_KEY)
                    .map(|value| (value.get().as_ptr().addr() - body.as_ptr().addr(), value.get().len()))
                    .collect();
                for &(start, length) in values.iter().rev() {
                    expected.replace_range(start..start + length, OURS);
                }
                prop_assert_eq!(out, expected);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&bytes);
            let _ = outgoing(&bytes, ID);
        }
    }
}
