//! A message that is to be sent, as far as we read it. The whole request is kept beside it, in Meta's format, which all
//! clients write; a provider that speaks another one translates it.

use super::ids::{ContactIdentity, Wamid};
use super::opaque::OpaqueId;

/// What was read of a request to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// Meta's name of the type, in lower case as far as it is one of Meta's.
    pub kind: String,
    /// The recipient as the client wrote it: `to`, else `recipient`, as Meta decides.
    pub recipient: String,
    /// Who that is; `None` for a group, whose id is neither a number nor a user's.
    pub contact: Option<ContactIdentity>,
    /// The quoted message.
    pub context: Option<Wamid>,
    /// The client's own `biz_opaque_callback_data`.
    pub client_opaque: Option<String>,
    /// What a person reads of it.
    pub text: Option<String>,
}

/// A committed message on its way to the provider.
#[derive(Debug, Clone, Copy)]
pub struct Sending<'a> {
    /// Goes with the message and comes back in its status reports.
    pub id: OpaqueId,
    /// The request as it is stored.
    pub request: &'a [u8],
    /// The version of the Graph API that the client asked for; `None`: the configured one.
    pub api_version: Option<&'a str>,
}
