//! The second look at rows of tables that have deferred triggers: those fire with the check of the constraints, after the first
//! look, and may change a row then. (They are not fired earlier: what they check may only be true at the end.)

use std::sync::Arc;

use super::writer::Writer;
use crate::agent_db::apply::limit::Work;
use crate::agent_db::apply::plan::Group;
use crate::agent_db::apply::sql::{Parameter, TextArray};
use crate::agent_db::catalog::Target;
use crate::agent_db::error::AgentError;

impl Writer {
    /// Remembers what was written, if a trigger may change it later.
    pub(super) fn look_later(&mut self, group: &Group<'_>, target: &Arc<Target>) {
        if !self.checks_constraints() {
            return;
        }
        self.late.fires |= target.fires_late || self.fires_others(group, target);
        if target.fires_late && group.kind.look().is_some() {
            self.late.add(group, target);
        }
    }

    /// Whether rows of other tables may go or change with the group's, which fires the triggers of these.
    pub(super) fn fires_others(&self, group: &Group<'_>, target: &Target) -> bool {
        (group.deletes() || group.moves()) && self.others_go_with(target)
    }

    /// Whether the next check of the constraints may fire triggers.
    pub(super) const fn fires_later(&self) -> bool {
        self.late.fires
    }

    /// Looks at what was remembered. To be called when the deferred triggers have fired.
    ///
    /// # Errors
    /// A row is other than it was sent.
    pub(super) async fn look_late(&mut self) -> Result<(), AgentError> {
        for late in std::mem::take(&mut self.late).tables {
            let table = &late.target.relation.table;
            for (kind, (keys, rows)) in late.looks() {
                let prepared = self.prepared(&late.target, &kind).await?;
                let parameters: Vec<TextArray<'_>> = prepared
                    .parameters
                    .iter()
                    .map(|parameter| match *parameter {
                        Parameter::Column(column) => TextArray::Column { rows: &rows, column },
                        Parameter::KeyPart(part) | Parameter::NewKeyPart(part) => {
                            TextArray::KeyPart { keys: &keys, part }
                        }
                        // Such a look has no others.
                        Parameter::OldColumn(_) | Parameter::Count => TextArray::Texts(&[]),
                    })
                    .collect();
                let work = Work {
                    rows: keys.len(),
                    ..Work::NONE
                };
                let looked = self.session.client.execute_raw(&prepared.statement, parameters);
                match self.session.limit.within(&work, looked).await {
                    (Err(_), Some(cancelled)) => {
                        return Err(cancelled.of(kind.name(), Some(table.clone()), keys.len()));
                    }
                    (looked, _) => {
                        looked.map_err(|source| AgentError::from_driver("write rows", Some(table), source))?;
                    }
                }
            }
        }
        Ok(())
    }
}
