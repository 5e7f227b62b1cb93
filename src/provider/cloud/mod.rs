//! Meta's WhatsApp Business Cloud API: what comes in, what goes out, what an error means, and the client that calls it.
//!
//! Two rules shape the reading. The wire is looser than any schema (enums in upper case, numbers as strings, objects that
//! are missing), so nothing here models a whole body: it reads what we need and leaves the bytes alone. And what can't be
//! read is one event's failure, never its neighbours'. It knows no database and no server.
//!
//! | module | its job |
//! |---|---|
//! | [`client`] | the HTTP client: sends a message, passes other calls on |
//! | [`answer`] | an HTTP answer to a send → what came of it |
//! | [`send`] | a send request's few fields; our opaque id put into the bytes |
//! | `validate` | what a send of each type must have |
//! | [`error`] | Meta's error object and the one table of what a code means for the sender |
//! | [`webhook`] | a webhook's body → its events |
//! | [`signature`] | `X-Hub-Signature-256` |
//! | [`text`] | the line that a person reads of a message |
//! | `members` | a JSON object as its members, each still the bytes it came in |
//!
//! Source: <https://developers.facebook.com/docs/whatsapp/cloud-api>

pub mod answer;
pub mod client;
pub mod error;
mod members;
pub mod send;
pub mod signature;
pub mod text;
mod validate;
pub mod webhook;

pub use client::{Account, Client, ClientSettings, ClientSetupError};
pub use error::{GraphError, classify};
