//! The logical replication protocol, version 1: the bytes that the `pgoutput` plugin writes → [`Message`].
//!
//! Its job is one function, [`decode()`]: one payload of the stream in, one message out. It is pure and total: every read
//! is checked, the whole payload must be consumed, and malformed input is a [`DecodeError`], never a panic and never a
//! message that was only partly understood. It keeps no state: which relation an id stands for, whether a transaction
//! is open, and what a value means is known to `replication`. Values stay the text that Postgres printed.
//!
//! This is the hot path (hundreds of thousands of rows a second), so a row costs one allocation, the boxed slice of its
//! columns; the values are slices of the payload's own buffer and keep it alive.
//!
//! The connection asks for version 1 on purpose: it has no streaming of open transactions and no two-phase commit, so a
//! change always follows its transaction's `Begin`, and every transaction in the stream has committed.
//!
//! `message` has the messages, `decode` the decoder.
//!
//! Source: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod decode;
mod message;
#[cfg(test)]
mod tests;

pub use crate::timestamp::PgTimestamp;
pub use decode::{DecodeError, changed_relation, decode};
pub use message::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, RelationMessage, ReplicaIdentity,
    Truncate, TypeMessage, Update,
};
