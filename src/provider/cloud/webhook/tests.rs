//! Webhooks as Meta sends them, and malformed ones.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::*;
use crate::provider::event::{Direction, Message, ReportedStatus};
use crate::provider::ids::Wamid;
use crate::provider::refusal::Code;

fn webhook(field: &str, value: &Value) -> Vec<u8> {
    json!({"object":"whatsapp_business_account","entry":[{"id":"WABA","changes":[{"field":field,"value":value}]}]})
        .to_string()
        .into_bytes()
}

fn messages(rest: &Value) -> Vec<Event> {
    let mut value = json!({"messaging_product":"whatsapp",
        "metadata":{"display_phone_number":"15550783881","phone_number_id":"106540352242922"}});
    for (key, member) in rest.as_object().expect("an object") {
        value[key] = member.clone();
    }
    parse(&webhook("messages", &value)).expect("a webhook")
}

fn message(event: &Event) -> &Message {
    match &event.content {
        Content::Message(message) | Content::Echo(message) | Content::History { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_is_read_with_its_sender() {
    let events = messages(&json!({
        "contacts":[{"profile":{"name":"Sheena","username":"@x"},"wa_id":"16505551234","user_id":"US.13"}],
        "messages":[{"from":"16505551234","id":"wamid.1","timestamp":"1749416383","type":"text","text":{"body":"hi"},
                     "context":{"from":"1","id":"wamid.0"},"referral":{"source_type":"ad"}}]}));
    let [event] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert!(event.is_real());
    assert_eq!(event.waba_id.as_deref(), Some("WABA"));
    assert_eq!(
        event.phone_number_id.as_ref().map(PhoneNumberId::as_str),
        Some("106540352242922")
    );
    let message = message(event);
    assert_eq!(message.contact.name.as_deref(), Some("Sheena"));
    assert_eq!(message.contact.user_id, UserId::parse("US.13"));
    assert_eq!(message.context, Wamid::parse("wamid.0"));
    assert_eq!(message.at.map(OffsetDateTime::unix_timestamp), Some(1_749_416_383));
    assert!(message.referral.is_some());
}

#[test]
fn a_user_without_a_number_is_known_by_the_user_id() {
    let events = messages(&json!({
        "contacts":[{"profile":{"name":"N"},"user_id":"US.13"}],
        "messages":[{"from_user_id":"US.13","id":"wamid.1","timestamp":"1","type":"text","text":{"body":"hi"}}]}));
    let contact = &message(&events[0]).contact;
    assert_eq!(
        (contact.wa_id.clone(), contact.user_id.clone()),
        (None, UserId::parse("US.13"))
    );
    assert_eq!(contact.name.as_deref(), Some("N"));
    // Not even named by the message: the only contact is it.
    let events = messages(&json!({"contacts":[{"user_id":"US.14"}],"messages":[{"id":"wamid.1","type":"text"}]}));
    assert_eq!(message(&events[0]).contact.user_id, UserId::parse("US.14"));
}

#[test]
fn senders_of_a_batch_are_not_mixed_up() {
    let events = messages(&json!({
        "contacts":[{"profile":{"name":"A"},"wa_id":"11111"},{"profile":{"name":"B"},"wa_id":"22222"}],
        "messages":[{"from":"22222","id":"w2","type":"text"},{"from":"11111","id":"w1","type":"text"},{"from":"33333","id":"w3","type":"text"}]}));
    let names: Vec<_> = events
        .iter()
        .map(|event| message(event).contact.name.as_deref())
        .collect();
    assert_eq!(names, [Some("B"), Some("A"), None]);
}

#[test]
fn a_system_notice_has_no_contacts_and_is_protocol() {
    let events = messages(
        &json!({"messages":[{"from":"11111","id":"w","type":"system","timestamp":"1",
        "system":{"body":"changed","wa_id":"22222","type":"user_changed_number"}}]}),
    );
    let change = message(&events[0]).change.as_ref().unwrap();
    assert_eq!(change.current.wa_id, WaId::parse("22222"));
    assert!(!events[0].is_real());
    assert_eq!(message(&events[0]).contact.wa_id, WaId::parse("11111"));
}

#[test]
fn a_malformed_event_is_alone_with_its_fault() {
    let body = br#"{"object":"whatsapp_business_account","entry":[7,{"id":"W","changes":[{"field":"messages","value":{
        "metadata":{"phone_number_id":"1"},
        "contacts":"none",
        "messages":[{"id":"ok","from":"11111","type":"text","text":{"body":"cut \ud83d"}},
                    {"from":"11111","type":"text"},
                    "no object",
                    {"id":"big","from":"11111","type":"text","n":1e999},
                    {"id":"nobody","type":"text"},
                    {"id":"ok2","from":"11111","type":"hologram"}],
        "statuses":{"not":"an array"}}},
        {"field":"messages"}]},{"id":"X","changes":[{"field":"brand_new","value":[1]}]}]}"#;
    let events = parse(body).expect("a webhook");
    let fates: Vec<_> = events
        .iter()
        .map(|event| match &event.content {
            Content::Message(message) => message.wamid.to_string(),
            Content::Other(_) => format!("other {}", event.field),
            Content::Malformed(why) => (*why).to_owned(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        fates,
        [
            "an entry is not an object",
            "ok",
            "a message without an id",
            "a message without an id",
            "a message is not readable JSON",
            "a message without a user",
            "ok2",
            "not an array",
            "a change has no value",
            "other brand_new",
        ]
    );
    assert_eq!(message(&events[1]).text.as_deref(), Some("cut \u{fffd}"));
}

#[test]
fn statuses_are_read_with_error_recipient_and_echo() {
    let events = messages(&json!({
        "contacts":[{"wa_id":"11111","user_id":"US.1"}],
        "statuses":[
            {"id":"w","status":"delivered","timestamp":1_750_030_073_i64,"recipient_id":"11111","biz_opaque_callback_data":"tl:00000000-0000-0000-0000-000000000007"},
            {"id":"w","status":"failed","timestamp":"1750030074","recipient_id":"11111","errors":[{"code":131_047,"title":"Re-engagement","error_data":{"details":"24 h"}}]},
            {"id":"g","status":"read","timestamp":"1","recipient_id":"GROUP","recipient_type":"group","recipient_participant_id":"22222"},
            {"id":"b","status":"sent","timestamp":"1","recipient_user_id":"US.2"},
            {"id":"x","status":"sent","timestamp":"soon"}]}));
    let statuses: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.content {
            Content::Status(status) => Some(status),
            _ => None,
        })
        .collect();
    // A status whose time can't be read counts too.
    assert_eq!((statuses.len(), statuses[4].at), (5, None));
    assert_eq!(statuses[0].opaque_id().map(|id| id.0.as_u128()), Some(7));
    assert_eq!(statuses[0].contact.user_id, UserId::parse("US.1"));
    assert_eq!(
        statuses[1].refusal.as_ref().and_then(|refusal| refusal.code),
        Some(Code::Documented(131_047))
    );
    let recipients: Vec<_> = statuses.iter().map(|status| status.recipient.as_str()).collect();
    assert_eq!(recipients, ["11111", "11111", "22222", "US.2", ""]);
    assert!(events.iter().all(|event| !event.is_real()));
}

