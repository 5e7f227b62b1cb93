//! How a command ended.

/// How a command ended that returned no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All is well: exit code 0.
    Success,
    /// The command found a problem, or its work failed, and it has printed which: exit code 1.
    Problem,
}
