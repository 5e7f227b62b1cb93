//! `whatsapp_messages`: how messages begin, every way in which they change, and how they are found.
//!
//! ```text
//! insert ─→ row ─→ claim ─→ (the provider is called) ─→ outcomes
//!                    ╰──────────── transition, write ────────────╯
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
//! | `fold` | how reports change a row; pure |
//! | `problem` | the provider's last answer and error, as a row keeps them |
//! | `write` | a transition becomes a statement, and runs |
//! | `insert` | how a message begins |
//! | `claim` | due messages claimed, expired and abandoned ones swept |
//! | `outcomes` | what the provider's answers and reports change |
//! | `read` | found, shown, counted |

mod claim;
mod fold;
mod insert;
mod outcomes;
mod problem;
mod read;
mod status;
pub(crate) mod transition;
mod write;

pub use claim::{Claimed, claim, claim_probe, sweep_abandoned, sweep_expired};
pub use fold::Report;
pub use insert::{Origin, PendingMessage, Said, insert, insert_said};
pub use outcomes::{AttemptKey, News, Wait, cancel_waiting, failed, lost, put_back, reported, revive};
pub use problem::{Problem, Response};
pub use read::{Gaps, Known, Message, Standing, find, find_by_client_id, gaps, standing};
pub use status::MessageStatus;
pub use transition::WAIT_ELAPSED;

pub(super) use claim::make_released_due;
pub(super) use outcomes::{accepted, lock_row};
pub(super) use read::reported as find_reported;
pub(super) use write::check_writable;
