//! The schemas that are built into Twinlog, and how they are applied to the databases.
//!
//! | set | database | what |
//! |---|---|---|
//! | [`Set::Site`] | Site DB | the business tables, `public.*` |
//! | [`Set::Agent`] | Agent DB | the same tables for the automation, `public.*` |
//! | [`Set::Twinlog`] | Agent DB | the daemon's bookkeeping, `twinlog.*`; `twinlog sync` needs nothing else for other tables |
//!
//! Each set records its applied migrations in a table of its own (their numbers overlap) in the schema `twinlog`. sqlx would
//! put it into `public`, where `sync.tables = ["public.*"]` would replicate it.
//!
//! A database that has every migration is only read, so that a daemon may start with a role that may not create anything.
//! Several processes may migrate at the same time: sqlx takes an advisory lock. Migrations of a newer version are left as
//! they are, so that a binary can be rolled back.

use std::collections::BTreeMap;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};

use crate::config::DatabaseUrl;
use crate::postgres::error::{UNREACHABLE_HINT, not_of_a_row, session_hint};
use crate::postgres::sqlstate::READ_ONLY;
use crate::postgres::{SessionError, Side, disposition, quote_identifier, refuse_pooler, sqlx_access, tls};
use crate::retry::Disposition;

/// Migrations that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Set {
    /// The Site DB's business tables.
    Site,
    /// The Agent DB's business tables.
    Agent,
    /// The daemon's bookkeeping in the Agent DB.
    Twinlog,
}

impl Set {
    fn migrator(self) -> Migrator {
        match self {
            Self::Site => sqlx::migrate!("./migrations/site"),
            Self::Agent => sqlx::migrate!("./migrations/agent"),
            Self::Twinlog => sqlx::migrate!("./migrations/twinlog"),
        }
    }

    /// The table that records the set's applied migrations.
    const fn table(self) -> &'static str {
        match self {
            Self::Site => "twinlog._sqlx_migrations_site",
            Self::Agent => "twinlog._sqlx_migrations_agent",
            Self::Twinlog => "twinlog._sqlx_migrations",
        }
    }

    /// The schemas in which the set creates tables.
    const fn schemas(self) -> &'static [&'static str] {
        match self {
            Self::Site | Self::Agent => &["twinlog", "public"],
            Self::Twinlog => &["twinlog"],
        }
    }

    /// The database that the set is for.
    #[must_use]
    pub const fn side(self) -> Side {
        match self {
            Self::Site => Side::Site,
            Self::Agent | Self::Twinlog => Side::Agent,
        }
    }
}

/// What [`apply`] did with a set.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Applied {
    /// Which set.
    pub set: Set,
    /// The migrations that were pending, each as version and description: `1 conversations`.
    pub applied: Vec<String>,
    /// How many were applied before.
    pub present: usize,
}

/// Why a database could not be migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// There is no session: the network, TLS, or a refused login.
    #[error("connect to the {side} ({address})")]
    Connect {
        /// The database.
        side: Side,
        /// Its URL without the password.
        address: String,
        /// The driver's error.
        #[source]
        source: sqlx::Error,
    },
    /// A pooler gives the same server session to several clients: the migrations' lock would stay with one of them.
    #[error(transparent)]
    Pooled(Box<SessionError>),
    /// A query of the catalog or of the applied migrations failed.
    #[error("read the applied migrations of the {side}")]
    Read {
        /// The database.
        side: Side,
        /// The driver's error.
        #[source]
        source: sqlx::Error,
    },
    /// The role may not create what is missing. Nothing was changed.
    #[error("the role {role:?} may not create Twinlog's tables in the {side}")]
    Rights {
        /// The database.
        side: Side,
        /// The role of the URL.
        role: String,
        /// The statements that give it every right that it lacks.
        grants: Vec<String>,
    },
    /// A migration failed, and was rolled back.
    #[error("migrate the {side} ({table})")]
    Migrate {
        /// The database.
        side: Side,
        /// The table that records the set's applied migrations.
        table: &'static str,
        /// The migration's error.
        #[source]
        source: Box<MigrateError>,
    },
}

impl MigrationError {
    /// What this means for the work that met it. Never [`Disposition::Row`]: a migration has no row to blame.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        let source = match self {
            Self::Connect { source, .. } | Self::Read { source, .. } => source,
            Self::Migrate { source, .. } => match source.as_ref() {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error,
                _ => return Disposition::Systemic,
            },
            Self::Rights { .. } | Self::Pooled(_) => return Disposition::Systemic,
        };
        sqlstate(source).map_or(Disposition::Transient, |code| not_of_a_row(disposition(&code)))
    }

    /// Whether the database takes no writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::Migrate { source, .. } => match source.as_ref() {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                    sqlstate(error).as_deref() == Some(READ_ONLY)
                }
                _ => false,
            },
            Self::Connect { source, .. } | Self::Read { source, .. } => sqlstate(source).as_deref() == Some(READ_ONLY),
            Self::Rights { .. } | Self::Pooled(_) => false,
        }
    }

    /// The database that could not be migrated.
    #[must_use]
    pub const fn side(&self) -> Option<Side> {
        match self {
            Self::Connect { side, .. }
            | Self::Read { side, .. }
            | Self::Rights { side, .. }
            | Self::Migrate { side, .. } => Some(*side),
            Self::Pooled(_) => None,
        }
    }

    /// What an operator can do.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { side, source, .. } => Some(connect_hint(*side, source)),
            Self::Read { .. } => None,
            Self::Pooled(error) => error.hint(),
            Self::Rights { grants, .. } => Some(format!("run as the database's owner: {}", grants.join("; "))),
            Self::Migrate { source, .. } => migrate_hint(source).map(str::to_owned),
        }
    }
}

