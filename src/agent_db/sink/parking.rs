//! Parked keys: which there are, and what a segment does to their entries in `twinlog.failed_rows`.
//!
//! Within a segment everything happens in memory, so that a savepoint that is rolled back leaves no half-parked row; at
//! the segment's end [`Lot::flush`] writes it into the open transaction. The set of keys is the transaction's own view:
//! after a rollback it must be loaded again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use indexmap::IndexMap;
use tokio_postgres::Client;

use crate::agent_db::error::{AgentError, Refusal};
use crate::change::{Change, Coalesced, ColumnValue, Key, Operation, Relation, Row, TableName};
use crate::lsn::Lsn;

/// A partial update, or the move of a partial row, whose row is missing (pitfall P21).
pub(super) const MISSING_BASE: &str = "TW001";
/// A change that nobody refused, parked because its key was: the entry keeps its first reason. It is seen as a reason only
/// where there was no entry: a parked row moved to this key, or the entry was discarded in the meantime.
const FOLDED: &str = "TW002";

/// All parked keys of the slot.
#[derive(Debug)]
pub(super) struct Lot {
    slot: String,
    limit: usize,
    retry_initial: Duration,
    retry_max: Duration,
    parked: AHashMap<TableName, AHashSet<Key>>,
    /// What the segment did, in order of the keys' first appearance.
    pending: IndexMap<(TableName, Key), Pending>,
    /// Tables that the segment emptied, before what is pending.
    cleared: Vec<TableName>,
    /// How to take the segment back.
    undo: Vec<Undo>,
}

#[derive(Debug)]
enum Pending {
    Parked {
        relation: Arc<Relation>,
        folded: Coalesced,
        changes: i64,
        why: Option<Why>,
    },
    Healed,
    Refused(Why),
}

/// Why a row is parked.
#[derive(Debug, Clone)]
pub(super) struct Why {
    reason: String,
    constraint: Option<String>,
    message: String,
}

impl From<&Refusal> for Why {
    fn from(refusal: &Refusal) -> Self {
        Self {
            reason: refusal.sqlstate.clone(),
            constraint: refusal.constraint.clone(),
            message: refusal.message.clone(),
        }
    }
}

impl Why {
    /// A partial image found no row to be laid over.
    pub(super) fn missing_base() -> Self {
        Self {
            reason: MISSING_BASE.to_owned(),
            constraint: None,
            message: "the row to update is missing, and the change holds only some of its columns".to_owned(),
        }
    }
}

#[derive(Debug)]
enum Undo {
    Added(TableName, Key),
    Removed(TableName, Key),
    Cleared(TableName, AHashSet<Key>),
}

impl Lot {
    pub(super) fn new(slot: &str, limit: usize, retry_initial: Duration, retry_max: Duration) -> Self {
        Self {
            slot: slot.to_owned(),
            limit,
            retry_initial,
            retry_max,
            parked: AHashMap::new(),
            pending: IndexMap::new(),
            cleared: Vec::new(),
            undo: Vec::new(),
        }
    }

