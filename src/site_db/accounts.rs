//! `whatsapp_accounts`: our numbers, their holds and throttles.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::FromRow;
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use uuid::Uuid;

use super::locks::lock_updated;
use super::notifications;
use super::{Pool, SiteError, Transaction, messages};
use crate::provider::PhoneNumberId;

/// `whatsapp_accounts.status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum AccountStatus {
    /// It may send.
    Active,
    /// Meta refuses to send for it (expired token, restriction, payment): only a probe goes out now and then.
    Held,
}

impl AccountStatus {
    /// As the column writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A configured number's row.
#[derive(Debug, Clone, Copy)]
pub struct Registered {
    /// `whatsapp_accounts.id`.
    pub id: Uuid,
    /// Whether a hold was released, because it was for another access token.
    pub released: bool,
}

/// Whether a number may send now.
#[derive(Debug, Clone, FromRow)]
pub struct Gate {
    /// Held: nothing is sent but a probe now and then.
    pub status: AccountStatus,
    /// Held: the next probe is due in this many seconds; 0 or less: now.
    pub probe_seconds: f64,
    /// Throttled for this many more seconds; 0 or less: not throttled.
    pub throttled_seconds: f64,
    /// A message is due; perhaps behind another one of its conversation.
    pub is_waiting: bool,
    /// Held: Meta's error code.
    pub hold_code: Option<i32>,
    /// Held: Meta's error message.
    pub hold_reason: Option<String>,
}

/// How far a throttle reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThrottleReach {
    /// The number alone.
    Number,
    /// All numbers of its WhatsApp Business account.
    Waba,
    /// All numbers: they share the app.
    App,
}

/// Why a number is held.
#[derive(Debug, Clone, Copy)]
pub struct NumberHold<'a> {
    /// Meta's error code.
    pub code: i32,
    /// Meta's error message.
    pub reason: &'a str,
    /// SHA-256 (hex) of the token that was refused: configuring another token releases the hold.
    pub token_sha256: &'a str,
    /// Time until the first probe may be sent.
    pub probe_after: Duration,
}

/// What a webhook says about the number that it is for.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Meta's id of the number.
    pub phone_number_id: &'a PhoneNumberId,
    /// Meta's id of its WhatsApp Business account.
    pub waba_id: Option<&'a str>,
    /// The number as people dial it.
    pub display_phone_number: Option<&'a str>,
}

/// A number, for its gauge and the health report.
#[derive(Debug, Clone)]
pub struct Overview {
    /// Meta's id of the number.
    pub phone_number_id: PhoneNumberId,
    /// Whether it may send.
    pub status: AccountStatus,
    /// Meta's error code that caused the hold; `None` if the number is not held.
    pub hold_code: Option<i32>,
    /// Meta's error message.
    pub hold_reason: Option<String>,
    /// Throttled for this many more seconds; 0 or less: not throttled.
    pub throttled_seconds: f64,
}

/// When people last wrote over a number.
#[derive(Debug, Clone)]
pub struct LastRealMessage {
    /// Meta's id of the number.
    pub phone_number_id: PhoneNumberId,
    /// Unix time in seconds.
    pub seconds: f64,
}

/// A statement that ends the hold of the number that the condition `held` selects, and makes its waiting messages due.
fn release_where(held: &str) -> String {
    let (waiting, made_due) = messages::made_due_by_release(&format!(
        "SELECT id FROM public.whatsapp_accounts WHERE status = 'held' AND {held}"
    ));
    format!(
        "WITH {waiting}, released AS (UPDATE public.whatsapp_accounts SET status = 'active', hold_code = NULL, \
           hold_reason = NULL, held_at = NULL, probe_at = NULL, held_token_sha256 = NULL, updated_at = now() \
           WHERE (SELECT count(*) FROM waiting) >= 0 AND status = 'held' AND {held} RETURNING id), {made_due} \
         SELECT id FROM released"
    )
}

static RELEASE_OTHER_TOKEN: LazyLock<String> =
    LazyLock::new(|| release_where("phone_number_id = $1 AND held_token_sha256 IS DISTINCT FROM $2"));
static RELEASE: LazyLock<String> = LazyLock::new(|| release_where("id = $1"));

