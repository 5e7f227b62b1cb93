//! The daemon: what the stream means, and what to do when anything ends.
//!
//! [`run()`] is a loop of *runs*. A run sets up (rights, publication, slot, checkpoint), proves that the slot can be
//! trusted ([`slot`]), and then holds its tasks together: the [`stream`], the copies, the healing of
//! parked rows, a look-out for new tables, and, across all runs, the monitor. Any error ends the whole run; the next
//! one resumes at the
//! checkpoint. So there is one way to recover, and it is the way that every start takes.
//!
//! Leaves alone: bytes and sockets (`wire`), message formats (`pgoutput`), SQL on the Agent DB (`agent_db`), reading rows
//! of the Site DB (`copy`). Knows nothing of WhatsApp: any tables with a primary key.

mod copies;
mod error;
mod healing;
mod lookout;
mod monitor;
mod run;
mod slot;
mod status;
mod stream;

pub use error::SyncError;
pub use run::run;
pub use slot::GapReason;
pub use status::state::SyncState;
pub use stream::assemble::StreamError;
