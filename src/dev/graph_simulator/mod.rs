//! A simulator of WhatsApp's Cloud API on a local socket: it accepts sends, reports statuses, lets users write, and fails on
//! demand.
//!
//! For `twinlog demo`, `twinlog simulate` and the tests. It simulates Meta's side only. It shares the error type and the
//! signature with [`crate::provider`], but checks bodies with its own code, so that a bug in ours is found. The tests
//! compare the Site DB with its [`Ledger`]: a message in it was accepted and so sent, even if the sender got no answer.
//!
//! ```text
//! client ─ POST /v25.0/{number}/messages ─→ graph ─→ ledger ─→ webhooks/statuses ─┐
//! person ─ /_simulator/… (control) ───────→ faults, inbound messages ─────────────┴→ webhooks/delivery ─→ callback
//! ```
//!
//! | file | what it simulates or does |
//! |---|---|
//! | `graph/` | the API that clients call: sends, media, reads; its checks and its error bodies |
//! | `webhooks/` | what Meta posts to the callback: statuses, inbound messages, the envelope, delivery with retries |
//! | `fault` | faults as values ([`Fault`]), and the one function that decides what they mean for a send |
//! | `limits` | Meta's rate limits |
//! | `codes` | Meta's error codes: title and HTTP status |
//! | `reset` | connections that end with a RST |
//! | `settings` | how a simulator is set up |
//! | `world` | the state that all parts share: numbers, ledger, callback |
//! | `simulator` | the handle that a test holds |
//! | `control` | the same switches as HTTP routes, for a person with curl or a test in another process |
//! | `actions` | what the handle and the control routes both do |

mod actions;
mod codes;
mod control;
mod fault;
mod graph;
mod ids;
mod ledger;
mod limits;
mod media_store;
mod reset;
mod settings;
mod simulator;
#[cfg(test)]
mod tests;
mod update;
mod webhooks;
mod world;

pub use actions::{HandshakeError, UnknownNumber};
pub use control::CONTROL_ROUTES;
pub use fault::Fault;
pub use ledger::{Accepted, Ledger, Reported};
pub use limits::Limits;
pub use settings::{Account, Delays, Settings, WebhookSettings};
pub use simulator::{Simulator, StartError};
pub use webhooks::{History, IdentityChange, Inbound, samples};
