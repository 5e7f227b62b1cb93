//! The provider's last answer and the last error, as a message's row keeps them.

/// The provider's answer to a send, for the client that asks again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// HTTP status; `None` without an answer.
    pub status: Option<u16>,
    /// The body as text, without our access token.
    pub body: Option<String>,
}

/// Why a message failed, waits, or has no outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// The provider's error code, if it gave one.
    pub code: Option<i32>,
    /// The column `error_class`: see `ErrorClass`.
    pub class: &'static str,
    /// The reason as a sentence for people; the provider's own text if there is one.
    pub message: String,
}