/// Inserts or updates the row of a configured number, and releases its hold if that was for another token than the one
/// configured now.
///
/// # Errors
/// See [`SiteError`].
pub async fn register(
    pool: &Pool,
    phone_number_id: &PhoneNumberId,
    waba_id: Option<&str>,
    token_sha256: &str,
) -> Result<Registered, SiteError> {
    // Unchanged rows are not written: each write would be replicated to the Agent DB.
    sqlx::query(
        "INSERT INTO public.whatsapp_accounts AS a (phone_number_id, waba_id) VALUES ($1, $2) \
         ON CONFLICT (phone_number_id) DO UPDATE SET waba_id = EXCLUDED.waba_id, updated_at = now() \
         WHERE EXCLUDED.waba_id IS NOT NULL AND a.waba_id IS DISTINCT FROM EXCLUDED.waba_id",
    )
    .bind(phone_number_id)
    .bind(waba_id)
    .execute(&pool.0)
    .await?;
    let released: Option<Uuid> = sqlx::query_scalar(RELEASE_OTHER_TOKEN.as_str())
        .bind(phone_number_id)
        .bind(token_sha256)
        .fetch_optional(&pool.0)
        .await?;
    let id = sqlx::query_scalar("SELECT id FROM public.whatsapp_accounts WHERE phone_number_id = $1")
        .bind(phone_number_id)
        .fetch_one(&pool.0)
        .await?;
    Ok(Registered {
        id,
        released: released.is_some(),
    })
}

/// A number's row, as a webhook found it.
#[derive(Debug, Clone, Copy, FromRow)]
pub struct Found {
    /// `whatsapp_accounts.id`.
    pub id: Uuid,
    /// Whether the webhook says something that the row lacks: see [`touch`].
    pub has_news: bool,
}

/// Finds the row of a number that a webhook is for. Inserts it even if the number is not configured, so that no message
/// is lost. Locks no row that was there before: what is new about it is written at the end, by [`touch`].
///
/// # Errors
/// See [`SiteError`].
pub async fn find_or_make(tx: &mut Transaction<'_>, seen: &Seen<'_>) -> Result<Found, SiteError> {
    if let Some(found) = find(tx, seen).await? {
        return Ok(found);
    }
    sqlx::query(
        "INSERT INTO public.whatsapp_accounts (phone_number_id, waba_id, display_phone_number) VALUES ($1, $2, $3)
         ON CONFLICT DO NOTHING",
    )
    .bind(seen.phone_number_id)
    .bind(seen.waba_id)
    .bind(seen.display_phone_number)
    .execute(tx.connection())
    .await?;
    // Another transaction may have inserted it meanwhile: then it is committed now.
    find(tx, seen).await?.ok_or(SiteError::Vanished("whatsapp_accounts"))
}

async fn find(tx: &mut Transaction<'_>, seen: &Seen<'_>) -> Result<Option<Found>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT id, (waba_id IS NULL AND $2::text IS NOT NULL) OR (display_phone_number IS NULL AND $3::text IS NOT NULL)
                AS has_news
           FROM public.whatsapp_accounts WHERE phone_number_id = $1",
    )
    .bind(seen.phone_number_id)
    .bind(seen.waba_id)
    .bind(seen.display_phone_number)
    .fetch_optional(tx.connection())
    .await?)
}

/// Whether a number may send now.
///
/// # Errors
/// See [`SiteError`].
pub async fn gate(pool: &Pool, account_id: Uuid) -> Result<Gate, SiteError> {
    Ok(sqlx::query_as(
        "SELECT status, coalesce(extract(epoch FROM probe_at - now()), 0)::float8 AS probe_seconds, \
         coalesce(extract(epoch FROM throttled_until - now()), 0)::float8 AS throttled_seconds, hold_code, hold_reason, \
         EXISTS (SELECT FROM public.whatsapp_messages WHERE account_id = $1 AND status = 'pending' \
           AND coalesce(next_attempt_at <= now(), true) AND coalesce(send_by > now(), true)) AS is_waiting \
         FROM public.whatsapp_accounts WHERE id = $1",
    )
    .bind(account_id)
    .fetch_one(&pool.0)
    .await?)
}

/// Takes the probe that is due on a held number, and sets the time of the next one. Returns false if none is due, or
/// another server took it. If there is no message to send, the caller rolls back, so that the probe stays due.
///
/// # Errors
/// See [`SiteError`].
pub async fn take_probe(tx: &mut Transaction<'_>, account_id: Uuid, interval: Duration) -> Result<bool, SiteError> {
    let due = sqlx::query(
        "UPDATE public.whatsapp_accounts SET probe_at = now() + make_interval(secs => $2), updated_at = now() \
         WHERE id = $1 AND status = 'held' AND coalesce(probe_at <= now(), true)",
    )
    .bind(account_id)
    .bind(interval.as_secs_f64())
    .execute(tx.connection())
    .await?;
    Ok(due.rows_affected() > 0)
}

