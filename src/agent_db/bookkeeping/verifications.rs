//! What a `verify` in `twinlog.commands` asks for, and what it has found so far.
//!
//! Keys stand here and nowhere else: never in logs or metrics. Their lists are bounded, their numbers are true.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::tables::CopyPhase;
use crate::agent_db::difference::{Difference, DifferenceKind};
use crate::change::{ColumnValue, Key, Row, TableName};

/// Keys that are listed of one table, of each kind of difference.
const MOST_LISTED: usize = 1000;

/// Bytes of keys and names of columns that are listed of all tables of a command. (A command's progress is read up to 4 MB, and JSON may take six
/// bytes for one.)
const MOST_BYTES: usize = 256 << 10;

/// A `verify`: what was asked, and how far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verify {
    /// Written once, by who asks.
    pub arguments: VerifyArguments,
    /// Written by the daemon; empty until it begins.
    pub progress: VerifyProgress,
}

/// Which tables are verified, and what becomes of differences.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VerifyArguments {
    /// Every table that is synchronised; `tables` does not count then.
    pub all: bool,
    /// These tables: `schema.table`, or a table of `public`, unquoted.
    pub tables: Vec<String>,
    /// What differs is written as the Site DB has it.
    pub repair: bool,
    /// Rows of the Site DB that are read in a second at most; `None`: as many as can be.
    pub rate: Option<u32>,
    /// Who asked: user and host.
    pub by: Option<String>,
}

/// How far a `verify` is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VerifyProgress {
    /// The tables, in the order in which they are verified.
    pub tables: Vec<VerifiedTable>,
}

/// One table of a `verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VerifiedTable {
    /// `schema.table`, unquoted.
    pub table: String,
    /// How far the table is.
    pub state: VerifyState,
    /// Which pass is under way: `rows` or `extras`.
    pub phase: Option<String>,
    /// The pass goes on after this key.
    pub last_key: Option<String>,
    /// What the table was in both databases when it began, opaque: the place is one in that table alone.
    pub of: Option<String>,
    /// When it began, in seconds since 1970: rows are proved as of no earlier time.
    pub began: i64,
    /// And microseconds of the second.
    pub began_micros: u32,
    /// Rows of the Site DB that were compared.
    pub rows: u64,
    /// Rows that the table has, by the statistics of the Site DB.
    pub estimated: Option<i64>,
    /// Keys of rows that the Agent DB lacks.
    pub missing: Vec<ShownKey>,
    /// How many there are.
    pub missing_rows: u64,
    /// Keys of rows that only the Agent DB has.
    pub extra: Vec<ShownKey>,
    /// How many there are.
    pub extra_rows: u64,
    /// Rows that are not the same in both.
    pub different: Vec<DifferentRow>,
    /// How many there are.
    pub different_rows: u64,
    /// Rows that are parked, or were when their page was compared: they are not proved.
    pub parked: u64,
    /// Why the table can't be verified.
    pub held: Option<String>,
    /// Rows that were written because they differed.
    pub repaired: u64,
    /// Differences of the page at the place that are counted, and being repaired.
    pub repairing: u64,
}

/// A key as a JSON array of texts; where rows are counted, the whole row.
pub type ShownKey = Vec<Option<String>>;

/// A row that is not the same in both databases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferentRow {
    /// Its key.
    pub key: ShownKey,
    /// The columns that differ.
    pub columns: Vec<String>,
}

/// How far a table of a `verify` is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyState {
    /// It has not begun.
    #[default]
    Waiting,
    /// It is being verified.
    Verifying,
    /// It was verified, or can't be.
    Done,
}

impl VerifiedTable {
    /// A table that is to be verified.
    #[must_use]
    pub fn new(table: &TableName) -> Self {
        Self {
            table: table.to_string(),
            ..Self::default()
        }
    }

    /// Forgets what was found: the table is verified from its beginning. What was repaired stays so.
    pub fn begin_anew(&mut self, at: OffsetDateTime) {
        *self = Self {
            table: std::mem::take(&mut self.table),
            state: VerifyState::Verifying,
            estimated: self.estimated,
            ..Self::default()
        };
        self.begin(at);
    }

