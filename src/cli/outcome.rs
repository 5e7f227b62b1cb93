//! How a command ended.

/// How a command ended that returned no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All is well: exit code 0.
    Success,
    /// It found or hit a problem, and has printed it: exit code 1.
    Problem,
}
