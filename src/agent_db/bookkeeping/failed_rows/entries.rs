//! The entries, written in the same transaction as the rows. A retry reads the row's present state from the Site DB, so
//! the row image stored here is only for people to see.

use std::fmt::Write as _;
use std::time::Duration;

use tokio_postgres::Client;

use super::fingerprint::Fingerprint;
use super::reason::ParkReason;
use super::row_values;
use crate::agent_db::bookkeeping::control::failed;
use crate::agent_db::bookkeeping::encoding::Encoding;
use crate::agent_db::error::AgentError;
use crate::change::{Coalesced, ColumnValue, Key, Relation, Row, TableName};
use crate::lsn::Lsn;

/// Later changes fold in as they do in memory: a partial image is laid over what is known, everything else replaces it.
/// They are tried at once; a row that was just refused waits, unless all that it lacks is its base. Who gave the row up did not
/// know of this change.
const PARK: &str = "
INSERT INTO twinlog.failed_rows AS f (slot, schema_name, table_name, key, operation, image, reason, constraint_name,
    message, changes, first_lsn, last_lsn, next_attempt_at, row_values, row_key, parked_as_of)
SELECT $1, x.s, x.t, x.k, x.operation, x.image::pg_catalog.jsonb, x.reason, x.constraint_name, x.message, x.changes,
    $11::pg_catalog.pg_lsn, $11::pg_catalog.pg_lsn,
    pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) CASE WHEN x.reason OPERATOR(pg_catalog.=) ANY ('{TW001,TW002}')
        THEN interval '0' ELSE pg_catalog.make_interval(secs => $12::double precision) END,
    x.row_values, x.row_key,
    CASE WHEN EXISTS (SELECT FROM twinlog.tables t WHERE t.slot OPERATOR(pg_catalog.=) $1 AND t.schema_name OPERATOR(pg_catalog.=) x.s
        AND t.table_name OPERATOR(pg_catalog.=) x.t AND t.state OPERATOR(pg_catalog.=) 'streaming')
        THEN (SELECT twinlog.applied_as_of($1)) END
FROM unnest($2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.text[], $6::pg_catalog.text[], $7::pg_catalog.text[], $8::pg_catalog.text[], $9::pg_catalog.text[],
    $10::bigint[], $13::pg_catalog.text[], $14::pg_catalog.text[])
    AS x(s, t, k, operation, image, reason, constraint_name, message, changes, row_values, row_key)
ON CONFLICT (slot, schema_name, table_name, key) DO UPDATE SET
    operation = CASE WHEN EXCLUDED.operation OPERATOR(pg_catalog.=) 'partial'
        AND f.operation OPERATOR(pg_catalog.=) 'upsert' THEN 'upsert'
        ELSE EXCLUDED.operation END,
    image = CASE WHEN EXCLUDED.operation OPERATOR(pg_catalog.=) 'partial'
        AND f.operation OPERATOR(pg_catalog.<>) 'delete' THEN f.image OPERATOR(pg_catalog.||) EXCLUDED.image
        ELSE EXCLUDED.image END,
    reason = CASE WHEN EXCLUDED.reason OPERATOR(pg_catalog.=) 'TW002' THEN f.reason ELSE EXCLUDED.reason END,
    constraint_name = CASE WHEN EXCLUDED.reason OPERATOR(pg_catalog.=) 'TW002' THEN f.constraint_name ELSE EXCLUDED.constraint_name END,
    message = CASE WHEN EXCLUDED.reason OPERATOR(pg_catalog.=) 'TW002' THEN f.message ELSE EXCLUDED.message END,
    changes = f.changes OPERATOR(pg_catalog.+) EXCLUDED.changes,
    first_lsn = coalesce(f.first_lsn, EXCLUDED.first_lsn),
    last_lsn = coalesce(EXCLUDED.last_lsn, f.last_lsn),
    next_attempt_at = EXCLUDED.next_attempt_at,
    row_values = EXCLUDED.row_values, row_key = EXCLUDED.row_key, discarded_at = NULL";

