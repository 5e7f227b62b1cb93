//! The distinct rows that the Agent DB has of a table whose rows are counted, page by page.

use bytes::Bytes;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::condition::optional_condition_sql;
use super::error::AgentError;
use crate::change::{ColumnValue, Key, Relation, Row};
use crate::postgres::Condition;
use crate::postgres::row_text::DistinctRows;

/// Bytes of values after which a page ends early, to limit memory.
const PAGE_BYTES: usize = 4 << 20;

/// One table's distinct rows in the Agent DB.
#[derive(Debug)]
pub struct AgentRows<'a> {
    agent: &'a Client,
    relation: &'a Relation,
    partitioned: bool,
    /// The condition as SQL.
    condition: Option<String>,
}

/// A page of them.
#[derive(Debug)]
pub struct AgentRowsPage {
    /// The rows.
    pub rows: Vec<Row>,
    /// The place of the last one, from which the next page follows; `None` if there are none.
    pub last: Option<Key>,
}

impl<'a> AgentRows<'a> {
    /// Reads how the table's rows are stored. Where there is a `condition`, only rows are read of which one that equals
    /// them meets it.
    ///
    /// # Errors
    /// A statement failed, or the condition names a column that the table does not have here.
    pub async fn of(
        agent: &'a Client,
        relation: &'a Relation,
        condition: Option<&Condition>,
    ) -> Result<Self, AgentError> {
        let condition = optional_condition_sql(agent, relation, condition).await?;
        let row = agent
            .query_one(
                "SELECT relkind = 'p' AS partitioned FROM pg_catalog.pg_class WHERE oid = $1::text::regclass",
                &[&relation.table.regclass()],
            )
            .await
            .map_err(|source| AgentError::from_driver("look a table up", Some(&relation.table), source))?;
        Ok(Self {
            agent,
            relation,
            partitioned: row.get("partitioned"),
            condition,
        })
    }

    /// The page after a place.
    ///
    /// # Errors
    /// A statement failed, or a text is not UTF-8.
    pub async fn page(&self, after: Option<&Key>, limit: u32) -> Result<AgentRowsPage, AgentError> {
        let columns: Vec<&str> = self.relation.columns.iter().map(|name| &**name).collect();
        let quoted = self.relation.table.quoted();
        let table = if self.partitioned {
            quoted
        } else {
            format!("ONLY {quoted}")
        };
        let query = DistinctRows {
            table: &table,
            partitioned: self.partitioned,
            columns: &columns,
            filters: &[],
            condition: self.condition.as_deref(),
        }
        .page(after.is_some(), u64::from(limit));
        let declare = format!("DECLARE page NO SCROLL CURSOR FOR {query}");
        let parameters = after.map(Key::texts).unwrap_or_default();
        let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            parameters.iter().map(|value| value as _).collect();
        let failed = |source| AgentError::from_driver("read a page of rows", Some(&self.relation.table), source);
        self.agent.batch_execute("BEGIN READ ONLY").await.map_err(failed)?;
        self.agent.execute(&declare, &parameters).await.map_err(failed)?;
        let mut page = AgentRowsPage {
            rows: Vec::new(),
            last: None,
        };
        let (mut bytes, mut ask) = (0, 1);
        while bytes < PAGE_BYTES {
            let fetch = format!("FETCH FORWARD {ask} FROM page");
            let messages = self.agent.simple_query(&fetch).await.map_err(failed)?;
            let before = page.rows.len();
            for message in &messages {
                if let SimpleQueryMessage::Row(row) = message {
                    let (image, digest) = self.image(row, columns.len())?;
                    bytes += image.size();
                    page.rows.push(image);
                    page.last = Some(digest);
                }
            }
            if page.rows.len() - before < ask {
                break;
            }
            // As many as fit into the rest, by the rows so far, but never many more than the last time.
            ask = ((PAGE_BYTES.saturating_sub(bytes)) * page.rows.len() / bytes.max(1)).clamp(1, ask * 4);
        }
        self.agent.batch_execute("COMMIT").await.map_err(failed)?;
        Ok(page)
    }

    /// The row's image, and its place.
    fn image(&self, row: &SimpleQueryRow, width: usize) -> Result<(Row, Key), AgentError> {
        let unreadable = || AgentError::KeyEncoding {
            table: self.relation.table.clone(),
        };
        let text = |column| row.try_get(column).map_err(|_| unreadable());
        let values = (0..width)
            .map(|column| {
                Ok(text(column)?.map_or(ColumnValue::Null, |text| {
                    ColumnValue::Text(Bytes::copy_from_slice(text.as_bytes()))
                }))
            })
            .collect::<Result<_, AgentError>>()?;
        let digest = text(width + 1)?.ok_or_else(unreadable)?;
        Ok((Row(values), Key([Bytes::copy_from_slice(digest.as_bytes())].into())))
    }
}
