//! The server's statements on the Site DB, and the connections that run them.
//!
//! Each table has one owner, the module with its name: no other module writes to the table, and a query over two tables
//! belongs to the owner of the row that it returns. Each function is one statement or one transaction, and any number of
//! servers may run it at once (claims are `FOR UPDATE SKIP LOCKED`, changes of state are conditional). Nothing is decided
//! here: the [`outbox`](crate::outbox) decides when to send, the [`inbox`](crate::inbox) what an event means.
//!
//! | module | its table or job |
//! |---|---|
//! | [`accounts`] | `whatsapp_accounts`: our numbers, their holds and throttles |
//! | [`leads`] | `leads`, `lead_ids`, `lead_merges`, `twinlog.lead_statements`: who the people are |
//! | [`merging`] | leads that are one person are merged |
//! | [`conversations`] | `conversations`: where a message belongs |
//! | [`messages`] | `whatsapp_messages`: every change is a transition with one writer |
//! | [`status_events`] | `message_status_events`: what Meta reported, unchanged |
//! | [`early_media`] | `twinlog.early_media`: media of the history that came before their message |
//! | [`notifications`] | `notifications`: what a person should look at |
//! | [`webhook_events`] | `webhook_events`: what Meta posted, byte for byte |
//! | [`subscribers`], [`deliveries`] | `twinlog.subscribers`, `twinlog.deliveries`: receivers of webhooks, and what waits for them |
//! | [`events`] | `twinlog.events`: what listeners are told of, in order |
//! | [`event_rows`] | the rows that events are about, as people are shown them |
//! | [`number_leases`] | `twinlog.number_leases`: which process sends for a number |
//! | [`outbox_decisions`] | `twinlog.outbox_decisions`: what people have decided about messages |
//! | [`servers`] | `twinlog.servers`: what each running server reports about itself |
//! | [`media`] | `twinlog.uploaded_media`: whose medium an upload is |
//! | [`template_notices`] | `twinlog.template_notices`: which templates Meta has stopped, or will |
//! | [`locks`] | advisory locks on things that have no row yet |
//! | [`pages`] | what people leaf through: conversations, messages, leads |
//! | `shown` | rows as people are shown them |
//! | `schema` | checks that all these tables are there |
//! | `pool` | [`Pool`] and [`Transaction`] |
//! | `connect` | which statements are prepared on new connections |
//! | `column` | our enums and ids as `text` columns |
//! | `error` | [`SiteError`] |
//!
//! Only this module and two others use the driver, `sqlx` (`tests/it/architecture.rs` has the list); all others hold a
//! [`Pool`] or a [`Transaction`] and pass it on. Tests on a real Postgres check the statements, not the compiler, so that
//! building needs no database.

pub mod accounts;
mod column;
mod connect;
pub mod conversations;
pub mod deliveries;
pub mod early_media;
mod error;
pub mod event_rows;
pub mod events;
pub mod leads;
pub mod locks;
pub mod media;
pub mod merging;
pub mod messages;
pub mod notifications;
pub mod number_leases;
pub mod outbox_decisions;
pub mod pages;
mod pool;
mod schema;
pub mod servers;
mod shown;
pub mod status_events;
pub mod subscribers;
pub mod template_notices;
pub mod webhook_events;

pub use error::SiteError;
pub use messages::MessageStatus;
pub use pool::{Pool, PoolFigures, Transaction};
pub use schema::check;

/// Text that a Postgres `text` column can hold: U+0000 is the one character that it can't.
#[must_use]
pub fn storable(text: &str) -> String {
    text.replace('\0', "")
}