/// Each attempt waits twice as long as the one before, to the maximum, with jitter over the upper half.
const REFUSE: &str = "
UPDATE twinlog.failed_rows f SET reason = x.reason, constraint_name = x.constraint_name, message = x.message,
    attempts = f.attempts OPERATOR(pg_catalog.+) 1, last_attempt_at = pg_catalog.clock_timestamp(),
    next_attempt_at = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(
        secs => least($9::double precision, $8::double precision OPERATOR(pg_catalog.*)
            pg_catalog.power(2::double precision, least(f.attempts, 30)::double precision))
            OPERATOR(pg_catalog.*) (0.5::double precision OPERATOR(pg_catalog.+)
                (pg_catalog.random() OPERATOR(pg_catalog./) 2::double precision)))
FROM unnest($2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.text[], $6::pg_catalog.text[], $7::pg_catalog.text[])
    AS x(s, t, k, reason, constraint_name, message)
WHERE f.slot OPERATOR(pg_catalog.=) $1 AND f.schema_name OPERATOR(pg_catalog.=) x.s
    AND f.table_name OPERATOR(pg_catalog.=) x.t AND f.key OPERATOR(pg_catalog.=) x.k";

/// Keys as columns of parameters.
#[derive(Debug)]
struct Keys {
    encoding: Encoding,
    schemas: Vec<String>,
    tables: Vec<String>,
    keys: Vec<String>,
}

impl Keys {
    const fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            schemas: Vec::new(),
            tables: Vec::new(),
            keys: Vec::new(),
        }
    }

    fn push(&mut self, table: &TableName, key: &Key) {
        self.schemas.push(table.schema.to_string());
        self.tables.push(table.name.to_string());
        self.keys.push(self.encoding.json(key.to_json()));
    }
}

/// Reasons as columns of parameters.
#[derive(Debug, Default)]
struct Reasons {
    codes: Vec<String>,
    constraints: Vec<Option<String>>,
    messages: Vec<String>,
}

impl Reasons {
    fn push(&mut self, reason: ParkReason, encoding: Encoding) {
        self.codes.push(reason.code);
        self.constraints.push(reason.constraint);
        // A function may write a message of any length.
        let message: String = reason.message.chars().take(MESSAGE).collect();
        let message = encoding.shown(&message).replace('\0', "?");
        self.messages.push(message);
    }
}

/// Longest message that is kept, in characters.
const MESSAGE: usize = 2000;

/// Changes that are to be parked, one entry a key.
#[derive(Debug)]
pub(in crate::agent_db) struct Parked {
    keys: Keys,
    operations: Vec<&'static str>,
    images: Vec<String>,
    reasons: Reasons,
    changes: Vec<i64>,
    /// The row's values, where rows are counted.
    row_values: Vec<Option<String>>,
    /// By what the table's rows are told apart.
    row_keys: Vec<String>,
}

impl Parked {
    /// None yet.
    pub(in crate::agent_db) fn new(encoding: Encoding) -> Self {
        Self {
            keys: Keys::new(encoding),
            operations: Vec::new(),
            images: Vec::new(),
            reasons: Reasons::default(),
            changes: Vec::new(),
            row_values: Vec::new(),
            row_keys: Vec::new(),
        }
    }

    /// Adds a key with its folded changes. `reason` is `None` where nothing refused them: the entry that is there keeps
    /// its own.
    pub(in crate::agent_db) fn push(
        &mut self,
        relation: &Relation,
        key: &Key,
        folded: &Coalesced,
        changes: i64,
        reason: Option<ParkReason>,
    ) {
        let (operation, image) = match folded {
            Coalesced::Upsert(row) => ("upsert", image(relation, row, self.keys.encoding)),
            Coalesced::Partial(row) => ("partial", image(relation, row, self.keys.encoding)),
            Coalesced::Delete => ("delete", "{}".to_owned()),
            Coalesced::Count(row) => ("upsert", image(relation, row, self.keys.encoding)),
        };
        self.row_keys.push(relation.key_text());
        self.row_values.push(match folded {
            Coalesced::Upsert(row) | Coalesced::Count(row) if relation.counts_rows() => Some(row_values::to_json(row)),
            _ => None,
        });
        self.keys.push(&relation.table, key);
        self.operations.push(operation);
        self.images.push(image);
        self.reasons
            .push(reason.unwrap_or_else(ParkReason::folded), self.keys.encoding);
        self.changes.push(changes);
    }

