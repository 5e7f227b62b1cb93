//! `twinlog.deliveries`: the webhooks that a subscriber has not taken yet. The Site DB adds them itself, in the transaction that
//! stores a webhook (`migrations/site/0017_subscribers.sql`); here they are read, done, postponed and given up.

use std::time::Duration;

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::webhook_events::first_id_at;
use super::{Pool, SiteError};

/// A webhook that waits, with its body.
#[derive(Debug, Clone, FromRow)]
pub struct Waiting {
    /// `webhook_events.id`
    pub webhook_id: Uuid,
    /// When it was received: their order.
    pub received_at: OffsetDateTime,
    /// Attempts so far.
    pub attempts: i32,
    /// For how long it has waited, in seconds.
    pub waited_seconds: f64,
    /// How long until it may be tried again, in seconds; not above 0: now.
    pub wait_seconds: f64,
    /// The bytes that Meta signed; `None`: they were deleted.
    pub body: Option<Vec<u8>>,
}

/// A delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// When the webhook was received: their order.
    pub received_at: OffsetDateTime,
    /// `webhook_events.id`
    pub webhook_id: Uuid,
}

/// A delivery that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Which.
    pub key: Key,
    /// Why, in our words.
    pub problem: String,
    /// When to try again; `None`: never.
    pub again_after: Option<Duration>,
}

/// The oldest webhooks that wait for a subscriber, without those that the caller has, at most `limit` and about `bytes`.
///
/// # Errors
/// See [`SiteError`].
pub async fn waiting(
    pool: &Pool,
    subscriber: &str,
    without: &[Uuid],
    limit: u16,
    bytes: u32,
) -> Result<Vec<Waiting>, SiteError> {
    Ok(sqlx::query_as(
        "WITH oldest AS MATERIALIZED ( \
             SELECT d.webhook_id, d.received_at, d.attempts, d.queued_at, d.next_attempt_at FROM twinlog.deliveries d \
              WHERE d.subscriber = $1 AND d.given_up_at IS NULL AND NOT d.webhook_id = ANY ($2) \
              ORDER BY d.received_at, d.webhook_id LIMIT $3 \
         ), counted AS ( \
             SELECT o.*, e.body, sum(coalesce(octet_length(e.body), 0)) OVER places AS bytes, row_number() OVER places AS place \
               FROM oldest o LEFT JOIN public.webhook_events e ON e.id = o.webhook_id \
             WINDOW places AS (ORDER BY o.received_at, o.webhook_id) \
         ) \
         SELECT webhook_id, received_at, attempts, body, extract(epoch FROM now() - queued_at)::float8 AS waited_seconds, \
                coalesce(extract(epoch FROM next_attempt_at - now()), 0)::float8 AS wait_seconds \
           FROM counted WHERE bytes <= $4 OR place = 1 ORDER BY place",
    )
    .bind(subscriber)
    .bind(without)
    .bind(i64::from(limit))
    .bind(i64::from(bytes))
    .fetch_all(&pool.0)
    .await?)
}

/// The bodies of webhooks; those that were deleted are left out.
///
/// # Errors
/// See [`SiteError`].
pub async fn bodies(pool: &Pool, ids: &[Uuid]) -> Result<Vec<(Uuid, Vec<u8>)>, SiteError> {
    Ok(
        sqlx::query_as("SELECT id, body FROM public.webhook_events WHERE id = ANY ($1)")
            .bind(ids)
            .fetch_all(&pool.0)
            .await?,
    )
}

/// The subscriber has these webhooks, or does not want them.
///
/// # Errors
/// See [`SiteError`].
pub async fn done(pool: &Pool, subscriber: &str, keys: &[Key]) -> Result<(), SiteError> {
    sqlx::query(
        "DELETE FROM twinlog.deliveries d USING unnest($2::timestamptz[], $3::uuid[]) AS k(received_at, webhook_id) \
          WHERE d.subscriber = $1 AND d.received_at = k.received_at AND d.webhook_id = k.webhook_id",
    )
    .bind(subscriber)
    .bind(keys.iter().map(|key| key.received_at).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.webhook_id).collect::<Vec<_>>())
    .execute(&pool.0)
    .await?;
    Ok(())
}

/// These were tried in vain.
///
/// # Errors
/// See [`SiteError`].
pub async fn failed(pool: &Pool, subscriber: &str, failed: &[Failed]) -> Result<(), SiteError> {
    sqlx::query(
        "UPDATE twinlog.deliveries d SET attempts = d.attempts + 1, problem = f.problem, \
             next_attempt_at = now() + make_interval(secs => f.wait), \
             given_up_at = CASE WHEN f.wait IS NULL THEN now() END \
           FROM unnest($2::timestamptz[], $3::uuid[], $4::text[], $5::float8[]) AS f(received_at, webhook_id, problem, wait) \
          WHERE d.subscriber = $1 AND d.received_at = f.received_at AND d.webhook_id = f.webhook_id",
    )
    .bind(subscriber)
    .bind(failed.iter().map(|one| one.key.received_at).collect::<Vec<_>>())
    .bind(failed.iter().map(|one| one.key.webhook_id).collect::<Vec<_>>())
    .bind(failed.iter().map(|one| one.problem.as_str()).collect::<Vec<_>>())
    .bind(
        failed
            .iter()
            .map(|one| one.again_after.map(|after| after.as_secs_f64()))
            .collect::<Vec<_>>(),
    )
    .execute(&pool.0)
    .await?;
    Ok(())
}

