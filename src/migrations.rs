//! The schemas that Twinlog brings along, and how they get into the databases.
//!
//! | set | database | what |
//! |---|---|---|
//! | [`Set::Site`] | Site DB | the business tables, `public.*` |
//! | [`Set::Agent`] | Agent DB | the same tables for the automation, `public.*` |
//! | [`Set::Twinlog`] | Agent DB | the daemon's bookkeeping, `twinlog.*`; all that `twinlog sync` needs for any other tables |
//!
//! Which migrations are applied is written in the schema `twinlog` of each database, one table for each set (their numbers
//! overlap), and not in `public` as sqlx would have it: `sync.tables = ["public.*"]` must not pick it up.
//!
//! A database that has everything is only read, so a daemon may start with a role that may not create anything. Several
//! processes may migrate at once: sqlx takes an advisory lock. A database that a newer version has migrated is left alone,
//! so that a binary can be rolled back.

use std::collections::BTreeMap;

use secrecy::ExposeSecret;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Connection};

use crate::config::{DatabaseUrl, Host, SslMode};
use crate::postgres::{self, quote_identifier, tls};
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

    /// Where the set's applied migrations are written down.
    const fn table(self) -> &'static str {
        match self {
            Self::Site => "twinlog._sqlx_migrations_site",
            Self::Agent => "twinlog._sqlx_migrations_agent",
            Self::Twinlog => "twinlog._sqlx_migrations",
        }
    }

    const fn schemas(self) -> &'static [&'static str] {
        match self {
            Self::Site | Self::Agent => &["twinlog", "public"],
            Self::Twinlog => &["twinlog"],
        }
    }

    /// How people call its database.
    #[must_use]
    pub const fn database(self) -> &'static str {
        match self {
            Self::Site => "Site DB",
            Self::Agent | Self::Twinlog => "Agent DB",
        }
    }
}

/// What was done.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Applied {
    /// The set.
    pub set: Set,
    /// The migrations that were pending, as `1 conversations`.
    pub applied: Vec<String>,
    /// How many were there before.
    pub present: usize,
}

/// Why a database is not migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// It can't be reached.
    #[error("connect to the {database} ({address})")]
    Connect {
        /// Which one.
        database: &'static str,
        /// Where it should be, without the password.
        address: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// It can't be read.
    #[error("read the applied migrations of the {database}")]
    Read {
        /// Which one.
        database: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The role may not create what is missing.
    #[error("the role {role:?} may not create Twinlog's tables in the {database}")]
    Rights {
        /// Which one.
        database: &'static str,
        /// Who we are there.
        role: String,
        /// The statements that give the rights.
        grants: Vec<String>,
    },
    /// A migration failed; it was rolled back.
    #[error("migrate the {database} ({table})")]
    Migrate {
        /// Which one.
        database: &'static str,
        /// Where the set's applied migrations are written down.
        table: &'static str,
        /// Why.
        #[source]
        source: Box<MigrateError>,
    },
}

impl MigrationError {
    /// What this means for the work that met it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        let source = match self {
            Self::Connect { source, .. } | Self::Read { source, .. } => source,
            Self::Migrate { source, .. } => match source.as_ref() {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error,
                _ => return Disposition::Systemic,
            },
            Self::Rights { .. } => return Disposition::Systemic,
        };
        match sqlstate(source).map(|code| postgres::disposition(&code)) {
            None => Disposition::Transient,
            // A migration writes no row of anybody's.
            Some(Disposition::Row) => Disposition::Systemic,
            Some(other) => other,
        }
    }

    /// What an operator can do.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Rights { grants, .. } => Some(format!("run as the database's owner: {}", grants.join("; "))),
            Self::Migrate { source, .. } => match source.as_ref() {
                MigrateError::ExecuteMigration(error, _) if sqlstate(error).as_deref() == Some("42P07") => Some(
                    "the database has a table of that name already, and Twinlog does not change tables that it did not \
                     make: rename it, or use `twinlog sync` alone, which works on any tables"
                        .to_owned(),
                ),
                MigrateError::VersionMismatch(_) => Some(
                    "the migration was applied from another text than this binary's: use the release that applied it, or \
                     compare the two schemas and correct the checksum"
                        .to_owned(),
                ),
                _ => None,
            },
            Self::Connect { source, .. } => Some(match (source, sqlstate(source).as_deref()) {
                (sqlx::Error::Tls(cause), _) if cause.to_string().contains("does not support TLS") => {
                    tls::NOT_OFFERED.to_owned()
                }
                (sqlx::Error::Tls(_), _) => "check sslmode and sslrootcert in the URL".to_owned(),
                (_, Some("28000" | "28P01")) => "check role and password in the URL".to_owned(),
                (_, Some("3D000")) => "check the database's name in the URL".to_owned(),
                _ => "check the URL, that the server runs and that it accepts this client (pg_hba.conf, firewall)".to_owned(),
            }),
            Self::Read { .. } => None,
        }
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

