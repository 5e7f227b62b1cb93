//! The daemon: what the stream means, and what to do when anything ends.
//!
//! [`run()`] keeps one pipeline going: a loop of *runs*. A run starts ([`start`]: connect, prove the slot, register the
//! tables), and then holds its tasks together: the [`stream`], the copies, the healing of parked rows, the watch over the
//! catalog. Any error ends the whole run; the next one resumes at the checkpoint. So there is one way to recover, and it
//! is the way that every start takes.
//!
//! | file | its job |
//! |---|---|
//! | [`settings`] | what a pipeline is told |
//! | [`run`](mod@run) | one run after another, and the tasks of one |
//! | [`start`] | from the first connection to the first byte of the stream |
//! | [`slot`] | whether the slot can be trusted, or rows may be missing |
//! | [`stream`] | frames in, batches out, positions acknowledged |
//! | [`tables`] | each table's life: its states, and the one writer of them |
//! | [`copies`] | which tables are read, first or again |
//! | [`resync`] | what people ask for with `twinlog resync` |
//! | [`healing`] | when parked rows are tried again |
//! | [`catalog_watch`] | noticing that the Site DB's tables are others by now |
//! | [`status`] | what the daemon says about itself |
//! | [`after_error`] | what to do after a run has failed |
//! | [`stream_error`] | what the stream can say that cannot be |
//! | [`error`] | why a run ends, and what to do about it |
//!
//! Leaves alone: bytes and sockets (`wire`), message formats (`pgoutput`), SQL on either database (`source`, `agent_db`),
//! reading and merging chunks (`copy`). Knows nothing of WhatsApp: any tables with a primary key.

mod after_error;
mod catalog_watch;
mod copies;
mod error;
mod healing;
mod resync;
mod run;
mod settings;
mod slot;
mod start;
mod status;
mod stream;
mod stream_error;
mod tables;

pub use error::SyncError;
pub use run::run;
pub use settings::{BatchLimits, CopySettings, ParkingSettings, PipelineSettings};
pub use slot::GapReason;
pub use status::state::SyncState;
pub use stream_error::StreamError;
pub use tables::life::TransitionError;
