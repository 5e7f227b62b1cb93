//! How many rows that may wait for each other are tried at once: a portion, which grows while nothing heals. Pure.

use std::collections::BTreeMap;

use crate::change::TableName;

/// Rows of the first portion, about a second's work where all of them are refused.
const FIRST: u32 = 2_000;

/// Rows of the largest portion: more than `sync.max_failed_rows` allows by default for three tables.
const LARGEST: u32 = 32_000;

/// The portions of the knots, each known by its first table.
#[derive(Debug, Default)]
pub(super) struct Portions {
    knots: BTreeMap<TableName, Portion>,
}

#[derive(Debug, Clone, Copy)]
struct Portion {
    rows: u32,
    /// Parked rows of the knot at the last attempt.
    parked: u64,
}

impl Portions {
    /// Rows to be tried now of a knot with so many parked rows. Twice as many as before if nothing has healed since.
    pub(super) fn next(&mut self, tables: &[TableName], parked: u64) -> u32 {
        let Some(first) = tables.first() else { return FIRST };
        let portion = self.knots.entry(first.clone()).or_insert(Portion {
            rows: FIRST / 2,
            parked,
        });
        let is_all = u64::from(portion.rows) >= parked;
        portion.rows = match parked < portion.parked {
            true => FIRST,
            false if is_all => portion.rows.max(FIRST),
            false => portion.rows.saturating_mul(2).min(LARGEST),
        };
        portion.parked = parked;
        portion.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portion_grows_while_nothing_heals_and_begins_anew_when_something_does() {
        let tables = [TableName::new("public", "a")];
        let mut portions = Portions::default();
        assert_eq!(portions.next(&tables, 50_000), FIRST);
        assert_eq!(portions.next(&tables, 50_000), 2 * FIRST);
        assert_eq!(portions.next(&tables, 50_000), 4 * FIRST);
        assert_eq!(portions.next(&tables, 49_000), FIRST);
        for _ in 0..10 {
            portions.next(&tables, 50_000);
        }
        assert_eq!(portions.next(&tables, 50_000), LARGEST);
        assert_eq!(portions.next(&[TableName::new("public", "b")], 10), FIRST);
    }
}