    /// Reads the keys as the connection's transaction sees them.
    pub(super) async fn load(&mut self, client: &Client) -> Result<(), AgentError> {
        let rows = client
            .query(
                "SELECT schema_name, table_name, key FROM twinlog.failed_rows WHERE slot = $1",
                &[&self.slot],
            )
            .await
            .map_err(|source| AgentError::from_driver("read the failed rows", None, source))?;
        self.parked.clear();
        self.pending.clear();
        self.cleared.clear();
        self.undo.clear();
        for row in &rows {
            let key = Key::from_json(row.get(2)).ok_or(AgentError::Unreadable {
                what: "a failed row's key",
            })?;
            self.parked
                .entry(TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)))
                .or_default()
                .insert(key);
        }
        Ok(())
    }

    /// From here on, [`Lot::take_back`] undoes.
    pub(super) fn begin_segment(&mut self) {
        self.undo.clear();
    }

    /// Undoes everything since [`Lot::begin_segment`].
    pub(super) fn take_back(&mut self) {
        self.pending.clear();
        self.cleared.clear();
        for undo in std::mem::take(&mut self.undo).into_iter().rev() {
            match undo {
                Undo::Added(table, key) => {
                    self.parked.entry(table).or_default().remove(&key);
                }
                Undo::Removed(table, key) => {
                    self.parked.entry(table).or_default().insert(key);
                }
                Undo::Cleared(table, keys) => {
                    self.parked.insert(table, keys);
                }
            }
        }
    }

    pub(super) fn contains(&self, table: &TableName, key: &Key) -> bool {
        self.parked.get(table).is_some_and(|keys| keys.contains(key))
    }

    /// Whether the segment did anything to entries.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty() || !self.cleared.is_empty()
    }

    /// How many keys of a table are parked.
    pub(super) fn count(&self, table: &TableName) -> u64 {
        self.parked.get(table).map_or(0, |keys| keys.len() as u64)
    }

    /// The counts of all tables that have, or had, parked keys.
    pub(super) fn counts(&self) -> BTreeMap<TableName, u64> {
        self.parked
            .iter()
            .map(|(table, keys)| (table.clone(), keys.len() as u64))
            .collect()
    }

    /// Parks a change, or folds it into its key's entry. A move parks both keys: the old row is still there, and only the
    /// Site DB can say what is right for either. `why` is `None` where the key was parked before.
    pub(super) fn park(&mut self, change: &Change, why: Option<&Why>) -> Result<(), AgentError> {
        if let Operation::Update {
            old_key: Some(old),
            row: _,
        } = &change.operation
            && *old != change.key
        {
            self.fold(&change.relation, old, Operation::Delete, why)?;
        }
        let operation = match &change.operation {
            Operation::Update { row, .. } => Operation::Update {
                old_key: None,
                row: row.clone(),
            },
            other => other.clone(),
        };
        self.fold(&change.relation, &change.key, operation, why)
    }

    fn fold(
        &mut self,
        relation: &Arc<Relation>,
        key: &Key,
        operation: Operation,
        why: Option<&Why>,
    ) -> Result<(), AgentError> {
        let table = &relation.table;
        let keys = self.parked.entry(table.clone()).or_default();
        if !keys.contains(key) {
            if keys.len() >= self.limit {
                return Err(AgentError::TooManyFailed {
                    table: table.clone(),
                    limit: self.limit,
                });
            }
            keys.insert(key.clone());
            self.undo.push(Undo::Added(table.clone(), key.clone()));
        }
        let pending = self
            .pending
            .entry((table.clone(), key.clone()))
            .or_insert(Pending::Healed);
        match pending {
            Pending::Parked {
                relation: known,
                folded,
                changes,
                why: known_why,
            } => {
                // The columns of an image are those of its relation: another relation's image replaces the folded one.
                let operation = if known == relation {
                    folded.fold(operation).err()
                } else {
                    *known = Arc::clone(relation);
                    Some(operation)
                };
                if let Some(operation) = operation {
                    *folded = Coalesced::new(operation);
                }
                *changes += 1;
                if let Some(why) = why {
                    *known_why = Some(why.clone());
                }
            }
            Pending::Healed | Pending::Refused(_) => {
                *pending = Pending::Parked {
                    relation: Arc::clone(relation),
                    folded: Coalesced::new(operation),
                    changes: 1,
                    why: why.cloned(),
                };
            }
        }
        Ok(())
    }

    /// The row is right now.
    pub(super) fn healed(&mut self, table: &TableName, key: &Key) {
        if self.parked.get_mut(table).is_some_and(|keys| keys.remove(key)) {
            self.undo.push(Undo::Removed(table.clone(), key.clone()));
        }
        self.pending.insert((table.clone(), key.clone()), Pending::Healed);
    }

    /// An attempt to heal was refused: it waits longer.
    pub(super) fn refused(&mut self, table: &TableName, key: &Key, refusal: Why) {
        match self.pending.entry((table.clone(), key.clone())) {
            indexmap::map::Entry::Occupied(mut known) => {
                if let Pending::Parked { why, .. } = known.get_mut() {
                    *why = Some(refusal);
                } else {
                    known.insert(Pending::Refused(refusal));
                }
            }
            indexmap::map::Entry::Vacant(vacant) => {
                vacant.insert(Pending::Refused(refusal));
            }
        }
    }

    /// The table was emptied: no row of it can be wrong any more.
    pub(super) fn clear(&mut self, table: &TableName) {
        if let Some(keys) = self.parked.get_mut(table)
            && !keys.is_empty()
        {
            self.undo.push(Undo::Cleared(table.clone(), std::mem::take(keys)));
            self.pending.retain(|(other, _), _| other != table);
            self.cleared.push(table.clone());
        }
    }

    /// Writes what the segment did into the open transaction. `lsn`: where the changes stand in the source's log.
    /// Returns how many attempts to heal were refused.
    pub(super) async fn flush(&mut self, client: &Client, lsn: Lsn) -> Result<Flushed, AgentError> {
        let mut flushed = Flushed::default();
        let failed = |source| AgentError::from_driver("park rows", None, source);
        for table in std::mem::take(&mut self.cleared) {
            client
                .execute(
                    "DELETE FROM twinlog.failed_rows WHERE slot = $1 AND schema_name = $2 AND table_name = $3",
                    &[&self.slot, &&*table.schema, &&*table.name],
                )
                .await
                .map_err(failed)?;
        }
        if self.pending.is_empty() {
            return Ok(flushed);
        }
        let (mut parked, mut healed, mut refused) = (Rows::default(), Rows::default(), Rows::default());
        for ((table, key), pending) in self.pending.drain(..) {
            match pending {
                Pending::Parked {
                    relation,
                    folded,
                    changes,
                    why,
                } => {
                    parked.push(&table, &key, why);
                    let (operation, image) = match &folded {
                        Coalesced::Upsert(row) => ("upsert", image(&relation, row)),
                        Coalesced::Partial(row) => ("partial", image(&relation, row)),
                        Coalesced::Delete => ("delete", "{}".to_owned()),
                    };
                    parked.operations.push(operation);
                    parked.images.push(image);
                    parked.changes.push(changes);
                }
                Pending::Healed => healed.push(&table, &key, None),
                Pending::Refused(why) => refused.push(&table, &key, Some(why)),
            }
        }
        flushed.parked = parked.keys.len();
        flushed.healed = healed.keys.len();
        flushed.refused = refused.keys.len();
        let lsn = lsn.is_valid().then(|| lsn.to_string());
        if !parked.keys.is_empty() {
            client
                .execute(
                    PARK,
                    &[
                        &self.slot,
                        &parked.schemas,
                        &parked.tables,
                        &parked.keys,
                        &parked.operations,
                        &parked.images,
                        &parked.reasons,
                        &parked.constraints,
                        &parked.messages,
                        &parked.changes,
                        &lsn,
                        &self.retry_initial.as_secs_f64(),
                    ],
                )
                .await
                .map_err(failed)?;
        }
        if !healed.keys.is_empty() {
            client
                .execute(
                    "DELETE FROM twinlog.failed_rows f USING unnest($2::text[], $3::text[], $4::text[]) AS x(s, t, k)
                     WHERE f.slot = $1 AND f.schema_name = x.s AND f.table_name = x.t AND f.key = x.k",
                    &[&self.slot, &healed.schemas, &healed.tables, &healed.keys],
                )
                .await
                .map_err(failed)?;
        }
        if !refused.keys.is_empty() {
            client
                .execute(
                    REFUSE,
                    &[
                        &self.slot,
                        &refused.schemas,
                        &refused.tables,
                        &refused.keys,
                        &refused.reasons,
                        &refused.constraints,
                        &refused.messages,
                        &self.retry_initial.as_secs_f64(),
                        &self.retry_max.as_secs_f64(),
                    ],
                )
                .await
                .map_err(failed)?;
        }
        Ok(flushed)
    }
}

