//! The server's statements on the Site DB, and the pool that runs them.
//!
//! Its job: typed functions over the business tables, one statement or one transaction each, written so that any number
//! of servers may run them at once (claims are `FOR UPDATE SKIP LOCKED`, changes of state are conditional). It decides
//! nothing: when to send is the [`outbox`](crate::outbox)'s, what an event means the [`inbox`](crate::inbox)'s.
//!
//! Driver: `sqlx`, checked at run time by the tests on real Postgres rather than at compile time, so that building needs
//! no database.

pub mod accounts;
mod error;
pub mod messages;
pub mod outcomes;
mod pool;
mod schema;
mod status;

pub use error::SiteError;
pub use pool::{Pool, connect};
pub use schema::check;
pub use status::MessageStatus;

/// Text that a Postgres `text` column can hold: U+0000 is the one character that it can't.
#[must_use]
pub fn storable(text: &str) -> String {
    text.replace('\0', "")
}
