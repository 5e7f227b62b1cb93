//! `twinlog.servers`: what each running server reports about itself. Not replicated: `twinlog status` reads it here.

use serde_json::Value;
use sqlx::FromRow;
use std::time::Duration;
use uuid::Uuid;

use super::{Pool, SiteError};

/// A server reports every five seconds; one that has not for this long has died, or does not reach the Site DB.
pub const SILENT_SECONDS: f64 = 20.0;

/// Reports of servers that have been silent for longer are removed: they died long ago.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A server, as it reports itself.
#[derive(Debug, Clone)]
pub struct ServerReport<'a> {
    /// Chosen at its start.
    pub id: Uuid,
    /// The machine.
    pub hostname: &'a str,
    /// The process.
    pub pid: u32,
    /// Twinlog's version.
    pub version: &'a str,
    /// Its parts, as in `/health`.
    pub components: Value,
}

/// A server's last report.
#[derive(Debug, Clone, FromRow)]
pub struct StoredServer {
    /// The machine.
    pub hostname: String,
    /// The process.
    pub pid: i64,
    /// Twinlog's version.
    pub version: String,
    /// Seconds since its start.
    pub uptime_seconds: f64,
    /// Seconds since the report.
    pub age_seconds: f64,
    /// Its parts, as in `/health`.
    pub components: Value,
}

/// Stores a server's report in place of its last one, and removes those of servers that died long ago.
///
/// # Errors
/// See [`SiteError`].
pub async fn report(pool: &Pool, report: &ServerReport<'_>) -> Result<(), SiteError> {
    sqlx::query(
        "WITH forgotten AS (DELETE FROM twinlog.servers WHERE id = ANY (ARRAY(SELECT id FROM twinlog.servers
              WHERE reported_at < now() - make_interval(secs => $6) FOR UPDATE SKIP LOCKED)))
         INSERT INTO twinlog.servers AS s (id, hostname, pid, version, components) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (id) DO UPDATE SET components = excluded.components, reported_at = now()",
    )
    .bind(report.id)
    .bind(report.hostname)
    .bind(i64::from(report.pid))
    .bind(report.version)
    .bind(&report.components)
    .bind(FORGET_AFTER.as_secs_f64())
    .execute(&pool.0)
    .await?;
    Ok(())
}

/// A server has stopped.
///
/// # Errors
/// See [`SiteError`].
pub async fn stopped(pool: &Pool, id: Uuid) -> Result<(), SiteError> {
    sqlx::query("DELETE FROM twinlog.servers WHERE id = $1")
        .bind(id)
        .execute(&pool.0)
        .await?;
    Ok(())
}

/// The last report of each server; `None` if this database is not a server's.
///
/// # Errors
/// See [`SiteError`].
pub async fn all(pool: &Pool) -> Result<Option<Vec<StoredServer>>, SiteError> {
    let there: bool = sqlx::query_scalar("SELECT pg_catalog.to_regclass('twinlog.servers') IS NOT NULL")
        .fetch_one(&pool.0)
        .await?;
    if !there {
        return Ok(None);
    }
    let servers = sqlx::query_as(
        "SELECT hostname, pid, version, extract(epoch FROM now() - started_at)::float8 AS uptime_seconds,
                extract(epoch FROM now() - reported_at)::float8 AS age_seconds, components
           FROM twinlog.servers ORDER BY started_at, id",
    )
    .fetch_all(&pool.0)
    .await?;
    Ok(Some(servers))
}
