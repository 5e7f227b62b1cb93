//! Stores status reports: records them, updates their messages, and learns the recipients' ids from them.

use uuid::Uuid;

use super::messages::Counted;
use crate::provider::ContactIdentity;
use crate::provider::event::StatusReport;
use crate::site_db::{SiteError, Transaction, leads, status_events};

/// Records reports, each with the number that it is for. The results are in the same order; `None`: the message shows the
/// same status as before, or is not known yet.
pub(super) async fn report(
    tx: &mut Transaction<'_>,
    reports: &[(Uuid, &StatusReport)],
) -> Result<Vec<Option<Counted>>, SiteError> {
    let recorded = status_events::record(tx, reports).await?;
    let mut recipients: Vec<(Uuid, &ContactIdentity)> = Vec::new();
    for (one, (_, report)) in recorded.iter().zip(reports) {
        if one.second_send && one.new {
            // Not the wamid, which contains the user's number in base64. The row in `message_status_events` has it.
            tracing::error!(
                message_id = one.message_id.map(|id| id.to_string()),
                "Meta took this message twice; the user may have it twice"
            );
        }
        recipients.extend(one.message_id.map(|id| (id, &report.contact)));
    }
    leads::learn_from_reports(tx, &recipients).await?;
    Ok(recorded
        .iter()
        .map(|one| one.changed_to.map(Counted::outbound))
        .collect())
}
