//! `webhook_events`: what Meta posted, byte for byte, and how far it is processed.
//!
//! ```text
//! received ─→ processed
//!    ↑    └─→ failed      some events could not be stored; which and why is in `failures`
//!    └─ replay ┴─┘        by hand, after a fix
//!
//! Old ones are deleted in the end, but none that is `received`.
//! ```

use serde_json::Value;
use sqlx::FromRow;
use std::time::Duration;
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Pool, SiteError, Transaction};

/// `webhook_events.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum WebhookState {
    /// Committed before Meta got its 200; to be processed.
    Received,
    /// Every event is stored.
    Processed,
    /// Every event was tried, and some could not be stored.
    Failed,
}

impl WebhookState {
    /// As the column writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A webhook that this transaction has locked to process it.
#[derive(Debug, FromRow)]
pub struct ClaimedWebhook {
    /// `webhook_events.id`.
    pub id: Uuid,
    /// The bytes that Meta signed.
    pub body: Vec<u8>,
    /// Attempts before this one.
    pub attempts: i32,
    /// When it was committed.
    pub received_at: OffsetDateTime,
}

/// How much one claim may bring.
#[derive(Debug, Clone, Copy)]
pub struct ClaimLimit {
    /// Most webhooks.
    pub webhooks: u32,
    /// Most bytes of their bodies; a single webhook may be longer.
    pub bytes: u32,
}

/// The result for a webhook whose events have all been tried.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The webhook.
    pub id: Uuid,
    /// Events that are messages of people.
    pub real: usize,
    /// All other events (statuses, notices, account events).
    pub protocol: usize,
    /// The events that could not be stored, and why; `None` if all were stored.
    pub failures: Option<Value>,
}

/// Webhooks that are not processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct Backlog {
    /// Webhooks that wait for longer than they should.
    pub late: i64,
    /// Webhooks with events that could not be processed.
    pub failed: i64,
}

/// A webhook to be stored.
#[derive(Debug, Clone, Copy)]
pub struct NewWebhook<'a> {
    /// The bytes that Meta signed.
    pub body: &'a [u8],
    /// Their hash (hex).
    pub body_sha256: &'a str,
}

/// Stores webhooks, in the order in which they were received, and returns their ids. One statement, and committed.
///
/// `received_at` decides the order of a person's messages (`whatsapp_messages.created_at`). A webhook that was received
/// after another one's 200 has a later `now()`; those of one statement follow each other by a microsecond, which is less
/// than a row takes to be written.
///
/// # Errors
/// See [`SiteError`].
pub async fn insert(pool: &Pool, webhooks: &[NewWebhook<'_>]) -> Result<Vec<Uuid>, SiteError> {
    // Time-ordered, so that the index grows at its end.
    let ids: Vec<Uuid> = webhooks.iter().map(|_| Uuid::now_v7()).collect();
    sqlx::query(
        "INSERT INTO public.webhook_events (id, body, body_sha256, received_at, next_attempt_at)
         SELECT id, body, sum, at, at
           FROM (SELECT id, body, sum, now() + (number - 1) * interval '1 microsecond' AS at
                   FROM unnest($1::uuid[], $2::bytea[], $3::text[]) WITH ORDINALITY AS given(id, body, sum, number)) AS new",
    )
    .bind(&ids)
    .bind(webhooks.iter().map(|webhook| webhook.body).collect::<Vec<_>>())
    .bind(webhooks.iter().map(|webhook| webhook.body_sha256).collect::<Vec<_>>())
    .execute(&pool.0)
    .await?;
    Ok(ids)
}

/// Locks and returns the webhooks that have been due for the longest time and that no other worker has locked, in the order
/// in which they were received. Further ones may be locked until the end of the transaction, and are not returned.
///
/// # Errors
/// See [`SiteError`].
pub async fn claim(tx: &mut Transaction<'_>, limit: ClaimLimit) -> Result<Vec<ClaimedWebhook>, SiteError> {
    // A body's length is known without reading it. What is too much stays unread.
    Ok(sqlx::query_as(
        "WITH due AS (
             SELECT id, body, attempts, received_at, next_attempt_at FROM public.webhook_events
              WHERE state = 'received' AND next_attempt_at <= now()
              ORDER BY next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED
         ), counted AS (
             SELECT *, sum(octet_length(body)) OVER places AS bytes, row_number() OVER places AS place
               FROM due WINDOW places AS (ORDER BY next_attempt_at, id)
         )
         SELECT id, body, attempts, received_at FROM counted WHERE bytes <= $2 OR place = 1 ORDER BY place",
    )
    .bind(i64::from(limit.webhooks))
    .bind(i64::from(limit.bytes))
    .fetch_all(tx.connection())
    .await?)
}