/// Holds a number until another token is configured or a probe succeeds. If it was not held before, writes a notification
/// and returns true.
///
/// # Errors
/// See [`SiteError`].
pub async fn hold(tx: &mut Transaction<'_>, account_id: Uuid, hold: &NumberHold<'_>) -> Result<bool, SiteError> {
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
    .execute(tx.connection())
    .await?
    .rows_affected()
        > 0;
    if newly {
        let detail = format!("code {}: {}", hold.code, hold.reason);
        notifications::account_held(tx, account_id, &detail).await?;
    } else {
        sqlx::query(
            "UPDATE public.whatsapp_accounts SET hold_code = $2, hold_reason = $3, held_token_sha256 = $4, \
             updated_at = now() WHERE id = $1 AND (hold_code, held_token_sha256) IS DISTINCT FROM ($2, $4)",
        )
        .bind(account_id)
        .bind(hold.code)
        .bind(hold.reason)
        .bind(hold.token_sha256)
        .execute(tx.connection())
        .await?;
    }
    Ok(newly)
}

/// Releases a number after Meta accepted a probe, and makes its waiting messages due. Returns whether it was held.
///
/// # Errors
/// See [`SiteError`].
pub async fn release(tx: &mut Transaction<'_>, account_id: Uuid) -> Result<bool, SiteError> {
    let released: Option<Uuid> = sqlx::query_scalar(RELEASE.as_str())
        .bind(account_id)
        .fetch_optional(tx.connection())
        .await?;
    Ok(released.is_some())
}

/// Locks the numbers in one order, so that two servers that throttle at once never wait for each other in a circle.
static THROTTLE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH reached AS MATERIALIZED (SELECT a.id FROM public.whatsapp_accounts a, public.whatsapp_accounts one \
           WHERE one.id = $1 AND (a.id = one.id OR $3 OR ($2 AND a.waba_id = one.waba_id))), \
         held AS MATERIALIZED ({}) \
         UPDATE public.whatsapp_accounts a SET throttled_until = now() + make_interval(secs => $4), updated_at = now() \
         FROM held WHERE held.keys >= 0 AND a.id = ANY (ARRAY(SELECT r.id FROM reached r)) \
           AND coalesce(a.throttled_until < now() + make_interval(secs => $4), true)",
        lock_updated("whatsapp_accounts", "ARRAY(SELECT r.id FROM reached r)")
    )
});

/// Stops sending for `length`, as Meta asked. Never shortens a throttle.
///
/// # Errors
/// See [`SiteError`].
pub async fn throttle(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    reach: ThrottleReach,
    wait: Duration,
) -> Result<(), SiteError> {
    let (waba, app) = (reach == ThrottleReach::Waba, reach == ThrottleReach::App);
    sqlx::query(THROTTLE.as_str())
        .bind(account_id)
        .bind(waba)
        .bind(app)
        .bind(wait.as_secs_f64())
        .execute(tx.connection())
        .await?;
    Ok(())
}

/// Only rows that change are locked: a number's row is one for all its conversations, and every batch would wait for the one
/// before it.
static TOUCH: LazyLock<String> = LazyLock::new(|| {
    let changes = "((s.is_real AND coalesce(a.last_real_message_at < clock_timestamp() - interval '1 second', true)) \
       OR (a.waba_id IS NULL AND s.waba_id IS NOT NULL) \
       OR (a.display_phone_number IS NULL AND s.display_phone_number IS NOT NULL))";
    let locked = lock_updated("whatsapp_accounts", "ARRAY(SELECT due.id FROM due)");
    format!(
        "WITH seen AS MATERIALIZED (SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bool[]) \
             AS s(id, waba_id, display_phone_number, is_real)), \
         due AS MATERIALIZED (SELECT a.id FROM public.whatsapp_accounts a JOIN seen s ON s.id = a.id WHERE {changes}), \
         held AS MATERIALIZED ({locked}) \
         UPDATE public.whatsapp_accounts AS a SET \
           last_real_message_at = CASE WHEN s.is_real THEN clock_timestamp() ELSE a.last_real_message_at END, \
           waba_id = coalesce(a.waba_id, s.waba_id), \
           display_phone_number = coalesce(a.display_phone_number, s.display_phone_number), \
           updated_at = now() \
         FROM seen s, held WHERE held.keys > 0 AND a.id = s.id AND {changes}"
    )
});

