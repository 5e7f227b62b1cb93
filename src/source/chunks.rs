//! Reading rows of the Site DB: ranges of keys and single keys, each under one snapshot, as the text that Postgres
//! prints.
//!
//! The text protocol is used on purpose: it sends a value exactly as its type's output function wrote it, like the
//! replication stream. (`value::text` differs: it does not pad `char(n)`, and it writes booleans differently.)

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::chunk_rows::{CHUNK_BYTES, NOT_UTF8, Read, fetch_rows};
use super::error::{SourceError, failed};
use super::fence::{Fence, PREFIX};
use super::snapshot::Snapshot;
use super::table::{SourceTable, key_columns};
use crate::change::{Key, Relation, Row};
use crate::config::DatabaseUrl;
use crate::lsn::Lsn;
use crate::postgres::connect::{CutLater, connect_bounded};
use crate::postgres::keys::execute_with_operators;
use crate::postgres::quote::{quote_columns, where_clause};
use crate::postgres::row_digest::widest;
use crate::postgres::{self, Condition, Side};

/// A fence or a chunk that takes longer than this is stuck (a lock on the table, a dead network), not slow.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// Which columns a read by key returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// All of [`SourceTable::columns`].
    All,
    /// The key's, in key order.
    Key,
}

/// One chunk's rows.
#[derive(Debug)]
pub struct ChunkRows {
    /// The snapshot of the read: tells which transactions it saw.
    pub snapshot: Snapshot,
    /// The rows, in the order of [`SourceTable::columns`].
    pub rows: Vec<Row>,
    /// For each row of a read by key, the position of the key that found it.
    pub found_by: Vec<usize>,
    /// Whether no row follows after the last one. If not, a read by key has answered only for the keys up to the one that
    /// found the last row.
    pub finished: bool,
}

impl ChunkRows {
    /// How many of the keys of a read by key it answers for; the others have to be read again.
    #[must_use]
    pub fn answered(&self, keys: usize) -> usize {
        if self.finished {
            keys
        } else {
            self.found_by.last().map_or(0, |last| last + 1)
        }
    }
}

/// A session with the Site DB that reads chunks and writes fences.
#[derive(Debug)]
pub struct Source {
    client: Client,
    _cut: CutLater,
    /// To cancel a statement.
    url: DatabaseUrl,
    /// Bytes of the last chunk's rows on average; 0 if none was read. It decides how many rows the next chunk begins with.
    row_bytes: AtomicUsize,
}

impl Source {
    /// Connects, so that row-level security raises an error instead of hiding rows (pitfall P31), and so that a fence
    /// is flushed when the call returns.
    ///
    /// # Errors
    /// The connection failed, or the server refused a setting.
    pub async fn connect(url: &DatabaseUrl, application_name: &str) -> Result<Self, SourceError> {
        let (client, cut) = connect_bounded(Side::Site, url, application_name).await?;
        client
            .batch_execute(&format!(
                "SET row_security = off; SET statement_timeout = {}; SET synchronous_commit = local; \
                 SET idle_in_transaction_session_timeout = {}",
                STATEMENT_TIMEOUT.as_millis(),
                STATEMENT_TIMEOUT.as_millis(),
            ))
            .await
            .map_err(failed("set up the session for reading"))?;
        // With client_encoding UTF8, a SQL_ASCII server refuses to send a text that is not UTF-8.
        client
            .batch_execute(
                "SELECT pg_catalog.set_config('client_encoding', 'SQL_ASCII', false) \
                 WHERE pg_catalog.current_setting('server_encoding') = 'SQL_ASCII'",
            )
            .await
            .map_err(failed("read the database's encoding"))?;
        Ok(Self {
            client,
            _cut: cut,
            url: url.clone(),
            row_bytes: AtomicUsize::new(0),
        })
    }

