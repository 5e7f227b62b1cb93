//! `twinlog.template_notices`: what the provider told last of each template: that it stopped it, that it will, or that it takes
//! it again. Notices come repeated and in any order, so the later one counts.

use sqlx::FromRow;
use time::OffsetDateTime;

use super::{Pool, SiteError, Transaction, storable};
use crate::provider::event::{TemplateNews, TemplateNotice};

/// Most templates that are named.
pub const MOST_NAMED: usize = 5;

/// Stores a notice, unless a later one of its kind is stored. `at`: when it was told.
///
/// # Errors
/// See [`SiteError`].
pub async fn note(
    tx: &mut Transaction<'_>,
    waba_id: &str,
    notice: &TemplateNotice,
    at: OffsetDateTime,
) -> Result<(), SiteError> {
    let (statement, word) = match &notice.news {
        TemplateNews::Usable => (STATUS, None),
        TemplateNews::Stopped(word) => (STATUS, Some(word.as_str())),
        TemplateNews::Quality(word) => (QUALITY, word.as_deref()),
    };
    sqlx::query(statement)
        .bind(storable(waba_id))
        .bind(storable(&notice.id))
        .bind(storable(&notice.name))
        .bind(storable(&notice.language))
        .bind(word.map(storable))
        .bind(at)
        .execute(tx.connection())
        .await?;
    Ok(())
}

const STATUS: &str =
    "INSERT INTO twinlog.template_notices AS t (waba_id, template_id, name, language, stopped_by, status_at)
     VALUES ($1, $2, $3, $4, $5, $6)
     ON CONFLICT (waba_id, template_id) DO UPDATE SET name = excluded.name, language = excluded.language,
         stopped_by = excluded.stopped_by, status_at = excluded.status_at
      WHERE t.status_at <= excluded.status_at";

const QUALITY: &str =
    "INSERT INTO twinlog.template_notices AS t (waba_id, template_id, name, language, quality, quality_at)
     VALUES ($1, $2, $3, $4, $5, $6)
     ON CONFLICT (waba_id, template_id) DO UPDATE SET name = excluded.name, language = excluded.language,
         quality = excluded.quality, quality_at = excluded.quality_at
      WHERE t.quality_at <= excluded.quality_at";

/// A template in trouble.
#[derive(Debug, Clone, FromRow)]
pub struct Troubled {
    /// Its name.
    pub name: String,
    /// Its language's code.
    pub language: String,
    /// The provider's word for why it can't be sent.
    pub stopped_by: Option<String>,
    /// The provider's word for why it will stop it.
    pub quality: Option<String>,
    /// How many are stopped, of all.
    pub stopped: i64,
    /// How many are in trouble.
    pub troubled: i64,
}

/// The templates in trouble, those that are stopped first; at most [`MOST_NAMED`].
///
/// # Errors
/// See [`SiteError`].
pub async fn troubled(pool: &Pool) -> Result<Vec<Troubled>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT name, language, stopped_by, quality, count(stopped_by) OVER () AS stopped, count(*) OVER () AS troubled
           FROM twinlog.template_notices WHERE stopped_by IS NOT NULL OR (quality IS NOT NULL AND quality_at > status_at)
          ORDER BY stopped_by IS NULL, name, language, template_id LIMIT $1",
    )
    .bind(i64::try_from(MOST_NAMED).unwrap_or(i64::MAX))
    .fetch_all(&pool.0)
    .await?)
}
