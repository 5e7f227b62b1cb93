//! Writing some rows at once, under a savepoint.
//!
//! Where their values are in each other's way (two rows have exchanged a unique value), room is made first: the rows as
//! they are give their values up, or go.

use std::sync::Arc;

use super::rows::{Cause, Refused, RowsOfTable, by_table, image};
use crate::agent_db::apply::limit::Work;
use crate::agent_db::apply::plan::{Group, Purpose, RowWrite};
use crate::agent_db::apply::sql::{self, Parameter, PartKind, StatementKind, TextArray};
use crate::agent_db::apply::write::writer::{Constraints, Writer};
use crate::agent_db::catalog::{Target, UniqueValues};
use crate::agent_db::error::AgentError;
use crate::change::{Change, Key, Row};
use crate::retry::Disposition;

/// What becomes of rows that were not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// They stay, if the deferred constraints hold as well.
    IfChecked,
    /// Nothing was to be written: it was only to be seen whether they are refused.
    Nothing,
}

/// How room is made for the rows' values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Not at all.
    None,
    /// Columns of unique and exclusion constraints become NULL for a moment.
    Null,
    /// The rows are deleted and inserted anew, where nothing else goes with them.
    Delete,
}

const UNDO: &str = "ROLLBACK TO SAVEPOINT piece; RELEASE SAVEPOINT piece";

impl Writer {
    /// Writes rows at once; returns why they were refused.
    pub(super) async fn attempt_rows(&mut self, rows: &[&Change], keep: Keep) -> Result<Option<Refused>, AgentError> {
        if keep == Keep::IfChecked
            && let Some(refused) = Box::pin(self.would_cascade(rows)).await?
        {
            return Ok(Some(refused));
        }
        let mut refused = None;
        for room in [Room::None, Room::Null, Room::Delete] {
            self.session.command("SAVEPOINT piece").await?;
            let written = Box::pin(self.write_rows(rows, room, keep)).await;
            match self.tolerated(written)? {
                None => {
                    let end = if keep == Keep::IfChecked {
                        "RELEASE SAVEPOINT piece"
                    } else {
                        UNDO
                    };
                    self.back_to(end).await?;
                    return Ok(None);
                }
                Some(refusal) => {
                    self.back_to(UNDO).await?;
                    let by_value = refusal.cause == Cause::Value;
                    // Where making room was refused, the refusal before says more.
                    if by_value || refused.is_none() {
                        refused = Some(refusal);
                    }
                    if !by_value && room == Room::None || keep == Keep::Nothing {
                        break;
                    }
                }
            }
        }
        Ok(refused)
    }

    async fn write_rows(&mut self, rows: &[&Change], room: Room, keep: Keep) -> Result<(), AgentError> {
        let mut tables = by_table(rows);
        self.make_room(&tables, room).await?;
        self.write_tables(&mut tables).await?;
        if keep == Keep::IfChecked && self.checks_constraints() {
            let check = self.check();
            self.limited(None, self.session.client.batch_execute(&check))
                .await?
                .map_err(|source| AgentError::from_driver("check the constraints", None, source))?;
            self.look_again(&tables).await?;
        }
        Ok(())
    }

