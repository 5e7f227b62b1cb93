//! Where a copy stands, and how a chunk moves it on.

use crate::agent_db::CopyPhase;
use crate::change::Key;

/// Where a copy goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPlace {
    /// What is read.
    pub phase: CopyPhase,
    /// Behind this key; `None` from the beginning of the phase.
    pub last_key: Option<Key>,
}

/// How a merged chunk moves its table's copy on. `rows` are those of the Site DB that it has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyStep {
    /// The phase goes on behind this key, or where it was.
    Chunk {
        /// Rows read.
        rows: u64,
        /// The last key done.
        last_key: Option<Key>,
    },
    /// The Site DB's rows are all read: rows that only the Agent DB has come next.
    PhaseFinished {
        /// Rows read.
        rows: u64,
    },
    /// Nothing is left.
    Finished {
        /// Rows read.
        rows: u64,
    },
}
