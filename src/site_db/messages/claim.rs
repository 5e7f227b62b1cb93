//! Claims messages that are due; and sweeps messages whose process died or whose client left.
//!
//! Rows are chosen `FOR UPDATE SKIP LOCKED`, so that any number of servers may do this at once.

use std::sync::LazyLock;
use std::time::Duration;

use sqlx::FromRow;
use uuid::Uuid;

use super::submit::REPEAT_OF_SETTLED;
use super::transition;
use super::write;
use crate::provider::{ApiVersion, ErrorClass};
use crate::site_db::{Pool, SiteError, Transaction};

/// A message under a lease, committed as `sending`: the provider may be called now, once.
#[derive(Debug, Clone, FromRow)]
pub struct Claimed {
    /// `whatsapp_messages.id`.
    pub id: Uuid,
    /// The claim's id: an outcome counts only while the row still carries it.
    pub lease_owner: Uuid,
    /// Which attempt this is, from 1.
    pub attempt: i32,
    /// How many earlier attempts did not count towards the limit (throttled, number held, network down).
    #[sqlx(rename = "throttles")]
    pub uncounted: i32,
    /// `conversations.id`.
    pub conversation_id: Uuid,
    /// `leads.id` of the person or the group.
    pub lead_id: Uuid,
    /// The client that submitted it.
    pub client_name: Option<String>,
    /// The client's request, byte for byte.
    pub request: Option<Vec<u8>>,
    /// The Graph API version that the client asked for.
    pub api_version: Option<ApiVersion>,
    /// Whether another message waits in its conversation.
    pub more: bool,
    /// The lead's number at WhatsApp, as the table has it.
    pub lead_wa_id: Option<String>,
    /// The lead's business-scoped user id, as the table has it.
    pub lead_user_id: Option<String>,
}

/// Which messages a claim takes.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// These, as far as they are due and first in their conversations.
    These(&'a [Uuid]),
    /// The first that are due, in order, at most this many.
    Due(usize),
}

/// How a claim is made.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// The number's row.
    pub account_id: Uuid,
    /// The claim's own id: the `lease_owner` of all its messages.
    pub lease_owner: Uuid,
    /// How long its messages belong to it.
    pub lease: Duration,
}

/// The messages that are due, in order: those of one conversation one after the other, oldest first. One that backs off
/// delays the later ones of its own conversation and no others; an `unknown` one delays none, as it may never be settled.
/// The number's hold and throttle are checked in the same statement, so that another server's hold counts at once.
///
/// A message that repeats another one is not due (see [`repeats`]). Its client gets the answer of the first one.
///
/// `$1` the number's row, `$2` how many at most, `$3` seconds of the lease, `$4` the claim's id, `$5` whether a hold is
/// ignored; `chosen` chooses among the messages.
fn due(chosen: &str) -> String {
    format!(
        "SELECT m.id FROM public.whatsapp_messages m JOIN public.whatsapp_accounts a ON a.id = m.account_id \
         WHERE {chosen} \
           AND coalesce(m.next_attempt_at <= now(), true) AND coalesce(m.send_by > now(), true) \
           AND (a.status = 'active' OR $5) AND coalesce(a.throttled_until <= now(), true) \
           AND NOT EXISTS ( \
             SELECT FROM public.whatsapp_messages e \
             WHERE e.conversation_id = m.conversation_id AND e.status IN ('pending', 'sending') \
               AND (e.created_at, e.id) < (m.created_at, m.id) \
               AND (e.status = 'sending' OR coalesce(e.send_by > now(), true))) \
           AND NOT EXISTS ( \
             SELECT FROM public.whatsapp_messages u WHERE {}) \
         ORDER BY m.created_at, m.id LIMIT $2 FOR UPDATE OF m SKIP LOCKED",
        repeats()
    )
}

