//! Meta's WhatsApp Business Cloud API: what comes in, what goes out, what an error means, and the client that calls it.
//!
//! Two rules for reading. Real requests and webhooks follow no strict schema (enums in upper case, numbers as strings,
//! missing objects), so nothing here models a whole body: we read the fields that we need and keep the bytes as they are.
//! And an event that can't be read does not affect the others. This module knows no database and no server.
//!
//! | module | its job |
//! |---|---|
//! | [`client`] | the HTTP client: sends a message, passes other calls on |
//! | [`checkup`] | what Meta says about a number, a token, an app: for `twinlog doctor` |
//! | [`media`] | uploads and downloads, streamed; `media_hosts`: where downloads may lead |
//! | [`secrets`] | cuts our access tokens from answers; [`json_strings`]: changes strings of a JSON text |
//! | [`answer`] | an HTTP answer to a send → accepted, refused or lost |
//! | [`send`] | the few fields of a send request that we read; our opaque id put into the body |
//! | `validate` | what a send of each type must have |
//! | [`error`] | Meta's error object and the one table of what a code means for the sender |
//! | [`webhook`] | a webhook's body → its events |
//! | [`handed_on`] | a webhook as it is handed on to another receiver |
//! | [`signature`] | `X-Hub-Signature-256` |
//! | [`probe`] | a signed body of our own that is answered and never stored |
//! | [`text`] | the text of a message that a person sees |
//! | `remedy` | what a person can do about a number that can't send |
//! | [`parameters`] | names of parameters that control a call, and are never passed on |
//! | [`references`] | which messages and media a message names |
//! | `members` | a JSON object as a list of members that are not parsed yet |
//!
//! Source: <https://developers.facebook.com/docs/whatsapp/cloud-api>

pub mod answer;
pub mod checkup;
pub mod client;
pub mod error;
pub mod handed_on;
pub mod history;
pub mod json_strings;
pub mod media;
mod media_hosts;
mod members;
pub mod parameters;
pub mod probe;
pub mod references;
mod remedy;
pub mod secrets;
pub mod send;
pub mod signature;
pub mod text;
mod validate;
pub mod webhook;

pub use client::{Account, Client, ClientSettings, ClientSetupError};
pub use error::{GraphError, classify};
pub use remedy::{remedy, stops_template};

/// The names of a JSON object's members, duplicates included; `None` if the text is anything else.
#[must_use]
pub fn json_members(text: &str) -> Option<Vec<String>> {
    Some(members::Members::read(text)?.names().map(ToOwned::to_owned).collect())
}