/// Locks these webhooks again, after their transaction was rolled back. Returns those that are still to be processed and
/// that no other worker has locked.
///
/// # Errors
/// See [`SiteError`].
pub async fn claim_again(tx: &mut Transaction<'_>, ids: &[Uuid]) -> Result<Vec<Uuid>, SiteError> {
    // Inside `coalesce`, so that the index of all that waits is not taken instead of the primary key.
    Ok(sqlx::query_scalar(
        "SELECT id FROM public.webhook_events WHERE id = ANY($1) AND coalesce(state = 'received', false) AND next_attempt_at <= now()
          ORDER BY id FOR UPDATE SKIP LOCKED",
    )
    .bind(ids)
    .fetch_all(tx.connection())
    .await?)
}

/// Keeps other workers away from a webhook for a while, beyond the end of this transaction.
///
/// # Errors
/// See [`SiteError`].
pub async fn postpone(tx: &mut Transaction<'_>, id: Uuid, wait: Duration) -> Result<(), SiteError> {
    sqlx::query("UPDATE public.webhook_events SET next_attempt_at = now() + make_interval(secs => $2) WHERE id = $1")
        .bind(id)
        .bind(wait.as_secs_f64())
        .execute(tx.connection())
        .await?;
    Ok(())
}

/// Sets the time of the next attempt of these webhooks, after an attempt that failed as a whole.
///
/// # Errors
/// See [`SiteError`].
pub async fn retry_later(pool: &Pool, ids: &[Uuid], wait: Duration) -> Result<(), SiteError> {
    sqlx::query(
        "WITH failed AS (
             SELECT id FROM public.webhook_events WHERE id = ANY($1) AND coalesce(state = 'received', false) ORDER BY id FOR UPDATE
         )
         UPDATE public.webhook_events AS e SET attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => $2)
           FROM failed WHERE e.id = failed.id",
    )
    .bind(ids)
    .bind(wait.as_secs_f64())
    .execute(&pool.0)
    .await?;
    Ok(())
}

/// Marks webhooks whose events have all been tried as processed or failed. The caller has locked them.
///
/// # Errors
/// See [`SiteError`].
pub async fn finish(tx: &mut Transaction<'_>, finished: &[Finished]) -> Result<(), SiteError> {
    let state = |finished: &Finished| match finished.failures {
        Some(_) => WebhookState::Failed,
        None => WebhookState::Processed,
    };
    let count = |events: usize| i32::try_from(events).unwrap_or(i32::MAX);
    macro_rules! each {
        ($value:expr) => {
            finished.iter().map($value).collect::<Vec<_>>()
        };
    }
    sqlx::query(
        "UPDATE public.webhook_events AS e SET state = f.state, attempts = e.attempts + 1, real_events = f.real_events,
                protocol_events = f.protocol_events, failures = f.failures, processed_at = clock_timestamp()
           FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::integer[], $5::jsonb[])
             AS f(id, state, real_events, protocol_events, failures)
          WHERE e.id = f.id",
    )
    .bind(each!(|one| one.id))
    .bind(each!(state))
    .bind(each!(|one| count(one.real)))
    .bind(each!(|one| count(one.protocol)))
    .bind(each!(|one| one.failures.as_ref()))
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Counts the webhooks that are not processed; one is late if it has waited for longer than `late_after`.
///
/// # Errors
/// See [`SiteError`].
pub async fn backlog(pool: &Pool, late_after: Duration) -> Result<Backlog, SiteError> {
    Ok(sqlx::query_as(
        "SELECT (SELECT count(*) FROM public.webhook_events
                  WHERE state = 'received' AND received_at < now() - make_interval(secs => $1)) AS late,
                (SELECT count(*) FROM public.webhook_events WHERE state = 'failed') AS failed",
    )
    .bind(late_after.as_secs_f64())
    .fetch_one(&pool.0)
    .await?)
}

/// Which kept webhooks are to be processed again.
#[derive(Debug, Clone, Default)]
pub struct ReplayFilter {
    /// Only these; empty: all.
    pub ids: Vec<Uuid>,
    /// Only those in one of these states.
    pub states: Vec<WebhookState>,
    /// Only those that were received then or later.
    pub since: Option<OffsetDateTime>,
    /// Only those that were received before.
    pub until: Option<OffsetDateTime>,
}

