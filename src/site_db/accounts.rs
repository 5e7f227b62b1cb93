//! Our numbers: their rows, their holds and throttles, and which process sends for them.

use std::time::Duration;

use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::{Pool, SiteError};

/// Whether a number may send now.
#[derive(Debug, Clone, FromRow)]
pub struct Gate {
    /// Held: nothing is sent but a probe now and then.
    pub held: bool,
    /// Held, and a probe is due.
    pub probe_due: bool,
    /// Meta's code of the hold.
    pub hold_code: Option<i32>,
    /// Throttled for this many more seconds; 0 or less: not throttled.
    pub throttled_seconds: f64,
}

/// How far a throttle reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThrottleReach {
    /// The number alone.
    Number,
    /// All numbers of its WhatsApp Business account.
    Waba,
    /// All numbers: they share the app.
    App,
}

/// Makes sure that a configured number has its row, and releases its hold if it was for another token than the one
/// configured now. Returns its id and whether a hold was released.
///
/// # Errors
/// See [`SiteError`].
pub async fn upsert(
    pool: &Pool,
    phone_number_id: &str,
    waba_id: Option<&str>,
    token_sha256: &str,
) -> Result<(Uuid, bool), SiteError> {
    // Unchanged rows are not written: each write would travel to the Agent DB.
    sqlx::query(
        "INSERT INTO public.whatsapp_accounts AS a (phone_number_id, waba_id) VALUES ($1, $2) \
         ON CONFLICT (phone_number_id) DO UPDATE SET waba_id = EXCLUDED.waba_id, updated_at = now() \
         WHERE EXCLUDED.waba_id IS NOT NULL AND a.waba_id IS DISTINCT FROM EXCLUDED.waba_id",
    )
    .bind(phone_number_id)
    .bind(waba_id)
    .execute(pool)
    .await?;
    let released: Option<Uuid> = sqlx::query_scalar(
        "WITH released AS (UPDATE public.whatsapp_accounts SET status = 'active', hold_code = NULL, hold_reason = NULL, \
           held_at = NULL, probe_at = NULL, held_token_sha256 = NULL, updated_at = now() \
           WHERE phone_number_id = $1 AND status = 'held' AND held_token_sha256 IS DISTINCT FROM $2 RETURNING id), \
         due AS (UPDATE public.whatsapp_messages m SET next_attempt_at = now(), updated_at = now() FROM released \
           WHERE m.account_id = released.id AND m.status = 'pending' AND m.error_class = 'account') \
         SELECT id FROM released",
    )
    .bind(phone_number_id)
    .bind(token_sha256)
    .fetch_optional(pool)
    .await?;
    let id = sqlx::query_scalar("SELECT id FROM public.whatsapp_accounts WHERE phone_number_id = $1")
        .bind(phone_number_id)
        .fetch_one(pool)
        .await?;
    Ok((id, released.is_some()))
}

/// Whether a number may send now.
///
/// # Errors
/// See [`SiteError`].
pub async fn gate(pool: &Pool, account_id: Uuid) -> Result<Gate, SiteError> {
    Ok(sqlx::query_as(
        "SELECT status = 'held' AS held, status = 'held' AND coalesce(probe_at <= now(), true) AS probe_due, hold_code, \
         coalesce(extract(epoch FROM throttled_until - now()), 0)::float8 AS throttled_seconds \
         FROM public.whatsapp_accounts WHERE id = $1",
    )
    .bind(account_id)
    .fetch_one(pool)
    .await?)
}

/// Why a number is held.
#[derive(Debug, Clone, Copy)]
pub struct Hold<'a> {
    /// Meta's code.
    pub code: i32,
    /// Meta's words.
    pub reason: &'a str,
    /// Hash of the token that was refused.
    pub token_sha256: &'a str,
    /// When the first probe may go.
    pub probe_after: Duration,
}

/// Holds a number: until another token is configured, or a probe succeeds. Returns whether it was free before; then a
/// notification was written too.
///
/// # Errors
/// See [`SiteError`].
pub async fn hold(connection: &mut PgConnection, account_id: Uuid, hold: &Hold<'_>) -> Result<bool, SiteError> {
    let newly = sqlx::query(
        "UPDATE public.whatsapp_accounts SET status = 'held', hold_code = $2, hold_reason = $3, held_at = now(), \
         held_token_sha256 = $4, probe_at = now() + make_interval(secs => $5), updated_at = now() \
         WHERE id = $1 AND status = 'active'",
    )
    .bind(account_id)
    .bind(hold.code)
    .bind(hold.reason)
    .bind(hold.token_sha256)
    .bind(hold.probe_after.as_secs_f64())
    .execute(&mut *connection)
    .await?
    .rows_affected()
        > 0;
    if newly {
        sqlx::query("INSERT INTO public.notifications (kind, account_id, detail) VALUES ('account_held', $1, $2)")
            .bind(account_id)
            .bind(format!("code {}: {}", hold.code, hold.reason))
            .execute(connection)
            .await?;
    } else {
        sqlx::query(
            "UPDATE public.whatsapp_accounts SET hold_code = $2, hold_reason = $3, held_token_sha256 = $4, \
             updated_at = now() WHERE id = $1 AND (hold_code, held_token_sha256) IS DISTINCT FROM ($2, $4)",
        )
        .bind(account_id)
        .bind(hold.code)
        .bind(hold.reason)
        .bind(hold.token_sha256)
        .execute(connection)
        .await?;
    }
    Ok(newly)
}

