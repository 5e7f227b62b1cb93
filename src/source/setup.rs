//! What `twinlog doctor` asks of the Site DB about replication: limits, rights, the slot, the publication and its tables. Reads
//! catalog views only; nothing is created or extended, as a start of the daemon would do.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Row};

use super::candidates::{Faults, candidates};
use super::catalog::{PublishedTables, published_tables};
use super::error::{SourceError, failed};
use super::publication::{create_statement, faults_of, with_unread_filter};
use super::selection::Selection;
use super::server::{check_role, check_server};
use super::table::SourceTable;
use crate::change::TableName;

/// What the Site DB's server and our role there allow.
#[derive(Debug)]
pub struct ReplicationFacts {
    /// Why the server can't replicate at all: its version, its `wal_level`.
    pub server: Result<i32, SourceError>,
    /// Why the role can't.
    pub role: Result<(), SourceError>,
    /// Slots that exist, and `max_replication_slots`.
    pub slots: (i64, i64),
    /// Replication connections that are open, and `max_wal_senders`.
    pub senders: (i64, i64),
    /// `max_slot_wal_keep_size` in bytes; `None` without a limit.
    pub keep_size: Option<i64>,
    /// `wal_sender_timeout` in milliseconds; 0: none.
    pub sender_timeout_ms: i64,
    /// `idle_replication_slot_timeout` in seconds (18 and later); 0: none.
    pub idle_slot_timeout_s: i64,
    /// Whether the role may write messages into the log, which mark the ends of what is read.
    pub may_mark: bool,
    /// Whether commits wait for a standby.
    pub awaits_standby: bool,
    /// Whether the role may see that a session waits for a standby.
    pub sees_waits: bool,
    /// Physical slots: of standbys, or of programs that archive WAL (pg_receivewal, barman).
    pub standby_slots: i64,
    /// Seconds since the oldest transaction that still runs began; `None` if none can be seen.
    pub oldest_transaction_s: Option<i64>,
    /// The slot of `sync.slot`.
    pub slot: Option<SlotStanding>,
    /// Logical slots that nothing reads: name and bytes of WAL that each keeps, the largest first.
    pub idle_slots: Vec<(String, i64)>,
}

/// The slot of `sync.slot`, beyond what decides whether it continues ([`super::SlotFacts`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotStanding {
    /// Whether a connection reads it.
    pub active: bool,
    /// Whether standbys may keep a copy (17 and later).
    pub failover: Option<bool>,
    /// Bytes of WAL that it keeps.
    pub retained: Option<i64>,
    /// Bytes until the server removes WAL that it needs; `None` without a limit.
    pub headroom: Option<i64>,
}

