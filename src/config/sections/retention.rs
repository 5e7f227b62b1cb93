//! `[retention]`: how long what is no longer needed is kept.

use crate::config::reader::ValueReader;

/// How long what is no longer needed is kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Months for which a webhook's event is kept whose parts are all stored; 0: for ever.
    pub processed_webhooks_months: u32,
    /// Months for which a webhook's event is kept of which a part could not be stored; 0: for ever.
    pub failed_webhooks_months: u32,
    /// Days for which a webhook is tried that a subscriber does not take.
    pub undelivered_days: u32,
}

pub(super) fn retention(reader: &mut ValueReader<'_>) -> Option<Retention> {
    // A hundred years, in case somebody means "for ever".
    let processed = reader.integer("retention.processed_webhooks_months", 0..=1200);
    let failed = reader.integer("retention.failed_webhooks_months", 0..=1200);
    // Meta tries for a week; what is older than a month nobody waits for.
    let undelivered = reader.integer("retention.undelivered_days", 1..=31);
    Some(Retention {
        processed_webhooks_months: processed?,
        failed_webhooks_months: failed?,
        undelivered_days: undelivered?,
    })
}