fn connect_hint(side: Side, error: &sqlx::Error) -> String {
    match error {
        // The driver has no other sign for it.
        sqlx::Error::Tls(cause) if cause.to_string().contains("does not support TLS") => tls::NOT_OFFERED.to_owned(),
        sqlx::Error::Tls(cause) => cause
            .downcast_ref::<std::io::Error>()
            .and_then(tls::refusal_hint)
            .unwrap_or_else(|| "check sslmode and sslrootcert in the URL".to_owned()),
        _ => sqlstate(error)
            .and_then(|code| session_hint(side, &code))
            .unwrap_or_else(|| UNREACHABLE_HINT.to_owned()),
    }
}

fn migrate_hint(error: &MigrateError) -> Option<&'static str> {
    match error {
        MigrateError::ExecuteMigration(error, _) if sqlstate(error).as_deref() == Some("42P07") => Some(
            "the database already has a table of that name, and Twinlog does not change tables that it did not create: \
             rename it, or use `twinlog sync` alone, which works on any tables",
        ),
        MigrateError::ExecuteMigration(error, _) if sqlstate(error).as_deref() == Some("42501") => {
            Some("the tables belong to another role: run twinlog migrate with a URL of the role that created them")
        }
        MigrateError::VersionMismatch(_) => Some(
            "the migration was applied with another text than this binary has: use the release that applied it, or compare \
             the two schemas and correct the checksum",
        ),
        _ => None,
    }
}

/// Brings the Site DB up to date.
///
/// # Errors
/// It can't be reached, rights are missing, or a migration fails.
pub async fn apply_site(url: &DatabaseUrl) -> Result<Vec<Applied>, MigrationError> {
    Ok(vec![apply(url, Set::Site).await?])
}

/// Brings the Agent DB up to date: the bookkeeping and the business tables.
///
/// # Errors
/// It can't be reached, rights are missing, or a migration fails.
pub async fn apply_agent(url: &DatabaseUrl) -> Result<Vec<Applied>, MigrationError> {
    Ok(vec![apply_twinlog(url).await?, apply(url, Set::Agent).await?])
}

/// Brings the daemon's bookkeeping in the Agent DB up to date: what the daemon calls when it starts.
///
/// # Errors
/// It can't be reached, rights are missing, or a migration fails.
pub async fn apply_twinlog(url: &DatabaseUrl) -> Result<Applied, MigrationError> {
    apply(url, Set::Twinlog).await
}

/// Set for the session of the migrations. Notices, as "already exists, skipping", would be logged.
const TIME_OUTS: &str = "SELECT pg_catalog.set_config('statement_timeout', '0', false), \
     pg_catalog.set_config('lock_timeout', '30s', false), \
     pg_catalog.set_config('idle_in_transaction_session_timeout', '0', false), \
     pg_catalog.set_config('client_min_messages', 'warning', false)";

/// Applies the pending migrations of one set.
///
/// # Errors
/// The database can't be reached, rights are missing, or a migration fails (and is rolled back).
pub async fn apply(url: &DatabaseUrl, set: Set) -> Result<Applied, MigrationError> {
    // Other errors of the question come again with the connection itself.
    if let Err(error @ SessionError::Pooled { .. }) = refuse_pooler(set.side(), url).await {
        return Err(MigrationError::Pooled(Box::new(error)));
    }
    let access = sqlx_access(url, "twinlog migrate");
    let mut connection = access.connect().await.map_err(|source| MigrationError::Connect {
        side: set.side(),
        address: url.to_string(),
        source,
    })?;
    // A migration takes as long as it takes, whatever is set for the role; errors of this come again with the migrations.
    let _ = connection.execute(TIME_OUTS).await;
    // Boxed: sqlx's migrator is a large future, and this is called rarely.
    let result = Box::pin(apply_on(&mut connection, url, set)).await;
    // Ignore errors of the close: all work is committed already.
    let _ = connection.close().await;
    result
}

/// How far a database is with a set.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The migrations that are not applied, each as version and description.
    pub pending: Vec<String>,
    /// Whether any is applied.
    pub is_begun: bool,
    /// Whether the applied ones have the texts of this binary.
    pub texts_match: bool,
    /// The statements that give the role what the pending ones need and it lacks.
    pub grants: Vec<String>,
}