/// What a webhook says about numbers: sets the time of their last message of a person to now, for those in `real`, and fills
/// what their rows lack. A time less than a second old stays.
///
/// # Errors
/// See [`SiteError`].
pub async fn touch(tx: &mut Transaction<'_>, real: &[Uuid], news: &[(Uuid, Seen<'_>)]) -> Result<(), SiteError> {
    let mut seen: BTreeMap<Uuid, (bool, Option<&str>, Option<&str>)> = BTreeMap::new();
    for id in real {
        seen.entry(*id).or_default().0 = true;
    }
    for (id, said) in news {
        let (_, waba_id, display) = seen.entry(*id).or_default();
        *waba_id = waba_id.or(said.waba_id);
        *display = display.or(said.display_phone_number);
    }
    if seen.is_empty() {
        return Ok(());
    }
    sqlx::query(TOUCH.as_str())
        .bind(seen.keys().copied().collect::<Vec<_>>())
        .bind(seen.values().map(|(_, waba_id, _)| *waba_id).collect::<Vec<_>>())
        .bind(seen.values().map(|(_, _, display)| *display).collect::<Vec<_>>())
        .bind(seen.values().map(|(is_real, ..)| *is_real).collect::<Vec<_>>())
        .execute(tx.connection())
        .await?;
    Ok(())
}

/// All numbers, without rows whose `phone_number_id` is not valid: those are another program's.
///
/// # Errors
/// See [`SiteError`].
pub async fn overview(pool: &Pool) -> Result<Vec<Overview>, SiteError> {
    #[derive(FromRow)]
    struct Row {
        phone_number_id: String,
        status: AccountStatus,
        hold_code: Option<i32>,
        hold_reason: Option<String>,
        throttled_seconds: f64,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT phone_number_id, status, hold_code, hold_reason, \
         coalesce(extract(epoch FROM throttled_until - now()), 0)::float8 AS throttled_seconds \
         FROM public.whatsapp_accounts ORDER BY phone_number_id",
    )
    .fetch_all(&pool.0)
    .await?;
    let overview = |row: Row| {
        Some(Overview {
            phone_number_id: PhoneNumberId::parse(&row.phone_number_id)?,
            status: row.status,
            hold_code: row.hold_code,
            hold_reason: row.hold_reason,
            throttled_seconds: row.throttled_seconds,
        })
    };
    Ok(rows.into_iter().filter_map(overview).collect())
}

/// The signs by which people judge a number.
#[derive(Debug, Clone, FromRow)]
pub struct Signs {
    /// `whatsapp_accounts.id`.
    pub id: Uuid,
    /// Meta's id of the number.
    pub phone_number_id: String,
    /// Whether it may send.
    pub status: AccountStatus,
    /// Meta's reason while it is held.
    pub hold_reason: Option<String>,
    /// When a person last wrote, in milliseconds since 1970.
    pub last_real_ms: Option<i64>,
    /// The time by the same clock.
    pub now_ms: i64,
    /// Messages of the last hour that Meta took more than five minutes ago, and of which it has reported nothing since.
    pub unreported: i64,
}

/// The signs of a number, by its row's id or by its `phone_number_id`.
///
/// # Errors
/// See [`SiteError`].
pub async fn signs(pool: &Pool, id: &str) -> Result<Option<Signs>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT a.id, a.phone_number_id, a.status, a.hold_reason, \
           (extract(epoch FROM a.last_real_message_at) * 1000)::bigint AS last_real_ms, \
           (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms, \
           (SELECT count(*) FROM public.conversations c JOIN public.whatsapp_messages m ON m.conversation_id = c.id \
              AND m.created_at > now() - interval '1 hour' AND m.direction = 'outbound' AND m.status = 'accepted' \
              AND m.accepted_at < now() - interval '5 minutes' \
            WHERE c.account_id = a.id AND c.last_outbound_at > now() - interval '1 hour') AS unreported \
         FROM public.whatsapp_accounts a WHERE a.phone_number_id = $1 OR a.id = $2",
    )
    .bind(id)
    .bind(Uuid::try_parse(id).ok())
    .fetch_optional(&pool.0)
    .await?)
}

/// When people last wrote over each number; numbers as for [`overview`].
///
/// # Errors
/// See [`SiteError`].
pub async fn last_real_messages(pool: &Pool) -> Result<Vec<LastRealMessage>, SiteError> {
    #[derive(FromRow)]
    struct Row {
        phone_number_id: String,
        seconds: f64,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT phone_number_id, extract(epoch FROM last_real_message_at)::float8 AS seconds
           FROM public.whatsapp_accounts WHERE last_real_message_at IS NOT NULL",
    )
    .fetch_all(&pool.0)
    .await?;
    let last = |row: Row| {
        Some(LastRealMessage {
            phone_number_id: PhoneNumberId::parse(&row.phone_number_id)?,
            seconds: row.seconds,
        })
    };
    Ok(rows.into_iter().filter_map(last).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_makes_due_what_the_hold_kept_waiting_in_the_same_statement() {
        let release = RELEASE.as_str();
        assert!(
            release.contains("AND status = 'held' AND id = $1 RETURNING id), moved AS (UPDATE"),
            "{release}"
        );
        assert!(release.ends_with("SELECT id FROM released"), "{release}");
    }
}