const FACTS: &str = "
SELECT (SELECT count(*) FROM pg_catalog.pg_replication_slots) AS slots,
    pg_catalog.current_setting('max_replication_slots')::bigint AS max_slots,
    (SELECT count(*) FROM pg_catalog.pg_stat_replication) AS senders,
    pg_catalog.current_setting('max_wal_senders')::bigint AS max_senders,
    (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep_mb,
    (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout') AS sender_timeout_ms,
    (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'idle_replication_slot_timeout') AS idle_slot_timeout_s,
    (SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) FROM pg_catalog.pg_proc p
     WHERE p.proname = 'pg_logical_emit_message' AND p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace) AS may_mark,
    pg_catalog.current_setting('synchronous_standby_names') <> '' AS awaits_standby,
    pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_waits,
    (SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical') AS standby_slots,
    (SELECT extract(epoch FROM pg_catalog.clock_timestamp() - pg_catalog.min(a.xact_start))::bigint
     FROM pg_catalog.pg_stat_activity a WHERE a.backend_xid IS NOT NULL) AS oldest_transaction_s";

/// Asks the Site DB about replication.
///
/// # Errors
/// A statement failed.
pub async fn replication_facts(client: &Client, slot: &str) -> Result<ReplicationFacts, SourceError> {
    let server = check_server(client).await;
    // A statement that failed is no answer.
    if let Err(error @ SourceError::Session(_)) = server {
        return Err(error);
    }
    let role = check_role(client).await;
    if let Err(error @ SourceError::Session(_)) = role {
        return Err(error);
    }
    let failed_to_read = || failed("read the limits of replication");
    let row = client.query_one(FACTS, &[]).await.map_err(failed_to_read())?;
    let keep_mb: i64 = row.get("keep_mb");
    Ok(ReplicationFacts {
        server,
        role,
        slots: (row.get("slots"), row.get("max_slots")),
        senders: (row.get("senders"), row.get("max_senders")),
        keep_size: (keep_mb >= 0).then(|| keep_mb.saturating_mul(1 << 20)),
        sender_timeout_ms: row.get("sender_timeout_ms"),
        idle_slot_timeout_s: row.get::<_, Option<i64>>("idle_slot_timeout_s").unwrap_or(0),
        may_mark: row.get::<_, Option<bool>>("may_mark").unwrap_or(true),
        awaits_standby: row.get("awaits_standby"),
        sees_waits: row.get("sees_waits"),
        standby_slots: row.get("standby_slots"),
        oldest_transaction_s: row.get("oldest_transaction_s"),
        slot: slot_standing(client, slot).await?,
        idle_slots: client
            .query(
                "SELECT s.slot_name::text AS name, \
                 coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn), 0)::bigint AS retained \
                 FROM pg_catalog.pg_replication_slots s WHERE s.slot_name <> $1 AND s.slot_type = 'logical' AND NOT s.active \
                 AND s.database = pg_catalog.current_database() AND coalesce(s.wal_status, '') <> 'lost' ORDER BY 2 DESC LIMIT 10",
                &[&slot],
            )
            .await
            .map_err(failed_to_read())?
            .iter()
            .map(|row| (row.get("name"), row.get("retained")))
            .collect(),
    })
}

async fn slot_standing(client: &Client, slot: &str) -> Result<Option<SlotStanding>, SourceError> {
    // Columns that a version lacks are NULL in the row as JSON.
    let row = client
        .query_opt(
            "SELECT s.active, (pg_catalog.to_jsonb(s) ->> 'failover')::boolean AS failover, \
             pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint AS retained, \
             s.safe_wal_size AS headroom FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1",
            &[&slot],
        )
        .await
        .map_err(failed("look the slot up"))?;
    Ok(row.map(|row| SlotStanding {
        active: row.get("active"),
        failover: row.get("failover"),
        retained: row.get("retained"),
        headroom: row.get("headroom"),
    }))
}

/// The publication and the selected tables, as they are.
#[derive(Debug)]
pub struct PublicationFacts {
    /// `None`: it does not exist.
    pub publication: Option<Publication>,
    /// The published and selected tables.
    pub tables: BTreeMap<TableName, SourceTable>,
    /// The selected tables that can't be replicated, each with the reason and the remedy.
    pub faults: Faults,
    /// How many tables are selected.
    pub selected: usize,
    /// The statement that creates the publication, where it is missing and the daemon's role may not; for its owner.
    pub create: Option<String>,
}

/// A publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// What it does not send, of `insert`, `update`, `delete` and `truncate`.
    pub unsent: Vec<&'static str>,
    /// Whether it sends partitions as tables of their own, though it has the table that they are of.
    pub splits_partitions: bool,
}

/// Looks at the publication and at the tables that are selected.
///
/// # Errors
/// A statement failed.
pub async fn publication_facts(
    client: &Client,
    publication: &str,
    version: i32,
    selection: &Selection,
) -> Result<PublicationFacts, SourceError> {
    let row = client
        .query_opt(
            "SELECT b.pubinsert, b.pubupdate, b.pubdelete, b.pubtruncate, NOT b.pubviaroot AND EXISTS (SELECT \
             FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
             WHERE r.prpubid = b.oid AND c.relkind = 'p') AS splits_partitions FROM pg_catalog.pg_publication b \
             WHERE b.pubname = $1",
            &[&publication],
        )
        .await
        .map_err(failed("look the publication up"))?;
    let wanted = candidates(client, publication, version, selection).await?;
    let may_create: bool = client
        .query_one(
            "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS may_create",
            &[],
        )
        .await
        .map_err(failed("read the role's rights"))?
        .get("may_create");
    let usable: Vec<_> = wanted
        .iter()
        .filter(|candidate| candidate.fault(selection).is_none())
        .collect();
    let is_ours = may_create && usable.iter().any(|candidate| candidate.is_owned());
    let create = (row.is_none() && !usable.is_empty() && !is_ours).then(|| create_statement(publication, &usable));
    let mut faults = faults_of(&wanted, publication, selection);
    let tables = if row.is_some() {
        let PublishedTables { tables, unread } = published_tables(client, publication, version, selection).await?;
        faults.extend(unread.into_iter().map(with_unread_filter));
        tables
    } else {
        BTreeMap::new()
    };
    Ok(PublicationFacts {
        tables,
        faults,
        publication: row.as_ref().map(publication_of),
        selected: wanted.len(),
        create,
    })
}

