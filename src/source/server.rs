//! What the Site DB's server and our role there must allow before a stream can be read.

use tokio_postgres::Client;

use super::error::{SourceError, failed};

/// The oldest supported server: pgoutput sends messages of `pg_logical_emit_message` since 14.
const OLDEST_VERSION: i32 = 140_000;

/// Checks version and `wal_level`; returns the version, as `server_version_num`.
///
/// # Errors
/// The server is too old, logical decoding is off, or the statement failed.
pub(super) async fn check_server(client: &Client) -> Result<i32, SourceError> {
    let row = client
        .query_one(
            "SELECT pg_catalog.current_setting('server_version_num')::int AS number, \
             pg_catalog.current_setting('server_version') AS version, \
             pg_catalog.current_setting('wal_level') AS wal_level",
            &[],
        )
        .await
        .map_err(failed("read the server's settings"))?;
    let version: i32 = row.get("number");
    if version < OLDEST_VERSION {
        return Err(SourceError::Version(row.get("version")));
    }
    let wal_level: String = row.get("wal_level");
    if wal_level != "logical" {
        return Err(SourceError::WalLevel(wal_level));
    }
    Ok(version)
}

/// The server's version, as `server_version_num`.
///
/// # Errors
/// The statement failed.
pub async fn version(client: &Client) -> Result<i32, SourceError> {
    let row = client
        .query_one(
            "SELECT pg_catalog.current_setting('server_version_num')::int AS number",
            &[],
        )
        .await
        .map_err(failed("read the server's settings"))?;
    Ok(row.get("number"))
}

/// The OID of the session's database.
///
/// # Errors
/// The statement failed.
pub async fn database_oid(client: &Client) -> Result<u32, SourceError> {
    let row = client
        .query_one(
            "SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()",
            &[],
        )
        .await
        .map_err(failed("read the database's OID"))?;
    Ok(row.get("oid"))
}

/// Checks that the role may replicate.
///
/// # Errors
/// It may not, or the statement failed.
pub(super) async fn check_role(client: &Client) -> Result<(), SourceError> {
    // Managed services grant the right by membership in a role of theirs instead of the role's attribute.
    let row = client
        .query_one(
            "SELECT rolname::text AS role, rolreplication OR rolsuper OR EXISTS (SELECT FROM pg_catalog.pg_roles r \
             WHERE r.rolname IN ('rds_replication', 'cloudsqlsuperuser', 'azure_pg_admin') \
             AND pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER')) AS may_replicate \
             FROM pg_catalog.pg_roles WHERE rolname = current_user",
            &[],
        )
        .await
        .map_err(failed("read the role's rights"))?;
    if row.get("may_replicate") {
        Ok(())
    } else {
        Err(SourceError::NoReplicationRight(row.get("role")))
    }
}
