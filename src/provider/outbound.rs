//! A message that is to be sent: the fields that we read. The whole request is stored as well, in Meta's format, which all
//! clients use; a provider with another format translates it.

use super::api_version::ApiVersion;
use super::ids::{ContactIdentity, Wamid};
use super::opaque::OpaqueId;

/// The fields that we read from a request to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// Meta's name of the type; in lower case if it is one that Meta documents.
    pub kind: String,
    /// The recipient as the client wrote it: `to`, else `recipient`, as Meta chooses.
    pub recipient: String,
    /// The recipient's number or user id; `None` for a group.
    pub contact: Option<ContactIdentity>,
    /// The quoted message.
    pub context: Option<Wamid>,
    /// The client's own `biz_opaque_callback_data`, which ours replaces in the request.
    pub client_opaque: Option<String>,
    /// The text that a person sees: the body, the caption, the button's title.
    pub text: Option<String>,
}

/// A committed message on its way to the provider.
#[derive(Debug, Clone, Copy)]
pub struct Sending<'a> {
    /// Is sent with the message and returned in its status reports.
    pub id: OpaqueId,
    /// The request as it is stored.
    pub request: &'a [u8],
    /// The version of the Graph API that the client asked for; `None`: the configured one.
    pub api_version: Option<&'a ApiVersion>,
}
