//! The replication connection: reach the source, log in, start the stream, read it fast, report what is durable.
//!
//! A client of our own, because no published driver supports CopyBoth: `postgres-protocol` has the messages and the SCRAM
//! exchange, the rest is here. Not here: what the payloads mean (`pgoutput`), and which position is durable (`replication`
//! decides it and passes it to [`Feedback`]). No higher position than that is ever reported.
//!
//! ```text
//!  ReplicationConnection ── start_replication ──→ (FrameStream, Feedback)
//!      │ connect, TLS, SCRAM (socket, auth)            ↑ batches of      │ durable(lsn)
//!      │ IDENTIFY_SYSTEM, CREATE/DROP slot             │ frames, bounded │ (watch)
//!      ▼                                               │ in bytes        ▼
//!  socket ───────────────────────────────────────→ Pump, on a thread of its own ── status updates ──→ source
//! ```
//!
//! **Why a thread of its own.** The pump reads the socket and sends the feedback. If applying a large batch could delay it,
//! the Site DB would end the connection after `wal_sender_timeout` and send everything again, endlessly (pitfall P17). A task
//! on the shared runtime would still have to wait for a worker. If the consumer is slow, the pump stops reading, so that TCP
//! slows the Site DB down, and goes on reporting.
//!
//! **Reading in quanta.** The walsender makes one `send` per row, and with an eager reader each of them costs a wake-up. While
//! there is a backlog, the pump lets the socket fill for about half a millisecond and then takes everything at once; `pace`
//! decides when. This needs the thread too: tokio's timers tick in milliseconds, and a wait of 2 ms was slower than one of
//! 0.5 ms. On its own thread the pump can sleep, exact to about 60 µs.
//!
//! | file | its job |
//! |---|---|
//! | `connection` | connect, login, queries, slots, the start of the stream |
//! | `socket`, `channel`, `auth` | TCP, Unix socket and TLS; whole messages over it; SCRAM and passwords |
//! | `codec` | bytes ↔ messages |
//! | `pump`, `pace` | the running stream, and when it reads |
//! | `stream` | the consumer's side: [`FrameStream`], [`Feedback`] |
//! | `slot`, `error` | names and identities; errors with their meaning and remedy |
//!
//! Sources: <https://www.postgresql.org/docs/current/protocol-replication.html>,
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod auth;
mod channel;
mod codec;
mod connection;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod pace;
mod pump;
mod slot;
mod socket;
mod stream;

pub use crate::timestamp::PgTimestamp;
pub use codec::Frame;
pub use connection::{CreatedSlot, ReplicationConnection, ValueForm};
pub use error::{Phase, ServerError, ServerFault, WireError};
pub use slot::{SlotName, SlotNameError, SystemIdentity};
pub use stream::{Feedback, FrameStream};
