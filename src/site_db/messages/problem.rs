//! What a message's row keeps of the provider's words: its last answer, and why the message is not where it should be.

/// The provider's answer to a send, for the client that asks again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// HTTP status; `None` without an answer.
    pub status: Option<u16>,
    /// Its body as it came.
    pub body: Option<String>,
}

/// Why a message failed, waits, or has no outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// The provider's code, where it gave one.
    pub code: Option<i32>,
    /// Our class of it: the column `error_class`.
    pub class: &'static str,
    /// A sentence for a person; the provider's words where there are some.
    pub message: String,
}
