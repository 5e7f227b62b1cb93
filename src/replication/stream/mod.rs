//! One run of the stream: from the frames of the replication connection to durable batches in the Agent DB.
//!
//! | file | its job |
//! |---|---|
//! | [`stream_loop`] | the one task that reads the stream, so that everything happens in the order of the log |
//! | [`assemble`] | messages → events: relations, protocol order, each row's key |
//! | [`buffer`] | changes that were received and are not given to the apply task yet, divided at commits |
//! | [`comparing`] | the comparison of a chunk with what the Agent DB holds |
//! | [`described`] | whether the stream describes a table's columns as the catalog has them |
//! | [`flow`] | when to tell that the stream flows |
//! | [`passed`] | which transactions a stream passes over: those with a row that can't be sent |
//! | [`progress`] | what may be acknowledged to the Site DB |
//! | [`apply_task`] | the task that writes to the Agent DB while the next batch is filled |
//! | [`unanswered`] | replies that wait for a commit |
//! | [`requests`] | requests of the copies and the healing to the stream's loop |

pub(super) mod apply_task;
pub(super) mod assemble;
pub(super) mod buffer;
mod comparing;
pub(super) mod described;
mod flow;
mod passed;
pub(super) mod progress;
pub(super) mod requests;
pub(super) mod stream_loop;
mod unanswered;
