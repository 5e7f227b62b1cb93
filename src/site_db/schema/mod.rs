//! Checks that the Site DB answers and has what this version needs; called at start and then every few seconds.
//!
//! What it needs is what the migrations make (`wanted`): there is no second list of columns. A table or a column that the
//! migrations have made and that is gone, or has another name now, can't be made by them again; so the error names it and
//! the statement that puts it right.

mod wanted;

use sqlx::FromRow;

use super::{Pool, SiteError, messages};
use crate::postgres::quote_identifier;

/// Checks that the Site DB answers, has every table and column, lets this role read and write, and is not a standby.
///
/// # Errors
/// See [`SiteError`]; its hint says what to do.
pub async fn check(pool: &Pool) -> Result<(), SiteError> {
    let probed = async {
        match missing(pool).await?.as_slice() {
            [] => messages::check_writable(pool).await,
            missing => Err(explained(missing)),
        }
    };
    tokio::select! {
        biased;
        () = pool.closed_for_shared_sessions() => Err(SiteError::Pooled),
        probed = probed => probed,
    }
}

/// A column that is not there, or may not be read.
#[derive(Debug, FromRow)]
struct Missing {
    schema: String,
    relation: String,
    name: String,
    data_type: String,
    /// Whether the table is there.
    has_table: bool,
    /// Whether the column is there.
    has_column: bool,
    /// Whether any migration was applied.
    is_migrated: bool,
    /// The one column of the same type that no migration made, if there is exactly one: perhaps the column has this name now.
    renamed_to: Option<String>,
    /// Who connects.
    role: String,
}

/// Reads only the catalog.
const MISSING: &str = "WITH wanted AS (
         SELECT w.*, pg_catalog.to_regclass(pg_catalog.format('%I.%I', w.schema, w.relation)) AS oid
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS w(schema, relation, name, data_type)
     ), found AS (
         SELECT w.*, a.attnum IS NOT NULL AS has_column
           FROM wanted w LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = w.oid AND a.attname = w.name AND NOT a.attisdropped
     )
     SELECT f.schema, f.relation, f.name, f.data_type, f.oid IS NOT NULL AS has_table, f.has_column,
            pg_catalog.to_regclass('twinlog._sqlx_migrations_site') IS NOT NULL AS is_migrated,
            (SELECT CASE WHEN count(*) = 1 THEN min(a.attname::text) END FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = f.oid AND a.attnum > 0 AND NOT a.attisdropped
                AND pg_catalog.format_type(a.atttypid, NULL) = pg_catalog.format_type(f.data_type::regtype, NULL)
                AND NOT EXISTS (SELECT FROM wanted w WHERE w.oid = a.attrelid AND w.name = a.attname)) AS renamed_to,
            current_user::text AS role
       FROM found f
      WHERE CASE WHEN f.has_column THEN NOT pg_catalog.has_column_privilege(f.oid, f.name, 'SELECT') ELSE true END
      ORDER BY f.oid IS NOT NULL, f.schema, f.relation, f.name";

async fn missing(pool: &Pool) -> Result<Vec<Missing>, SiteError> {
    let wanted = wanted::columns();
    macro_rules! each {
        ($field:ident) => {
            wanted
                .iter()
                .map(|column| column.$field.as_str())
                .collect::<Vec<_>>()
        };
    }
    Ok(sqlx::query_as(MISSING)
        .bind(each!(schema))
        .bind(each!(table))
        .bind(each!(name))
        .bind(each!(data_type))
        .fetch_all(&pool.0)
        .await?)
}

/// Names the first fault; the others show when it is mended.
fn explained(missing: &[Missing]) -> SiteError {
    let Some(first) = missing.first() else {
        return SiteError::Vanished("the catalog");
    };
    let more = match missing.len() {
        1 => String::new(),
        several => format!(" (and {} more)", several - 1),
    };
    let table = format!(
        "{}.{}",
        quote_identifier(&first.schema),
        quote_identifier(&first.relation)
    );
    let (column, role) = (quote_identifier(&first.name), quote_identifier(&first.role));
    let data_type = &first.data_type;
    let (what, remedy) = if first.has_column {
        (
            format!("the role {role} may not read {table}{more}"),
            format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role};"),
        )
    } else if !first.is_migrated {
        (
            format!("the table {table} is missing{more}"),
            "run: twinlog migrate site".to_owned(),
        )
    } else if !first.has_table {
        (
            format!("the table {table} is missing{more}"),
            format!(
                "run: twinlog migrate site; if that says that all is up to date, the table was renamed or dropped: \
                 ALTER TABLE <its name now> RENAME TO {}; or restore it from a backup",
                quote_identifier(&first.relation)
            ),
        )
    } else {
        let renamed = match &first.renamed_to {
            Some(now) => format!(
                "if it is the column {} now: ALTER TABLE {table} RENAME COLUMN {0} TO {column};",
                quote_identifier(now)
            ),
            None => format!("if it was renamed: ALTER TABLE {table} RENAME COLUMN <its name now> TO {column};"),
        };
        (
            format!("the column {column} of {table} is missing{more}"),
            format!(
                "run: twinlog migrate site; if that says that all is up to date, {renamed} if it was dropped: \
                     ALTER TABLE {table} ADD COLUMN {column} {data_type};"
            ),
        )
    };
    SiteError::Missing { what, remedy }
}