/// Releases a hold, after a probe that Meta accepted; what the hold kept waiting is due. Returns whether there was one.
///
/// # Errors
/// See [`SiteError`].
pub async fn release(connection: &mut PgConnection, account_id: Uuid) -> Result<bool, SiteError> {
    let released: Option<Uuid> = sqlx::query_scalar(
        "WITH released AS (UPDATE public.whatsapp_accounts SET status = 'active', hold_code = NULL, hold_reason = NULL, \
           held_at = NULL, probe_at = NULL, held_token_sha256 = NULL, updated_at = now() \
           WHERE id = $1 AND status = 'held' RETURNING id), \
         due AS (UPDATE public.whatsapp_messages m SET next_attempt_at = now(), updated_at = now() FROM released \
           WHERE m.account_id = released.id AND m.status = 'pending' AND m.error_class = 'account') \
         SELECT id FROM released",
    )
    .bind(account_id)
    .fetch_optional(connection)
    .await?;
    Ok(released.is_some())
}

/// Stops sending for a while, as Meta asked. Never shortens a throttle.
///
/// # Errors
/// See [`SiteError`].
pub async fn throttle(
    connection: &mut PgConnection,
    account_id: Uuid,
    reach: ThrottleReach,
    wait: Duration,
) -> Result<(), SiteError> {
    let (waba, app) = (reach == ThrottleReach::Waba, reach == ThrottleReach::App);
    // Rows in one order, so that two servers that throttle at once can't deadlock.
    sqlx::query(
        "WITH reached AS (SELECT a.id FROM public.whatsapp_accounts a, public.whatsapp_accounts one \
           WHERE one.id = $1 AND (a.id = one.id OR $3 OR ($2 AND a.waba_id = one.waba_id)) ORDER BY a.id FOR UPDATE OF a) \
         UPDATE public.whatsapp_accounts a SET throttled_until = now() + make_interval(secs => $4), updated_at = now() \
         FROM reached WHERE a.id = reached.id AND coalesce(a.throttled_until < now() + make_interval(secs => $4), true)",
    )
    .bind(account_id)
    .bind(waba)
    .bind(app)
    .bind(wait.as_secs_f64())
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes or renews the right to send for a number. Returns whether `owner` has it now.
///
/// # Errors
/// See [`SiteError`].
pub async fn lease(pool: &Pool, phone_number_id: &str, owner: Uuid, length: Duration) -> Result<bool, SiteError> {
    Ok(sqlx::query(
        "INSERT INTO twinlog.number_leases AS l (phone_number_id, owner, lease_until) \
         VALUES ($1, $2, now() + make_interval(secs => $3)) \
         ON CONFLICT (phone_number_id) DO UPDATE SET owner = EXCLUDED.owner, lease_until = EXCLUDED.lease_until \
         WHERE l.owner = EXCLUDED.owner OR l.lease_until < now()",
    )
    .bind(phone_number_id)
    .bind(owner)
    .bind(length.as_secs_f64())
    .execute(pool)
    .await?
    .rows_affected()
        > 0)
}

/// Gives the right to send for a number up, so that another process need not wait for its end.
///
/// # Errors
/// See [`SiteError`].
pub async fn give_up_lease(pool: &Pool, phone_number_id: &str, owner: Uuid) -> Result<(), SiteError> {
    sqlx::query("DELETE FROM twinlog.number_leases WHERE phone_number_id = $1 AND owner = $2")
        .bind(phone_number_id)
        .bind(owner)
        .execute(pool)
        .await?;
    Ok(())
}

/// A number, for its gauge and the health report.
#[derive(Debug, Clone, FromRow)]
pub struct Overview {
    /// Meta's id of the number.
    pub phone_number_id: String,
    /// Whether it is held.
    pub held: bool,
    /// Meta's code of the hold.
    pub hold_code: Option<i32>,
}

/// All numbers.
///
/// # Errors
/// See [`SiteError`].
pub async fn overview(pool: &Pool) -> Result<Vec<Overview>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT phone_number_id, status = 'held' AS held, hold_code \
         FROM public.whatsapp_accounts ORDER BY phone_number_id",
    )
    .fetch_all(pool)
    .await?)
}
