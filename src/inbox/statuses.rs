//! Stores a status report: records it, updates its message, and learns the recipient's ids from it.

use uuid::Uuid;

use super::messages::Counted;
use crate::provider::event::StatusReport;
use crate::site_db::{SiteError, Transaction, leads, status_events};

/// Records a report. `None`: the message shows the same status as before, or is not known yet.
pub(super) async fn report(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    status: &StatusReport,
) -> Result<Option<Counted>, SiteError> {
    let recorded = status_events::record(tx, account_id, status).await?;
    if recorded.second_send && recorded.new {
        // Not the wamid, which contains the user's number in base64. The row in `message_status_events` has it.
        tracing::error!(
            message_id = recorded.message_id.map(|id| id.to_string()),
            "Meta took this message twice; the user may have it twice"
        );
    }
    if let Some(message_id) = recorded.message_id {
        leads::learn_from_report(tx, message_id, &status.contact).await?;
    }
    Ok(recorded.changed_to.map(Counted::outbound))
}