/// Applies what is pending of one set.
///
/// # Errors
/// The database can't be reached, rights are missing, or a migration fails (and is rolled back).
pub async fn apply(url: &DatabaseUrl, set: Set) -> Result<Applied, MigrationError> {
    let database = set.database();
    let mut connection = connect_options(url)
        .connect()
        .await
        .map_err(|source| MigrationError::Connect {
            database,
            address: url.to_string(),
            source,
        })?;
    // Boxed: sqlx's migrator is a large future, and this is called rarely.
    let result = Box::pin(apply_on(&mut connection, url, set)).await;
    // A goodbye is polite; its failure changes nothing.
    let _ = connection.close().await;
    result
}

async fn apply_on(connection: &mut PgConnection, url: &DatabaseUrl, set: Set) -> Result<Applied, MigrationError> {
    let (database, table) = (set.database(), set.table());
    let read = |source| MigrationError::Read { database, source };
    let mut migrator = set.migrator();
    let before = applied_checksums(connection, table).await.map_err(read)?;
    let pending: Vec<String> = migrator
        .iter()
        .filter(|migration| !before.contains_key(&migration.version))
        .map(|migration| format!("{} {}", migration.version, migration.description))
        .collect();
    let same = |(version, checksum): (&i64, &Vec<u8>)| {
        migrator
            .iter()
            .all(|migration| migration.version != *version || *migration.checksum == **checksum)
    };
    if pending.is_empty() && before.iter().all(same) {
        return Ok(Applied {
            set,
            applied: pending,
            present: before.len(),
        });
    }

    let grants = missing_grants(connection, url, set).await.map_err(read)?;
    if !grants.is_empty() {
        return Err(MigrationError::Rights {
            database,
            role: url.user.clone(),
            grants,
        });
    }
    migrator.dangerous_set_table_name(table);
    migrator.set_ignore_missing(true);
    // Only where it is missing: CREATE SCHEMA IF NOT EXISTS asks for the right even if it does exist.
    if !schema_exists(connection, "twinlog").await.map_err(read)? {
        migrator.create_schema("twinlog");
    }
    migrator
        .run_direct(None, connection, false)
        .await
        .map_err(|source| MigrationError::Migrate {
            database,
            table,
            source: Box::new(source),
        })?;
    let applied = pending;
    tracing::info!(database, ?applied, "migrated");
    Ok(Applied {
        set,
        applied,
        present: before.len(),
    })
}

/// Version and checksum of what is applied; nothing if the table does not exist.
async fn applied_checksums(
    connection: &mut PgConnection,
    table: &'static str,
) -> Result<BTreeMap<i64, Vec<u8>>, sqlx::Error> {
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

/// The statements that give this role what the migrations need: asked for beforehand, so that the answer is whole.
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

fn connect_options(url: &DatabaseUrl) -> PgConnectOptions {
    let mut options = PgConnectOptions::new_without_pgpass()
        .port(url.port)
        .username(&url.user)
        .database(&url.database)
        .application_name("twinlog migrate")
        .ssl_mode(match url.sslmode {
            SslMode::Disable => PgSslMode::Disable,
            SslMode::Require => PgSslMode::Require,
            SslMode::VerifyCa => PgSslMode::VerifyCa,
            SslMode::VerifyFull => PgSslMode::VerifyFull,
        });
    options = match &url.host {
        Host::Tcp(host) => options.host(host),
        Host::Unix(folder) => options.socket(folder),
    };
    if let Some(password) = &url.password {
        options = options.password(password.expose_secret());
    }
    if let Some(file) = &url.sslrootcert {
        options = options.ssl_root_cert(file);
    }
    options
}

fn sqlstate(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
