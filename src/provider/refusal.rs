//! Why a provider refuses, the same for all providers: the class decides what the sender does, the rest is kept for
//! people.
//!
//! A refusal comes in the answer to a send, in the report that a message failed, or in a notice about an account.

use std::time::Duration;

/// What a refusal is about, and so what the sender does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The number or the account can't send at all (token, restriction, payment): hold it, keep its messages, tell a person.
    Account,
    /// A permission is missing: for the whole account, or only for what this one message asks. Hold the number as for
    /// [`ErrorClass::Account`], until other accepted messages prove that this message is to blame.
    Permission,
    /// Too fast: the same message can be sent later; the scope says which other messages must wait with it.
    Throttle(ThrottleScope),
    /// A failure at the provider: try again, a bounded number of times.
    Transient,
    /// A failure at the provider or an invalid message; the provider does not say which: try once more.
    Ambiguous,
    /// The 24 h customer-service window is closed: this message can't be sent, a template could.
    Window,
    /// This message can never be sent as it is.
    Permanent,
    /// The provider protects the recipient from too many messages: try again after a day at the earliest, if at all.
    Later,
    /// The template can't be used (paused, disabled, missing): every message with it would fail in the same way.
    Template,
}

/// What is throttled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThrottleScope {
    /// All numbers that the app calls for.
    App,
    /// All numbers of the WhatsApp Business account.
    Waba,
    /// One business number.
    Number,
    /// One business number towards one user.
    Pair,
}

impl ErrorClass {
    /// The bounded label value, log field and `error_class` column. What a sender does for [`ErrorClass::Permission`] and
    /// [`ErrorClass::Ambiguous`] differs in the details only, so dashboards see them as `account` and `transient`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Account | Self::Permission => "account",
            Self::Throttle(ThrottleScope::App) => "throttle_app",
            Self::Throttle(ThrottleScope::Waba) => "throttle_waba",
            Self::Throttle(ThrottleScope::Number) => "throttle_number",
            Self::Throttle(ThrottleScope::Pair) => "throttle_pair",
            Self::Transient | Self::Ambiguous => "transient",
            Self::Window => "window",
            Self::Permanent => "permanent",
            Self::Later => "later",
            Self::Template => "template",
        }
    }
}

/// A provider's error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// One that the provider documents.
    Documented(i32),
    /// Any other: kept in the row, but not used as a metric's label, so that the number of series stays bounded.
    Undocumented(i32),
}

impl Code {
    /// As the `error_code` column holds it.
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::Documented(number) | Self::Undocumented(number) => number,
        }
    }

    /// As the label of a metric.
    #[must_use]
    pub const fn label(self) -> Option<i32> {
        match self {
            Self::Documented(number) => Some(number),
            Self::Undocumented(_) => None,
        }
    }
}

/// A provider read our request and refused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What the sender does about it.
    pub class: ErrorClass,
    /// `None` if a proxy or gateway on the way refused, not the provider itself.
    pub code: Option<Code>,
    /// The reason as a sentence for people. It names parameters, never their values.
    pub message: String,
    /// How long the provider asks us to wait, unchanged: the sender puts a bound on it.
    pub retry_after: Option<Duration>,
}