/// The condition under which `m` repeats `u`: an equal request of the same client without a client id that was stored while `u` was
/// under way, or just afterwards, and the client does not know what became of `u`. That its client left may be committed a little
/// later than the repeat, with an earlier time: so the times are not compared exactly. What the client could know was
/// found when the repeat was submitted, and it was not stored.
fn repeats() -> String {
    format!(
        "m.client_id IS NULL AND m.send_by IS NOT NULL AND u.client_name = m.client_name \
         AND u.request_sha256 = m.request_sha256 AND u.unknown_at IS NOT NULL \
         AND u.unknown_at > m.created_at - interval '{REPEAT_OF_SETTLED}' AND (u.created_at, u.id) < (m.created_at, m.id) \
         AND (u.status IN ('unknown', 'pending', 'sending') OR u.wamid IS NOT NULL)"
    )
}

static REPEATED: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT u.id FROM public.whatsapp_messages m JOIN public.whatsapp_messages u ON {} \
         WHERE m.id = $1 AND m.status = 'pending' ORDER BY u.unknown_at DESC LIMIT 1",
        repeats()
    )
});

/// The message that a waiting one repeats, if there is one.
///
/// # Errors
/// See [`SiteError`].
pub async fn repeated_by(pool: &Pool, id: Uuid) -> Result<Option<Uuid>, SiteError> {
    Ok(sqlx::query_scalar(REPEATED.as_str())
        .bind(id)
        .fetch_optional(&pool.0)
        .await?)
}

/// The statement that claims what a query chooses. `more`: another message waits in the conversation.
fn claiming(due: &str) -> String {
    let columns = "id, lease_owner, attempt, throttles, conversation_id, lead_id, client_name, request, api_version, \
         EXISTS (SELECT FROM public.whatsapp_messages w WHERE w.conversation_id = moved.conversation_id \
           AND w.status = 'pending' AND (w.created_at, w.id) > (moved.created_at, moved.id)) AS more, \
         (SELECT l.wa_id FROM public.leads l WHERE l.id = moved.lead_id) AS lead_wa_id, \
         (SELECT l.user_id FROM public.leads l WHERE l.id = moved.lead_id) AS lead_user_id";
    write::chosen(due, &transition::CLAIM, columns)
}

/// Messages that wait to be sent from a number.
const PENDING: &str = "m.account_id = $1 AND m.status = 'pending' AND m.direction = 'outbound'";

pub(super) static CLAIM_DUE: LazyLock<String> = LazyLock::new(|| claiming(&due(PENDING)));

pub(super) static CLAIM_THESE: LazyLock<String> = LazyLock::new(|| {
    // Inside `coalesce`, so that the planner takes the primary key, and not an index of all that waits.
    claiming(&due(&format!("m.id = ANY ($6) AND coalesce({PENDING}, false)")))
});

static GIVE_BACK: LazyLock<String> = LazyLock::new(|| {
    let claimed = "SELECT id FROM public.whatsapp_messages WHERE status = 'sending' AND lease_owner = $1 \
         ORDER BY id FOR UPDATE";
    write::chosen(claimed, &transition::GIVE_BACK, "id")
});

static EXPIRE: LazyLock<String> = LazyLock::new(|| {
    let expired = "SELECT id FROM public.whatsapp_messages WHERE status = 'sending' AND lease_until < now() \
         ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED";
    write::chosen(expired, &transition::EXPIRE, "id")
});

static ABANDON: LazyLock<String> = LazyLock::new(|| {
    let abandoned = "SELECT id FROM public.whatsapp_messages WHERE status = 'pending' \
         AND send_by < now() - interval '5 seconds' ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED";
    write::chosen(abandoned, &transition::CANCEL, "id")
});

