//! `twinlog.number_leases`: which process sends for a number. Not replicated: coordination between servers, not a fact
//! about the business.

use std::time::Duration;

use uuid::Uuid;

use super::{Pool, SiteError};
use crate::provider::PhoneNumberId;

/// Takes or renews the right to send for a number. Returns whether `owner` has it now.
///
/// # Errors
/// See [`SiteError`].
pub async fn take(
    pool: &Pool,
    phone_number_id: &PhoneNumberId,
    owner: Uuid,
    length: Duration,
) -> Result<bool, SiteError> {
    Ok(sqlx::query(
        "INSERT INTO twinlog.number_leases AS l (phone_number_id, owner, lease_until) \
         VALUES ($1, $2, now() + make_interval(secs => $3)) \
         ON CONFLICT (phone_number_id) DO UPDATE SET owner = EXCLUDED.owner, lease_until = EXCLUDED.lease_until \
         WHERE l.owner = EXCLUDED.owner OR l.lease_until < now()",
    )
    .bind(phone_number_id)
    .bind(owner)
    .bind(length.as_secs_f64())
    .execute(&pool.0)
    .await?
    .rows_affected()
        > 0)
}

/// Gives up the right to send for a number, so that another process need not wait until the lease expires.
///
/// # Errors
/// See [`SiteError`].
pub async fn give_up(pool: &Pool, phone_number_id: &PhoneNumberId, owner: Uuid) -> Result<(), SiteError> {
    sqlx::query("DELETE FROM twinlog.number_leases WHERE phone_number_id = $1 AND owner = $2")
        .bind(phone_number_id)
        .bind(owner)
        .execute(&pool.0)
        .await?;
    Ok(())
}
