//! Stores status reports: records them, updates their messages, and learns the recipients' ids from them.

use uuid::Uuid;

use super::messages::Counted;
use crate::provider::ContactIdentity;
use crate::site_db::leads::statements::{Reached, Statement, Word};
use crate::site_db::messages::Addressed;
use crate::site_db::status_events::{self, ReceivedReport};
use crate::site_db::{SiteError, Transaction, leads};

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
    let mut lacking: Vec<(Uuid, &ContactIdentity)> = Vec::new();
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
        match news(addressed, contact) {
            News::Nothing => {}
            News::UserId => lacking.push((addressed.lead_id, contact)),
            News::Differs => {
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
        }
    }
    leads::learn_from_reports(tx, &lacking).await?;
    leads::statements::add(tx, &statements).await?;
    Ok(Reported {
        counted: recorded
            .iter()
            .map(|one| one.changed_to.map(Counted::outbound))
            .collect(),
        doubts: !statements.is_empty(),
    })
}

/// What a report says about the recipient that the message's lead does not have.
enum News {
    Nothing,
    /// The user id, of the same number.
    UserId,
    /// Another id: the number may be written in another form, or belong to another lead.
    Differs,
}

fn news(addressed: &Addressed, contact: &ContactIdentity) -> News {
    let (wa_id, user_id) = (addressed.lead_wa_id.as_deref(), addressed.lead_user_id.as_deref());
    let number = contact.wa_id.as_ref().map(|id| id.as_str());
    let user = contact.user_id.as_ref().map(|id| id.as_str());
    if (number.is_some() && number != wa_id) || (user.is_some() && user_id.is_some() && user != user_id) {
        News::Differs
    } else if user.is_some() && user_id.is_none() && number.is_some() {
        News::UserId
    } else {
        News::Nothing
    }
}