    /// Looks at what deferred triggers may have changed.
    async fn look_again(&mut self, tables: &[RowsOfTable<'_>]) -> Result<(), AgentError> {
        for table in tables {
            let target = self.target(table.relation).await?;
            if !target.fires_late || target.relation.counts_rows() {
                continue;
            }
            for (kind, rows) in [(PartKind::Delete, &table.deletes), (PartKind::Upsert, &table.upserts)] {
                if rows.is_empty() {
                    continue;
                }
                let part = Part::new(kind, Arc::clone(&target), rows);
                if let Some(look) = part.group().kind.look() {
                    self.run_behind(&part, &look).await?;
                }
            }
        }
        Ok(())
    }

    /// Has the rows, as they are now, give up what the new ones may need.
    pub(super) async fn make_room(&mut self, tables: &[RowsOfTable<'_>], room: Room) -> Result<(), AgentError> {
        if room == Room::None {
            return Ok(());
        }
        // Children before parents.
        for table in tables.iter().rev() {
            let values = UniqueValues::read(&self.session.client, table.relation).await?;
            let target = self.target(table.relation).await?;
            let keys = table.keys();
            match room {
                Room::None => {}
                Room::Null if values.nullable.is_empty() => {}
                Room::Null => {
                    let sql = sql::set_null(&target, &values.nullable);
                    self.run(&sql, &target, &keys).await?;
                }
                Room::Delete if !values.any || self.others_go_with(&target) => {}
                Room::Delete => {
                    let text = sql::statement(&target, &StatementKind::Delete);
                    self.run(&text.sql, &target, &keys).await?;
                }
            }
        }
        Ok(())
    }

    /// Whether the database would remove or change other rows with a row of the table.
    pub(in crate::agent_db::apply::write) fn others_go_with(&self, target: &Target) -> bool {
        match &self.constraints {
            Constraints::Silent { .. } => false,
            Constraints::Checked(foreign_keys) => foreign_keys.acts_on_delete(&target.relation.table),
        }
    }

    /// Waits for a statement, which is cancelled if it takes too long.
    async fn limited<T>(
        &self,
        target: Option<&Target>,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<Result<T, tokio_postgres::Error>, AgentError> {
        match self.session.limit.within(&Work::NONE, answer).await {
            (Err(_), Some(cancelled)) => {
                let table = target.map(|target| target.relation.table.clone());
                Err(cancelled.of("healing", table, 0))
            }
            (answer, _) => Ok(answer),
        }
    }

    /// Runs a statement whose parameters are keys.
    async fn run(&self, sql: &str, target: &Target, keys: &[&Key]) -> Result<(), AgentError> {
        let parameters = (0..target.relation.key_positions().len()).map(|part| TextArray::KeyPart { keys, part });
        self.limited(Some(target), self.session.client.execute_raw(sql, parameters))
            .await?
            .map_err(|source| AgentError::from_driver("make room for rows", Some(&target.relation.table), source))?;
        Ok(())
    }

    /// Deletes, children before parents; then writes, parents before children: by one statement, so that what can't be
    /// deferred is checked when all of it is there.
    async fn write_tables(&mut self, tables: &mut [RowsOfTable<'_>]) -> Result<(), AgentError> {
        let mut parts: Vec<Part<'_>> = Vec::new();
        for table in tables.iter().rev().filter(|table| !table.deletes.is_empty()) {
            let target = self.target(table.relation).await?;
            parts.push(Part::new(PartKind::Delete, target, &table.deletes));
        }
        for table in tables.iter().filter(|table| !table.upserts.is_empty()) {
            let target = self.target(table.relation).await?;
            parts.push(Part::new(PartKind::Upsert, target, &table.upserts));
        }
        if let [part] = parts.as_slice() {
            let group = part.group();
            return self.send(&[(&group, Arc::clone(&part.target))], "", "").await.map(drop);
        }
        let kinds: Vec<(PartKind, &Target)> = parts.iter().map(|part| (part.kind, &*part.target)).collect();
        let (sql, parameters) = sql::together(&kinds);
        let values = parts.iter().zip(&parameters).flat_map(|(part, parameters)| {
            parameters.iter().map(|parameter| match *parameter {
                Parameter::Column(column) => TextArray::Column {
                    rows: &part.rows,
                    column,
                },
                Parameter::KeyPart(key) => TextArray::KeyPart {
                    keys: &part.keys,
                    part: key,
                },
                // Only for moves, and where rows are counted.
                Parameter::NewKeyPart(_) | Parameter::OldColumn(_) | Parameter::Count => TextArray::KeyPart {
                    keys: &part.keys,
                    part: 0,
                },
            })
        });
        let values: Vec<TextArray<'_>> = values.collect();
        self.limited(None, self.session.client.execute_raw(&sql, values))
            .await?
            .map_err(|source| AgentError::from_driver("write rows together", None, source))?;
        self.limited(None, self.session.client.batch_execute(self.session.pin_again()))
            .await?
            .map_err(|source| AgentError::from_driver("pin the settings", None, source))?;
        for part in &parts {
            for kind in self.behind(&part.group().kind, &part.target) {
                self.run_behind(part, &kind).await?;
            }
        }
        Ok(())
    }

    /// Runs a statement that belongs behind a part's own.
    async fn run_behind(&self, part: &Part<'_>, kind: &StatementKind) -> Result<(), AgentError> {
        let text = sql::statement(&part.target, kind);
        let parameters = text.parameters.iter().map(|parameter| match *parameter {
            Parameter::Column(column) => TextArray::Column {
                rows: &part.rows,
                column,
            },
            Parameter::KeyPart(key) | Parameter::NewKeyPart(key) => TextArray::KeyPart {
                keys: &part.keys,
                part: key,
            },
            Parameter::OldColumn(_) | Parameter::Count => TextArray::Texts(&[]),
        });
        let parameters: Vec<TextArray<'_>> = parameters.collect();
        self.limited(
            Some(&part.target),
            self.session.client.execute_raw(&text.sql, parameters),
        )
        .await?
        .map_err(|source| AgentError::from_driver("write rows together", Some(&part.target.relation.table), source))?;
        Ok(())
    }
}

/// One part of the statement.
struct Part<'e> {
    kind: PartKind,
    target: Arc<Target>,
    changes: &'e [&'e Change],
    keys: Vec<&'e Key>,
    rows: Vec<&'e Row>,
}

impl<'e> Part<'e> {
    fn new(kind: PartKind, target: Arc<Target>, changes: &'e [&'e Change]) -> Self {
        Self {
            kind,
            target,
            changes,
            keys: changes.iter().map(|change| &change.key).collect(),
            rows: changes.iter().filter_map(|change| image(change)).collect(),
        }
    }

    /// The part as a statement of its own.
    fn group(&self) -> Group<'e> {
        Group {
            relation: &self.changes[0].relation,
            kind: match self.kind {
                PartKind::Delete => StatementKind::Delete,
                PartKind::Upsert => StatementKind::Upsert {
                    only_if_different: true,
                },
            },
            purpose: Purpose::Heal,
            rows: self
                .changes
                .iter()
                .map(|&change| RowWrite {
                    change,
                    key: &change.key,
                    row: image(change),
                })
                .collect(),
        }
    }
}

impl Writer {
    /// The refusal in a result. What stops the whole session remains an error; everything else leaves the rows parked: also a
    /// right that is missing, which the table's own changes will meet.
    pub(super) fn tolerated(&self, result: Result<(), AgentError>) -> Result<Option<Refused>, AgentError> {
        match result {
            Ok(()) => Ok(None),
            // Somebody has locked the row: it stays parked. (Of a table that is locked, none is tried.)
            Err(AgentError::Refused { refusal, .. }) if self.parks_locked_rows(&refusal) => {
                Ok(Some(Refused::by(&refusal)))
            }
            Err(AgentError::Refused { refusal, .. })
                if refusal.disposition() != Disposition::Transient || refusal.may_be_of_a_row() =>
            {
                Ok(Some(Refused::by(&refusal)))
            }
            // The rows stay parked; one that is tried by itself holds its table.
            Err(AgentError::TooSlow {
                seconds, table, rows, ..
            }) if table.is_none() || rows > 1 => Ok(Some(Refused::too_slow(seconds))),
            Err(error) => Err(error),
        }
    }
}