fn publication_of(row: &Row) -> Publication {
    let kinds = [
        ("pubinsert", "insert"),
        ("pubupdate", "update"),
        ("pubdelete", "delete"),
        ("pubtruncate", "truncate"),
    ];
    let unsent = kinds.into_iter().filter(|(column, _)| !row.get::<_, bool>(column));
    Publication {
        unsent: unsent.map(|(_, kind)| kind).collect(),
        splits_partitions: row.get("splits_partitions"),
    }
}

/// What browsers hear of a table through Supabase's Realtime and read through its Data API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealtimeTable {
    /// The table.
    pub table: TableName,
    /// Whether the publication `supabase_realtime` has it.
    pub published: bool,
    /// Whether its replica identity is FULL: the old row is sent as a whole.
    pub sends_old_row: bool,
    /// Whether row-level security is on.
    pub row_security: bool,
    /// Whether a policy lets `authenticated` read some rows.
    pub has_policy: bool,
    /// Whether `anon`, which everybody is who knows the project's public key, may read the table.
    pub anonymous: bool,
    /// Whether `authenticated` may read the table.
    pub authenticated: bool,
}

/// Looks at what browsers see of tables of the schema `public`; empty where this is no Supabase project (it has no role `anon`).
///
/// # Errors
/// A statement failed.
pub async fn realtime_tables(client: &Client, tables: &[&str]) -> Result<Vec<RealtimeTable>, SourceError> {
    let rows = client
        .query(
            "SELECT c.relname::text AS name, EXISTS (SELECT FROM pg_catalog.pg_publication_tables p \
             WHERE p.pubname = 'supabase_realtime' AND p.schemaname = 'public' AND p.tablename = c.relname) AS published, \
             c.relreplident = 'f' AS sends_old_row, c.relrowsecurity AS row_security, \
             EXISTS (SELECT FROM pg_catalog.pg_policy y WHERE y.polrelid = c.oid AND y.polcmd IN ('r', '*') AND y.polpermissive \
             AND (0 = ANY (y.polroles) OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = ANY (y.polroles) \
             AND pg_catalog.pg_has_role('authenticated', r.oid, 'MEMBER')))) AS has_policy, \
             pg_catalog.has_table_privilege('anon', c.oid, 'SELECT') AS anonymous, \
             pg_catalog.has_table_privilege('authenticated', c.oid, 'SELECT') AS authenticated \
             FROM pg_catalog.pg_class c WHERE c.relnamespace = pg_catalog.to_regnamespace('public') \
             AND c.relname = ANY ($1) AND c.relkind IN ('r', 'p') \
             AND (SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname IN ('anon', 'authenticated')) = 2 ORDER BY 1",
            &[&tables],
        )
        .await
        .map_err(failed("look at what browsers may read"))?;
    Ok(rows
        .iter()
        .map(|row| RealtimeTable {
            table: TableName::new("public", row.get::<_, &str>("name")),
            published: row.get("published"),
            sends_old_row: row.get("sends_old_row"),
            row_security: row.get("row_security"),
            has_policy: row.get("has_policy"),
            anonymous: row.get("anonymous"),
            authenticated: row.get("authenticated"),
        })
        .collect())
}
