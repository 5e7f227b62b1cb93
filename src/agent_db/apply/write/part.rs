//! One group's statement with its values, and the server's answer.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::{Client, Statement};

use crate::agent_db::apply::plan::{Group, RowWrite};
use crate::agent_db::apply::sql::{Parameter, StatementKind, TextArray, copy_pieces};
use crate::agent_db::apply::targets::Prepared;
use crate::change::{ColumnValue, Key, Operation, Row, TableName};

/// The server's answer to one statement.
#[derive(Debug)]
pub(super) enum Reply {
    /// A command without rows.
    Done,
    /// Rows written.
    Count(u64),
    /// Positions (from 1) of the rows that were found.
    Found(Vec<i64>),
}

impl Reply {
    /// The group's rows that the table does not have.
    pub(super) fn missing<'e>(&self, group: &Group<'e>) -> Vec<RowWrite<'e>> {
        let Self::Found(found) = self else {
            return Vec::new();
        };
        if found.len() == group.rows.len() {
            return Vec::new();
        }
        let found: ahash::AHashSet<i64> = found.iter().copied().collect();
        (1..)
            .zip(&group.rows)
            .filter(|(position, _)| !found.contains(position))
            .map(|(_, row)| *row)
            .collect()
    }
}

/// A group's statement and what goes into it.
pub(super) struct Part<'e> {
    pub(super) group: &'e Group<'e>,
    pub(super) prepared: Arc<Prepared>,
    /// Sent behind the statement: see `Writer::behind`.
    pub(super) behind: Vec<Arc<Prepared>>,
    /// Whether what is written is looked at, row by row.
    pub(super) is_looked_at: bool,
    /// Triggers may fire, also those of tables of which rows go with its rows: they may set something in the session.
    pub(super) fires: bool,
    /// An upsert writes each of its rows: there is a column to overwrite.
    pub(super) writes_each: bool,
    pub(super) rows: Vec<&'e Row>,
    /// What the rows were before, where rows are counted.
    pub(super) old_rows: Vec<&'e Row>,
    pub(super) keys: Vec<&'e Key>,
    pub(super) new_keys: Vec<&'e Key>,
    /// How many rows equal each of `rows`, where that is to be made right.
    pub(super) counts: Vec<String>,
}

pub(super) fn count(write: &RowWrite<'_>) -> Option<String> {
    match &write.change.operation {
        Operation::Count { rows, .. } => Some(rows.to_string()),
        _ => None,
    }
}

pub(super) fn old_row<'e>(write: &RowWrite<'e>) -> Option<&'e Row> {
    match &write.change.operation {
        Operation::ReplaceOne(replaced) => replaced.old.operation.row(),
        _ => None,
    }
}

impl<'e> Part<'e> {
    /// Of the values to write, about.
    pub(super) fn bytes(&self) -> usize {
        let values = self.rows.iter().flat_map(|row| &row.0);
        values.filter_map(ColumnValue::text).map(<[u8]>::len).sum()
    }

    /// Whether a parameter would be too much for the daemon's memory, which would hold it three times.
    pub(super) fn is_too_large_for_parameters(&self) -> bool {
        /// Three times as much is little beside the 150 MB that the daemon may take besides two copies of the largest row.
        const LARGE: usize = 16 << 20;
        !self.group.copies() && self.rows.iter().chain(&self.old_rows).any(|row| row.size() > LARGE)
    }

    /// The table, where its rows are looked for by their values: all of it is read.
    pub(super) fn scanned(&self) -> Option<&'e TableName> {
        let relation = self.group.relation;
        relation.counts_rows().then_some(&relation.table)
    }

    /// Runs the statement. `copy_started`: see [`copy`].
    pub(super) async fn run(&self, client: &Client, copy_started: &AtomicBool) -> Result<Reply, tokio_postgres::Error> {
        let statement = &self.prepared.statement;
        let parameters = self.parameters(&self.prepared);
        match self.group.kind {
            StatementKind::Copy => copy(client, statement, &self.rows, copy_started)
                .await
                .map(Reply::Count),
            StatementKind::Partial { .. }
            | StatementKind::Move { .. }
            | StatementKind::Reinsert { .. }
            | StatementKind::UpdateOne => {
                let found = client
                    .query_raw(statement, parameters)
                    .await?
                    .and_then(|row| std::future::ready(row.try_get::<_, i64>("ord")))
                    .try_collect()
                    .await?;
                Ok(Reply::Found(found))
            }
            StatementKind::Insert | StatementKind::DeleteOne | StatementKind::Count => {
                let changed: Vec<i64> = client
                    .query_raw(statement, parameters)
                    .await?
                    .and_then(|row| std::future::ready(row.try_get::<_, i64>("changed")))
                    .try_collect()
                    .await?;
                Ok(Reply::Count(changed.iter().map(|rows| rows.unsigned_abs()).sum()))
            }
            StatementKind::Upsert { .. }
            | StatementKind::Delete
            | StatementKind::SetIdentity { .. }
            | StatementKind::Look(_)
            | StatementKind::LookAtIdentity(_) => client.execute_raw(statement, parameters).await.map(Reply::Count),
        }
    }

    /// Runs what is sent behind the statement. A look fails where a row is not as it was sent.
    pub(super) async fn run_behind(&self, client: &Client, behind: &Prepared) -> Result<Reply, tokio_postgres::Error> {
        client.execute_raw(&behind.statement, self.parameters(behind)).await?;
        Ok(Reply::Done)
    }

    pub(super) fn parameters<'p>(&'p self, prepared: &'p Prepared) -> impl ExactSizeIterator<Item = TextArray<'p>> {
        prepared.parameters.iter().map(|&parameter| self.array(parameter))
    }

    /// The values of a parameter.
    pub(super) fn array(&self, parameter: Parameter) -> TextArray<'_> {
        match parameter {
            Parameter::Column(column) => TextArray::Column {
                rows: &self.rows,
                column,
            },
            Parameter::OldColumn(column) => TextArray::Column {
                rows: &self.old_rows,
                column,
            },
            Parameter::KeyPart(part) => TextArray::KeyPart { keys: &self.keys, part },
            Parameter::NewKeyPart(part) => TextArray::KeyPart {
                keys: &self.new_keys,
                part,
            },
            Parameter::Count => TextArray::Texts(&self.counts),
        }
    }

    /// Whether the server has written as many rows as a table without triggers and rules must.
    pub(super) fn expects(&self, reply: &Reply) -> bool {
        let each = match self.group.kind {
            StatementKind::Copy | StatementKind::Insert => true,
            StatementKind::Upsert { only_if_different } => self.writes_each && !only_if_different,
            _ => false,
        };
        match reply {
            Reply::Count(written) if each && !self.is_looked_at => *written == self.group.rows.len() as u64,
            _ => true,
        }
    }
}

/// Sends the rows of a COPY; returns how many were written. `started` tells whether the server started the COPY.
///
/// If it did not, the driver still sends a CopyFail and a second Sync, and would take the answer for that of the next
/// call: the connection can't be used any more.
async fn copy(
    client: &Client,
    statement: &Statement,
    rows: &[&Row],
    started: &AtomicBool,
) -> Result<u64, tokio_postgres::Error> {
    let mut copy = pin!(client.copy_in::<_, Bytes>(statement).await?);
    started.store(true, Ordering::Relaxed);
    for piece in copy_pieces(rows) {
        copy.feed(piece).await?;
    }
    copy.finish().await
}
