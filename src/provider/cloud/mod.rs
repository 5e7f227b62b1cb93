//! Meta's WhatsApp Business Cloud API in types: what comes in, what goes out, what an error means.
//!
//! Pure: it knows no database, no server and no client. Two rules shape it. The wire is looser than any schema (enums in
//! upper case, numbers as strings, objects that are missing), so nothing here models a whole body: it reads what we
//! need and leaves the bytes alone. And what can't be read is one part's failure, never its neighbours'.
//!
//! | module | its job |
//! |---|---|
//! | [`error`] | Meta's error object and the one table of what a code means for the sender |
//! | [`signature`] | `X-Hub-Signature-256` |
//! | [`webhook`] | a webhook's body → its parts |
//! | [`send`] | a send request's and its answer's few fields; our opaque id put into the bytes |
//! | `content` | what a send of each type must have |
//! | [`text`] | the line that a person reads of a message |
//!
//! Source: <https://developers.facebook.com/docs/whatsapp/cloud-api>

mod content;
pub mod error;
mod members;
pub mod send;
pub mod signature;
pub mod text;
pub mod webhook;

pub use error::{GraphError, classify};
