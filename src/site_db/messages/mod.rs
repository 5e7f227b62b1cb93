//! `whatsapp_messages`: how messages begin, every way in which they change, and how they are found.
//!
//! ```text
//! submit, insert ─→ row ─→ claim ─→ (the provider is called) ─→ outcomes
//!                            ╰──────────── transition, write ────────────╯
//! ```
//!
//! Every change is one of a fixed list of transitions, written by one statement builder; nothing else in the program
//! updates this table. Nothing is decided here: the [`outbox`](crate::outbox) decides when to send, the
//! [`inbox`](crate::inbox) what an event means. Meta's reports themselves are in [`status_events`](super::status_events).
//!
//! | file | its job |
//! |---|---|
//! | `status` | [`MessageStatus`] |
//! | [`transition`] | the list of changes that are allowed; pure |
//! | `fold` | how the steps that the provider reports change a row; pure |
//! | `problem` | why a message failed or waits, as a row keeps it |
//! | `write` | a transition becomes a statement, and runs |
//! | `submit` | clients' messages are stored, many at a time |
//! | `insert` | how a message begins: one at a time, in steps |
//! | `claim` | due messages claimed, expired and abandoned ones swept |
//! | `decided` | what people decide, and which messages need them |
//! | `outcomes` | what the provider's answers and reports change |
//! | `story` | what surrounds one message, for people |
//! | `read` | found, shown, counted |
//! | `unsettled` | those of which it is not known whether the provider has them |

mod claim;
mod decided;
mod fold;
mod insert;
mod outcomes;
mod problem;
mod read;
mod status;
mod story;
mod submit;
pub(crate) mod transition;
mod unsettled;
mod write;

pub use claim::{Claim, Claimed, Wanted, claim, claim_probe, give_back, repeated_by, sweep_abandoned, sweep_expired};
pub use decided::{Decided, Step, Troubled, Undecidable, troubled};
pub use fold::ReportedStep;
pub use insert::{NewSaid, Said, insert, insert_said};
pub use outcomes::{
    Addressed, AttemptKey, Ended, News, Wait, apply_steps, cancel_repeat, cancel_waiting, client_left, failed, lost,
    put_back, revive,
};
pub use problem::{Problem, ProblemClass};
pub use read::{Gaps, MessageRow, Standing, client_opaques, find, find_many, gaps, numbers_of, standing};
pub use status::MessageStatus;
pub use story::{OpenWebhook, Report, Surroundings, named, open_webhooks, reports, surroundings};
pub use submit::{Addressee, Known, SendWithin, StoreError, StoredMessage, Submission, SubmitResult, submit};
pub use unsettled::{UNSETTLED, Unsettled, known_wamids, unsettled};
pub use write::{Medium, Repeated, received_before, replace_placeholder};

pub(super) use claim::made_due_by_release;
pub(super) use decided::decided;
pub(super) use outcomes::{Locked, LockedReport, Taken, accepted, apply_reports, lock_rows};
pub(super) use read::{ReportKey, find_reported};
pub(super) use unsettled::lock_unknown;
pub(super) use write::{check_writable, move_to};

/// The statements that a message waits for before the provider is called. They are prepared on each new connection: else the
/// first messages on it would wait for that, which takes round trips of its own.
pub(super) fn before_a_call() -> [&'static str; 3] {
    [&submit::SUBMIT, &claim::CLAIM_THESE, &claim::CLAIM_DUE]
}
