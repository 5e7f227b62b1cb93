//! The server's statements on the Site DB, and the connections that run them.
//!
//! Each table has one owner, a file or a folder that bears its name: no other one writes to it, and a query over two
//! tables stands with the one whose row it returns. The functions are typed, one statement or one transaction each, and
//! written so that any number of servers may run them at once (claims are `FOR UPDATE SKIP LOCKED`, changes of state are
//! conditional). The room decides nothing: when to send is the [`outbox`](crate::outbox)'s, what an event means the
//! [`inbox`](crate::inbox)'s.
//!
//! | module | its table or job |
//! |---|---|
//! | [`accounts`] | `whatsapp_accounts`: our numbers, their holds and throttles |
//! | [`leads`] | `leads`: who the people are |
//! | [`conversations`] | `conversations`: where a message belongs |
//! | [`messages`] | `whatsapp_messages`: every change is a transition with one writer |
//! | [`status_events`] | `message_status_events`: what Meta reported, as it came |
//! | [`notifications`] | `notifications`: what a person should look at |
//! | [`webhook_events`] | `webhook_events`: what Meta posted, byte for byte |
//! | [`number_leases`] | `twinlog.number_leases`: which process sends for a number |
//! | [`locks`] | advisory locks on things that have no row yet |
//! | `schema` | whether all of that is there |
//! | `pool` | [`Pool`] and [`Transaction`] |
//! | `column` | our enums and ids as `text` columns |
//! | `error` | [`SiteError`] |
//!
//! Driver: `sqlx`, and here alone; other rooms hold a [`Pool`] or a [`Transaction`] and pass it on. The statements are
//! checked by the tests on real Postgres rather than at compile time, so that building needs no database.

pub mod accounts;
mod column;
pub mod conversations;
mod error;
pub mod leads;
pub mod locks;
pub mod messages;
pub mod notifications;
pub mod number_leases;
mod pool;
mod schema;
pub mod status_events;
pub mod webhook_events;

pub use error::SiteError;
pub use messages::MessageStatus;
pub use pool::{Pool, Transaction};
pub use schema::check;

/// Text that a Postgres `text` column can hold: U+0000 is the one character that it can't.
#[must_use]
pub fn storable(text: &str) -> String {
    text.replace('\0', "")
}
