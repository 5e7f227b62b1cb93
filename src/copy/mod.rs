//! The fenced chunk, and what is built on it: first copy, resync, comparing both databases, healing of parked rows.
//!
//! One primitive (promise 8): rows of the Site DB are read under one snapshot between two fences (marks in its log),
//! and merged with the stream at the second fence, so that newer changes win and deleted rows stay deleted.
//!
//! | file | its job |
//! |---|---|
//! | `chunk` | what a chunk is read for, what was read, why it may have to be read again |
//! | `registry` | the chunks that are being read: where a reader and the stream meet |
//! | `window` | the stream's changes between a chunk's fences; holds the proof and the property test |
//! | `merge` | one chunk and those changes → changes for the Agent DB (pure) |
//! | `counted` | the same where rows are counted, since no key tells equal ones apart (pure) |
//! | `reader` | reads chunk after chunk: a table's copy, the healing of counted rows |
//! | `parked` | reads parked keys of several tables: the healing |
//! | `compare` | compares the keys of both databases: which rows only the Agent DB has |
//! | `verify` | proves that a table is equal in both databases, or finds where it is not |
//! | `step` | where a copy continues, and the progress that a chunk makes |
//! | `error` | why a copy was interrupted |
//!
//! Not here: when to copy (`replication`), how rows are read (`source`) and written (`agent_db`).

mod chunk;
mod compare;
mod counted;
mod error;
mod merge;
mod parked;
mod reader;
mod registry;
mod step;
mod verify;
mod window;

pub use chunk::{Chunk, ChunkOutcome, ChunkResult, Delivery, InvalidChunk, Merged, Purpose, RequestedKeys, Wanted};
pub use error::CopyError;
pub use parked::{ParkedReader, present_counts, present_rows};
pub use reader::{ChunkReader, ForeignRows};
pub use registry::{ChunkRegistry, RegisteredChunk};
pub use step::{CopyPlace, CopyStep};
pub use verify::{TableVerifier, VerifiedPage};
pub use window::Windows;
