//! Events about a number or an account, without a message. They get no row of their own (the raw event is kept), but a
//! person should know of them.

use crate::provider::event::{Content, Event, TemplateNews};
use crate::provider::{Code, PhoneNumberId, quoted};

/// Most events that are named one by one: a webhook may have thousands.
const MOST_NAMED: usize = 10;

/// Logs the events.
pub(super) fn note<'a>(events: impl IntoIterator<Item = &'a Event>) {
    let mut events = events.into_iter();
    events.by_ref().take(MOST_NAMED).for_each(note_one);
    let further = events.count();
    if further > 0 {
        tracing::info!(events = further, "WEBHOOK: further events without a message");
    }
}

fn note_one(event: &Event) {
    let number = event.phone_number_id.as_ref().map(PhoneNumberId::as_str);
    match &event.content {
        Content::AccountError(refusal) => tracing::warn!(
            phone_number_id = number,
            waba_id = event.waba_id,
            code = refusal.code.map(Code::number),
            class = refusal.class.as_str(),
            "WEBHOOK: Meta reports an error of the account"
        ),
        Content::Template(notice) => {
            let said = match &notice.news {
                TemplateNews::Stopped(word) | TemplateNews::Quality(Some(word)) => word.as_str(),
                TemplateNews::Usable => "usable",
                TemplateNews::Quality(None) => "no low quality",
            };
            let template = quoted(&notice.name);
            tracing::info!(
                waba_id = event.waba_id,
                template,
                said,
                "WEBHOOK: Meta reports on a template"
            );
        }
        Content::AccountNotice(_) => tracing::warn!(
            phone_number_id = number,
            waba_id = event.waba_id,
            field = quoted(&event.field),
            "WEBHOOK: Meta reports on the account; see the raw event"
        ),
        _ => tracing::info!(
            phone_number_id = number,
            waba_id = event.waba_id,
            field = quoted(&event.field),
            "WEBHOOK: an event without a message"
        ),
    }
}
