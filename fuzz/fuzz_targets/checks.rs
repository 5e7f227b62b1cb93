//! What must hold for any input, as one function for each target; they panic where it does not.
//!
//! `tests/it/fuzz_seeds.rs` includes this file as well and runs the checks over `fuzz/corpus`, so they are compiled and
//! passed with every `cargo test`. (The check of the wire's codec is `src/wire/fuzz.rs`: the codec is private.)
#![allow(dead_code, reason = "each target uses one of the checks")]

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;
use twinlog::change::{ColumnValue, Row};
use twinlog::pgoutput::{DecodeError, Message, OldTuple, decode};
use twinlog::provider::OpaqueId;
use twinlog::provider::cloud::send::{self, Request};
use twinlog::provider::cloud::{GraphError, answer, text, webhook as cloud_webhook};
use twinlog::provider::event::Content;
use uuid::Uuid;

/// A payload is one message, all of it and nothing else, and its values are slices of it.
pub(super) fn pgoutput(data: &[u8]) {
    let payload = Bytes::copy_from_slice(data);
    let Ok(message) = decode(payload.clone()) else {
        return;
    };
    assert_eq!(
        decode(payload.clone()).as_ref(),
        Ok(&message),
        "decoded twice, read twice"
    );

    let mut longer = data.to_vec();
    longer.push(0);
    assert_eq!(decode(longer.into()), Err(DecodeError::TrailingBytes(1)));
    assert!(
        decode(payload.slice(..data.len() - 1)).is_err(),
        "a cut message was read"
    );

    let inside = |row: &Row| {
        for value in &row.0 {
            if let ColumnValue::Text(text) = value
                && !text.is_empty()
            {
                let place = payload.as_ptr_range();
                assert!(place.contains(&text.as_ptr()), "a value was copied");
                assert!(
                    text.as_ptr_range().end <= place.end,
                    "a value goes on behind the payload"
                );
            }
        }
    };
    let inside_old = |old: &OldTuple| match old {
        OldTuple::Key(row) | OldTuple::Full(row) => inside(row),
        OldTuple::Absent => {}
    };
    match &message {
        Message::Insert(insert) => inside(&insert.row),
        Message::Update(update) => {
            inside_old(&update.old);
            inside(&update.row);
        }
        Message::Delete(delete) => {
            assert_ne!(delete.old, OldTuple::Absent);
            inside_old(&delete.old);
        }
        _ => {}
    }
}

/// A body is read or refused as a whole; each part has its answers to what the inbox asks.
pub(super) fn webhook(data: &[u8]) {
    let Ok(parts) = cloud_webhook::parse(data) else {
        return;
    };
    // An empty object or array is the least that makes a part.
    assert!(parts.len() <= data.len() / 2, "more parts than the body has room for");
    for part in &parts {
        let _ = part.is_real();
        if let Content::Status(status) = &part.content {
            let _ = status.opaque_id();
        }
        // The log prints parts that failed; it must not stumble over them.
        let _ = format!("{part:?}");
    }
}

/// Our id is the only thing that changes: the request means the same, and every other member keeps its bytes.
pub(super) fn send_body(data: &[u8]) {
    const ID: OpaqueId = OpaqueId(Uuid::from_u128(7));
    const KEY: &str = "biz_opaque_callback_data";

    // The same bytes as an answer of Meta's.
    if let Some(error) = GraphError::from_body(data) {
        let _ = (error.class(400), error.refusal(400, None), error.summary());
        assert!(GraphError::from_body(error.to_body().to_string().as_bytes()).is_some());
    }
    let _ = answer::accepted(data);
    if let Ok(value) = serde_json::from_slice(data) {
        let _ = text::of_message("text", &value);
    }

    let request = send::read(data);
    let Ok(sent) = send::outgoing(data, ID) else {
        assert!(request.is_err(), "a request was read, but our id cannot be put into it");
        return;
    };
    match (request, send::read(&sent)) {
        (Ok(Request::Message(mut before)), Ok(Request::Message(after))) => {
            before.client_opaque = Some(ID.to_string());
            assert_eq!(before, after);
        }
        (Ok(before), Ok(after)) => assert_eq!(before, after),
        (Ok(before), Err(error)) => panic!("{before:?} can be read no more: {error:?}"),
        // The client's own value was too long, and is gone.
        (Err(_), _) => {}
    }
    let members = |body: &[u8]| serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(body);
    if let (Ok(mut before), Ok(mut after)) = (members(data), members(&sent)) {
        assert_eq!(
            after.remove(KEY).map(|id| id.get().to_owned()),
            Some(format!("\"{ID}\""))
        );
        before.remove(KEY);
        // Marks that nobody sees are taken out of a recipient.
        for recipient in ["to", "recipient"] {
            assert_eq!(before.remove(recipient).is_some(), after.remove(recipient).is_some());
        }
        let text = |(key, value): (String, Box<RawValue>)| (key, value.get().to_owned());
        assert!(
            before.into_iter().map(text).eq(after.into_iter().map(text)),
            "another member changed"
        );
    }
}