    /// The session, for other statements.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Writes a fence; returns its position in the log.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn fence(&self, fence: Fence) -> Result<Lsn, SourceError> {
        let row = self
            .client
            .query_one(
                "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2)::text",
                &[&PREFIX, &fence.content()],
            )
            .await
            .map_err(failed("write a fence"))?;
        Ok(row.get::<_, String>(0).parse()?)
    }

    /// Reads the rows after a key, in key order, at most `limit` of them and about [`CHUNK_BYTES`].
    ///
    /// # Errors
    /// A statement failed.
    pub async fn read_range(
        &self,
        table: &SourceTable,
        relation: &Relation,
        after: Option<&Key>,
        condition: Option<&Condition>,
        limit: u32,
    ) -> Result<ChunkRows, SourceError> {
        self.read_between(table, relation, (after, None), condition, limit)
            .await
    }

    /// The same, up to and with another key: `range` is both.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn read_between(
        &self,
        table: &SourceTable,
        relation: &Relation,
        range: (Option<&Key>, Option<&Key>),
        condition: Option<&Condition>,
        limit: u32,
    ) -> Result<ChunkRows, SourceError> {
        let key = key_columns(table, relation);
        let mut filters = table.filters(condition)?;
        let mut parameters = Vec::new();
        for (bound, operator) in [(range.0, ">"), (range.1, "<=")] {
            let Some(bound) = bound else { continue };
            let casts: Vec<_> = key
                .iter()
                .enumerate()
                .map(|(index, (_, kind))| {
                    let kind = widest(kind).unwrap_or(kind);
                    format!("${}::text::{kind}", parameters.len() + index + 1)
                })
                .collect();
            let names: Vec<_> = key.iter().map(|(name, _)| format!("t.{name}")).collect();
            filters.push(format!("({}) {operator} ({})", names.join(", "), casts.join(", ")));
            parameters.extend(bound.texts());
        }
        let order: Vec<_> = key.iter().map(|(name, _)| format!("t.{name}")).collect();
        let sql = format!(
            "SELECT {} FROM {} t {} ORDER BY {} LIMIT {}",
            column_list(table),
            table.from(),
            where_clause(&filters),
            order.join(", "),
            u64::from(limit) + 1,
        );
        let mut chunk = self
            .read(table, &sql, &parameters, table.columns.len(), CHUNK_BYTES)
            .await?;
        let keys_are_texts = chunk.rows.iter().all(|row| {
            relation
                .key_of(row)
                .is_none_or(|key| key.0.iter().all(|part| &**part != NOT_UTF8))
        });
        if !keys_are_texts {
            return Err(SourceError::KeyEncoding(table.table.clone()));
        }
        if chunk.rows.len() > limit as usize {
            chunk.rows.truncate(limit as usize);
            chunk.finished = false;
        }
        Ok(chunk)
    }

    /// Reads the rows that have one of the keys. No row has a key that can't be read as the table's types.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn read_keys(
        &self,
        table: &SourceTable,
        relation: &Relation,
        keys: &[Key],
        columns: Columns,
    ) -> Result<ChunkRows, SourceError> {
        match self.read_readable_keys(table, relation, keys, columns).await {
            Err(error) if error.is_of_a_value() => {}
            read => return read,
        }
        let readable = self.readable(&key_columns(table, relation), keys).await?;
        let few: Vec<Key> = readable.iter().filter_map(|&at| keys.get(at).cloned()).collect();
        let mut read = self.read_readable_keys(table, relation, &few, columns).await?;
        for found in &mut read.found_by {
            *found = readable.get(*found).copied().unwrap_or(*found);
        }
        Ok(read)
    }

    async fn read_readable_keys(
        &self,
        table: &SourceTable,
        relation: &Relation,
        keys: &[Key],
        columns: Columns,
    ) -> Result<ChunkRows, SourceError> {
        let KeyQuery { sql, wanted, width } = key_query(table, relation, keys, columns)?;
        // In the order of the keys, so that a chunk that ends early says which of them it answers for. Keys alone are small.
        let (order, most_bytes) = match columns {
            Columns::All => (" ORDER BY k.__twinlog_asked", CHUNK_BYTES),
            Columns::Key => ("", usize::MAX),
        };
        self.read(table, &(sql + order), &wanted, width, most_bytes).await
    }

    /// Reads a query's rows under one snapshot, through a cursor: the cursor is declared with the extended protocol,
    /// which binds values, and fetched with the simple protocol, which returns text.
    pub(super) async fn read<P: tokio_postgres::types::ToSql + Sync>(
        &self,
        table: &SourceTable,
        sql: &str,
        parameters: &[P],
        width: usize,
        most_bytes: usize,
    ) -> Result<ChunkRows, SourceError> {
        let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            parameters.iter().map(|value| value as _).collect();
        // The lock comes before the snapshot: a snapshot that is older than a rewrite of the table sees no row of it, and
        // every key would count as deleted.
        let begun = self
            .client
            .batch_execute(&format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE {} IN ACCESS SHARE MODE",
                table.from()
            ))
            .await
            .map_err(failed("read a snapshot"));
        let result = match begun {
            Ok(()) => {
                self.read_in_transaction(table, sql, &parameters, width, most_bytes)
                    .await
            }
            Err(error) => Err(error),
        };
        let ended = self
            .client
            .batch_execute("COMMIT")
            .await
            .map_err(failed("read a snapshot"));
        let chunk = result?;
        ended?;
        Ok(chunk)
    }

    async fn read_in_transaction(
        &self,
        table: &SourceTable,
        sql: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
        width: usize,
        most_bytes: usize,
    ) -> Result<ChunkRows, SourceError> {
        let snapshot = self.snapshot_of(table).await?;
        let declare = format!("DECLARE chunk NO SCROLL CURSOR FOR {sql}");
        execute_with_operators(&self.client, &table.operators, &declare, parameters)
            .await
            .map_err(failed("read a chunk"))?;
        let mut read = Read::new(width, most_bytes);
        let row_bytes = self.row_bytes.load(Ordering::Relaxed);
        let mut ask = fetch_rows(row_bytes, CHUNK_BYTES);
        while read.is_open() {
            let before = read.rows.len();
            self.fetch(ask, &mut read)
                .await
                .map_err(|error| error.of_row(&table.table))?;
            if read.rows.len() - before < ask {
                read.end();
            }
            ask = fetch_rows(read.average(), most_bytes.saturating_sub(read.bytes));
        }
        if !read.rows.is_empty() {
            self.row_bytes.store(read.average(), Ordering::Relaxed);
        }
        Ok(ChunkRows {
            finished: read.is_finished(),
            snapshot,
            rows: read.rows,
            found_by: read.found_by,
        })
    }

    /// The transaction's snapshot, if the table is still the same one.
    ///
    /// The answer must not live longer: it is a slice of the driver's buffer, which could not be used again for the rows.
    async fn snapshot_of(&self, table: &SourceTable) -> Result<Snapshot, SourceError> {
        let row = self
            .client
            .query_one(
                "SELECT pg_catalog.pg_current_snapshot()::text AS snapshot, pg_catalog.to_regclass($1)::oid AS relation_id",
                &[&table.table.regclass()],
            )
            .await
            .map_err(failed("read a snapshot"))?;
        if row.get::<_, Option<u32>>("relation_id") != Some(table.id.0) {
            return Err(SourceError::Replaced(table.table.clone()));
        }
        Ok(row.get::<_, String>("snapshot").parse()?)
    }

    /// Fetches rows from the chunk's cursor, one after the other, until the chunk is full.
    async fn fetch(&self, ask: usize, read: &mut Read) -> Result<(), SourceError> {
        let messages = self
            .client
            .simple_query_raw(&format!("FETCH FORWARD {ask} FROM chunk"))
            .await
            .map_err(failed("read a chunk"))?;
        let mut messages = pin!(messages);
        let (mut came, mut cancelled) = (0, false);
        loop {
            let message = match messages.next().await {
                None => return Ok(()),
                Some(Ok(message)) => message,
                // The chunk is complete; what follows was not wanted.
                Some(Err(_)) if cancelled => return Ok(()),
                Some(Err(error)) => return Err(failed("read a chunk")(error)),
            };
            let SimpleQueryMessage::Row(row) = message else {
                continue;
            };
            came += 1;
            if read.is_open() {
                read.take(&row)?;
            }
            // Rows behind the end are only received, unless they are many bytes: then the server is asked to stop.
            if !read.is_open() && !cancelled && (ask - came).saturating_mul(read.average()) > CHUNK_BYTES {
                cancelled = true;
                // If that fails, the rows come and are dropped.
                let _ = postgres::connect::cancel(&self.client, &self.url).await;
            }
        }
    }
}

