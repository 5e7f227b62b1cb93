//! The fenced chunk, and what stands on it: first copy, resync, healing of parked rows.
//!
//! One primitive (promise 8): rows of the Site DB read under one snapshot between two marks in its log, and merged with
//! the stream at the second one, so that newer changes win and deleted rows stay deleted. [`window`] holds the proof and
//! the property test; [`board`] is where a reader and the stream meet.
//!
//! Leaves alone: when to copy (`replication` decides), how rows are read (`source`) and written (`agent_db`).

pub mod board;
mod reader;
pub mod window;

pub use reader::{CopyError, Reader};
