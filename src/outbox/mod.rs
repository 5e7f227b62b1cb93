//! Outbound messages: submit, claim, rate-limit, send, commit the outcome, wake the waiting clients.
//!
//! ```text
//! submit ─ commit pending ─ queue
//!                             └ number task: lease, rate → claim (commit sending)
//!                                 └ attempt: call the provider → commit outcome → wake waiters
//! history: asks the provider about `unknown`
//! sweeper: expired leases → unknown; clients that left → cancelled; gap metrics
//! ```
//!
//! **Round trips.** Each commit is shared: what comes while one is on its way to the Site DB goes with the next one, and
//! nobody waits for company. A message that is submitted alone pays two round trips before the provider is called (stored,
//! claimed), whatever the load; its outcome pays five more, which its client waits for and other messages do not.
//!
//! **The promise.** No message is sent before its status `sending` is committed, and a message is tried again only if it
//! was certainly not sent. [`MessageStatus`](crate::site_db::MessageStatus) says what sets each status,
//! [`outcome::next`] what an answer means.
//!
//! **Order.** Messages of one conversation are sent one after the other, oldest first. One that waits (throttled, backing
//! off, number held) delays the later ones of its own conversation and no other. `unknown` does not block: it may never
//! be settled.
//!
//! **Clients that wait.** A message of a waiting client carries `send_by`: it is sent within that time or never,
//! even if this process dies, because the client will take it as failed and may send it again.
//!
//! **Scale.** Each number is leased to one process, so that the rate limiter in memory is right; claims are safe without
//! the lease.
//!
//! The outbox uses the types of [`provider`](crate::provider) and names no provider. It does not know the HTTP server,
//! and asks the Site DB only through [`site_db`](crate::site_db). What it commits it tells
//! [`realtime`](crate::realtime), which wakes those who wait.
//!
//! | module | its job |
//! |---|---|
//! | `handle` | what the rest of the server calls: submit, wait |
//! | `settings` | an outbox's settings: its numbers, time-outs, limits for retries |
//! | `submit` | from a client's request to a committed `pending` row |
//! | `batches` | the statements that many submissions, and many waiting clients, share |
//! | `number` | one number's task: its lease and state, and when to claim |
//! | `queue` | what is due, as far as memory knows; pure |
//! | `rate` | how many calls may be made now; pure |
//! | `claims` | one claim: commit `sending`, start the attempts |
//! | `attempt` | one call of the provider |
//! | `outcome` | what an answer means: one pure function |
//! | `message_blame` | whether a message or its account is to blame for a refusal; in memory |
//! | `outcome_writer` | writes the outcomes of many attempts in one transaction |
//! | `commit` | commits an outcome, repeating until the Site DB takes it |
//! | `wait` | a client that waits for its message |
//! | `client` | notes that a client left before it had its answer |
//! | `repeats` | which requests repeat one whose client left; in memory |
//! | `elsewhere` | wakes those whom a change of another process concerns |
//! | `standing` | how a number stands, for the health report |
//! | `history` | settles messages whose outcome is unknown by the provider's history |
//! | `sweeper` | settles the messages of processes that died, measures the gaps |
//! | `shared` | state that all these tasks share |

mod attempt;
mod batches;
mod claims;
mod client;
mod commit;
mod elsewhere;
mod handle;
mod history;
mod message_blame;
mod number;
mod outcome;
mod outcome_writer;
mod queue;
mod rate;
mod repeats;
mod settings;
mod shared;
mod standing;
mod submit;
mod sweeper;
mod wait;

pub use client::Receipt;
pub use handle::Outbox;
pub use outcome::RetryPolicy;
pub use settings::{AccountSettings, OutboxSettings};
pub use shared::Hold;
pub use submit::{NewMessage, SubmitError, Submitted};
pub use wait::Delivered;
