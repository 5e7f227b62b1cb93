//! Reading the rows of parked keys, of several tables under one snapshot: their state at one point of the log.

use std::sync::Arc;

use tokio_postgres::SimpleQueryMessage;

use super::chunk_rows::{fetch_rows, found_row};
use super::chunks::{Columns, KeyQuery, Source, key_query};
use super::error::{SourceError, failed};
use super::snapshot::Snapshot;
use super::table::SourceTable;
use crate::change::{Key, Relation, Row};
use crate::postgres::keys::execute_with_operators;

/// Bytes of values after which no more rows are read: the other keys are for another read.
const MAX_BYTES: usize = 4 << 20;

/// Parked keys of one table.
#[derive(Debug, Clone)]
pub struct KeysOfTable {
    /// The table in the Site DB.
    pub table: SourceTable,
    /// The same table as the Agent DB's writer knows it.
    pub relation: Arc<Relation>,
    /// The keys.
    pub keys: Vec<Key>,
}

/// What was read of one table.
#[derive(Debug, Default)]
pub struct RowsOfTable {
    /// The rows, in the order of [`SourceTable::columns`].
    pub rows: Vec<Row>,
    /// For each row, the position of the key that found it.
    pub found_by: Vec<usize>,
    /// So many keys, from the first, were looked up: those among them that found no row do not exist.
    pub looked_up: usize,
}

/// What was read of several tables.
#[derive(Debug)]
pub struct ParkedRows {
    /// The snapshot of the read: tells which transactions it saw.
    pub snapshot: Snapshot,
    /// One for each table, in the order of the request.
    pub tables: Vec<RowsOfTable>,
}

impl Source {
    /// Reads the rows that have one of the keys, as many as fit into memory, and at least one.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn read_parked(&self, request: &[KeysOfTable]) -> Result<ParkedRows, SourceError> {
        self.client()
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .map_err(failed("read a snapshot"))?;
        let result = Box::pin(self.read_parked_in_transaction(request)).await;
        let ended = self
            .client()
            .batch_execute("COMMIT")
            .await
            .map_err(failed("read a snapshot"));
        let rows = result?;
        ended?;
        Ok(rows)
    }

    async fn read_parked_in_transaction(&self, request: &[KeysOfTable]) -> Result<ParkedRows, SourceError> {
        let snapshot = self
            .client()
            .query_one("SELECT pg_catalog.pg_current_snapshot()::text AS snapshot", &[])
            .await
            .map_err(failed("read a snapshot"))?
            .get::<_, String>("snapshot")
            .parse()?;
        let mut tables = Vec::with_capacity(request.len());
        let mut bytes = 0;
        for keys in request {
            let mut of_table = RowsOfTable::default();
            if bytes < MAX_BYTES {
                bytes += self.read_table(keys, MAX_BYTES - bytes, &mut of_table).await?;
            }
            tables.push(of_table);
        }
        Ok(ParkedRows { snapshot, tables })
    }

    /// Reads one table's rows in the order of their keys; returns their bytes.
    async fn read_table(
        &self,
        request: &KeysOfTable,
        max_bytes: usize,
        of_table: &mut RowsOfTable,
    ) -> Result<usize, SourceError> {
        let KeysOfTable { table, relation, keys } = request;
        let KeyQuery { sql, wanted, width } = key_query(table, relation, keys, Columns::All)?;
        let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = wanted.iter().map(|part| part as _).collect();
        let declare = format!("DECLARE parked NO SCROLL CURSOR FOR {sql} ORDER BY k.__twinlog_asked");
        execute_with_operators(self.client(), &table.operators, &declare, &parameters)
            .await
            .map_err(failed("read parked rows"))?;
        let mut bytes: usize = 0;
        loop {
            let average = bytes.checked_div(of_table.rows.len()).unwrap_or(0);
            let ask = fetch_rows(average, max_bytes.saturating_sub(bytes));
            let before = of_table.rows.len();
            let fetched = self
                .client()
                .simple_query(&format!("FETCH FORWARD {ask} FROM parked"))
                .await
                .map_err(failed("read parked rows"))?;
            for message in &fetched {
                if let SimpleQueryMessage::Row(row) = message {
                    let (row, position) = found_row(row, width)?;
                    bytes += row.size();
                    of_table.rows.push(row);
                    of_table.found_by.push(position);
                }
            }
            if of_table.rows.len() - before < ask {
                of_table.looked_up = keys.len();
                break;
            }
            if bytes >= max_bytes {
                of_table.looked_up = of_table.found_by.last().map_or(0, |last| last + 1);
                break;
            }
        }
        self.client()
            .batch_execute("CLOSE parked")
            .await
            .map_err(failed("read parked rows"))?;
        Ok(bytes)
    }
}
