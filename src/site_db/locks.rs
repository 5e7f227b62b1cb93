//! Advisory locks on things that may have no row yet: a message's wamid before its outcome is committed, a person before
//! the lead exists. Held until the end of the transaction.
//!
//! Why they are needed: a status may arrive while the answer to its send is being committed. Each of the two must see
//! what the other wrote, and there is no row that both could lock. So both lock the wamid first; and every transaction
//! here runs at READ COMMITTED, so that the statements after a lock see what its last holder committed.
//!
//! The locks of one call are taken in the order of their keys, so two calls never wait for each other in a circle. A
//! transaction that needs several takes them in one call, before it touches a row.
//!
//! **One order for everything that is locked**, so that no two transactions of ours wait for each other in a circle
//! (SQLSTATE 40P01), and within a table the order of the ids:
//!
//! 1. these locks;
//! 2. rows of `leads`, new and old; whoever stores messages of a lead locks it (`FOR KEY SHARE`) and sees that it is not merged.
//!    Who writes to one lead and needs others locks all of them first, in one statement: a lock that is taken because
//!    something is learnt of the second person, and then one of the first because of its message, is against the order. If one of
//!    them was merged while its lock was waited for, the transaction begins again ([`SiteError::Merged`]): the lead that is kept
//!    may come before those that are locked by then;
//! 3. new rows of `conversations`, by number and lead;
//! 4. for what clients submit: `conversations`, then new messages by client id, and nothing more;
//! 5. for what the provider says: rows of `whatsapp_messages`, then the `referral` of leads, then `whatsapp_accounts`, then
//!    `conversations`.
//!
//! **Referrals, conversations, and numbers that are throttled or that webhooks tell something of, are locked by such a lock too**, and not as rows, before a statement
//! updates several of them ([`lock_updated`]). `WITH held AS (SELECT … FOR NO KEY UPDATE) UPDATE …` waits in a circle with itself: if a row has
//! changed since the statement began, `SELECT … FOR` locks its newest version, and `UPDATE` begins at the older one. There
//! it queues behind everyone who waits for the row, and they wait for the newest version. (It queues only while somebody
//! holds a `FOR KEY SHARE` lock, and every new message holds one on its conversation and its number.)
//!
//! Claims wait for nobody. A row that refers to another locks that one too (`FOR KEY SHARE`), which waits only where a column of
//! its unique indexes is being changed: a lead's number or user id, a message's wamid.

use super::{SiteError, Transaction};
use crate::provider::{ContactIdentity, WaId, Wamid};

/// Locks these messages and these people, in one order for all callers.
///
/// Each key is an entry in Postgres's shared lock table (64 per connection by default), so a caller with many keys must
/// work in portions.
///
/// # Errors
/// See [`SiteError`]; one case is that `lock_timeout` passed.
pub async fn lock<'a>(
    tx: &mut Transaction<'_>,
    wamids: impl IntoIterator<Item = &'a Wamid>,
    contacts: impl IntoIterator<Item = &'a ContactIdentity>,
) -> Result<(), SiteError> {
    lock_all(tx, wamids, contacts, []).await
}

/// The same with groups, by Meta's ids.
///
/// # Errors
/// As for [`lock`].
pub async fn lock_all<'a>(
    tx: &mut Transaction<'_>,
    wamids: impl IntoIterator<Item = &'a Wamid>,
    contacts: impl IntoIterator<Item = &'a ContactIdentity>,
    groups: impl IntoIterator<Item = &'a str>,
) -> Result<(), SiteError> {
    let mut keys: Vec<String> = wamids.into_iter().map(|wamid| wamid.as_str().to_owned()).collect();
    for contact in contacts {
        keys.extend(contact.user_id.iter().map(|id| format!("lead:{id}")));
        // In both forms of the line: whoever looks for one must see what is made for the other.
        let numbers = contact
            .wa_id
            .iter()
            .cloned()
            .chain(contact.wa_id.as_ref().and_then(WaId::other_form));
        keys.extend(numbers.map(|id| format!("lead:{}", id.as_str())));
    }
    keys.extend(groups.into_iter().map(group_key));
    lock_keys(tx, &keys).await
}

/// A query for a `WITH` that locks the people of `rows`, by the columns with their ids, as [`lock`] does. Its one row counts the
/// keys: who must hold the locks first reads it.
pub(super) fn lock_missing(rows: &str, ids: &[&str]) -> String {
    let columns: Vec<String> = ids.iter().map(|column| format!("r.{column}")).collect();
    // `count` of the function's result, so that the planner cannot leave the call out.
    format!(
        "SELECT count(pg_advisory_xact_lock(key)::text) AS keys FROM ( \
           SELECT DISTINCT hashtextextended('lead:' || name, 0) AS key \
           FROM {rows} AS r CROSS JOIN LATERAL unnest(ARRAY[{}]) AS name \
           WHERE name IS NOT NULL ORDER BY key) AS keys",
        columns.join(", ")
    )
}

/// A query for a `WITH` that locks rows of a table, by their ids, before the same statement updates them: see the module.
/// `ids` is an expression for an array of uuid. Its one row counts the keys: the update must read it.
pub(super) fn lock_updated(table: &str, ids: &str) -> String {
    format!(
        "SELECT count(pg_advisory_xact_lock(key)::text) AS keys FROM ( \
           SELECT DISTINCT hashtextextended('{table}:' || id, 0) AS key FROM unnest({ids}) AS id \
           WHERE id IS NOT NULL ORDER BY key) AS keys"
    )
}

/// The key of a group's lead.
pub(super) fn group_key(group_id: &str) -> String {
    format!("lead:group:{group_id}")
}

/// Locks these keys.
pub(super) async fn lock_keys(tx: &mut Transaction<'_>, keys: &[String]) -> Result<(), SiteError> {
    // The sorted subquery is a barrier for the planner: the outer function sees the rows in that order.
    sqlx::query(
        "SELECT pg_advisory_xact_lock(key)
           FROM (SELECT DISTINCT hashtextextended(name, 0) AS key FROM unnest($1::text[]) AS name ORDER BY key) AS keys",
    )
    .bind(keys)
    .execute(tx.connection())
    .await?;
    Ok(())
}
