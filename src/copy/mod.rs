//! The fenced chunk, and what stands on it: first copy, resync, healing of parked rows.
//!
//! One primitive (promise 8): rows of the Site DB read under one snapshot between two marks in its log, and merged with
//! the stream at the second one, so that newer changes win and deleted rows stay deleted. [`window`] holds the proof and
//! the property test; [`board`] is where a reader and the stream meet.
//!
//! Leaves alone: when to copy (`replication` decides), how rows are written (`agent_db`), and the replication
//! connection (`wire`). It reads the Site DB over plain connections of its own.

mod agent_keys;
pub mod board;
pub mod fence;
mod reader;
pub mod snapshot;
mod source;
mod source_table;
pub mod window;

pub use agent_keys::operator_schemas;
pub use reader::{CopyError, Reader};
pub use source::{Source, SourceError};
pub use source_table::SourceTable;
