//! WhatsApp's providers behind one small set of types: what a provider reports on its own ([`Event`]), the result of a
//! send ([`Answer`]), and why the provider refuses ([`Refusal`]).
//!
//! Today there is one provider, Meta's Cloud API ([`cloud`]). The outbox, the inbox and the Site DB's statements use only
//! the types of this module, which name no provider. A second provider is another folder beside `cloud` that translates
//! into the same types, a variant of [`Account`] and one of [`Callback`]. This module knows no database and no server.
//!
//! | module | its job |
//! |---|---|
//! | [`account`] | a number of ours at its provider, to send through |
//! | [`outbound`] | a message that is to be sent |
//! | [`answer`] | the result of a send |
//! | [`callback`] | a provider's webhooks: whether they are genuine, and their events |
//! | [`refusal`] | why a provider refuses: its class, which decides what the sender does |
//! | [`event`] | what a provider reports on its own: messages, statuses, changes of identity |
//! | [`history`] | what a provider has of the messages that a number sent |
//! | [`ids`] | the ids of our numbers, of messages and of users |
//! | `copied` | a recipient as people copy it |
//! | [`quoted`](quoted()) | a provider's words, made fit for a log line |
//! | [`opaque`] | the id of ours that a provider carries with a message and sends back in its statuses |
//! | [`api_version`] | the version of the API that a client's request is written for; today only Meta's has versions |
//! | [`cloud`] | Meta's Cloud API |

pub mod account;
pub mod answer;
pub mod api_version;
pub mod callback;
pub mod cloud;
mod copied;
pub mod event;
pub mod history;
pub mod ids;
pub mod opaque;
pub mod outbound;
mod quoted;
pub mod refusal;

pub use account::Account;
pub use answer::{Accepted, AcceptedStatus, Answer, Answered, Looked, Response};
pub use api_version::ApiVersion;
pub use callback::Callback;
pub use event::{Direction, Event, ReportedStatus};
pub use ids::{ContactIdentity, PhoneNumberId, UserId, WaId, Wamid};
pub use opaque::OpaqueId;
pub use outbound::{Outbound, Sending};
pub use quoted::quoted;
pub use refusal::{Code, ErrorClass, Refusal, ThrottleScope};
