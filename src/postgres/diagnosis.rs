//! Looks at a database for what an error alone does not say: which setting makes it read-only, whether the two URLs are
//! swapped. Only reads, over a session of its own; whatever it can't find out, it leaves out.

use tokio_postgres::Client;

use super::connect::connect;
use super::error::{SessionError, Side};
use super::pooler::refuse_pooler;
use super::quote::quote_identifier;
use crate::config::DatabaseUrl;

/// What to do about a database that takes no writes: the setting that says so, and where it is set.
pub async fn read_only_remedy(side: Side, url: &DatabaseUrl) -> Option<String> {
    let client = session(side, url).await.ok()?;
    let row = client
        .query_one(
            "SELECT pg_catalog.pg_is_in_recovery() AS standby, s.source, current_user::text AS role, \
             pg_catalog.current_database()::text AS database \
             FROM pg_catalog.pg_settings s WHERE s.name = 'default_transaction_read_only' AND (s.setting = 'on' \
             OR pg_catalog.pg_is_in_recovery())",
            &[],
        )
        .await
        .ok()?;
    if row.get("standby") {
        return Some(format!(
            "the server of the {side}'s URL is a standby: point the URL at the primary"
        ));
    }
    Some(reset(side, row.get("source"), row.get("role"), row.get("database")))
}

/// The statement that takes `default_transaction_read_only` back where it is set. `source`: as in `pg_settings`.
fn reset(side: Side, source: &str, role: &str, database: &str) -> String {
    let (role, database) = (quote_identifier(role), quote_identifier(database));
    let (place, statement) = match source {
        "user" => ("for the role", format!("ALTER ROLE {role} RESET")),
        "database user" => (
            "for the role in this database",
            format!("ALTER ROLE {role} IN DATABASE {database} RESET"),
        ),
        "database" => ("for the database", format!("ALTER DATABASE {database} RESET")),
        "global" => ("for all roles", "ALTER ROLE ALL RESET".to_owned()),
        _ => {
            return format!(
                "default_transaction_read_only is on in the configuration of the {side}'s server: ALTER SYSTEM SET \
                 default_transaction_read_only = off; SELECT pg_reload_conf(); (or in postgresql.conf)"
            );
        }
    };
    format!(
        "default_transaction_read_only is on {place}; in the {side}, in a session with SET default_transaction_read_only = off: \
         {statement} default_transaction_read_only;"
    )
}

/// A database, by what swapped URLs are known.
struct Traces {
    /// The cluster's identifier and the database's name.
    identity: Option<(String, String)>,
    /// The sources of the daemons that have written here.
    sources: Vec<(String, String)>,
    /// Whether the server's tables were made here.
    has_site_tables: bool,
}

/// Whether the URLs of the two databases look swapped: the one that should be read was written by a daemon that reads the
/// other, or the server's tables are in the one that should be written alone. `None` if that can't be found out now.
pub async fn are_swapped(site: &DatabaseUrl, agent: &DatabaseUrl) -> Option<bool> {
    let (site, agent) = tokio::join!(traces(Side::Site, site), traces(Side::Agent, agent));
    let (site, agent) = (site.ok()?, agent.ok()?);
    let was_read = agent
        .identity
        .as_ref()
        .is_some_and(|identity| site.sources.contains(identity));
    Some(was_read || (agent.has_site_tables && !site.has_site_tables))
}

/// What to do about swapped URLs.
pub const SWAPPED_HINT: &str = "site.url must lead to the database that is read (behind the web UI), agent.url to the one that is written: \
                                exchange the two";

async fn traces(side: Side, url: &DatabaseUrl) -> Result<Traces, SessionError> {
    let client = session(side, url).await?;
    let failed = |source| SessionError::new(side, "look at the database", source);
    let row = client
        .query_one(
            "SELECT pg_catalog.current_database()::text AS database, \
             pg_catalog.to_regclass('twinlog._sqlx_migrations_site') IS NOT NULL AS has_site_tables, \
             pg_catalog.to_regclass('twinlog.checkpoint') IS NOT NULL AS has_checkpoint",
            &[],
        )
        .await
        .map_err(failed)?;
    // A role may lack the right to either.
    let system = client
        .query_one(
            "SELECT system_identifier::text FROM pg_catalog.pg_control_system()",
            &[],
        )
        .await;
    let sources = if row.get("has_checkpoint") {
        client
            .query(
                "SELECT system_identifier, database FROM twinlog.checkpoint LIMIT 100",
                &[],
            )
            .await
            .unwrap_or_default()
    } else {
        Vec::new()
    };
    Ok(Traces {
        identity: system
            .ok()
            .map(|system| (system.get("system_identifier"), row.get("database"))),
        sources: sources
            .iter()
            .map(|source| (source.get("system_identifier"), source.get("database")))
            .collect(),
        has_site_tables: row.get("has_site_tables"),
    })
}

/// A session, unless a pooler would give its settings to others.
async fn session(side: Side, url: &DatabaseUrl) -> Result<Client, SessionError> {
    refuse_pooler(side, url).await?;
    connect(side, url, "twinlog check").await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_setting_is_taken_back_where_it_is_set() {
        for (source, expected) in [
            ("user", "ALTER ROLE \"a b\" RESET default_transaction_read_only;"),
            (
                "database user",
                "ALTER ROLE \"a b\" IN DATABASE \"d\" RESET default_transaction_read_only;",
            ),
            ("database", "ALTER DATABASE \"d\" RESET default_transaction_read_only;"),
            (
                "configuration file",
                "ALTER SYSTEM SET default_transaction_read_only = off;",
            ),
        ] {
            let remedy = reset(Side::Agent, source, "a b", "d");
            assert!(remedy.contains(expected), "{source}: {remedy}");
        }
    }
}
