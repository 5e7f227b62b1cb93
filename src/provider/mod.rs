//! WhatsApp's providers behind one small language: who can be written to, and what a provider tells us.
//!
//! Today there is one provider, Meta's Cloud API ([`cloud`]). It knows no database and no server: the outbox, the inbox
//! and the Site DB's statements speak the words of this module, and a second provider is another folder beside `cloud`.
//!
//! | module | its job |
//! |---|---|
//! | [`ids`] | the identities: our numbers, messages, users |
//! | [`opaque`] | the id of ours that a provider carries with a message and sends back in its statuses |
//! | [`refusal`] | why a provider refuses: its class, which decides what the sender does |
//! | [`event`] | what a provider tells us unasked: messages, reports, changes of identity |
//! | [`cloud`] | Meta's Cloud API |

pub mod cloud;
pub mod event;
pub mod ids;
pub mod opaque;
pub mod refusal;

pub use event::{Direction, Event};
pub use ids::{ContactIdentity, PhoneNumberId, UserId, WaId, Wamid};
pub use opaque::OpaqueId;
pub use refusal::{Code, ErrorClass, Refusal, ThrottleScope};
