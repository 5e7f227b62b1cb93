//! Reading rows of the Site DB: ranges of keys and single keys, each under one snapshot, as the text that Postgres
//! prints.
//!
//! The text protocol is used on purpose: it sends a value exactly as its type's output function wrote it, like the
//! replication stream. (`value::text` differs: it does not pad `char(n)`, and it writes booleans differently.)

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::error::{SourceError, failed};
use super::fence::{Fence, PREFIX};
use super::snapshot::Snapshot;
use super::table::{SourceTable, key_columns};
use crate::change::{ColumnValue, Key, Relation, Row};
use crate::config::DatabaseUrl;
use crate::lsn::Lsn;
use crate::postgres::keys::execute_with_operators;
use crate::postgres::quote::{quote_columns, where_clause};
use crate::postgres::{self, Side};

/// Rows fetched at a time from the chunk's cursor. These are in memory twice for a moment.
const FETCH_ROWS: u32 = 2000;

/// Bytes of values after which a chunk ends early, to limit memory. Each copy worker holds one chunk.
const CHUNK_BYTES: usize = 16 << 20;

/// Replaces a text of the Site DB that is not UTF-8, and that the driver therefore does not return (a database in
/// `SQL_ASCII` may contain any bytes, pitfall P29). Every Agent DB refuses it like the original text, so only the row
/// is parked and the table goes on.
const NOT_UTF8: &[u8] = b"\xff";

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
    /// Whether no row follows after the last one.
    pub finished: bool,
}

/// A session with the Site DB that reads chunks and writes fences.
#[derive(Debug)]
pub struct Source {
    client: Client,
}

