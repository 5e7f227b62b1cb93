//! The oracle: every message that the simulator accepted, as Meta would know it, to be held against the Site DB.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use time::OffsetDateTime;

/// A message that was accepted: a person would have got it.
#[derive(Debug, Clone, Serialize)]
pub struct Accepted {
    /// The id that it got.
    pub wamid: String,
    /// The number that sent it.
    pub phone_number_id: String,
    /// The recipient as the request has it.
    pub to: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `biz_opaque_callback_data` of the request.
    pub opaque: Option<String>,
    /// SHA-256 of the request's bytes, in hexadecimal digits.
    pub body_sha256: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub accepted_at: OffsetDateTime,
    /// The statuses that were reported, in the order in which they were.
    pub statuses: Vec<Reported>,
}

/// A status that was reported.
#[derive(Debug, Clone, Serialize)]
pub struct Reported {
    /// Meta's word.
    pub status: String,
    /// Meta's code, for `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// All accepted messages in the order of their acceptance, and what people wrote.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Ledger {
    /// The messages.
    pub messages: Vec<Accepted>,
    /// The ids of what people wrote to the numbers.
    pub received: Vec<String>,
    /// Where each wamid is.
    #[serde(skip)]
    places: HashMap<String, usize>,
}

impl Ledger {
    /// Ids of ours under which more than one message was accepted: somebody got it twice.
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

    /// The message with this id.
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
