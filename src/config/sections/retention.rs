//! `[retention]`: how long what is no longer needed is kept.

use crate::config::reader::ValueReader;

/// How long what is no longer needed is kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Months for which a webhook's event is kept whose parts are all stored; 0: for ever.
    pub processed_webhooks_months: u32,
    /// Months for which a webhook's event is kept of which a part could not be stored; 0: for ever.
    pub failed_webhooks_months: u32,
}

pub(super) fn retention(reader: &mut ValueReader<'_>) -> Option<Retention> {
    // A hundred years, in case somebody means "for ever".
    let processed = reader.integer("retention.processed_webhooks_months", 0..=1200);
    let failed = reader.integer("retention.failed_webhooks_months", 0..=1200);
    Some(Retention {
        processed_webhooks_months: processed?,
        failed_webhooks_months: failed?,
    })
}