    /// How many keys.
    pub(in crate::agent_db) const fn len(&self) -> usize {
        self.operations.len()
    }

    /// Writes the entries. `lsn`: where the changes stand in the source's log.
    pub(in crate::agent_db) async fn write(
        &self,
        client: &Client,
        slot: &str,
        lsn: Lsn,
        retry_initial: Duration,
    ) -> Result<(), AgentError> {
        if self.len() == 0 {
            return Ok(());
        }
        let lsn = lsn.is_valid().then_some(lsn);
        client
            .execute(
                PARK,
                &[
                    &slot,
                    &self.keys.schemas,
                    &self.keys.tables,
                    &self.keys.keys,
                    &self.operations,
                    &self.images,
                    &self.reasons.codes,
                    &self.reasons.constraints,
                    &self.reasons.messages,
                    &self.changes,
                    &lsn,
                    &retry_initial.as_secs_f64(),
                    &self.row_values,
                    &self.row_keys,
                ],
            )
            .await
            .map_err(failed("park rows"))?;
        Ok(())
    }
}

/// Keys whose rows were applied, so that their entries can be removed.
#[derive(Debug)]
pub(in crate::agent_db) struct Healed(Keys);

impl Healed {
    /// None yet.
    pub(in crate::agent_db) const fn new(encoding: Encoding) -> Self {
        Self(Keys::new(encoding))
    }

    /// Adds a key.
    pub(in crate::agent_db) fn push(&mut self, table: &TableName, key: &Key) {
        self.0.push(table, key);
    }

    /// Removes the entries.
    pub(in crate::agent_db) async fn write(&self, client: &Client, slot: &str) -> Result<(), AgentError> {
        let Keys {
            schemas, tables, keys, ..
        } = &self.0;
        if keys.is_empty() {
            return Ok(());
        }
        client
            .execute(
                "DELETE FROM twinlog.failed_rows f USING unnest($2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[]) AS x(s, t, k)
                 WHERE f.slot OPERATOR(pg_catalog.=) $1 AND f.schema_name OPERATOR(pg_catalog.=) x.s
    AND f.table_name OPERATOR(pg_catalog.=) x.t AND f.key OPERATOR(pg_catalog.=) x.k",
                &[&slot, schemas, tables, keys],
            )
            .await
            .map_err(failed("park rows"))?;
        Ok(())
    }
}

/// Keys whose attempt to heal was refused.
#[derive(Debug)]
pub(in crate::agent_db) struct RefusedAgain {
    keys: Keys,
    reasons: Reasons,
}

impl RefusedAgain {
    /// None yet.
    pub(in crate::agent_db) fn new(encoding: Encoding) -> Self {
        Self {
            keys: Keys::new(encoding),
            reasons: Reasons::default(),
        }
    }

    /// Adds a key with its newest reason.
    pub(in crate::agent_db) fn push(&mut self, table: &TableName, key: &Key, reason: ParkReason) {
        self.keys.push(table, key);
        self.reasons.push(reason, self.keys.encoding);
    }

    /// How many keys.
    pub(in crate::agent_db) const fn len(&self) -> usize {
        self.keys.keys.len()
    }

    /// Counts the attempts and moves the next ones away.
    pub(in crate::agent_db) async fn write(
        &self,
        client: &Client,
        slot: &str,
        retry_initial: Duration,
        retry_max: Duration,
    ) -> Result<(), AgentError> {
        if self.len() == 0 {
            return Ok(());
        }
        client
            .execute(
                REFUSE,
                &[
                    &slot,
                    &self.keys.schemas,
                    &self.keys.tables,
                    &self.keys.keys,
                    &self.reasons.codes,
                    &self.reasons.constraints,
                    &self.reasons.messages,
                    &retry_initial.as_secs_f64(),
                    &retry_max.as_secs_f64(),
                ],
            )
            .await
            .map_err(failed("park rows"))?;
        Ok(())
    }
}

