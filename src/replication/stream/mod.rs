//! One run of the stream: from the frames of the replication connection to durable batches in the Agent DB.
//!
//! | file | its job |
//! |---|---|
//! | [`stream_loop`] | the one task that reads the stream; its order is the order of the log |
//! | [`stream_events`] | what it does with each event; merging chunks |
//! | [`assemble`] | messages → events: relations, protocol order, each row's key |
//! | [`buffer`] | what was received and is not handed over yet, cut at commits |
//! | [`progress`] | what may be acknowledged to the Site DB |
//! | [`apply_task`] | the task that writes to the Agent DB while the next batch is filled |
//! | [`requests`] | what the copies and the healing ask of the stream |

pub(super) mod apply_task;
pub(super) mod assemble;
pub(super) mod buffer;
pub(super) mod progress;
pub(super) mod requests;
mod stream_events;
pub(super) mod stream_loop;