/// How many entries a flush wrote.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flushed {
    /// New or folded.
    pub parked: usize,
    /// Removed.
    pub healed: usize,
    /// Tried again in vain.
    pub refused: usize,
}

/// Later changes fold in as they do in memory: a partial image is laid over what is known, everything else replaces it.
/// They are tried at once; a row that was just refused waits, unless all that it lacks is its base.
const PARK: &str = "
INSERT INTO twinlog.failed_rows AS f (slot, schema_name, table_name, key, operation, image, reason, constraint_name,
    message, changes, first_lsn, last_lsn, next_attempt_at)
SELECT $1, x.s, x.t, x.k, x.operation, x.image::jsonb, x.reason, x.constraint_name, x.message, x.changes,
    $11::text::pg_lsn, $11::text::pg_lsn,
    clock_timestamp() + CASE WHEN x.reason IN ('TW001', 'TW002') THEN interval '0' ELSE make_interval(secs => $12::float8) END
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::bigint[]) AS x(s, t, k, operation, image, reason, constraint_name, message, changes)
ON CONFLICT (slot, schema_name, table_name, key) DO UPDATE SET
    operation = CASE WHEN EXCLUDED.operation = 'partial' AND f.operation = 'upsert' THEN 'upsert'
        ELSE EXCLUDED.operation END,
    image = CASE WHEN EXCLUDED.operation = 'partial' AND f.operation <> 'delete' THEN f.image || EXCLUDED.image
        ELSE EXCLUDED.image END,
    reason = CASE WHEN EXCLUDED.reason = 'TW002' THEN f.reason ELSE EXCLUDED.reason END,
    constraint_name = CASE WHEN EXCLUDED.reason = 'TW002' THEN f.constraint_name ELSE EXCLUDED.constraint_name END,
    message = CASE WHEN EXCLUDED.reason = 'TW002' THEN f.message ELSE EXCLUDED.message END,
    changes = f.changes + EXCLUDED.changes,
    first_lsn = coalesce(f.first_lsn, EXCLUDED.first_lsn),
    last_lsn = coalesce(EXCLUDED.last_lsn, f.last_lsn),
    next_attempt_at = EXCLUDED.next_attempt_at";

