//! Reads of the Site DB's catalog that may have any number of rows: none takes more memory than the largest catalog needs.

use std::pin::pin;

use futures_util::TryStreamExt;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::error::{SourceError, failed};

/// Most bytes of one answer: ten thousand tables of twenty columns take about a third of it.
const MOST_BYTES: usize = 48 << 20;

/// What `read` makes of each row of a query; `None` leaves a row out. `action`: what the query is for, as in `list the tables`.
///
/// # Errors
/// The statement failed, a row can't be read, or the answer is too long.
pub(super) async fn rows<T>(
    client: &Client,
    statement: &str,
    parameters: &[&(dyn ToSql + Sync)],
    action: &'static str,
    read: impl Fn(&Row) -> Result<Option<T>, SourceError>,
) -> Result<Vec<T>, SourceError> {
    let answer = client
        .query_raw(statement, parameters.iter().copied())
        .await
        .map_err(failed(action))?;
    let mut answer = pin!(answer);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = answer.try_next().await.map_err(failed(action))? {
        bytes += row.raw_size_bytes();
        if bytes > MOST_BYTES {
            return Err(SourceError::AnswerTooLong(action));
        }
        rows.extend(read(&row)?);
    }
    Ok(rows)
}

/// Whether the texts of a row are UTF-8, but those of the columns `except`. (In a database in SQL_ASCII they need not be.)
pub(super) fn is_utf8(row: &Row, except: &[&str]) -> bool {
    row.columns()
        .iter()
        .enumerate()
        .all(|(index, column)| match *column.type_() {
            _ if except.contains(&column.name()) => true,
            Type::TEXT => row.try_get::<_, Option<&str>>(index).is_ok(),
            Type::TEXT_ARRAY => row.try_get::<_, Option<Vec<Option<&str>>>>(index).is_ok(),
            _ => true,
        })
}
