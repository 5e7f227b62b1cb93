//! Meta's WhatsApp Business Cloud API: what comes in, what goes out, what an error means, and the client that calls it.
//!
//! Two rules for reading. Real requests and webhooks follow no strict schema (enums in upper case, numbers as strings,
//! missing objects), so nothing here models a whole body: we read the fields that we need and keep the bytes as they are.
//! And an event that can't be read does not affect the others. This module knows no database and no server.
//!
//! | module | its job |
//! |---|---|
//! | [`client`] | the HTTP client: sends a message, passes other calls on |
//! | [`answer`] | an HTTP answer to a send → accepted, refused or lost |
//! | [`send`] | the few fields of a send request that we read; our opaque id put into the body |
//! | `validate` | what a send of each type must have |
//! | [`error`] | Meta's error object and the one table of what a code means for the sender |
//! | [`webhook`] | a webhook's body → its events |
//! | [`signature`] | `X-Hub-Signature-256` |
//! | [`text`] | the text of a message that a person sees |
//! | `remedy` | what a person can do about a number that can't send |
//! | `members` | a JSON object as a list of members that are not parsed yet |
//!
//! Source: <https://developers.facebook.com/docs/whatsapp/cloud-api>

pub mod answer;
pub mod client;
pub mod error;
mod members;
mod remedy;
pub mod send;
pub mod signature;
pub mod text;
mod validate;
pub mod webhook;

pub use client::{Account, Client, ClientSettings, ClientSetupError};
pub use error::{GraphError, classify};
pub use remedy::remedy;