/// Claims due messages of a number: commits them as `sending`, each with its next attempt number.
///
/// # Errors
/// See [`SiteError`]. If the connection broke, they may be claimed all the same: see [`give_back`].
pub async fn claim(pool: &Pool, claim: Claim, wanted: Wanted<'_>) -> Result<Vec<Claimed>, SiteError> {
    // One statement is one transaction: the usual case takes one round trip.
    let mut connection = pool.0.acquire().await?;
    let (text, limit) = match wanted {
        Wanted::These(ids) => (CLAIM_THESE.as_str(), ids.len()),
        Wanted::Due(limit) => (CLAIM_DUE.as_str(), limit),
    };
    let mut query = claim_query(text, claim, limit, false);
    if let Wanted::These(ids) = wanted {
        query = query.bind(ids);
    }
    let claimed = query.fetch_all(&mut connection).await?;
    if !claimed.is_empty() {
        pool.committed();
    }
    Ok(claimed)
}

/// Claims one message of a held number, to test if it can send again. The caller commits.
///
/// # Errors
/// See [`SiteError`].
pub async fn claim_probe(tx: &mut Transaction<'_>, claim: Claim) -> Result<Vec<Claimed>, SiteError> {
    Ok(claim_query(CLAIM_DUE.as_str(), claim, 1, true)
        .fetch_all(tx.connection())
        .await?)
}

type ClaimQuery<'q> = sqlx::query::QueryAs<'q, sqlx::Postgres, Claimed, sqlx::postgres::PgArguments>;

fn claim_query<'q>(text: &'static str, claim: Claim, limit: usize, held: bool) -> ClaimQuery<'q> {
    sqlx::query_as(text)
        .bind(claim.account_id)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(claim.lease.as_secs_f64())
        .bind(claim.lease_owner)
        .bind(held)
}

/// Puts back what a claim took whose answer was lost: the caller knows that it has sent none of it. Returns how many.
///
/// # Errors
/// See [`SiteError`].
pub async fn give_back(pool: &Pool, lease_owner: Uuid) -> Result<usize, SiteError> {
    let given: Vec<Uuid> = sqlx::query_scalar(GIVE_BACK.as_str())
        .bind(lease_owner)
        .fetch_all(&pool.0)
        .await?;
    pool.committed();
    Ok(given.len())
}

/// Marks every attempt whose lease has expired `unknown`: its process died, or could not commit the outcome in time.
/// Returns the messages.
///
/// # Errors
/// See [`SiteError`].
pub async fn sweep_expired(pool: &Pool) -> Result<Vec<Uuid>, SiteError> {
    let expired: Vec<Uuid> = sqlx::query_scalar(EXPIRE.as_str()).fetch_all(&pool.0).await?;
    if !expired.is_empty() {
        pool.committed();
    }
    Ok(expired)
}

/// Cancels messages whose clients stopped waiting long ago but could not cancel them (their server died). Returns the
/// messages' ids.
///
/// # Errors
/// See [`SiteError`].
pub async fn sweep_abandoned(pool: &Pool) -> Result<Vec<Uuid>, SiteError> {
    let abandoned: Vec<Uuid> = sqlx::query_scalar(ABANDON.as_str()).fetch_all(&pool.0).await?;
    if !abandoned.is_empty() {
        pool.committed();
    }
    Ok(abandoned)
}

/// Two members of a `WITH` that makes due what waited for the numbers that the query `held` names: `waiting` locks these
/// messages, before the numbers' rows (see [`locks`](crate::site_db::locks)); the other makes them due, if a member `released`
/// has rows. They live here because they change messages; the number's owner puts them into the statement that releases it.
pub(in crate::site_db) fn made_due_by_release(held: &str) -> (String, String) {
    let waiting = format!(
        "waiting AS MATERIALIZED (SELECT w.id FROM public.whatsapp_messages w WHERE w.account_id = ANY (ARRAY({held})) \
         AND w.status = 'pending' AND w.error_class = '{}' ORDER BY w.id FOR NO KEY UPDATE)",
        ErrorClass::Account.as_str()
    );
    let source = "(SELECT w.id FROM waiting w WHERE EXISTS (SELECT FROM released)) AS c";
    (waiting, write::moved(source, "waiting", &transition::MAKE_DUE))
}
