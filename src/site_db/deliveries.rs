//! `twinlog.deliveries`: the webhooks that a subscriber has not taken yet. The Site DB adds them itself, in the transaction that
//! stores a webhook (`migrations/site/0017_subscribers.sql`); here they are read, done, postponed and given up.

use std::time::Duration;

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::webhook_events::{ID_MARGIN, first_id_at};
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

impl Waiting {
    /// Which it is.
    #[must_use]
    pub const fn key(&self) -> Key {
        Key {
            received_at: self.received_at,
            webhook_id: self.webhook_id,
        }
    }
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

/// A part of the webhooks that wait for a subscriber.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// Those after this one; `None`: from the oldest on.
    pub after: Option<Key>,
    /// And none after this one; `None`: up to the newest.
    pub until: Option<Key>,
    /// Without these, which the caller has.
    pub known: Vec<Uuid>,
}

/// The oldest webhooks that wait for a subscriber in this part of them, at most `limit` and about `bytes`.
///
/// # Errors
/// See [`SiteError`].
pub async fn waiting(
    pool: &Pool,
    subscriber: &str,
    window: &Window,
    limit: u16,
    bytes: u32,
) -> Result<Vec<Waiting>, SiteError> {
    Ok(sqlx::query_as(
        "WITH oldest AS MATERIALIZED ( \
             SELECT d.webhook_id, d.received_at, d.attempts, d.queued_at, d.next_attempt_at FROM twinlog.deliveries d \
              WHERE d.subscriber = $1 AND d.given_up_at IS NULL AND NOT d.webhook_id = ANY ($2) \
                AND (d.received_at, d.webhook_id) > (coalesce($5::timestamptz, '-infinity'), $6::uuid) \
                AND (d.received_at, d.webhook_id) <= (coalesce($7::timestamptz, 'infinity'), $8::uuid) \
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
    .bind(&window.known)
    .bind(i64::from(limit))
    .bind(i64::from(bytes))
    .bind(window.after.map(|key| key.received_at))
    .bind(window.after.map_or(Uuid::nil(), |key| key.webhook_id))
    .bind(window.until.map(|key| key.received_at))
    .bind(window.until.map_or(Uuid::max(), |key| key.webhook_id))
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

/// Gives up the oldest webhooks that have waited for longer than `longest`, and forgets those that were given up longer than `keep`
/// ago, at most `limit` of each. Returns how many were given up.
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
    // None is queued before it is received: so only what was received long ago is read.
    let given_up = sqlx::query(
        "WITH forgotten AS (DELETE FROM twinlog.deliveries WHERE ctid = ANY (ARRAY(SELECT ctid FROM twinlog.deliveries \
              WHERE subscriber = $1 AND given_up_at < now() - make_interval(secs => $3) LIMIT $4))) \
         UPDATE twinlog.deliveries d SET given_up_at = now(), next_attempt_at = NULL, \
                problem = coalesce(d.problem, 'the subscriber did not get to it in all this time') \
           FROM (SELECT received_at, webhook_id FROM twinlog.deliveries WHERE subscriber = $1 AND given_up_at IS NULL \
                    AND received_at < now() - make_interval(secs => $2) AND queued_at < now() - make_interval(secs => $2) \
                  ORDER BY received_at, webhook_id LIMIT $4) AS old \
          WHERE d.subscriber = $1 AND d.received_at = old.received_at AND d.webhook_id = old.webhook_id",
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
    .bind(again.after.max(first_id_at(again.since - ID_MARGIN)))
    .bind(first_id_at(again.until + ID_MARGIN))
    .bind(again.since)
    .bind(again.until)
    .bind(i64::from(limit))
    .fetch_one(&pool.0)
    .await?;
    Ok(last.map(|last| (last, queued)))
}

/// Has those tried again that were given up, at most `limit`. Returns how many.
///
/// # Errors
/// See [`SiteError`].
pub async fn retry_given_up(pool: &Pool, subscriber: &str, limit: u16) -> Result<u64, SiteError> {
    let done = sqlx::query(
        "UPDATE twinlog.deliveries SET queued_at = now(), attempts = 0, next_attempt_at = NULL, given_up_at = NULL, problem = NULL \
          WHERE ctid = ANY (ARRAY(SELECT ctid FROM twinlog.deliveries WHERE subscriber = $1 AND given_up_at IS NOT NULL LIMIT $2))",
    )
    .bind(subscriber)
    .bind(i64::from(limit))
    .execute(&pool.0)
    .await?;
    Ok(done.rows_affected())
}

/// Forgets those that were given up, at most `limit`. Returns how many.
///
/// # Errors
/// See [`SiteError`].
pub async fn discard_given_up(pool: &Pool, subscriber: &str, limit: u16) -> Result<u64, SiteError> {
    let done = sqlx::query(
        "DELETE FROM twinlog.deliveries WHERE ctid = ANY (ARRAY(SELECT ctid FROM twinlog.deliveries \
          WHERE subscriber = $1 AND given_up_at IS NOT NULL LIMIT $2))",
    )
    .bind(subscriber)
    .bind(i64::from(limit))
    .execute(&pool.0)
    .await?;
    Ok(done.rows_affected())
}

/// Deletes what waits for subscribers that were removed longer than `keep` ago, at most `limit`. Returns how many.
///
/// # Errors
/// See [`SiteError`].
pub async fn forget_removed(pool: &Pool, keep: Duration, limit: u16) -> Result<u64, SiteError> {
    let done = sqlx::query(
        "DELETE FROM twinlog.deliveries WHERE ctid = ANY (ARRAY(SELECT d.ctid FROM twinlog.subscribers s \
           JOIN twinlog.deliveries d ON d.subscriber = s.name WHERE s.removed_at < now() - make_interval(secs => $1) LIMIT $2))",
    )
    .bind(keep.as_secs_f64())
    .bind(i64::from(limit))
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
