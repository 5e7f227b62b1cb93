//! `twinlog.accounting`: for each table, how many changes were received, and how many were applied, parked and so on.

use std::collections::BTreeMap;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use super::control::{Control, failed};
use crate::agent_db::error::AgentError;
use crate::change::TableName;

/// Numbers of changes by outcome. Always `received = applied + unchanged + superseded + filtered + parked + held`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Changes received from the stream.
    pub received: u64,
    /// Changes written to the table.
    pub applied: u64,
    /// Nothing to do: the deleted row was not there.
    pub unchanged: u64,
    /// A newer change of the same key made it irrelevant.
    pub superseded: u64,
    /// Changes of a table that is published but not selected.
    pub filtered: u64,
    /// Changes kept in `twinlog.failed_rows`.
    pub parked: u64,
    /// Changes of a table that was held: passed over, and read again when the table is released.
    pub held: u64,
    /// Rows written or deleted by copies, outside of the sum.
    pub copied: u64,
    /// Parked rows that were applied at last, outside of the sum.
    pub healed: u64,
}

impl Tally {
    /// Whether every received change has an outcome.
    #[must_use]
    pub const fn balances(&self) -> bool {
        self.received == self.applied + self.unchanged + self.superseded + self.filtered + self.parked + self.held
    }

    /// Adds another tally to this one.
    pub const fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.applied += other.applied;
        self.unchanged += other.unchanged;
        self.superseded += other.superseded;
        self.filtered += other.filtered;
        self.parked += other.parked;
        self.held += other.held;
        self.copied += other.copied;
        self.healed += other.healed;
    }
}

impl Control {
    /// How many rows copies have written or deleted, by table.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn copied_rows(&self) -> Result<BTreeMap<TableName, i64>, AgentError> {
        let rows = self
            .client
            .query(
                "SELECT schema_name, table_name, copied FROM twinlog.accounting WHERE slot = $1",
                &[&self.slot],
            )
            .await
            .map_err(failed("read the accounting"))?;
        let table = |row: &Row| TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name"));
        Ok(rows.iter().map(|row| (table(row), row.get("copied"))).collect())
    }
}

const ADD: &str = "
INSERT INTO twinlog.accounting AS a
    (slot, schema_name, table_name, received, applied, unchanged, superseded, filtered, parked, held, copied, healed)
SELECT $1, x.* FROM unnest($2::pg_catalog.text[], $3::pg_catalog.text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[]) AS x
ON CONFLICT (slot, schema_name, table_name) DO UPDATE SET received = a.received OPERATOR(pg_catalog.+) EXCLUDED.received,
    applied = a.applied OPERATOR(pg_catalog.+) EXCLUDED.applied, unchanged = a.unchanged OPERATOR(pg_catalog.+) EXCLUDED.unchanged,
    superseded = a.superseded OPERATOR(pg_catalog.+) EXCLUDED.superseded, filtered = a.filtered OPERATOR(pg_catalog.+) EXCLUDED.filtered,
    parked = a.parked OPERATOR(pg_catalog.+) EXCLUDED.parked, held = a.held OPERATOR(pg_catalog.+) EXCLUDED.held, copied = a.copied OPERATOR(pg_catalog.+) EXCLUDED.copied, healed = a.healed OPERATOR(pg_catalog.+) EXCLUDED.healed";

/// Prepares [`Accounting::add`], which nearly every commit needs.
pub(in crate::agent_db) async fn prepare(client: &Client) -> Result<Statement, AgentError> {
    client.prepare(ADD).await.map_err(failed("prepare the bookkeeping"))
}

/// Tallies as columns of parameters, in the order of the statement's.
#[derive(Debug, Default)]
pub(in crate::agent_db) struct Accounting {
    schemas: Vec<String>,
    tables: Vec<String>,
    figures: [Vec<i64>; 9],
}

impl Accounting {
    pub(in crate::agent_db) fn of(tables: &BTreeMap<TableName, Tally>) -> Self {
        let mut columns = Self::default();
        for (table, tally) in tables {
            columns.schemas.push(table.schema.to_string());
            columns.tables.push(table.name.to_string());
            let figures = [
                tally.received,
                tally.applied,
                tally.unchanged,
                tally.superseded,
                tally.filtered,
                tally.parked,
                tally.held,
                tally.copied,
                tally.healed,
            ];
            for (column, figure) in columns.figures.iter_mut().zip(figures) {
                column.push(figure.cast_signed());
            }
        }
        columns
    }

    /// Adds to the table's totals, in whatever transaction is open.
    pub(in crate::agent_db) async fn add(
        &self,
        client: &Client,
        statement: &Statement,
        slot: &str,
    ) -> Result<u64, tokio_postgres::Error> {
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&slot, &self.schemas, &self.tables];
        parameters.extend(self.figures.iter().map(|column| column as &(dyn ToSql + Sync)));
        client.execute(statement, &parameters).await
    }
}
