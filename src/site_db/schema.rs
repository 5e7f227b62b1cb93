//! Checks that the Site DB answers and has what this version needs; called at start and then every few seconds.

use std::sync::LazyLock;

use super::{Pool, SiteError, accounts, events, messages, number_leases, webhook_events};

/// Names the newest column of each table, which its owner knows, so that an older schema fails here with a clear message,
/// and not in the middle of a send. Reads no row.
static PROBE: LazyLock<String> = LazyLock::new(|| {
    [
        messages::NEWEST_COLUMN,
        accounts::NEWEST_COLUMN,
        webhook_events::NEWEST_COLUMN,
        number_leases::NEWEST_COLUMN,
        events::NEWEST_COLUMN,
    ]
    .map(|(table, column)| format!("(SELECT {column} IS NULL FROM {table} WHERE false)"))
    .join(" UNION ALL ")
});

/// Checks that the Site DB answers, is migrated, lets this role read and write, and is not a standby.
///
/// # Errors
/// See [`SiteError`]; its hint says what to do.
pub async fn check(pool: &Pool) -> Result<(), SiteError> {
    let probed = async {
        sqlx::query(PROBE.as_str()).fetch_optional(&pool.0).await?;
        messages::check_writable(pool).await
    };
    tokio::select! {
        biased;
        () = pool.closed_for_shared_sessions() => Err(SiteError::Pooled),
        probed = probed => probed,
    }
}