/// A query for the rows that have one of some keys.
pub(super) struct KeyQuery {
    pub(super) sql: String,
    /// The keys, one parameter for each part.
    pub(super) wanted: Vec<Vec<String>>,
    /// Columns of a row's image; the position of its key, from one, follows.
    pub(super) width: usize,
}

pub(super) fn key_query(
    table: &SourceTable,
    relation: &Relation,
    keys: &[Key],
    columns: Columns,
) -> Result<KeyQuery, SourceError> {
    let key = key_columns(table, relation);
    let (list, width) = match columns {
        Columns::All => (column_list(table), table.columns.len()),
        Columns::Key => (quote_columns("t", relation.key_columns()).join(", "), key.len()),
    };
    // `unnest` of several arrays is syntax, not a function: it cannot be named with its schema.
    let arrays: Vec<_> = (1..=key.len())
        .map(|index| format!("pg_catalog.unnest(${index}::text[])"))
        .collect();
    let names: Vec<_> = (1..=key.len()).map(|index| format!("__twinlog_{index}")).collect();
    let matches: Vec<_> = key
        .iter()
        .zip(&names)
        .map(|((name, kind), wanted)| format!("t.{name} = k.{wanted}::{}", widest(kind).unwrap_or(kind)))
        .collect();
    let sql = format!(
        "SELECT {list}, k.__twinlog_asked FROM {} t JOIN ROWS FROM ({}) WITH ORDINALITY AS k({}, __twinlog_asked) ON {} {}",
        table.from(),
        arrays.join(", "),
        names.join(", "),
        matches.join(" AND "),
        where_clause(&table.filters(None)?),
    );
    let wanted = (0..key.len())
        .map(|part| keys.iter().map(|key| text_of(key.0.get(part))).collect())
        .collect();
    Ok(KeyQuery { sql, wanted, width })
}

/// A part of a key as text. Keys are UTF-8, so this loses nothing.
pub(super) fn text_of(part: Option<&Bytes>) -> String {
    part.map(|part| String::from_utf8_lossy(part).into_owned())
        .unwrap_or_default()
}

fn column_list(table: &SourceTable) -> String {
    quote_columns("t", table.columns.iter().map(|name| &**name)).join(", ")
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_ended_early_answers_for_the_keys_up_to_its_last_row() {
        let mut chunk = ChunkRows {
            snapshot: "7:7:".parse().unwrap(),
            rows: Vec::new(),
            found_by: vec![0, 3],
            finished: false,
        };
        assert_eq!(chunk.answered(10), 4);
        chunk.finished = true;
        assert_eq!(chunk.answered(10), 10);
    }
}