/// All keys that are parked, as the connection's transaction sees them.
pub(in crate::agent_db) async fn keys(client: &Client, slot: &str) -> Result<Vec<(Key, Fingerprint)>, AgentError> {
    let rows = client
        .query(
            "SELECT schema_name, table_name, key, reason, constraint_name FROM twinlog.failed_rows
             WHERE slot OPERATOR(pg_catalog.=) $1",
            &[&slot],
        )
        .await
        .map_err(failed("read the failed rows"))?;
    rows.iter()
        .map(|row| {
            let table = TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name"));
            let key = Key::from_json(row.get("key")).ok_or(AgentError::Unreadable {
                what: "a failed row's key",
            })?;
            Ok((
                key,
                Fingerprint::new(&table, row.get("reason"), row.get("constraint_name")),
            ))
        })
        .collect()
}

/// Removes all entries of a table that was emptied: no row of it can be wrong any more.
pub(in crate::agent_db) async fn clear(client: &Client, slot: &str, table: &TableName) -> Result<(), AgentError> {
    client
        .execute(
            "DELETE FROM twinlog.failed_rows WHERE slot OPERATOR(pg_catalog.=) $1
                 AND schema_name OPERATOR(pg_catalog.=) $2 AND table_name OPERATOR(pg_catalog.=) $3",
            &[&slot, &&*table.schema, &&*table.name],
        )
        .await
        .map_err(failed("park rows"))?;
    Ok(())
}

/// Makes rows of a table due that a foreign key, a unique or an exclusion constraint refused, after rows were written for
/// which they may wait: no more often than every few seconds, as they may wait for others.
pub(in crate::agent_db) async fn wake_waiting(
    client: &Client,
    slot: &str,
    table: &TableName,
) -> Result<(), AgentError> {
    client
        .execute(
            "UPDATE twinlog.failed_rows SET next_attempt_at = pg_catalog.clock_timestamp()
             WHERE slot OPERATOR(pg_catalog.=) $1 AND schema_name OPERATOR(pg_catalog.=) $2
               AND table_name OPERATOR(pg_catalog.=) $3 AND reason OPERATOR(pg_catalog.=) ANY ('{23001,23503,23505,23P01}')
               AND next_attempt_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()
               AND parked_at OPERATOR(pg_catalog.<) pg_catalog.now()
               AND coalesce(last_attempt_at, '-infinity') OPERATOR(pg_catalog.<)
                   (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) interval '5 s')",
            &[&slot, &&*table.schema, &&*table.name],
        )
        .await
        .map_err(failed("wake failed rows"))?;
    Ok(())
}

/// Most bytes of a value that an entry shows. The image is only for people, and jsonb holds no text of 256 MiB.
const SHOWN: usize = 64 << 10;

/// A value as jsonb can hold it: neither what is not UTF-8 nor NUL, and not too long.
fn shown(text: &[u8]) -> String {
    let beginning = text.get(..SHOWN).unwrap_or(text);
    let mut shown = String::from_utf8_lossy(beginning).replace('\0', "\u{FFFD}");
    if beginning.len() < text.len() {
        let _ = write!(shown, "… ({} bytes)", text.len());
    }
    shown
}

/// An image as JSON: column names to texts, NULL as null, unchanged columns left out.
fn image(relation: &Relation, row: &Row, encoding: Encoding) -> String {
    let columns: serde_json::Map<String, serde_json::Value> = relation
        .columns
        .iter()
        .zip(&row.0)
        .filter_map(|(name, value)| {
            let value = match value {
                ColumnValue::Unchanged => return None,
                ColumnValue::Null => serde_json::Value::Null,
                ColumnValue::Text(text) => encoding.shown(&shown(text)).into_owned().into(),
            };
            Some((encoding.shown(name).into_owned(), value))
        })
        .collect();
    serde_json::Value::Object(columns).to_string()
}
