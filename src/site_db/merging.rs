//! Settles what is known of people's ids (see [`leads`]): writes it, and merges leads that are one person.
//!
//! The older lead is kept. It gets the other one's ids, messages, notifications and conversations (of two conversations with
//! the same number of ours, the other one's messages move into its own). The rows of the merged lead and of an emptied
//! conversation stay and point to the ones that are kept, because other programs may refer to them. `lead_merges` has all that
//! is needed to undo it.
//!
//! Each statement has a transaction of its own, in which it takes the locks in the common order (see [`locks`]): the ids, the
//! leads, the messages, the conversations. A message that is stored at the same time waits for the leads' rows, and then
//! finds the lead that is kept.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::leads::statements::{self, Claimed};
use super::leads::{self, About};
use super::{Pool, SiteError, Transaction, conversations, locks, messages, notifications};
use crate::retry::Disposition;

/// Most statements of one call; the next call goes on.
const AT_ONCE: usize = 100;
/// How long a statement waits that could not be settled: after an error that passes, such as a lock or a connection, and after
/// any other. The others go on.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Settles the statements that are due. Several processes may do that at once.
///
/// # Errors
/// See [`SiteError`]: the first error; the statement is tried again later.
pub async fn settle_due(pool: &Pool) -> Result<(), SiteError> {
    let mut failed = None;
    for _ in 0..AT_ONCE {
        let mut tx = pool.begin().await?;
        let Some(claimed) = statements::claim(&mut tx).await? else {
            break;
        };
        let settled = async {
            Box::pin(settle(&mut tx, &claimed)).await?;
            statements::done(&mut tx, claimed.id).await?;
            tx.commit().await
        };
        if let Err(error) = settled.await {
            let passes = error.disposition() == Disposition::Transient;
            statements::postpone(pool, claimed.id, if passes { RETRY.0 } else { RETRY.1 }).await?;
            failed = failed.or(Some(error));
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn settle(tx: &mut Transaction<'_>, claimed: &Claimed) -> Result<(), SiteError> {
    locks::lock(tx, [], claimed.statement.contacts()).await?;
    if let About::Several(several) = leads::write(tx, &claimed.statement).await? {
        let several = leads::lock_leads(tx, &several).await?;
        if let Some((kept, others)) = several.split_first() {
            for merged in others {
                // Somebody knows that they are two people.
                if !leads::merge_was_undone(tx, &[*kept, *merged]).await? {
                    merge(tx, *kept, *merged).await?;
                }
            }
        }
        leads::write(tx, &claimed.statement).await?;
    }
    Ok(())
}

async fn merge(tx: &mut Transaction<'_>, kept: Uuid, merged: Uuid) -> Result<(), SiteError> {
    let record = leads::join(tx, kept, merged).await?;
    let pairs = conversations::of_both(tx, kept, merged).await?;
    let mut moved = Vec::new();
    for pair in &pairs {
        let into = pair.into.unwrap_or(pair.conversation);
        let messages = messages::move_to(tx, pair.conversation, into, kept).await?;
        let notified = match pair.into {
            Some(into) => notifications::move_to(tx, pair.conversation, into).await?,
            None => Vec::new(),
        };
        moved.push(
            json!({"conversation": pair.conversation, "into": pair.into, "messages": messages,
            "notifications": notified}),
        );
    }
    conversations::merge_all(tx, kept, &pairs).await?;
    leads::record_moved(tx, record, &json!(moved)).await?;
    tracing::info!(lead_id = %kept, merged_lead_id = %merged, merge_id = %record,
        "two leads are one person: the older one is kept and has the other's messages now; \
         SELECT twinlog.undo_lead_merge(merge_id) undoes it");
    Ok(())
}