/// An id begins with the time of the server's clock, and `received_at` is that of the Site DB: they may differ by so much.
pub(super) const ID_MARGIN: Duration = Duration::from_secs(600);

/// The smallest id of a webhook that was received at that time: ids begin with the time in milliseconds.
pub(super) fn first_id_at(at: OffsetDateTime) -> Uuid {
    let millis = u128::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    Uuid::from_u128(millis << 80)
}

/// The ids of kept webhooks after `after`, in the order in which they were received.
///
/// # Errors
/// See [`SiteError`].
pub async fn to_replay(pool: &Pool, filter: &ReplayFilter, after: Uuid, limit: u32) -> Result<Vec<Uuid>, SiteError> {
    let from = filter
        .since
        .map_or(after, |since| after.max(first_id_at(since - ID_MARGIN)));
    let to = filter.until.map_or(Uuid::max(), |until| first_id_at(until + ID_MARGIN));
    Ok(sqlx::query_scalar(
        "SELECT id FROM public.webhook_events
          WHERE id > $1 AND id < $2 AND state = ANY ($3) AND ($4::uuid[] = '{}' OR id = ANY ($4))
            AND coalesce(received_at >= $5, true) AND coalesce(received_at < $6, true)
          ORDER BY id LIMIT $7",
    )
    .bind(from)
    .bind(to)
    .bind(&filter.states)
    .bind(&filter.ids)
    .bind(filter.since)
    .bind(filter.until)
    .bind(i64::from(limit))
    .fetch_all(&pool.0)
    .await?)
}

/// Makes these webhooks due again, unless they are. Returns how many.
///
/// # Errors
/// See [`SiteError`].
pub async fn replay(pool: &Pool, ids: &[Uuid]) -> Result<u64, SiteError> {
    let done = sqlx::query(
        "WITH again AS (
             SELECT id FROM public.webhook_events WHERE id = ANY ($1) AND state <> $2 ORDER BY id FOR UPDATE
         )
         UPDATE public.webhook_events AS e SET state = $2, attempts = 0, next_attempt_at = now(), processed_at = NULL
           FROM again WHERE e.id = again.id",
    )
    .bind(ids)
    .bind(WebhookState::Received)
    .execute(&pool.0)
    .await?;
    Ok(done.rows_affected())
}

/// How many of these webhooks are in each state.
///
/// # Errors
/// See [`SiteError`].
pub async fn in_states(pool: &Pool, ids: &[Uuid]) -> Result<Vec<(WebhookState, i64)>, SiteError> {
    Ok(
        sqlx::query_as("SELECT state, count(*) FROM public.webhook_events WHERE id = ANY ($1) GROUP BY state")
            .bind(ids)
            .fetch_all(&pool.0)
            .await?,
    )
}

/// Deletes the oldest webhooks in this state that were received more than so many months ago, at most `limit`; returns how
/// many. Those that are being processed, or that a subscriber has not taken yet, are skipped.
///
/// # Errors
/// See [`SiteError`].
pub async fn forget(pool: &Pool, state: WebhookState, months: u32, limit: u32) -> Result<u64, SiteError> {
    // Found by id, which begins with the time: so no further index has to be kept by every webhook that comes in. A month has
    // at least 28 days.
    let youngest = OffsetDateTime::now_utc() - time::Duration::days(28) * months;
    let done = sqlx::query(
        "DELETE FROM public.webhook_events WHERE id IN (
             SELECT id FROM public.webhook_events w
              WHERE id < $1 AND state = $2 AND received_at < now() - make_interval(months => $3)
                AND NOT EXISTS (SELECT FROM twinlog.subscribers s JOIN twinlog.deliveries d ON d.subscriber = s.name
                     AND d.received_at = w.received_at AND d.webhook_id = w.id
                     WHERE d.given_up_at IS NULL AND s.removed_at IS NULL)
              ORDER BY id LIMIT $4 FOR UPDATE SKIP LOCKED)",
    )
    .bind(first_id_at(youngest))
    .bind(state)
    .bind(i32::try_from(months).unwrap_or(i32::MAX))
    .bind(i64::from(limit))
    .execute(&pool.0)
    .await?;
    Ok(done.rows_affected())
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    #[test]
    fn every_state_is_in_the_schema() {
        let schema = include_str!("../../migrations/site/0001_conversations.sql");
        for state in WebhookState::iter() {
            assert!(schema.contains(&format!("'{state}'")), "{state}");
        }
    }
}
