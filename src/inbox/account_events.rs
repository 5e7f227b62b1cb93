//! Events about a number or an account, without a message. They get no row of their own (the raw event is kept), but a
//! person should know of them.

use crate::provider::event::{Content, Event};
use crate::provider::{Code, PhoneNumberId};

/// Logs the event.
pub(super) fn note(event: &Event) {
    let number = event.phone_number_id.as_ref().map(PhoneNumberId::as_str);
    match &event.content {
        Content::AccountError(refusal) => tracing::warn!(
            phone_number_id = number,
            waba_id = event.waba_id,
            code = refusal.code.map(Code::number),
            class = refusal.class.as_str(),
            "WEBHOOK: Meta reports an error of the account"
        ),
        Content::AccountNotice(_) => tracing::warn!(
            phone_number_id = number,
            waba_id = event.waba_id,
            field = event.field,
            "WEBHOOK: Meta reports on the account; see the raw event"
        ),
        _ => tracing::info!(
            phone_number_id = number,
            waba_id = event.waba_id,
            field = event.field,
            "WEBHOOK: an event without a message"
        ),
    }
}