/// Looks how far a database is with a set, and changes nothing.
///
/// # Errors
/// The database can't be reached, or the role may not read the applied migrations.
pub async fn standing(url: &DatabaseUrl, set: Set) -> Result<Standing, MigrationError> {
    let side = set.side();
    let read = |source| MigrationError::Read { side, source };
    let mut connection =
        sqlx_access(url, "twinlog doctor")
            .connect()
            .await
            .map_err(|source| MigrationError::Connect {
                side,
                address: url.to_string(),
                source,
            })?;
    let migrator = set.migrator();
    let applied = applied_checksums(&mut connection, set.table()).await.map_err(read)?;
    let pending = pending(&migrator, &applied);
    let grants = if pending.is_empty() {
        Vec::new()
    } else {
        missing_grants(&mut connection, url, set).await.map_err(read)?
    };
    // Ignore errors of the close: everything is read.
    let _ = connection.close().await;
    Ok(Standing {
        texts_match: texts_match(&migrator, &applied),
        is_begun: !applied.is_empty(),
        pending,
        grants,
    })
}

async fn apply_on(connection: &mut PgConnection, url: &DatabaseUrl, set: Set) -> Result<Applied, MigrationError> {
    let side = set.side();
    let read = |source| MigrationError::Read { side, source };
    let migrator = set.migrator();
    let before = applied_checksums(connection, set.table()).await.map_err(read)?;
    let pending = pending(&migrator, &before);
    let applied = Applied {
        set,
        applied: pending,
        present: before.len(),
    };
    if applied.applied.is_empty() && texts_match(&migrator, &before) {
        return Ok(applied);
    }
    let grants = missing_grants(connection, url, set).await.map_err(read)?;
    if !grants.is_empty() {
        return Err(MigrationError::Rights {
            side,
            role: url.user.clone(),
            grants,
        });
    }
    // Only where it is missing: CREATE SCHEMA IF NOT EXISTS needs the right to create it even if it exists.
    let create_schema = !schema_exists(connection, "twinlog").await.map_err(read)?;
    run(migrator, connection, set, create_schema)
        .await
        .map_err(|source| MigrationError::Migrate {
            side,
            table: set.table(),
            source: Box::new(source),
        })?;
    tracing::info!(database = %side, applied = ?applied.applied, "migrated");
    Ok(applied)
}

async fn run(
    mut migrator: Migrator,
    connection: &mut PgConnection,
    set: Set,
    create_schema: bool,
) -> Result<(), MigrateError> {
    migrator.dangerous_set_table_name(set.table());
    migrator.set_ignore_missing(true);
    if create_schema {
        migrator.create_schema("twinlog");
    }
    migrator.run_direct(None, connection, false).await
}

/// Version → checksum.
type Checksums = BTreeMap<i64, Vec<u8>>;

/// The migrations that are not applied, as version and description.
fn pending(migrator: &Migrator, applied: &Checksums) -> Vec<String> {
    migrator
        .iter()
        .filter(|migration| !applied.contains_key(&migration.version))
        .map(|migration| format!("{} {}", migration.version, migration.description))
        .collect()
}

/// Whether the applied migrations that this binary knows have its texts. If not, sqlx's own check must say so.
fn texts_match(migrator: &Migrator, applied: &Checksums) -> bool {
    migrator.iter().all(|migration| {
        applied
            .get(&migration.version)
            .is_none_or(|checksum| **checksum == *migration.checksum)
    })
}

/// The applied migrations; none if the table that records them does not exist.
async fn applied_checksums(connection: &mut PgConnection, table: &'static str) -> Result<Checksums, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(table)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(BTreeMap::new());
    }
    let statement = format!("SELECT version, checksum FROM {table} WHERE success");
    let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(sqlx::AssertSqlSafe(statement))
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().collect())
}

async fn schema_exists(connection: &mut PgConnection, schema: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL")
        .bind(schema)
        .fetch_one(connection)
        .await
}

/// The statements that give this role what the migrations need. Asked before the first migration, so that one run names all
/// of them.
async fn missing_grants(
    connection: &mut PgConnection,
    url: &DatabaseUrl,
    set: Set,
) -> Result<Vec<String>, sqlx::Error> {
    let role = quote_identifier(&url.user);
    let mut grants = Vec::new();
    for &schema in set.schemas() {
        if schema_exists(connection, schema).await? {
            let allowed: bool =
                sqlx::query_scalar("SELECT has_schema_privilege($1, 'CREATE') AND has_schema_privilege($1, 'USAGE')")
                    .bind(schema)
                    .fetch_one(&mut *connection)
                    .await?;
            if !allowed {
                grants.push(format!("GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}"));
            }
        } else {
            let allowed: bool = sqlx::query_scalar("SELECT has_database_privilege(current_database(), 'CREATE')")
                .fetch_one(&mut *connection)
                .await?;
            if !allowed {
                let database = quote_identifier(&url.database);
                grants.push(format!("GRANT CREATE ON DATABASE {database} TO {role}"));
            }
        }
    }
    Ok(grants)
}

fn sqlstate(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
