//! Which tables can't be replicated at the start of a run, and what `sync.on_unreplicable_table` and `sync.on_new_column`
//! say about them.

use tracing::{info, warn};

use crate::agent_db::{AgentError, Applier, TableRecord, TableRecords, TableState};
use crate::change::{Hold, HoldCause, TableName};
use crate::config::{OnNewColumn, OnUnreplicableTable};
use crate::source::publication::Prepared;
use crate::source::{Faults, Selection, SourceTable};

use super::error::SyncError;

/// Tables that are left out and get a log line of their own, at each start.
const MOST_TOLD: usize = 20;

/// Tables of a start that can't be replicated, each with the fault and its remedy.
#[derive(Debug, Default)]
pub(super) struct Unreplicable {
    /// Their changes are passed over until the fault is gone.
    pub(super) held: Faults,
    /// They are left out.
    pub(super) ignored: Faults,
}

/// Looks every table up in the Agent DB; adds columns that it lacks, if that is wanted. Returns the tables that can't be
/// written, and those that can't be read. `fault`: the table whose own fault has ended the last run, and its reason.
pub(super) async fn find(
    applier: &mut Applier,
    prepared: &Prepared,
    on_new_column: OnNewColumn,
    fault: Option<&(TableName, Hold)>,
) -> Result<Faults, SyncError> {
    let mut faults = prepared.faults.clone();
    let tables: Vec<&SourceTable> = prepared
        .tables
        .values()
        .filter(|table| !prepared.faults.contains_key(&table.table))
        .collect();
    let descriptions: Vec<_> = tables.iter().map(|table| table.description()).collect();
    let resolved = Box::pin(applier.resolve_all(&descriptions)).await?;
    for (table, resolved) in tables.into_iter().zip(resolved) {
        let Err(error) = resolved else { continue };
        match Box::pin(with_new_columns(applier, table, on_new_column, error)).await {
            Ok(()) => {}
            Err(error) if error.table_fault().is_some() => {
                faults.insert(table.table.clone(), error.hold());
            }
            Err(error) => return Err(error.into()),
        }
    }
    if let Some((table, hold)) = fault
        && prepared.tables.contains_key(table)
    {
        faults.entry(table.clone()).or_insert_with(|| hold.clone());
    }
    Ok(faults)
}

/// Adds the columns that the Agent DB lacks, if that is what is wrong with the table and is wanted, and looks it up again.
async fn with_new_columns(
    applier: &mut Applier,
    table: &SourceTable,
    on_new_column: OnNewColumn,
    error: AgentError,
) -> Result<(), AgentError> {
    let AgentError::ColumnMissing { columns, .. } = &error else {
        return Err(error);
    };
    if on_new_column != OnNewColumn::Add || columns.iter().any(|column| column.declared.is_none()) {
        return Err(error);
    }
    if let Err(refused) = applier.add_columns(&table.table, columns).await {
        if refused.table_fault().is_none() {
            return Err(refused);
        }
        warn!(table = %table.table, %refused, "the columns that the Agent DB lacks can't be added");
        return Err(error);
    }
    let names: Vec<&str> = columns.iter().map(|column| &*column.name).collect();
    info!(table = %table.table, columns = names.join(", "), "columns added in the Agent DB");
    applier.resolve(&table.description()).await.map(|_| ())
}

/// Whether a table that can't be replicated is left out, not held: one that was replicated before is always held, and so is
/// one that is selected by its name. Pure.
pub(super) fn is_left_out(
    table: &TableName,
    hold: &Hold,
    policy: OnUnreplicableTable,
    selection: &Selection,
    record: Option<&TableRecord>,
) -> bool {
    let is_no_table = hold.cause == HoldCause::NotReplicable && !selection.names(table);
    (policy == OnUnreplicableTable::Ignore || is_no_table) && !record.is_some_and(TableRecord::was_copied)
}

impl Unreplicable {
    /// What becomes of the tables. Pure.
    pub(super) fn new(
        faults: Faults,
        policy: OnUnreplicableTable,
        selection: &Selection,
        stored: &TableRecords,
    ) -> Self {
        let (ignored, held) = faults
            .into_iter()
            .partition(|(table, hold)| is_left_out(table, hold, policy, selection, stored.get(table)));
        Self { held, ignored }
    }

    /// Keeps tables held that were locked when they were looked at last. The catalog does not say whether they still are, and to
    /// copy one that is would only wait; the look at held tables releases the others within seconds.
    pub(super) fn keep_locked(&mut self, stored: &TableRecords, is_published: impl Fn(&TableName) -> bool) {
        let locked = stored.values().filter(|record| {
            record.state == TableState::Held && record.cause == Some(HoldCause::Locked) && is_published(&record.table)
        });
        for record in locked {
            let reason = record.detail.clone().unwrap_or_default();
            if !self.ignored.contains_key(&record.table) {
                let hold = || Hold::new(HoldCause::Locked, reason);
                self.held.entry(record.table.clone()).or_insert_with(hold);
            }
        }
    }

    /// Says which tables are left out, and why.
    pub(super) fn log_ignored(&self) {
        for (table, reason) in self.ignored.iter().take(MOST_TOLD) {
            info!(%table, %reason, "a table is left out, since it can't be replicated");
        }
        if self.ignored.len() > MOST_TOLD {
            let tables = self.ignored.len();
            info!(tables, "further tables are left out, since they can't be replicated");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_table_that_was_copied_is_never_left_out() {
        let (copied, new) = (TableName::new("public", "copied"), TableName::new("public", "new"));
        let mut record = TableRecord::new(copied.clone());
        record.finished_at = Some(time::OffsetDateTime::UNIX_EPOCH);
        let stored = TableRecords::from([(copied.clone(), record)]);
        let why = || Hold::new(HoldCause::Refused, "why");
        let faults = || Faults::from([(copied.clone(), why()), (new.clone(), why())]);
        let all = Selection::new(&["*".to_owned()]).unwrap();
        let both = Unreplicable::new(faults(), OnUnreplicableTable::Hold, &all, &stored);
        assert_eq!((both.held.len(), both.ignored.len()), (2, 0));
        let one = Unreplicable::new(faults(), OnUnreplicableTable::Ignore, &all, &stored);
        assert!(one.held.contains_key(&copied) && one.ignored.contains_key(&new));

        // A view is left out, unless it is named.
        let view = Hold::new(HoldCause::NotReplicable, "why");
        let named = Selection::new(&["public.new".to_owned()]).unwrap();
        for (selection, left_out) in [(&all, true), (&named, false)] {
            let is = is_left_out(&new, &view, OnUnreplicableTable::Hold, selection, None);
            assert_eq!(is, left_out, "{selection:?}");
        }
    }
}