/// Each attempt waits twice as long as the one before, to the maximum, with jitter over the upper half.
const REFUSE: &str = "
UPDATE twinlog.failed_rows f SET reason = x.reason, constraint_name = x.constraint_name, message = x.message,
    attempts = f.attempts + 1, last_attempt_at = clock_timestamp(),
    next_attempt_at = clock_timestamp() + make_interval(
        secs => least($9::float8, $8::float8 * power(2, least(f.attempts, 30))) * (0.5 + random() / 2))
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    AS x(s, t, k, reason, constraint_name, message)
WHERE f.slot = $1 AND f.schema_name = x.s AND f.table_name = x.t AND f.key = x.k";

/// Columns of parameters.
#[derive(Debug, Default)]
struct Rows {
    schemas: Vec<String>,
    tables: Vec<String>,
    keys: Vec<String>,
    operations: Vec<&'static str>,
    images: Vec<String>,
    reasons: Vec<String>,
    constraints: Vec<Option<String>>,
    messages: Vec<String>,
    changes: Vec<i64>,
}

impl Rows {
    fn push(&mut self, table: &TableName, key: &Key, why: Option<Why>) {
        self.schemas.push(table.schema.to_string());
        self.tables.push(table.name.to_string());
        self.keys.push(key.to_json());
        let why = why.unwrap_or_else(|| Why {
            reason: FOLDED.to_owned(),
            constraint: None,
            message: "the row was parked when it changed: under its old key, or before its entry was discarded"
                .to_owned(),
        });
        self.reasons.push(why.reason);
        self.constraints.push(why.constraint);
        self.messages.push(why.message.replace('\0', "\u{FFFD}"));
    }
}

/// An image as JSON: column names to texts, NULL as null, unchanged columns left out.
fn image(relation: &Relation, row: &Row) -> String {
    let columns: serde_json::Map<String, serde_json::Value> = relation
        .columns
        .iter()
        .zip(&row.0)
        .filter_map(|(name, value)| {
            let value = match value {
                ColumnValue::Unchanged => return None,
                ColumnValue::Null => serde_json::Value::Null,
                // jsonb holds neither what is not UTF-8 nor NUL. The image is for people to read; healing reads the source.
                ColumnValue::Text(text) => String::from_utf8_lossy(text).replace('\0', "\u{FFFD}").into(),
            };
            Some((name.to_string(), value))
        })
        .collect();
    serde_json::Value::Object(columns).to_string()
}