/// Gives up those of the oldest `limit` webhooks that have waited for longer than `longest`, and forgets those that were given up
/// longer than `keep` ago. Returns how many were given up.
///
/// # Errors
/// See [`SiteError`].
pub async fn give_up_old(
    pool: &Pool,
    subscriber: &str,
    longest: Duration,
    keep: Duration,
    limit: u16,
) -> Result<u64, SiteError> {
    let given_up = sqlx::query(
        "WITH forgotten AS (DELETE FROM twinlog.deliveries WHERE ctid = ANY (ARRAY(SELECT ctid FROM twinlog.deliveries \
              WHERE subscriber = $1 AND given_up_at < now() - make_interval(secs => $3) LIMIT $4))) \
         UPDATE twinlog.deliveries d SET given_up_at = now(), next_attempt_at = NULL, \
                problem = coalesce(d.problem, 'the subscriber took nothing for all this time') \
           FROM (SELECT received_at, webhook_id FROM twinlog.deliveries WHERE subscriber = $1 AND given_up_at IS NULL \
                  ORDER BY received_at, webhook_id LIMIT $4) AS old \
          WHERE d.subscriber = $1 AND d.received_at = old.received_at AND d.webhook_id = old.webhook_id \
            AND d.queued_at < now() - make_interval(secs => $2)",
    )
    .bind(subscriber)
    .bind(longest.as_secs_f64())
    .bind(keep.as_secs_f64())
    .bind(i64::from(limit))
    .execute(&pool.0)
    .await?;
    Ok(given_up.rows_affected())
}

/// Which webhooks a subscriber is to get again.
#[derive(Debug, Clone, Copy)]
pub struct Again {
    /// Those with a greater id: they are ordered by the time at which they were received.
    pub after: Uuid,
    /// Those that were received then or later.
    pub since: OffsetDateTime,
    /// Those that were received before.
    pub until: OffsetDateTime,
}

/// Queues the next webhooks for a subscriber, at most `limit`, also those that it has had. Returns the last one's id, and how many
/// they are; `None`: there are no more.
///
/// # Errors
/// See [`SiteError`].
pub async fn queue_again(
    pool: &Pool,
    subscriber: &str,
    again: Again,
    limit: u16,
) -> Result<Option<(Uuid, i64)>, SiteError> {
    let second = Duration::from_secs(1);
    let (last, queued): (Option<Uuid>, i64) = sqlx::query_as(
        "WITH wanted AS MATERIALIZED (SELECT id, received_at FROM public.webhook_events \
             WHERE id > $2 AND id < $3 AND received_at >= $4 AND received_at < $5 ORDER BY id LIMIT $6), \
         queued AS (INSERT INTO twinlog.deliveries AS d (subscriber, received_at, webhook_id) \
             SELECT $1, received_at, id FROM wanted \
             ON CONFLICT (subscriber, received_at, webhook_id) DO UPDATE \
                SET queued_at = now(), attempts = 0, next_attempt_at = NULL, given_up_at = NULL, problem = NULL) \
         SELECT (SELECT id FROM wanted ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM wanted)",
    )
    .bind(subscriber)
    .bind(again.after.max(first_id_at(again.since - second)))
    .bind(first_id_at(again.until + second))
    .bind(again.since)
    .bind(again.until)
    .bind(i64::from(limit))
    .fetch_one(&pool.0)
    .await?;
    Ok(last.map(|last| (last, queued)))
}

/// Has those tried again that were given up. Returns how many.
///
/// # Errors
/// See [`SiteError`].
pub async fn retry_given_up(pool: &Pool, subscriber: &str) -> Result<u64, SiteError> {
    let done = sqlx::query(
        "UPDATE twinlog.deliveries SET queued_at = now(), attempts = 0, next_attempt_at = NULL, given_up_at = NULL, \
             problem = NULL WHERE subscriber = $1 AND given_up_at IS NOT NULL",
    )
    .bind(subscriber)
    .execute(&pool.0)
    .await?;
    Ok(done.rows_affected())
}

/// Forgets those that were given up. Returns how many.
///
/// # Errors
/// See [`SiteError`].
pub async fn discard_given_up(pool: &Pool, subscriber: &str) -> Result<u64, SiteError> {
    let done = sqlx::query("DELETE FROM twinlog.deliveries WHERE subscriber = $1 AND given_up_at IS NOT NULL")
        .bind(subscriber)
        .execute(&pool.0)
        .await?;
    Ok(done.rows_affected())
}

/// Deletes what waits for a subscriber that is forgotten, at most `limit`. Returns how many.
///
/// # Errors
/// See [`SiteError`].
pub async fn forget(pool: &Pool, subscriber: &str, limit: u16) -> Result<u64, SiteError> {
    let done = sqlx::query(
        "DELETE FROM twinlog.deliveries WHERE ctid = ANY (ARRAY(SELECT ctid FROM twinlog.deliveries WHERE subscriber = $1 LIMIT $2))",
    )
    .bind(subscriber)
    .bind(i64::from(limit))
    .execute(&pool.0)
    .await?;
    Ok(done.rows_affected())
}
