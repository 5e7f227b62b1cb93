//! The server's statements on the Site DB, and the pool that runs them.
//!
//! Its job: typed functions over the business tables, one statement or one transaction each, written so that any number
//! of servers may run them at once (claims are `FOR UPDATE SKIP LOCKED`, changes of state are conditional). It decides
//! nothing: when to send is the [`outbox`](crate::outbox)'s, what an event means the [`inbox`](crate::inbox)'s.
//!
//! | module | its job |
//! |---|---|
//! | [`accounts`] | our numbers: rows, holds, throttles, leases |
//! | [`messages`] | outbound messages: up to the call, what it brought, what Meta reports |
//! | [`locks`] | advisory locks on things that have no row yet |
//! | [`leads`] | the lead and the conversation that every message belongs to |
//! | [`status_events`] | every report of Meta's about our messages, kept as it came |
//!
//! Driver: `sqlx`, checked at run time by the tests on real Postgres rather than at compile time, so that building needs
//! no database.

pub mod accounts;
mod error;
pub mod leads;
pub mod locks;
pub mod messages;
mod pool;
mod schema;
pub mod status_events;

pub use error::SiteError;
pub use messages::MessageStatus;
pub use pool::{Pool, connect};
pub use schema::check;

/// Text that a Postgres `text` column can hold: U+0000 is the one character that it can't.
#[must_use]
pub fn storable(text: &str) -> String {
    text.replace('\0', "")
}
