//! Outbound messages: submit, claim, rate-limit, send, write the outcome down, tell who waits.
//!
//! ```text
//! submit ─ commit pending ─ wake
//!                             └ number task: lease → gate → rate limit → claim (commit sending)
//!                                 └ attempt: call of the provider → commit outcome → tell waiters
//! sweeper: expired leases → unknown; clients that are gone → cancelled; gap metrics
//! ```
//!
//! **The promise.** No message leaves before its `sending` is committed, and no outcome but a certain "no" makes a
//! message due again. See [`MessageStatus`](crate::site_db::MessageStatus) for what sets which, [`outcome::next`] for what an
//! answer means.
//!
//! **Order.** Messages of one conversation leave one after the other, oldest first. One that waits (throttled, backing
//! off, number held) keeps the later ones of its conversation waiting and nobody else's; a reply never overtakes what it
//! follows. `unknown` does not block: it may never be settled.
//!
//! **Clients that wait.** A message of a waiting client carries `send_by`: it is sent within that time or never,
//! even if this process dies, because the client will take it as failed and may send it again.
//!
//! **Scale.** Each number is leased to one process, so that the rate limiter in memory is right; claims are safe without
//! it. It speaks the words of [`provider`](crate::provider), and names no provider; it knows no HTTP server, and asks the
//! Site DB through [`site_db`](crate::site_db) alone.
//!
//! | module | its job |
//! |---|---|
//! | `handle` | what the rest of the server calls: submit, wait |
//! | `settings` | what an outbox is told: its numbers, time-outs, limits of trying |
//! | `submit` | from a client's request to a committed `pending` row |
//! | `number` | one number's task: lease, rate, claims |
//! | `attempt` | one call of the provider |
//! | `outcome` | what an answer means: one pure function |
//! | `message_blame` | whether a message or its account is to blame for a refusal; in memory |
//! | `commit` | the outcome, written down whatever it takes |
//! | `wait` | a client that waits for its message |
//! | `waiters` | which messages are waited for in this process |
//! | `watch` | looks for messages that another process moved on |
//! | `sweeper` | settles what dead processes left, measures the gaps |
//! | `shared` | what all of these share |

mod attempt;
mod commit;
mod handle;
mod message_blame;
mod number;
mod outcome;
mod settings;
mod shared;
mod submit;
mod sweeper;
mod wait;
mod waiters;
mod watch;

pub use handle::Outbox;
pub use outcome::RetryPolicy;
pub use settings::{AccountSettings, OutboxSettings};
pub use submit::{NewMessage, SubmitError, Submitted};
pub use wait::Delivered;
