//! Stores status reports: records them, updates their messages, and notes what they say of the recipients' ids. That is
//! written to the leads later, in transactions of their own (see [`merging`](crate::site_db::merging)): this one has the
//! messages' rows, and may not lock leads any more.

use super::messages::Counted;
use crate::provider::ContactIdentity;
use crate::site_db::leads::statements::{self, Reached, Statement, Word};
use crate::site_db::messages::Addressed;
use crate::site_db::status_events::{self, ReceivedReport};
use crate::site_db::{SiteError, Transaction};

/// What became of reports.
pub(super) struct Reported {
    /// In the order of the reports; `None`: the message shows the same status as before, or is not known yet.
    pub(super) counted: Vec<Option<Counted>>,
    /// Whether recipients have other ids than their leads, so that leads may have to be merged.
    pub(super) doubts: bool,
}

/// Records reports.
pub(super) async fn report(tx: &mut Transaction<'_>, reports: &[ReceivedReport<'_>]) -> Result<Reported, SiteError> {
    let recorded = status_events::record(tx, reports).await?;
    let mut statements: Vec<Statement> = Vec::new();
    for (one, received) in recorded.iter().zip(reports) {
        if one.second_send && one.new {
            // Not the wamid, which contains the user's number in base64. The row in `message_status_events` has it.
            tracing::error!(
                message_id = one.message_id.map(|id| id.to_string()),
                "Meta took this message twice; the user may have it twice"
            );
        }
        let contact = &received.report.contact;
        let Some(addressed) = one.addressed.as_ref().filter(|addressed| !addressed.to_group) else {
            continue;
        };
        if !has_news(addressed, contact) {
            continue;
        }
        let statement = Statement {
            lead: Some(Reached {
                lead_id: addressed.lead_id,
                dialled: addressed.recipient.clone(),
            }),
            word: Word::Seen(contact.clone()),
        };
        if !statements.contains(&statement) {
            statements.push(statement);
        }
    }
    statements::add(tx, &statements).await?;
    Ok(Reported {
        counted: recorded
            .iter()
            .map(|one| one.changed_to.map(Counted::outbound))
            .collect(),
        doubts: !statements.is_empty(),
    })
}

/// Whether a report names ids of the recipient that the message's lead does not have: a user id, or another number, which may
/// be the same one in another form, or another lead's.
fn has_news(addressed: &Addressed, contact: &ContactIdentity) -> bool {
    let (wa_id, user_id) = (addressed.lead_wa_id.as_deref(), addressed.lead_user_id.as_deref());
    let number = contact.wa_id.as_ref().map(|id| id.as_str());
    let user = contact.user_id.as_ref().map(|id| id.as_str());
    let differs = (number.is_some() && number != wa_id) || (user.is_some() && user_id.is_some() && user != user_id);
    differs || (user.is_some() && user_id.is_none() && number.is_some())
}
