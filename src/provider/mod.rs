//! WhatsApp's providers behind one small language: what a provider tells us unasked ([`Event`]), what came of a send
//! ([`Answer`]), and why it refuses ([`Refusal`]).
//!
//! Today there is one provider, Meta's Cloud API ([`cloud`]). The outbox, the inbox and the Site DB's statements speak the
//! words of this module alone. A second provider is another folder beside `cloud` that translates into the same words, and
//! a variant of [`Account`]; the words themselves name no provider. It knows no database and no server.
//!
//! | module | its job |
//! |---|---|
//! | [`account`] | a number of ours at its provider, to send through |
//! | [`outbound`] | a message that is to be sent |
//! | [`answer`] | what came of asking a provider to send it |
//! | [`refusal`] | why a provider refuses: its class, which decides what the sender does |
//! | [`event`] | what a provider tells us unasked: messages, reports, changes of identity |
//! | [`ids`] | the identities: our numbers, messages, users |
//! | [`opaque`] | the id of ours that a provider carries with a message and sends back in its statuses |
//! | [`api_version`] | the version of Meta's API whose format a request is in |
//! | [`cloud`] | Meta's Cloud API |

pub mod account;
pub mod answer;
pub mod api_version;
pub mod cloud;
pub mod event;
pub mod ids;
pub mod opaque;
pub mod outbound;
pub mod refusal;

pub use account::Account;
pub use answer::{Accepted, AcceptedStatus, Answer, Answered};
pub use api_version::ApiVersion;
pub use event::{Direction, Event};
pub use ids::{ContactIdentity, PhoneNumberId, UserId, WaId, Wamid};
pub use opaque::OpaqueId;
pub use outbound::{Outbound, Sending};
pub use refusal::{Code, ErrorClass, Refusal, ThrottleScope};