    /// Remembers when it begins.
    pub fn begin(&mut self, at: OffsetDateTime) {
        self.began = at.unix_timestamp();
        self.began_micros = at.microsecond();
    }

    /// When it began.
    #[must_use]
    pub fn began_at(&self) -> OffsetDateTime {
        let second = OffsetDateTime::from_unix_timestamp(self.began).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        second + Duration::from_micros(self.began_micros.into())
    }

    /// Rows that differ.
    #[must_use]
    pub const fn differing(&self) -> u64 {
        self.missing_rows + self.extra_rows + self.different_rows
    }

    /// Whether every row is proved to be the same in both databases.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.state == VerifyState::Done
            && self.held.is_none()
            && self.parked == 0
            && self.differing() == self.repaired.min(self.differing())
    }

    /// Whether keys are left out of a list.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        (self.missing.len() as u64) < self.missing_rows
            || (self.extra.len() as u64) < self.extra_rows
            || (self.different.len() as u64) < self.different_rows
    }

    /// Where the pass goes on: the phase, and the key after which.
    #[must_use]
    pub fn place(&self) -> (CopyPhase, Option<Key>) {
        let phase = self.phase.as_deref().and_then(|phase| phase.parse().ok());
        let last_key = self.last_key.as_deref().and_then(Key::from_json);
        (phase.unwrap_or(CopyPhase::Rows), last_key)
    }

    /// Sets where the pass goes on.
    pub fn set_place(&mut self, phase: CopyPhase, last_key: Option<&Key>) {
        self.phase = Some(phase.as_str().to_owned());
        self.last_key = last_key.map(Key::to_json);
    }

    /// Counts a difference, and lists its key while that takes no more than `bytes`.
    fn add(&mut self, difference: &Difference, bytes: &mut usize) {
        let key = shown(difference);
        let columns: Vec<String> = match &difference.kind {
            DifferenceKind::Columns(columns) => columns.iter().map(|column| column.to_string()).collect(),
            DifferenceKind::Missing(_) | DifferenceKind::Extra(_) => Vec::new(),
        };
        let size = size_of(&key, &columns);
        let mut listed = |list: usize| {
            let fits = list < MOST_LISTED && size <= *bytes;
            *bytes -= if fits { size } else { 0 };
            fits
        };
        match &difference.kind {
            DifferenceKind::Missing(rows) => {
                self.missing_rows += rows;
                for _ in 0..*rows {
                    if !listed(self.missing.len()) {
                        break;
                    }
                    self.missing.push(key.clone());
                }
            }
            DifferenceKind::Extra(rows) => {
                self.extra_rows += rows;
                for _ in 0..*rows {
                    if !listed(self.extra.len()) {
                        break;
                    }
                    self.extra.push(key.clone());
                }
            }
            DifferenceKind::Columns(_) => {
                self.different_rows += 1;
                if listed(self.different.len()) {
                    self.different.push(DifferentRow { key, columns });
                }
            }
        }
    }

    /// Bytes of what is listed.
    fn size(&self) -> usize {
        let keys = self.missing.iter().chain(&self.extra);
        let different = self.different.iter().map(|row| size_of(&row.key, &row.columns));
        keys.map(|key| size_of(key, &[])).chain(different).sum()
    }

    /// The keys that are listed.
    fn listed(&self) -> impl Iterator<Item = &ShownKey> {
        let different = self.different.iter().map(|row| &row.key);
        self.missing.iter().chain(&self.extra).chain(different)
    }
}

impl VerifyProgress {
    /// Counts and lists the differences of a table's page.
    pub fn add(&mut self, table: usize, differences: &[Difference]) {
        let taken: usize = self.tables.iter().map(VerifiedTable::size).sum();
        let mut bytes = MOST_BYTES.saturating_sub(taken);
        let Some(table) = self.tables.get_mut(table) else {
            return;
        };
        // They were counted before, and a repair was interrupted.
        let known: BTreeSet<ShownKey> = match table.repairing {
            0 => BTreeSet::new(),
            _ => table.listed().cloned().collect(),
        };
        for difference in differences {
            if table.repairing == 0 || !(known.contains(&shown(difference)) || table.is_cut()) {
                table.add(difference, &mut bytes);
            }
        }
    }