#[test]
fn errors_echoes_and_history_are_told_apart() {
    let events = messages(&json!({"errors":[{"code":130_429,"title":"Rate limit hit"}]}));
    assert!(
        matches!(&events[0].content, Content::AccountError(error) if error.code == Some(Code::Documented(130_429)))
    );

    let value = json!({"metadata":{"display_phone_number":"+1 555 078 3881","phone_number_id":"1"},
        "message_echoes":[{"from":"15550783881","to":"11111","id":"w","timestamp":"1","type":"text","text":{"body":"from the phone"}}]});
    let events = parse(&webhook("smb_message_echoes", &value)).expect("a webhook");
    assert!(matches!(&events[0].content, Content::Echo(message) if message.contact.wa_id == WaId::parse("11111")));
    assert!(events[0].is_real());

    let value = json!({"metadata":{"display_phone_number":"15550783881","phone_number_id":"1"},
        "history":[{"metadata":{"phase":0},"threads":[{"id":"11111","context":{"wa_id":"11111","username":"@u"},"messages":[
            {"from":"15550783881","to":"11111","id":"h1","timestamp":"1","type":"text","text":{"body":"a"},"history_context":{"status":"READ"}},
            {"from":"11111","id":"h2","timestamp":"2","type":"text","text":{"body":"b"},"history_context":{"status":"PENDING"}}]}]},
          {"errors":[{"code":2_593_109,"title":"declined"}]}]});
    let events = parse(&webhook("history", &value)).expect("a webhook");
    let directions: Vec<_> = events
        .iter()
        .map(|event| match &event.content {
            Content::History {
                direction,
                status,
                message,
            } => {
                assert_eq!(message.contact.wa_id, WaId::parse("11111"));
                (Some(*direction), status.clone())
            }
            Content::AccountError(_) => (None, None),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        directions,
        [
            (Some(Direction::Outbound), Some(ReportedStatus::Read)),
            (Some(Direction::Inbound), Some(ReportedStatus::Accepted)),
            (None, None)
        ]
    );
}

#[test]
fn media_of_the_history_and_its_groups_are_read() {
    let value = json!({"metadata":{"display_phone_number":"15550783881","phone_number_id":"1"},
        "messages":[{"id":"m1","type":"image","image":{"id":"7","caption":"c"}},
            {"id":"m2","from":"15550783881","to":"11111","type":"audio","audio":{"id":"8"}}],
        "history":[{"threads":[
            {"id":"120363025246125486@g.us","messages":[{"from":"11111","id":"g1","timestamp":"1","type":"text","text":{"body":"a"}}]},
            {"id":"US.1","messages":[{"from_user_id":"US.1","id":"u1","timestamp":"1","type":"text","text":{"body":"a"}}]}]}]});
    let events = parse(&webhook("history", &value)).expect("a webhook");
    let read: Vec<_> = events
        .iter()
        .map(|event| match &event.content {
            Content::History { message, direction, .. } => (
                message.wamid.as_str(),
                *direction,
                message.group.as_deref(),
                message.contact.wa_id.as_ref().map(WaId::as_str),
                message.contact.user_id.as_ref().map(UserId::as_str),
            ),
            other => panic!("{other:?}"),
        })
        .collect();
    let group = Some("120363025246125486@g.us");
    assert_eq!(
        read,
        [
            ("m1", Direction::Inbound, None, None, None),
            ("m2", Direction::Outbound, None, Some("11111"), None),
            ("g1", Direction::Inbound, group, Some("11111"), None),
            ("u1", Direction::Inbound, None, None, Some("US.1")),
        ]
    );
}

#[test]
fn what_has_no_envelope_is_no_webhook() {
    for body in [&b""[..], b"[]", b"{}", b"nonsense", b"{\"entry\":7}", &[0xff, 0xfe]] {
        assert_eq!(parse(body), Err(NotAWebhook));
    }
    assert_eq!(parse(br#"{"entry":[]}"#), Ok(Vec::new()));
}

#[test]
fn what_may_stop_us_from_sending_is_told_from_other_news() {
    let read = |field: &str| {
        parse(&webhook(field, &json!({"event": "x"})))
            .expect("a webhook")
            .remove(0)
            .content
    };
    assert!(matches!(read("account_update"), Content::AccountNotice(_)));
    assert!(matches!(read("template_category_update"), Content::AccountNotice(_)));
    assert!(matches!(read("message_template_status_update"), Content::Other(_)));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..128)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn no_message_makes_it_panic(junk in "[\\[\\]{}\":,a-z0-9\\\\]{0,60}") {
        let body = format!(r#"{{"entry":[{{"changes":[{{"field":"messages","value":{{"messages":[{junk}]}}}}]}}]}}"#);
        let _ = parse(body.as_bytes());
    }
}

#[test]
fn a_webhook_of_a_million_empty_parts_is_a_hundred_events_and_a_word() {
    let million = |part: &str| format!(r#"{{"entry":[{}]}}"#, vec![part; 1_000_000].join(","));
    let events = parse(million("{}").as_bytes()).unwrap();
    assert_eq!(events.len(), MAX_MALFORMED + 1);
    let last = &events.last().unwrap().content;
    assert!(
        matches!(last, Content::Malformed(why) if why.contains("not listed")),
        "{last:?}"
    );
    let changes = vec![r#"{"field":"x","value":0}"#; 100_000].join(",");
    let events = parse(format!(r#"{{"entry":[{{"changes":[{changes}]}}]}}"#).as_bytes()).unwrap();
    assert_eq!(events.len(), MAX_EVENTS + 1);
    let last = &events.last().unwrap().content;
    assert!(
        matches!(last, Content::Malformed(why) if why.contains("not processed")),
        "{last:?}"
    );
}

#[test]
fn a_long_name_is_not_copied_to_each_event() {
    let long = "é".repeat(100_000);
    let value = json!({"messages": [{"id": "1"}, {"id": "2"}], "metadata": {"display_phone_number": long}});
    let body = json!({"entry": [{"id": long, "changes": [{"field": long, "value": value}]}]});
    for event in parse(body.to_string().as_bytes()).unwrap() {
        assert!(event.field.len() <= MAX_NAME && event.waba_id.is_none() && event.display_phone_number.is_none());
    }
}

#[test]
fn a_contact_in_the_other_form_of_the_senders_line_is_the_sender() {
    let events = messages(&json!({
        "contacts":[{"profile":{"name":"Other"},"wa_id":"16505550001","user_id":"US.1"},
                    {"profile":{"name":"Ana"},"wa_id":"5511987654321","user_id":"BR.44"}],
        "messages":[{"from":"551187654321","id":"wamid.1","timestamp":"1","type":"text","text":{"body":"x"}}]}));
    let contact = &message(&events[0]).contact;
    assert_eq!(contact.wa_id, WaId::parse("551187654321"));
    assert_eq!(contact.user_id, UserId::parse("BR.44"));
    assert_eq!(contact.name.as_deref(), Some("Ana"));
}

#[test]
fn groups_are_known_by_their_ids_in_echoes_and_in_the_history() {
    let value = |members: Value| {
        let mut value = json!({"messaging_product":"whatsapp",
            "metadata":{"display_phone_number":"15550783881","phone_number_id":"106540352242922"}});
        for (key, member) in members.as_object().expect("an object") {
            value[key] = member.clone();
        }
        value
    };
    let group = "Y2FwaV9ncm91cDoxOTUw";
    for to in [
        json!({"to": group, "recipient_type": "group"}),
        json!({"to": group}),
        json!({"to": "12036@g.us"}),
    ] {
        let mut echo = json!({"from":"15550783881","id":"wamid.E","timestamp":"1","type":"text","text":{"body":"x"}});
        for (key, member) in to.as_object().expect("an object") {
            echo[key] = member.clone();
        }
        let events =
            parse(&webhook("smb_message_echoes", &value(json!({"message_echoes":[echo]})))).expect("a webhook");
        let echo = message(&events[0]);
        assert_eq!(
            (echo.group.as_deref(), echo.contact.is_known()),
            (to["to"].as_str(), false),
            "{to}"
        );
    }
    let history = json!({"history":[{"metadata":{"phase":0,"chunk_order":1,"progress":1},"threads":[{"id":group,"messages":[
        {"from":"16505551234","id":"wamid.H","timestamp":"1","type":"text","text":{"body":"x"}}]}]}]});
    let events = parse(&webhook("history", &value(history))).expect("a webhook");
    let said = events
        .iter()
        .find(|event| matches!(event.content, Content::History { .. }))
        .expect("a message");
    let said = message(said);
    assert_eq!(
        (said.group.as_deref(), said.contact.wa_id.clone()),
        (Some(group), WaId::parse("16505551234"))
    );
}
