//! Why a provider refuses, in words that all providers share: the class decides what the sender does, the rest is kept for
//! people.
//!
//! A refusal comes in the answer to a send, in the report that a message failed, and as news about an account.

use std::time::Duration;

/// Whose affair a refusal is, and so what the sender does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The number or the account can't send at all (token, restriction, payment): hold it, keep its messages, tell a person.
    Account,
    /// A permission is missing: of the account, or only for what this one message asks. Hold the number as for
    /// [`ErrorClass::Account`], until the messages that are accepted meanwhile prove that this message is to blame.
    Permission,
    /// Too fast: the same message can go later; the scope says what must wait with it.
    Throttle(ThrottleScope),
    /// The provider's trouble: try again, a bounded number of times.
    Transient,
    /// The provider's trouble or an invalid message, and the provider itself can't tell: try once more.
    Ambiguous,
    /// The 24 h customer-service window is closed: this message can't go, a template could.
    Window,
    /// This message can never go as it is.
    Permanent,
    /// Withheld for the recipient's sake: not before a day has passed, if at all.
    Later,
    /// The template can't be used (paused, disabled, missing): every message with it would fail alike.
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

/// A provider's number for what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// One that the provider documents.
    Documented(i32),
    /// One that it does not: kept in the row, but no metric's label, or a stranger could make any number of series.
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

/// A provider read what we asked, and refused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What the sender does about it.
    pub class: ErrorClass,
    /// `None`: not the provider's own refusal, but one of something on the way to it.
    pub code: Option<Code>,
    /// A sentence for a person. It names parameters, never their values.
    pub message: String,
    /// How long the provider asks us to wait, as it said it: the sender bounds it.
    pub retry_after: Option<Duration>,
}
