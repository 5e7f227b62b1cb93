//! What our sessions in a database wait for, and who makes them wait: asked over one session about the others.
//!
//! A wait costs nothing and raises no error for a long time, so nobody would hear of it. Only catalog views are read, and only
//! what every role may read of them.

use tokio_postgres::{Client, Row};

/// One of our sessions waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// What waits, as in `twinlog sink`.
    pub session: String,
    /// For what, as in `a lock on table public.t`.
    pub what: String,
    /// Who holds it; empty if that can't be known.
    pub blockers: String,
    /// For how long, in seconds.
    pub seconds: i64,
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} waits for {}", self.session, self.what)?;
        if !self.blockers.is_empty() {
            write!(f, ", held by {}", self.blockers)?;
        }
        Ok(())
    }
}

/// Sessions of this role and database that wait for a lock or for a synchronous standby. Not those of commands: whoever
/// runs one sees it wait.
const WAITS: &str = "
SELECT a.pid, a.application_name::text AS session, a.wait_event::text AS event,
    (SELECT pg_catalog.concat_ws('.', n.nspname, c.relname) FROM pg_catalog.pg_locks l
     JOIN pg_catalog.pg_class c ON c.oid = l.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE l.pid = a.pid AND NOT l.granted LIMIT 1) AS relation,
    pg_catalog.pg_blocking_pids(a.pid) AS blockers,
    coalesce(extract(epoch FROM pg_catalog.clock_timestamp() - a.state_change), 0)::bigint AS seconds
FROM pg_catalog.pg_stat_activity a
WHERE a.datname = pg_catalog.current_database() AND a.usename = current_user AND a.pid <> pg_catalog.pg_backend_pid()
  AND a.application_name LIKE 'twinlog %' AND a.application_name NOT IN ('twinlog status', 'twinlog failed', 'twinlog resync')
  AND (a.wait_event_type = 'Lock' OR a.wait_event = 'SyncRep')
ORDER BY a.state_change LIMIT 3";

/// Sessions as people look for them. Of another role's session only the pid and the names may be visible.
const SESSIONS: &str = "
SELECT 'pid ' || a.pid || ' (' || pg_catalog.concat_ws(', ', nullif(a.application_name, ''), 'role ' || a.usename, a.state,
        'transaction open for ' || extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)::bigint || ' s') || ')' AS shown
FROM pg_catalog.pg_stat_activity a WHERE a.pid = ANY ($1) ORDER BY a.xact_start NULLS LAST LIMIT 5";

/// Prepared transactions belong to no session: whoever looks for a pid does not find them. The oldest first.
const PREPARED: &str = "
SELECT 'the prepared transaction ' || pg_catalog.quote_literal(p.gid) || ' of role ' || p.owner || ' in database '
    || p.database || ' (prepared ' || extract(epoch FROM pg_catalog.clock_timestamp() - p.prepared)::bigint
    || ' s ago; end it with ROLLBACK PREPARED or COMMIT PREPARED ' || pg_catalog.quote_literal(p.gid) || ')' AS shown
FROM pg_catalog.pg_prepared_xacts p ORDER BY p.prepared LIMIT 3";

/// Running transactions that have an id: what a slot's creation and a new table's copy wait for.
const RUNNING: &str = "
SELECT a.pid FROM pg_catalog.pg_stat_activity a
WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_catalog.pg_backend_pid() ORDER BY a.xact_start LIMIT 5";

/// Our sessions that wait, the longest waiting first.
///
/// # Errors
/// A statement failed.
pub async fn waits(client: &Client) -> Result<Vec<Wait>, tokio_postgres::Error> {
    let mut waits = Vec::new();
    for row in client.query(WAITS, &[]).await? {
        let pids: Vec<i32> = row.get("blockers");
        waits.push(Wait {
            session: row.get("session"),
            what: what(&row),
            blockers: holders(client, &pids).await?,
            seconds: row.get("seconds"),
        });
    }
    Ok(waits)
}

/// The transactions that run now, as a text for people; empty if there is none, or none can be seen.
///
/// # Errors
/// A statement failed.
pub async fn running_transactions(client: &Client) -> Result<String, tokio_postgres::Error> {
    let mut pids: Vec<i32> = client.query(RUNNING, &[]).await?.iter().map(|row| row.get(0)).collect();
    // As `pg_blocking_pids` names them.
    pids.push(0);
    holders(client, &pids).await
}

/// `pids` as a text for people; 0 stands for prepared transactions.
async fn holders(client: &Client, pids: &[i32]) -> Result<String, tokio_postgres::Error> {
    let mut rows = client.query(SESSIONS, &[&pids]).await?;
    if pids.contains(&0) {
        rows.extend(client.query(PREPARED, &[]).await?);
    }
    let shown: Vec<String> = rows.iter().filter_map(|row| row.get("shown")).collect();
    Ok(shown.join(", "))
}

fn what(row: &Row) -> String {
    let (event, relation): (Option<String>, Option<String>) = (row.get("event"), row.get("relation"));
    match (event.as_deref(), relation) {
        (Some("SyncRep"), _) => "a synchronous standby: check that it runs".to_owned(),
        (Some("relation"), Some(table)) => format!("a lock on table {table}"),
        (Some("tuple"), Some(table)) => format!("a row of table {table}"),
        (Some("transactionid" | "virtualxid"), _) => "the end of another transaction".to_owned(),
        (Some(other), _) => format!("a lock ({other})"),
        (None, _) => "a lock".to_owned(),
    }
}
