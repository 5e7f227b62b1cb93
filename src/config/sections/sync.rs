//! `[sync]`: the daemon.

use std::time::Duration;

use crate::config::reader::ValueReader;

/// The longest name of anything in Postgres (NAMEDATALEN - 1).
const MAX_NAME_BYTES: usize = 63;

/// `sync.on_unreplicable_table`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum OnUnreplicableTable {
    /// Show it as held.
    Hold,
    /// Leave it out, unless it was replicated before.
    Ignore,
}

/// `sync.on_new_column`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum OnNewColumn {
    /// Hold the table until the column is there.
    Hold,
    /// Add it with the Site DB's type.
    Add,
}

/// `sync.on_lost_slot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum OnLostSlot {
    /// Wait until somebody asks for a full resync.
    Ask,
    /// Make a new slot, and read every table again.
    Resync,
}

/// What the daemon replicates, and how.
#[derive(Debug, Clone)]
pub struct Sync {
    /// The publication to read: at most 63 bytes.
    pub publication: String,
    /// The replication slot: 1 to 63 of a-z, 0-9 and _.
    pub slot: String,
    /// Glob patterns over the unquoted `schema.table`, at least one; those that begin with `!` exclude tables.
    pub tables: Vec<String>,
    /// Such patterns for those of them that another pipeline may write as well; may be empty.
    pub shared_tables: Vec<String>,
    /// What happens with a selected table that can't be replicated.
    pub on_unreplicable_table: OnUnreplicableTable,
    /// What happens with a column that the Agent DB lacks.
    pub on_new_column: OnNewColumn,
    /// Most changes of a batch.
    pub batch_rows: usize,
    /// Most bytes of a batch.
    pub batch_bytes: usize,
    /// Rows that a copy reads between two fences.
    pub copy_chunk_rows: u32,
    /// Tables that are copied at the same time.
    pub copy_workers: usize,
    /// First wait before a parked row is retried.
    pub retry_initial: Duration,
    /// Longest wait before a parked row is retried.
    pub retry_max: Duration,
    /// Most parked rows of one table; with more, the table itself is held.
    pub max_failed_rows: usize,
    /// First wait before a reconnect.
    pub reconnect_initial: Duration,
    /// Longest wait before a reconnect.
    pub reconnect_max: Duration,
    /// The delay beyond which the daemon is not ready.
    pub ready_delay: Duration,
    /// A statement of the Agent DB that takes longer is cancelled.
    pub statement_limit: Duration,
    /// How often all tables are verified; `None`: never.
    pub verify_every: Option<Duration>,
    /// Rows that are compared then in a second.
    pub verify_rows_per_second: u32,
    /// Bytes of WAL at which the slot is given up; `None`: never.
    pub give_up_slot_at: Option<u64>,
    /// What happens when the slot is lost.
    pub on_lost_slot: OnLostSlot,
}

pub(super) fn sync(reader: &mut ValueReader<'_>) -> Option<Sync> {
    let publication = reader.text("sync.publication").and_then(|name| {
        if name.len() <= MAX_NAME_BYTES && !name.contains('\0') {
            return Some(name);
        }
        reader.wrong(
            "sync.publication",
            "is not a valid name of a publication",
            "use at most 63 bytes",
        )
    });
    let slot = slot(reader);
    let tables = tables(reader);
    let shared_tables = patterns(reader, "sync.shared_tables");
    let on_unreplicable_table = one_of(reader, "sync.on_unreplicable_table", "hold or ignore");
    let on_new_column = one_of(reader, "sync.on_new_column", "hold or add");
    // A million rows of a kilobyte each are a gigabyte, the upper limit of batch_bytes.
    let batch_rows = reader.integer("sync.batch_rows", 1..=1_000_000);
    let batch_bytes = reader.integer("sync.batch_bytes", 65_536..=1_073_741_824);
    let copy_chunk_rows = reader.integer("sync.copy_chunk_rows", 1..=1_000_000);
    // Each takes a connection of both databases.
    let copy_workers = reader.integer("sync.copy_workers", 1..=32);
    let retry = reader.waits("sync.retry_initial_ms", "sync.retry_max_ms");
    let max_failed_rows = reader.integer("sync.max_failed_rows", 1..=100_000_000);
    let reconnect = reader.waits("sync.reconnect_initial_ms", "sync.reconnect_max_ms");
    // A monitor that measures once a second can't tell less; a delay of more than a day is never fine.
    let ready_delay = reader.milliseconds("sync.ready_delay_ms", 1_000..=86_400_000);
    // Longer than the waits for locks, which have a limit of their own (3 s).
    let statement_limit = reader.milliseconds("sync.statement_limit_ms", 4_000..=86_400_000);
    let verify_every = verify_every(reader);
    let verify_rows_per_second = reader.integer("sync.verify_rows_per_second", 1..=100_000_000);
    let give_up_slot_at = give_up_slot_at(reader);
    let on_lost_slot = one_of(reader, "sync.on_lost_slot", "ask or resync");
    let ((retry_initial, retry_max), (reconnect_initial, reconnect_max)) = (retry?, reconnect?);
    Some(Sync {
        publication: publication?,
        slot: slot?,
        tables: tables?,
        shared_tables: shared_tables?,
        on_unreplicable_table: on_unreplicable_table?,
        on_new_column: on_new_column?,
        batch_rows: batch_rows?,
        batch_bytes: batch_bytes?,
        copy_chunk_rows: copy_chunk_rows?,
        copy_workers: copy_workers?,
        retry_initial,
        retry_max,
        max_failed_rows: max_failed_rows?,
        reconnect_initial,
        reconnect_max,
        ready_delay: ready_delay?,
        statement_limit: statement_limit?,
        verify_every: verify_every?,
        verify_rows_per_second: verify_rows_per_second?,
        give_up_slot_at: give_up_slot_at?,
        on_lost_slot: on_lost_slot?,
    })
}

