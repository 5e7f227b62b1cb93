//! The ledger: every message that the simulator accepted, to be compared with the Site DB.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use time::OffsetDateTime;

/// A message that was accepted: with Meta, a person would have received it.
#[derive(Debug, Clone, Serialize)]
pub struct Accepted {
    /// The message's id in the answer.
    pub wamid: String,
    /// The business number that sent it.
    pub phone_number_id: String,
    /// The recipient as the request has it.
    pub to: String,
    /// `text`, `image`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// `biz_opaque_callback_data` of the request.
    pub opaque: Option<String>,
    /// Whether its statuses carry that.
    pub echoes: bool,
    /// SHA-256 of the request's bytes, in hexadecimal digits.
    pub body_sha256: String,
    /// By this machine's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub accepted_at: OffsetDateTime,
    /// The statuses that were reported, in the order in which they were.
    pub statuses: Vec<Reported>,
}

/// A status that was reported.
#[derive(Debug, Clone, Serialize)]
pub struct Reported {
    /// Meta's word: `sent`, `delivered`, `read`, `failed`.
    pub status: String,
    /// Meta's error code, for `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    /// By this machine's clock; the callback may get it later.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// All accepted messages in the order of their acceptance, and what users wrote.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Ledger {
    /// What was sent through the API.
    pub messages: Vec<Accepted>,
    /// The wamids of what users wrote.
    pub received: Vec<String>,
    /// wamid → position in `messages`.
    #[serde(skip)]
    places: HashMap<String, usize>,
}

impl Ledger {
    /// Values of `biz_opaque_callback_data` with which more than one message was accepted: a person received it twice.
    #[must_use]
    pub fn duplicates(&self) -> Vec<&str> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for opaque in self.messages.iter().filter_map(|message| message.opaque.as_deref()) {
            *counts.entry(opaque).or_default() += 1;
        }
        counts
            .into_iter()
            .filter(|&(_, count)| count > 1)
            .map(|(opaque, _)| opaque)
            .collect()
    }

    /// The accepted message with this wamid.
    #[must_use]
    pub fn find(&self, wamid: &str) -> Option<&Accepted> {
        self.messages.get(*self.places.get(wamid)?)
    }

    pub(super) fn receive(&mut self, wamid: &str) {
        self.received.push(wamid.to_owned());
    }

    pub(super) fn accept(&mut self, message: Accepted) {
        self.places.insert(message.wamid.clone(), self.messages.len());
        self.messages.push(message);
    }

    pub(super) fn report(&mut self, wamid: &str, status: &str, code: Option<i64>) {
        if let Some(message) = self.places.get(wamid).and_then(|&place| self.messages.get_mut(place)) {
            message.statuses.push(Reported {
                status: status.to_owned(),
                code,
                at: OffsetDateTime::now_utc(),
            });
        }
    }
}
