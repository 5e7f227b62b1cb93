//! `twinlog.subscribers`: receivers that webhooks are handed on to, and which server delivers to each.

use std::time::Duration;

use sqlx::FromRow;
use uuid::Uuid;

use super::{Pool, SiteError};

/// Most waiting webhooks that are counted: counting millions would take seconds.
pub const COUNTED: i64 = 10_000;

/// What a server that has the right to deliver knows of a subscriber.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Leased {
    /// The hash of the address and the token with which the handshake succeeded last.
    pub verified: Option<String>,
}

/// How a subscriber does.
#[derive(Debug, Clone, FromRow)]
pub struct Overview {
    /// Its name in the configuration.
    pub name: String,
    /// Whether no server has it in its configuration any more.
    pub removed: bool,
    /// Webhooks that wait, counted up to [`COUNTED`].
    pub waiting: i64,
    /// How long the oldest one has waited, in seconds.
    pub lag_seconds: f64,
    /// Webhooks that were given up.
    pub given_up: i64,
    /// Seconds since something was delivered; `None`: nothing was yet.
    pub delivered_seconds: Option<f64>,
    /// Why it does not get its webhooks now.
    pub problem: Option<String>,
}

/// Notes that a server has this subscriber in its configuration: from now on webhooks are kept for it.
///
/// # Errors
/// See [`SiteError`].
pub async fn note(pool: &Pool, name: &str) -> Result<(), SiteError> {
    sqlx::query(
        "INSERT INTO twinlog.subscribers (name) VALUES ($1) \
         ON CONFLICT (name) DO UPDATE SET seen_at = now(), removed_at = NULL \
          WHERE subscribers.removed_at IS NOT NULL OR subscribers.seen_at < now() - interval '1 minute'",
    )
    .bind(name)
    .execute(&pool.0)
    .await?;
    Ok(())
}

/// Takes or renews the right to deliver to a subscriber. `None`: another server has it, or the subscriber is not noted.
///
/// # Errors
/// See [`SiteError`].
pub async fn take(pool: &Pool, name: &str, owner: Uuid, length: Duration) -> Result<Option<Leased>, SiteError> {
    Ok(sqlx::query_as(
        "UPDATE twinlog.subscribers SET owner = $2, lease_until = now() + make_interval(secs => $3), seen_at = now(), \
             removed_at = NULL \
          WHERE name = $1 AND (owner = $2 OR lease_until < now()) RETURNING verified",
    )
    .bind(name)
    .bind(owner)
    .bind(length.as_secs_f64())
    .fetch_optional(&pool.0)
    .await?)
}

/// Gives up the right to deliver, so that another server need not wait until it ends.
///
/// # Errors
/// See [`SiteError`].
pub async fn give_up(pool: &Pool, name: &str, owner: Uuid) -> Result<(), SiteError> {
    sqlx::query(
        "UPDATE twinlog.subscribers SET owner = NULL, lease_until = '-infinity' WHERE name = $1 AND owner = $2",
    )
    .bind(name)
    .bind(owner)
    .execute(&pool.0)
    .await?;
    Ok(())
}

/// The handshake has succeeded with what has this hash.
///
/// # Errors
/// See [`SiteError`].
pub async fn verified(pool: &Pool, name: &str, hash: &str) -> Result<(), SiteError> {
    sqlx::query("UPDATE twinlog.subscribers SET verified = $2 WHERE name = $1")
        .bind(name)
        .bind(hash)
        .execute(&pool.0)
        .await?;
    Ok(())
}

/// Says how the deliveries go: why none succeeds, or `None`, and whether one has since the last call.
///
/// # Errors
/// See [`SiteError`].
pub async fn stands(pool: &Pool, name: &str, problem: Option<&str>, delivered: bool) -> Result<(), SiteError> {
    sqlx::query(
        "UPDATE twinlog.subscribers SET problem = $2, delivered_at = CASE WHEN $3 THEN now() ELSE delivered_at END \
          WHERE name = $1 AND (problem IS DISTINCT FROM $2 OR $3)",
    )
    .bind(name)
    .bind(problem)
    .bind(delivered)
    .execute(&pool.0)
    .await?;
    Ok(())
}

/// Marks those that no server has had in its configuration for this long, and are not among `configured`: nothing is kept for
/// them any more. Returns their names.
///
/// # Errors
/// See [`SiteError`].
pub async fn remove_unseen(pool: &Pool, configured: &[&str], unseen: Duration) -> Result<Vec<String>, SiteError> {
    Ok(sqlx::query_scalar(
        "UPDATE twinlog.subscribers SET removed_at = now() \
          WHERE removed_at IS NULL AND NOT name = ANY ($1) AND seen_at < now() - make_interval(secs => $2) RETURNING name",
    )
    .bind(configured)
    .bind(unseen.as_secs_f64())
    .fetch_all(&pool.0)
    .await?)
}

/// All subscribers, or the one with this name.
///
/// # Errors
/// See [`SiteError`].
pub async fn overview(pool: &Pool, name: Option<&str>) -> Result<Vec<Overview>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT s.name, s.removed_at IS NOT NULL AS removed, s.problem, \
                extract(epoch FROM now() - s.delivered_at)::float8 AS delivered_seconds, \
                (SELECT count(*) FROM (SELECT FROM twinlog.deliveries d WHERE d.subscriber = s.name AND d.given_up_at IS NULL \
                   LIMIT $2) AS w) AS waiting, \
                coalesce(greatest(extract(epoch FROM now() - (SELECT d.queued_at FROM twinlog.deliveries d \
                   WHERE d.subscriber = s.name AND d.given_up_at IS NULL ORDER BY d.received_at LIMIT 1)), 0), 0)::float8 \
                  AS lag_seconds, \
                (SELECT count(*) FROM (SELECT FROM twinlog.deliveries d WHERE d.subscriber = s.name \
                   AND d.given_up_at IS NOT NULL LIMIT $2) AS g) AS given_up \
           FROM twinlog.subscribers s WHERE $1::text IS NULL OR s.name = $1 ORDER BY s.name",
    )
    .bind(name)
    .bind(COUNTED)
    .fetch_all(&pool.0)
    .await?)
}

/// Marks a subscriber that no server has in its configuration: nothing is kept for it any more. False: there is none, or a server
/// has it.
///
/// # Errors
/// See [`SiteError`].
pub async fn remove(pool: &Pool, name: &str) -> Result<bool, SiteError> {
    let done = sqlx::query(
        "UPDATE twinlog.subscribers SET removed_at = coalesce(removed_at, now()) \
          WHERE name = $1 AND (removed_at IS NOT NULL OR lease_until < now() - interval '1 minute')",
    )
    .bind(name)
    .execute(&pool.0)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Deletes a subscriber that was [removed](remove). False: there is none, or a server has it again.
///
/// # Errors
/// See [`SiteError`].
pub async fn forget(pool: &Pool, name: &str) -> Result<bool, SiteError> {
    let done = sqlx::query("DELETE FROM twinlog.subscribers WHERE name = $1 AND removed_at IS NOT NULL")
        .bind(name)
        .execute(&pool.0)
        .await?;
    Ok(done.rows_affected() > 0)
}
