//! Where a copy continues, and the progress that a chunk makes.

use crate::agent_db::CopyPhase;
use crate::change::Key;

/// Where a copy continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPlace {
    /// Which rows are read: those of the Site DB, or those that only the Agent DB has.
    pub phase: CopyPhase,
    /// After this key; `None`: at the beginning of the phase.
    pub last_key: Option<Key>,
}

/// The progress that a merged chunk makes for its table's copy. `rows`: rows of the Site DB that the chunk has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyStep {
    /// More chunks of the phase follow.
    Chunk {
        /// Rows of the Site DB that were read.
        rows: u64,
        /// They follow after this key; `None`: the place has not changed.
        last_key: Option<Key>,
    },
    /// All rows of the Site DB are read; rows that only the Agent DB has come next.
    PhaseFinished {
        /// Rows of the Site DB that were read.
        rows: u64,
    },
    /// The copy is complete.
    Finished {
        /// Rows of the Site DB that were read.
        rows: u64,
    },
}
