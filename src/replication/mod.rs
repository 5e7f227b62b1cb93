//! The daemon: keeps the Agent DB equal to the Site DB through one replication slot.
//!
//! [`run()`] keeps one pipeline going: a loop of *runs*. A run starts ([`start`]: connect, check the slot, register the
//! tables), and then runs its tasks side by side: the [`stream`], the copies, the healing of parked rows, the watch
//! over the catalog. Any error ends the whole run, and the next run resumes at the checkpoint. So there is only one way
//! to recover: an ordinary start.
//!
//! | file | its job |
//! |---|---|
//! | [`settings`] | the settings of one pipeline |
//! | [`run`](mod@run) | the loop of runs, and the tasks of one run |
//! | [`start`] | from the first connection to the first byte of the stream |
//! | [`continuity`] | decides whether the slot continues at the checkpoint, or rows may be missing (`GAP`) |
//! | [`stream`] | frames in, batches out, positions acknowledged |
//! | [`tables`] | the life of each table: held, released, copied, streaming; its transitions and their one writer |
//! | [`copies`] | which tables are copied, for the first time or again |
//! | [`resync`] | serves the commands of `twinlog resync` |
//! | [`verify`] | serves the commands of `twinlog verify` |
//! | [`schedule`] | verifying by a schedule, and what the metrics say about it |
//! | [`healing`] | tries parked rows again when they are due |
//! | [`row_story`](mod@row_story) | a row as both databases have it, for people |
//! | [`sequences`] | carries sequences along |
//! | `log_end` | where the Site DB's log ends, for `twinlog cutover` |
//! | [`claims`] | which tables are this pipeline's to write |
//! | [`other_pipeline`] | whether the slot's lock is another pipeline's |
//! | [`faults`] | which tables can't be replicated at a start |
//! | [`release`] | releases held tables once the reason is gone |
//! | [`agent_watch`] | notices that tables were changed in the Agent DB |
//! | [`catalog_watch`] | notices that the Site DB's published tables have changed |
//! | [`status`] | what the daemon reports about itself: state, positions, delay |
//! | [`after_error`] | how long to wait after a failed run, and what to log |
//! | [`stream_error`] | how the stream itself can be wrong |
//! | `slot_limit` | gives the slot up before it fills the Site DB's disk |
//! | `slot_look` | whether the slot would continue, for `twinlog doctor` |
//! | `stale_reader` | ends the connection of a dead daemon that keeps the slot busy |
//! | [`error`] | why a run ends, and what to do about it |
//!
//! Not here: bytes and sockets (`wire`), message formats (`pgoutput`), SQL on either database (`source`, `agent_db`),
//! reading and merging chunks (`copy`). Nothing here depends on WhatsApp: it replicates any table with a primary key.

mod after_error;
mod agent_watch;
mod catalog_watch;
mod claims;
mod continuity;
mod copies;
mod error;
mod faults;
mod healing;
mod log_end;
mod other_pipeline;
mod release;
mod resync;
mod row_story;
mod run;
mod schedule;
mod sequences;
mod settings;
mod slot_limit;
mod slot_look;
mod stale_reader;
mod start;
mod status;
mod stream;
mod stream_error;
mod tables;
mod verify;

pub use continuity::GapReason;
pub use error::SyncError;
pub use healing::{RehearsedRow, rehearse};
pub use log_end::log_end;
pub use other_pipeline::site_of;
pub use row_story::{RowStory, row_story};
pub use run::run;
pub use sequences::unfit_sequences;
pub use settings::{
    BatchLimits, CopySettings, LostSlotSettings, ParkingSettings, PipelineSettings, VerificationSettings,
};
pub use slot_look::gap_now;
pub use status::state::SyncState;
pub use stream_error::StreamError;
pub use tables::life::TransitionError;
