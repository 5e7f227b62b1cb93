//! Pushes events: tells those who wait that something was committed to the Site DB.
//!
//! ```text
//! outbox ── commit ──▶ Waiters::committed ──▶ whoever registered for the message
//! any process ── commit ──▶ Site DB ──▶ EventLog ──▶ whoever subscribed, in the order of the events
//!                                            └──▶ Hub: reads the rows once ──▶ all listeners, from wherever each is
//! ```
//!
//! Requests wait here, each for one message; people's programs listen. This is the module for everything else that hears of
//! commits: Socket.IO, and subscribers that get webhooks delivered as Meta does. Two rules hold for all of them:
//!
//! - A notification comes after the commit and only means "read now": the state is in the Site DB. So a notification that
//!   is lost, doubled or late does no harm.
//! - Listeners never delay a commit: telling is synchronous, in memory, and bounded.
//!
//! | file | its job |
//! |---|---|
//! | `waiters` | the messages that requests of this process wait for, and waking them |
//! | `event_log` | [`EventLog`]: reads the Site DB's events in their order, and hands them on in this process |
//! | `hub` | [`Hub`]: feeds the listeners |
//! | `listening` | [`Listening`]: one listener, from its place on |
//! | `live` | what happens now, and who hears it |
//! | `past` | what happened before, read in portions that listeners share |
//! | `mailbox` | what one listener has not taken yet, bounded |
//! | `frame` | a row of an event, as all listeners get it; what a listener wants |
//! | `place` | where a listener is |
//! | `shared` | what the hub and its listeners share |
//!
//! Not here: routes and access (`http`), how long a client waits and what happens then (`outbox`), statements (`site_db`).

mod event_log;
mod frame;
mod hub;
mod listening;
mod live;
mod mailbox;
mod past;
mod place;
mod shared;
mod waiters;

pub use event_log::{EventLog, Heard};
pub use frame::{Filter, Frame};
pub use hub::Hub;
pub use listening::{Begin, Listening, Told};
pub use place::{NoPlace, Place};
pub use waiters::{Changed, Ticket, Waiters};
