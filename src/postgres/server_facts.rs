//! What `twinlog doctor` asks of either server about itself and our role there. One query of catalog views that every role may
//! read; it writes nothing.

use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio_postgres::Client;

use super::error::{SessionError, Side};

/// What a server says about itself and about the role that is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// `server_version_num`.
    pub version_number: i32,
    /// `server_version`, for people.
    pub version: String,
    /// The database's name, unquoted.
    pub database: String,
    /// Our role's name, unquoted.
    pub role: String,
    /// Whether the server only replays another server's log.
    pub is_standby: bool,
    /// Whether new transactions of the role may not write.
    pub is_read_only: bool,
    /// How far the server's clock is ahead of this machine's, in milliseconds; the way there and back is taken as equally long.
    pub clock_ahead_ms: i64,
    /// How long the question took: the clock is not known more exactly.
    pub round_trip: Duration,
    /// The database's encoding, as in `UTF8`.
    pub encoding: String,
    /// Time-outs that are set for the role, the database, or both: each as `ALTER ROLE … RESET` would name it.
    pub time_outs: Vec<RoleSetting>,
    /// Connections that the role may still open: what is left of the role's, the database's and the server's limit.
    pub connections_left: i64,
    /// `fsync`: without it a crash of the machine may destroy the database.
    pub is_durable: bool,
}

/// A setting that is set for a role or a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleSetting {
    /// The setting's name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// The statement that takes it back.
    pub reset: String,
}

/// Source: <https://www.postgresql.org/docs/current/catalog-pg-db-role-setting.html>, and for the limits
/// <https://www.postgresql.org/docs/current/runtime-config-connection.html>. `pg_stat_activity` shows every role all rows, if
/// not all of their columns.
const FACTS: &str = "
SELECT pg_catalog.current_setting('server_version_num')::int AS number, pg_catalog.current_setting('server_version') AS version,
    pg_catalog.current_database()::text AS database, current_user::text AS role,
    pg_catalog.pg_is_in_recovery() AS is_standby, pg_catalog.clock_timestamp() AS clock,
    pg_catalog.current_setting('default_transaction_read_only') = 'on' AS is_read_only,
    pg_catalog.current_setting('fsync') = 'on' AS is_durable,
    pg_catalog.pg_encoding_to_char(d.encoding)::text AS encoding,
    LEAST(
        pg_catalog.current_setting('max_connections')::bigint
            - CASE WHEN r.rolsuper THEN 0 ELSE pg_catalog.current_setting('superuser_reserved_connections')::bigint END
            - (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.backend_type = 'client backend'),
        CASE WHEN d.datconnlimit < 0 OR r.rolsuper THEN NULL ELSE d.datconnlimit
            - (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.datname = d.datname) END,
        CASE WHEN r.rolconnlimit < 0 OR r.rolsuper THEN NULL ELSE r.rolconnlimit
            - (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.usename = current_user) END)::bigint AS connections_left
FROM pg_catalog.pg_database d, pg_catalog.pg_roles r
WHERE d.datname = pg_catalog.current_database() AND r.rolname = current_user";

/// Settings of roles and databases that end sessions or statements.
const TIME_OUTS: &str = "
SELECT pg_catalog.split_part(c.line, '=', 1) AS name, pg_catalog.substr(c.line, pg_catalog.strpos(c.line, '=') + 1) AS value,
    CASE WHEN s.setrole = 0 THEN pg_catalog.format('ALTER DATABASE %I', d.datname)
         WHEN s.setdatabase = 0 THEN pg_catalog.format('ALTER ROLE %I', r.rolname)
         ELSE pg_catalog.format('ALTER ROLE %I IN DATABASE %I', r.rolname, d.datname) END
        || ' RESET ' || pg_catalog.quote_ident(pg_catalog.split_part(c.line, '=', 1)) || ';' AS reset
FROM pg_catalog.pg_db_role_setting s CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS c(line)
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
WHERE (s.setdatabase = 0 OR d.datname = pg_catalog.current_database()) AND (s.setrole = 0 OR r.rolname = current_user)
    AND (s.setdatabase <> 0 OR s.setrole <> 0)
    AND pg_catalog.split_part(c.line, '=', 1) IN ('statement_timeout', 'lock_timeout', 'transaction_timeout',
        'idle_in_transaction_session_timeout', 'idle_session_timeout', 'wal_sender_timeout')
    AND pg_catalog.substr(c.line, pg_catalog.strpos(c.line, '=') + 1) !~ '^0[a-z]*$'
ORDER BY 1, 3";

/// Asks the server about itself.
///
/// # Errors
/// A statement failed.
pub async fn server_facts(side: Side, client: &Client) -> Result<ServerFacts, SessionError> {
    let failed = |source| SessionError::new(side, "read the server's settings", source);
    let asked = Instant::now();
    let row = client.query_one(FACTS, &[]).await.map_err(failed)?;
    let (now, round_trip) = (OffsetDateTime::now_utc(), asked.elapsed());
    let clock: OffsetDateTime = row.get("clock");
    let time_outs = client.query(TIME_OUTS, &[]).await.map_err(failed)?;
    Ok(ServerFacts {
        version_number: row.get("number"),
        version: row.get("version"),
        database: row.get("database"),
        role: row.get("role"),
        is_standby: row.get("is_standby"),
        is_read_only: row.get("is_read_only"),
        clock_ahead_ms: i64::try_from((clock - (now - round_trip / 2)).whole_milliseconds()).unwrap_or(i64::MAX),
        round_trip,
        encoding: row.get("encoding"),
        time_outs: time_outs
            .iter()
            .map(|row| RoleSetting {
                name: row.get("name"),
                value: row.get("value"),
                reset: row.get("reset"),
            })
            .collect(),
        connections_left: row.get("connections_left"),
        is_durable: row.get("is_durable"),
    })
}