/// A size as Postgres writes it, of at least a WAL segment; or `off`.
#[expect(clippy::option_option, reason = "the outer one: whether the value is valid")]
fn give_up_slot_at(reader: &mut ValueReader<'_>) -> Option<Option<u64>> {
    let text = reader.text("sync.give_up_slot_at")?;
    if text == "off" {
        return Some(None);
    }
    let units = [("MB", 1_u64 << 20), ("GB", 1 << 30), ("TB", 1 << 40)];
    let size = units.iter().find_map(|(unit, bytes)| {
        let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(*bytes)
    });
    match size.filter(|size| *size >= 16 << 20) {
        Some(size) => Some(Some(size)),
        None => reader.wrong(
            "sync.give_up_slot_at",
            format!("{text:?} is no size of at least 16MB"),
            "use a number with MB, GB or TB, as 50GB, or off",
        ),
    }
}

/// A number of seconds, minutes, hours or days, up to a year; or `off`.
#[expect(clippy::option_option, reason = "the outer one: whether the value is valid")]
fn verify_every(reader: &mut ValueReader<'_>) -> Option<Option<Duration>> {
    let text = reader.text("sync.verify_every")?;
    if text == "off" {
        return Some(None);
    }
    let unit = text.chars().last().and_then(|unit| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        _ => None,
    });
    let number = text
        .get(..text.len().saturating_sub(1))
        .and_then(|number| number.parse::<u64>().ok());
    let seconds = number.zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    match seconds.filter(|seconds| (1..=366 * 86_400).contains(seconds)) {
        Some(seconds) => Some(Some(Duration::from_secs(seconds))),
        None => reader.wrong(
            "sync.verify_every",
            format!("{text:?} is no interval"),
            "use a number with s, m, h or d, as 24h, or off",
        ),
    }
}

fn one_of<T: std::str::FromStr>(reader: &mut ValueReader<'_>, key: &str, values: &str) -> Option<T> {
    let text = reader.text(key)?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => reader.wrong(key, format!("{text:?} is not known"), format!("use {values}")),
    }
}

/// Postgres's rule for slots (`ReplicationSlotValidateName`), stricter than for other names.
fn slot(reader: &mut ValueReader<'_>) -> Option<String> {
    let name = reader.text("sync.slot")?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.len() <= MAX_NAME_BYTES && name.chars().all(allowed) {
        return Some(name);
    }
    reader.wrong(
        "sync.slot",
        format!("{name:?} is not a valid name of a replication slot"),
        "use 1 to 63 of the characters a-z, 0-9 and _",
    )
}

fn tables(reader: &mut ValueReader<'_>) -> Option<Vec<String>> {
    let key = "sync.tables";
    let patterns = patterns(reader, key)?;
    if patterns.iter().all(|pattern| pattern.starts_with('!')) {
        return reader.wrong(key, "selects no table", "name at least one, as in [\"public.*\"]");
    }
    Some(patterns)
}

fn patterns(reader: &mut ValueReader<'_>, key: &str) -> Option<Vec<String>> {
    let mut patterns = Vec::new();
    let mut valid = true;
    for (index, value) in reader.list(key)?.iter().enumerate() {
        let place = format!("{key}[{index}]");
        let Some(pattern) = reader.text_of(&place, Some(value)) else {
            valid = false;
            continue;
        };
        let glob = pattern.strip_prefix('!').unwrap_or(&pattern);
        if let Err(error) = globset::Glob::new(glob) {
            valid = false;
            let kind = error.kind();
            reader.problem(
                &place,
                format!("{pattern:?} is not a glob pattern: {kind}"),
                "write it as in \"public.*\"",
            );
        } else if !glob.contains(['.', '*', '?', '[', '{']) {
            valid = false;
            reader.problem(
                &place,
                format!("{pattern:?} has no schema, so it matches no table"),
                format!("write \"public.{glob}\""),
            );
        }
        patterns.push(pattern);
    }
    valid.then_some(patterns)
}