    /// Whether every table is proved to be equal. Without a table nothing is proved.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        !self.tables.is_empty() && self.tables.iter().all(VerifiedTable::is_equal)
    }
}

/// Bytes that a difference takes in the lists.
fn size_of(key: &ShownKey, columns: &[String]) -> usize {
    let parts = key.iter().map(|part| part.as_ref().map_or(0, String::len));
    parts
        .chain(columns.iter().map(String::len))
        .map(|bytes| 4 + bytes)
        .sum()
}

/// The key as it is shown.
fn shown(difference: &Difference) -> ShownKey {
    match &difference.row {
        Some(Row(values)) => values
            .iter()
            .map(|value| match value {
                ColumnValue::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
                ColumnValue::Null | ColumnValue::Unchanged => None,
            })
            .collect(),
        None => difference.key.texts().into_iter().map(Some).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;

    fn missing(key: &str) -> Difference {
        Difference {
            key: Key([Bytes::from(key.to_owned())].into()),
            row: None,
            kind: DifferenceKind::Missing(1),
        }
    }

    #[test]
    fn numbers_are_true_where_lists_are_cut() {
        let mut progress = VerifyProgress {
            tables: vec![VerifiedTable::new(&TableName::new("public", "t"))],
        };
        let many: Vec<Difference> = (0..3000).map(|key| missing(&key.to_string())).collect();
        progress.add(0, &many);
        let long = missing(&"x".repeat(MOST_BYTES));
        progress.add(0, &[long]);
        let table = &progress.tables[0];
        assert_eq!((table.missing_rows, table.missing.len()), (3001, MOST_LISTED));
        assert!(table.is_cut() && !progress.is_equal());
    }

    #[test]
    fn a_table_that_is_another_one_begins_anew() {
        let name = TableName::new("public", "t");
        let mut table = VerifiedTable::new(&name);
        table.add(&missing("1"), &mut 1000);
        table.set_place(CopyPhase::Extras, Some(&missing("1").key));
        table.begin_anew(OffsetDateTime::UNIX_EPOCH + Duration::from_micros(7_000_005));
        assert_eq!(table.place(), (CopyPhase::Rows, None));
        assert_eq!((table.differing(), table.missing.len()), (0, 0));
        assert_eq!((table.began, table.began_micros), (7, 5));
        assert_eq!(table.began_at().unix_timestamp_nanos(), 7_000_005_000);
        assert_eq!(table.table, name.to_string());
    }

    #[test]
    fn nothing_is_proved_without_a_table() {
        assert!(!VerifyProgress::default().is_equal());
    }

    #[test]
    fn a_report_stays_readable_whatever_is_listed() {
        let columns: Vec<Arc<str>> = (0..1600).map(|column| format!("{column:\u{1}>60}").into()).collect();
        let mut progress = VerifyProgress {
            tables: vec![VerifiedTable::new(&TableName::new("public", "t"))],
        };
        for key in 0..MOST_LISTED {
            let kind = DifferenceKind::Columns(columns.clone());
            progress.add(
                0,
                &[Difference {
                    kind,
                    ..missing(&key.to_string())
                }],
            );
        }
        let bytes = serde_json::to_string(&progress).unwrap().len();
        assert!(bytes < 4 << 20, "{bytes}");
        assert_eq!(progress.tables[0].different_rows, MOST_LISTED as u64);
        assert!(progress.tables[0].is_cut());
    }

    #[test]
    fn what_is_found_again_after_an_interrupted_repair_counts_once() {
        let mut progress = VerifyProgress {
            tables: vec![VerifiedTable::new(&TableName::new("public", "t"))],
        };
        progress.add(0, &[missing("1"), missing("2")]);
        progress.tables[0].repairing = 2;
        progress.add(0, &[missing("2"), missing("3")]);
        assert_eq!(progress.tables[0].missing_rows, 3);
    }
}