impl Source {
    /// Connects, so that row-level security raises an error instead of hiding rows (pitfall P31), and so that a fence
    /// is flushed when the call returns.
    ///
    /// # Errors
    /// The connection failed, or the server refused a setting.
    pub async fn connect(url: &DatabaseUrl, application_name: &str) -> Result<Self, SourceError> {
        let client = postgres::connect(Side::Site, url, application_name).await?;
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
        Ok(Self { client })
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
        condition: Option<&str>,
        limit: u32,
    ) -> Result<ChunkRows, SourceError> {
        let key = key_columns(table, relation);
        let mut filters = table.filters(condition);
        let mut parameters = Vec::new();
        if let Some(after) = after {
            let casts: Vec<_> = key
                .iter()
                .enumerate()
                .map(|(index, (_, kind))| format!("${}::text::{kind}", index + 1))
                .collect();
            let names: Vec<_> = key.iter().map(|(name, _)| format!("t.{name}")).collect();
            filters.push(format!("({}) > ({})", names.join(", "), casts.join(", ")));
            parameters = after.texts();
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
        let mut chunk = self.read(table, &sql, &parameters, table.columns.len()).await?;
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

    /// Reads the rows that have one of the keys.
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
        let KeyQuery { sql, wanted, width } = key_query(table, relation, keys, columns);
        self.read(table, &sql, &wanted, width).await
    }

    /// Reads a query's rows under one snapshot, through a cursor: the cursor is declared with the extended protocol,
    /// which binds values, and fetched with the simple protocol, which returns text.
    pub(super) async fn read<P: tokio_postgres::types::ToSql + Sync>(
        &self,
        table: &SourceTable,
        sql: &str,
        parameters: &[P],
        width: usize,
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
            Ok(()) => self.read_in_transaction(table, sql, &parameters, width).await,
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
    ) -> Result<ChunkRows, SourceError> {
        let row = self
            .client
            .query_one(
                "SELECT pg_catalog.pg_current_snapshot()::text AS snapshot, pg_catalog.to_regclass($1)::oid AS relation_id",
                &[&table.table.quoted()],
            )
            .await
            .map_err(failed("read a snapshot"))?;
        let snapshot: Snapshot = row.get::<_, String>("snapshot").parse()?;
        if row.get::<_, Option<u32>>("relation_id") != Some(table.id.0) {
            return Err(SourceError::Replaced(table.table.clone()));
        }
        let declare = format!("DECLARE chunk NO SCROLL CURSOR FOR {sql}");
        execute_with_operators(&self.client, &table.operators, &declare, parameters)
            .await
            .map_err(failed("read a chunk"))?;
        let (mut rows, mut found_by, mut bytes) = (Vec::new(), Vec::new(), 0);
        let finished = loop {
            let fetched = self
                .client
                .simple_query(&format!("FETCH FORWARD {FETCH_ROWS} FROM chunk"))
                .await
                .map_err(failed("read a chunk"))?;
            let before = rows.len();
            for message in &fetched {
                if let SimpleQueryMessage::Row(row) = message {
                    rows.push(image(row, width));
                    if row.len() > width {
                        let ordinal = row.get(width).and_then(|text| text.parse::<usize>().ok());
                        found_by.push(
                            ordinal
                                .and_then(|from_one| from_one.checked_sub(1))
                                .ok_or(SourceError::Incomplete("the key that found a row"))?,
                        );
                    }
                    bytes += rows.last().map_or(0, Row::size);
                }
            }
            if rows.len() - before < FETCH_ROWS as usize {
                break true;
            }
            if bytes >= CHUNK_BYTES {
                break false;
            }
        };
        Ok(ChunkRows {
            snapshot,
            rows,
            found_by,
            finished,
        })
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

pub(super) fn key_query(table: &SourceTable, relation: &Relation, keys: &[Key], columns: Columns) -> KeyQuery {
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
        .map(|((name, kind), wanted)| format!("t.{name} = k.{wanted}::{kind}"))
        .collect();
    let sql = format!(
        "SELECT {list}, k.__twinlog_asked FROM {} t JOIN ROWS FROM ({}) WITH ORDINALITY AS k({}, __twinlog_asked) ON {} {}",
        table.from(),
        arrays.join(", "),
        names.join(", "),
        matches.join(" AND "),
        where_clause(&table.filters(None)),
    );
    let wanted = (0..key.len())
        .map(|part| keys.iter().map(|key| text_of(key.0.get(part))).collect())
        .collect();
    KeyQuery { sql, wanted, width }
}

/// A row of a [`KeyQuery`] and the position of the key that found it, from zero.
pub(super) fn found_row(row: &tokio_postgres::SimpleQueryRow, width: usize) -> Result<(Row, usize), SourceError> {
    let position = row
        .get(width)
        .and_then(|text| text.parse::<usize>().ok()?.checked_sub(1));
    let position = position.ok_or(SourceError::Incomplete("the key that found a row"))?;
    Ok((image(row, width), position))
}

/// A row's image. All its values are slices of one allocation.
fn image(row: &tokio_postgres::SimpleQueryRow, width: usize) -> Row {
    let value = |index| match row.try_get(index) {
        Ok(value) => value.map(str::as_bytes),
        // The driver fails to decode a value only if it is not UTF-8.
        Err(_) => Some(NOT_UTF8),
    };
    let mut buffer = BytesMut::with_capacity((0..width).map(|index| value(index).map_or(0, <[u8]>::len)).sum());
    let ends: Vec<Option<usize>> = (0..width)
        .map(|index| {
            value(index).map(|value| {
                buffer.extend_from_slice(value);
                buffer.len()
            })
        })
        .collect();
    let buffer: Bytes = buffer.freeze();
    let mut start = 0;
    Row(ends
        .into_iter()
        .map(|end| match end {
            None => ColumnValue::Null,
            Some(end) => ColumnValue::Text(buffer.slice(std::mem::replace(&mut start, end)..end)),
        })
        .collect())
}

/// A part of a key as text. Keys are UTF-8, so this loses nothing.
fn text_of(part: Option<&Bytes>) -> String {
    part.map(|part| String::from_utf8_lossy(part).into_owned())
        .unwrap_or_default()
}

fn column_list(table: &SourceTable) -> String {
    quote_columns("t", table.columns.iter().map(|name| &**name)).join(", ")
}
