//! The replication connection: reach the source, log in, start the stream, read it fast, report what is durable.
//!
//! Its own client, because no driver that we may use speaks CopyBoth: `postgres-protocol` supplies the messages and the
//! SCRAM exchange, the rest is here. The stream's payloads are opaque bytes to it (`pgoutput` reads them), and it never
//! decides which position is durable (`replication` does, and tells [`Feedback`]); it only promises never to report more
//! than it was told.
//!
//! ```text
//!  ReplicationConnection ── start_replication ──→ (FrameStream, Feedback)
//!      │ connect, TLS, SCRAM (socket, auth)            ↑ batches of      │ durable(lsn)
//!      │ IDENTIFY_SYSTEM, CREATE/DROP slot             │ frames, bounded │ (watch)
//!      ▼                                               │ in bytes        ▼
//!  socket ───────────────────────────────────────→ Pump, on a thread of its own ── status updates ──→ source
//! ```
//!
//! **Why a thread of its own.** The pump reads the socket and sends the feedback, and nothing that applying does may
//! delay it, or the source ends the connection after `wal_sender_timeout` in the middle of a large batch and sends
//! everything again, for ever (pitfall P17). A task on the shared runtime would still wait for a worker. When the
//! consumer is slow, the pump stops reading, so that TCP slows the source down, but goes on reporting.
//!
//! **Reading in quanta.** The source's walsender makes one `send` per row, and an eager reader makes every one of them
//! pay for a wake-up. While there is a backlog the pump lets the socket fill for half a millisecond and takes all at
//! once; `pace` decides when. That is also why the thread matters: tokio's timer ticks in milliseconds, and a wait of
//! two was measured worse than of half; on its own thread the pump may simply sleep, to about 60 µs exactly.
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
pub use connection::{CreatedSlot, PINNED_SETTINGS, ReplicationConnection};
pub use error::{Phase, ServerError, ServerFault, WireError};
pub use slot::{SlotName, SlotNameError, SystemIdentity};
pub use stream::{Feedback, FrameStream};
