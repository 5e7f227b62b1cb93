//! The slot's advisory lock: one active daemon for a slot, bound to the connection that writes.

use tokio_postgres::Client;

use crate::agent_db::error::{AgentError, Holder};

/// First half of the advisory lock's key ("twin" in ASCII); the second is a hash of the slot's name.
pub(super) const CLASS: i32 = 0x7477_696E;

/// Takes the lock of slot $2 until the end of the transaction; false if a daemon has it. $1: [`CLASS`].
pub(super) const TRY_IN_TRANSACTION: &str = "pg_catalog.pg_try_advisory_xact_lock($1, pg_catalog.hashtext($2))";

/// Takes the slot's lock, or says who has it.
pub(in crate::agent_db) async fn take(client: &Client, slot: &str) -> Result<(), AgentError> {
    let failed = |source| AgentError::from_driver("take the slot's lock", None, source);
    let locked: bool = client
        .query_one(
            "SELECT pg_catalog.pg_try_advisory_lock($1, pg_catalog.hashtext($2)) AS locked",
            &[&CLASS, &slot],
        )
        .await
        .map_err(failed)?
        .get("locked");
    if locked {
        return Ok(());
    }
    let holder = client
        .query_opt(
            "SELECT l.pid, coalesce(a.application_name, '') AS application, a.client_addr::pg_catalog.text AS address
             FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
             WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' AND l.granted AND l.objsubid OPERATOR(pg_catalog.=) 2
               AND l.database OPERATOR(pg_catalog.=)
                   (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
               AND l.classid::bigint OPERATOR(pg_catalog.=) $1::integer::bigint
               AND l.objid OPERATOR(pg_catalog.=) pg_catalog.hashtext($2)::bit(32)::bigint::pg_catalog.oid
             LIMIT 1",
            &[&CLASS, &slot],
        )
        .await
        .map_err(failed)?
        .map(|row| Holder {
            pid: row.get("pid"),
            application: row.get("application"),
            address: row.get("address"),
        });
    Err(AgentError::Busy {
        slot: slot.to_owned(),
        holder,
    })
}
