//! Reading tables whose rows are counted: distinct rows, each with the number of rows that equal it.
//!
//! Rows are compared by their text, see [`row_text`](crate::postgres::row_text). A text from the Agent DB is not cast to
//! the Site DB's type, which could refuse it: where rows are counted, both databases print a value alike.

use super::chunk_rows::CHUNK_BYTES;
use super::chunks::Source;
use super::error::SourceError;
use super::snapshot::Snapshot;
use super::table::SourceTable;
use crate::change::{ColumnValue, Key, Row};
use crate::postgres::Condition;
use crate::postgres::quote::where_clause;
use crate::postgres::row_text::{DistinctRows, row_text};

/// Distinct rows.
#[derive(Debug)]
pub struct CountedRows {
    /// The snapshot of the read: tells which transactions it saw.
    pub snapshot: Snapshot,
    /// The rows, each with the number of rows that equal it.
    pub rows: Vec<(Row, u64)>,
    /// The place of the last one, from which the next page follows.
    pub last: Option<Key>,
    /// Whether no row follows after it.
    pub finished: bool,
}

impl Source {
    /// Reads the distinct rows after a place, at most `limit` of them and about as many bytes as fit into a chunk. Where
    /// there is a condition: those of which one row meets it, counted whole.
    ///
    /// # Errors
    /// A statement failed, or a text is not UTF-8.
    pub async fn read_distinct(
        &self,
        table: &SourceTable,
        after: Option<&Key>,
        condition: Option<&Condition>,
        limit: u32,
    ) -> Result<CountedRows, SourceError> {
        let columns: Vec<&str> = table.columns.iter().map(|name| &**name).collect();
        let condition = condition.map(|condition| table.condition(condition)).transpose()?;
        let sql = DistinctRows {
            table: &table.from(),
            partitioned: table.partitioned,
            columns: &columns,
            filters: &table.filters(None)?,
            condition: condition.as_deref(),
        }
        .page(after.is_some(), u64::from(limit) + 1);
        let parameters = after.map(Key::texts).unwrap_or_default();
        let read = self
            .read(table, &sql, &parameters, columns.len() + 2, CHUNK_BYTES)
            .await?;
        let mut finished = read.finished;
        let mut rows = Vec::with_capacity(read.rows.len());
        let mut last = None;
        for row in read.rows {
            if rows.len() == limit as usize {
                finished = false;
                break;
            }
            let mut values = row.0.into_vec();
            let digest = values.pop();
            let count = values.pop().as_ref().and_then(number);
            let (Some(ColumnValue::Text(digest)), Some(count)) = (digest, count) else {
                return Err(SourceError::Incomplete("a counted row"));
            };
            last = Some(Key([digest].into()));
            rows.push((readable(table, Row(values.into()))?, count));
        }
        Ok(CountedRows {
            snapshot: read.snapshot,
            rows,
            last,
            finished,
        })
    }

    /// Counts the rows that equal each of these.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn count_rows(&self, table: &SourceTable, wanted: Vec<Row>) -> Result<CountedRows, SourceError> {
        let columns: Vec<&str> = table.columns.iter().map(|name| &**name).collect();
        let names: Vec<String> = (0..columns.len()).map(|index| format!("c{index}")).collect();
        let arrays: Vec<String> = (1..=columns.len())
            .map(|index| format!("pg_catalog.unnest(${index}::text[])"))
            .collect();
        // Never a join: the planner does not know how many rows are asked for. An IN within IS TRUE is looked up in a hash.
        let sql = format!(
            "WITH x AS MATERIALIZED (SELECT ROW({given})::text COLLATE pg_catalog.\"C\" AS d, u.asked \
             FROM ROWS FROM ({arrays}) WITH ORDINALITY AS u({names}, asked)) \
             SELECT q.asked, q.n FROM (SELECT pg_catalog.string_agg(p.asked::text, ' ') AS asked, pg_catalog.sum(p.n) AS n \
             FROM (SELECT x.d, x.asked, 0 AS n FROM x UNION ALL SELECT s.d, NULL, 1 FROM \
             (SELECT {text} AS d FROM {table} t {filters}) s WHERE (s.d IN (SELECT x.d FROM x)) IS TRUE) p \
             GROUP BY p.d) q",
            given = names
                .iter()
                .map(|name| format!("u.{name}"))
                .collect::<Vec<_>>()
                .join(", "),
            arrays = arrays.join(", "),
            names = names.join(", "),
            text = row_text("t", &columns),
            table = table.from(),
            filters = where_clause(&table.filters(None)?),
        );
        let parameters: Vec<Vec<Option<String>>> = (0..columns.len())
            .map(|column| wanted.iter().map(|row| text(row.0.get(column))).collect())
            .collect();
        // All of it, since a row that is left out would count as none.
        let read = self.read(table, &sql, &parameters, 2, usize::MAX).await?;
        let mut counts = vec![0; wanted.len()];
        for row in &read.rows {
            let [ColumnValue::Text(asked), count] = &*row.0 else {
                return Err(SourceError::Incomplete("the number of equal rows"));
            };
            let count = number(count).ok_or(SourceError::Incomplete("the number of equal rows"))?;
            for position in String::from_utf8_lossy(asked).split(' ') {
                let position = position
                    .parse::<usize>()
                    .ok()
                    .and_then(|from_one| from_one.checked_sub(1));
                if let Some(slot) = position.and_then(|position| counts.get_mut(position)) {
                    *slot = count;
                }
            }
        }
        Ok(CountedRows {
            snapshot: read.snapshot,
            rows: wanted.into_iter().zip(counts).collect(),
            last: None,
            finished: true,
        })
    }
}

/// A text that is not UTF-8 is not known here, so its row can't be told from others like it.
fn readable(table: &SourceTable, row: Row) -> Result<Row, SourceError> {
    let is_text = |value: &ColumnValue| match value {
        ColumnValue::Text(text) => std::str::from_utf8(text).is_ok(),
        ColumnValue::Null | ColumnValue::Unchanged => true,
    };
    if row.0.iter().all(is_text) {
        Ok(row)
    } else {
        Err(SourceError::KeyEncoding(table.table.clone()))
    }
}

fn number(value: &ColumnValue) -> Option<u64> {
    match value {
        ColumnValue::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        ColumnValue::Null | ColumnValue::Unchanged => None,
    }
}

fn text(value: Option<&ColumnValue>) -> Option<String> {
    match value {
        Some(ColumnValue::Text(text)) => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    }
}
