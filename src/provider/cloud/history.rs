//! Meta's Message History API: which messages of a number Meta has, with their statuses. It tells neither the text nor our id of a
//! message. The recipient's number is in the wamid, which Meta does not document: without one that reads so, it is not known.
//!
//! Source: <https://developers.facebook.com/documentation/business-messaging/whatsapp/reference/whatsapp-business-phone-number/whatsapp-business-account-message-history-api>

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::client::{Account, PassedCall};
use super::error::GraphError;
use crate::provider::event::ReportedStatus;
use crate::provider::history::{HistoryEntry, HistoryError, HistoryEvent};
use crate::provider::ids::{WaId, Wamid};

/// The most that Meta gives in one page.
const PAGE: usize = 100;
/// Most pages of one look: what a number at Meta's usual limit of 80 messages a second sends in a minute.
const PAGES: usize = 50;
/// Percent-encoded: braces are no characters of a query.
const FIELDS: &str = "id,message_id,events%7Bdelivery_status,timestamp,error_description%7D";

#[derive(Deserialize)]
struct Page {
    data: Vec<Entry>,
    #[serde(default)]
    paging: Paging,
}

#[derive(Deserialize, Default)]
struct Paging {
    #[serde(default)]
    cursors: Cursors,
    /// A link; there only if there is another page.
    next: Option<String>,
}

#[derive(Deserialize, Default)]
struct Cursors {
    after: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    message_id: String,
    #[serde(default)]
    events: Events,
}

#[derive(Deserialize, Default)]
struct Events {
    #[serde(default)]
    data: Vec<Happened>,
}

#[derive(Deserialize)]
struct Happened {
    delivery_status: Option<String>,
    /// A number, or a text with one.
    timestamp: Option<Value>,
    error_description: Option<String>,
}

impl Account {
    /// The messages of the number to which something happened since then, by Meta's clock; they may be among others.
    ///
    /// # Errors
    /// Meta does not answer, refuses, or has more than is read.
    pub async fn history(&self, since: OffsetDateTime) -> Result<Vec<HistoryEntry>, HistoryError> {
        let mut entries = Vec::new();
        let mut after: Option<String> = None;
        for _ in 0..PAGES {
            let mut path = format!(
                "{}/{}/message_history?fields={FIELDS}&limit={PAGE}",
                self.version(),
                self.phone_number_id()
            );
            if let Some(after) = &after {
                let cursor: String = url::form_urlencoded::byte_serialize(after.as_bytes()).collect();
                path.push_str("&after=");
                path.push_str(&cursor);
            }
            let call = PassedCall {
                method: Method::GET,
                path,
                content_type: None,
                body: Bytes::new(),
            };
            let answer = self.pass(call).await.map_err(|error| HistoryError::NoAnswer(error.0))?;
            let page = read(answer.status, &answer.body)?;
            let is_last = page.data.is_empty();
            let of_page: Vec<HistoryEntry> = page.data.into_iter().filter_map(Entry::into_entry).collect();
            // The newest are first.
            let is_older = |entry: &HistoryEntry| entry.events.iter().all(|event| event.at < since);
            let ends = is_last || (!of_page.is_empty() && of_page.iter().all(is_older));
            entries.extend(of_page);
            after = page.paging.next.and(page.paging.cursors.after);
            if ends || after.is_none() {
                return Ok(entries);
            }
        }
        Err(HistoryError::TooLong)
    }
}

fn read(status: u16, body: &[u8]) -> Result<Page, HistoryError> {
    if let Some(error) = GraphError::from_body(body) {
        return Err(HistoryError::Refused(error.code));
    }
    if status != 200 {
        return Err(HistoryError::NoAnswer("another status than 200 came"));
    }
    serde_json::from_slice(body).map_err(|_| HistoryError::NoAnswer("the answer is no history"))
}

impl Entry {
    fn into_entry(self) -> Option<HistoryEntry> {
        let events = self.events.data.into_iter().filter_map(Happened::into_event).collect();
        Some(HistoryEntry {
            recipient: recipient(&self.message_id),
            wamid: Wamid::parse(&self.message_id)?,
            events,
        })
    }
}

impl Happened {
    fn into_event(self) -> Option<HistoryEvent> {
        let seconds = match self.timestamp? {
            Value::Number(number) => number.as_i64()?,
            Value::String(text) => text.parse().ok()?,
            _ => return None,
        };
        Some(HistoryEvent {
            status: ReportedStatus::parse(&self.delivery_status?.to_lowercase()),
            at: OffsetDateTime::from_unix_timestamp(seconds).ok()?,
            why: self.error_description,
        })
    }
}

/// The recipient's number in a wamid: in base64, some bytes, the number's length, its digits, and more.
fn recipient(wamid: &str) -> Option<WaId> {
    let text = wamid.strip_prefix("wamid.")?;
    let bytes = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok()?;
    (1..=4).find_map(|at| {
        let length = usize::from(*bytes.get(at)?);
        let digits = bytes.get(at + 1..at + 1 + length)?;
        let ends = bytes.get(at + 1 + length).is_none_or(|next| !next.is_ascii_digit());
        let is_number = (7..=15).contains(&length) && digits.iter().all(u8::is_ascii_digit) && ends;
        is_number.then(|| std::str::from_utf8(digits).ok().and_then(WaId::parse))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_metas_documentation_is_read() {
        let body = br#"{"data":[{"id":"1234567890123456","message_id":"wamid.HBgLMTY0NzM3Nzc3NzUVAgARGBI5QTNEQTA2RjdGMEY4RTRGAA==",
            "events":{"data":[{"id":"2345678901234567","delivery_status":"SENT","timestamp":1640995200,
            "webhook_update_state":"DELIVERED","application":{"id":"9876543210987654"}},
            {"id":"3","delivery_status":"DELIVERED","timestamp":"1640995260"}, {"id":"4"}]}},
            {"id":"5","message_id":"wamid.x"}],
            "paging":{"cursors":{"after":"MTAx","before":"MAZDZD"},"next":"https://graph.facebook.com/v23.0/1/message_history?after=MTAx"}}"#;
        let page = read(200, body).unwrap();
        assert!(page.paging.next.is_some() && page.paging.cursors.after.as_deref() == Some("MTAx"));
        let entries: Vec<HistoryEntry> = page.data.into_iter().filter_map(Entry::into_entry).collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].recipient, WaId::parse("16473777775"));
        let statuses: Vec<_> = entries[0].events.iter().map(|event| event.status.as_str()).collect();
        assert_eq!(statuses, ["sent", "delivered"]);
        assert_eq!(entries[0].began().unwrap().unix_timestamp(), 1_640_995_200);
        assert_eq!((entries[1].recipient.clone(), entries[1].began()), (None, None));
    }

    #[test]
    fn what_is_no_history_says_nothing() {
        let refused = br#"{"error":{"message":"(#10) no permission","code":10}}"#;
        assert_eq!(read(403, refused).err(), Some(HistoryError::Refused(10)));
        assert!(matches!(read(502, b"<html>").err(), Some(HistoryError::NoAnswer(_))));
        assert!(matches!(read(200, b"{}").err(), Some(HistoryError::NoAnswer(_))));
    }

    #[test]
    fn a_wamid_without_a_number_names_nobody() {
        for wamid in ["wamid.", "wamid.%", "gBGH", "wamid.AAAAAAAAAAAA", "wamid.HBgLMTY0NzM3"] {
            assert_eq!(recipient(wamid), None, "{wamid}");
        }
    }
}
