//! Sends the statements of several groups in one round trip.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indexmap::IndexMap;
use tokio_postgres::Client;

use super::part::{Part, Reply, count, old_row};
use super::writer::Writer;
use crate::agent_db::apply::limit::{Cancelled, Work};
use crate::agent_db::apply::pipelined::{Call, in_order};
use crate::agent_db::apply::plan::Group;
use crate::agent_db::apply::sql::{self, StatementKind};
use crate::agent_db::catalog::{Column, Target};
use crate::agent_db::error::AgentError;
use crate::change::TableName;
use crate::postgres::sqlstate;

impl Writer {
    /// `before`, the groups' statements, `after`: one round trip, one more for each COPY, and one to check them first. One
    /// reply for each group.
    pub(super) async fn send(
        &mut self,
        groups: &[(&Group<'_>, Arc<Target>)],
        before: &str,
        after: &str,
    ) -> Result<Vec<Reply>, AgentError> {
        let mut parts = Vec::with_capacity(groups.len());
        let mut large = Vec::new();
        for (group, target) in groups {
            let kind = match &group.kind {
                StatementKind::Move { present } if !target.key_can_change() => StatementKind::Reinsert {
                    present: present.clone(),
                },
                kind => kind.clone(),
            };
            let kinds_behind = self.behind(&kind, target);
            let mut behind = Vec::with_capacity(kinds_behind.len());
            for kind in &kinds_behind {
                behind.push(self.prepared(target, kind).await?);
            }
            let part = Part {
                group,
                prepared: self.prepared(target, &kind).await?,
                behind,
                is_looked_at: target.guarded,
                fires: target.guarded || self.fires_others(group, target),
                writes_each: target.columns.iter().any(Column::is_settable),
                rows: group.rows.iter().filter_map(|write| write.row).collect(),
                old_rows: group.rows.iter().filter_map(old_row).collect(),
                keys: group.rows.iter().map(|write| write.key).collect(),
                new_keys: group.rows.iter().map(|write| &write.change.key).collect(),
                counts: match group.kind {
                    StatementKind::Count => group.rows.iter().filter_map(count).collect(),
                    _ => Vec::new(),
                },
            };
            if part.is_too_large_for_parameters() {
                let kinds: Vec<StatementKind> = [kind].into_iter().chain(kinds_behind).collect();
                large.push((parts.len(), Arc::clone(target), kinds));
            }
            parts.push(part);
        }
        let mut heads = vec![self.session.take_opening(), before];
        if groups.iter().any(|(group, _)| group.copies()) {
            self.check_copied(&heads, groups).await?;
            heads.clear();
        }
        if !large.is_empty() {
            self.send_ahead(&mut parts, &large, &std::mem::take(&mut heads)).await?;
        }
        let mut replies = Vec::with_capacity(groups.len());
        let mut rest = parts.as_slice();
        loop {
            // A COPY is sent by itself: after a statement that fails, the server would not start it.
            let until = rest.iter().position(|part| part.group.copies()).unwrap_or(rest.len());
            let (now, later) = rest.split_at(until.max(usize::from(!rest.is_empty())));
            rest = later;
            let tail = if rest.is_empty() { after } else { "" };
            replies.extend(self.round_trip(&heads, now, tail).await?);
            heads.clear();
            if rest.is_empty() {
                return Ok(replies);
            }
        }
    }

    /// What is to be sent behind a statement: what sets the columns that it can't set, and the look at what it has written.
    pub(super) fn behind(&self, kind: &StatementKind, target: &Target) -> Vec<StatementKind> {
        let set_identity = kind.set_identity(target);
        // Where other rows would go with a row that is deleted, it stays, and is parked if a column differs.
        let (set_identity, cant_be_set) = match set_identity {
            Some(_) if self.others_go_with(target) => (None, true),
            set_identity => (set_identity, false),
        };
        // Rows that no key tells apart can't be found again: their statements look themselves.
        let is_looked_at = cant_be_set || (target.guarded && !target.relation.counts_rows());
        let look = kind.look().filter(|_| is_looked_at).map(|look| match look {
            StatementKind::Look(written) if !target.guarded => StatementKind::LookAtIdentity(written),
            look => look,
        });
        set_identity.into_iter().chain(look).collect()
    }

    /// Takes the locks that the COPYs will need, and has the server check the role's rights and the columns: what is wrong is
    /// found here, as a COPY that the server does not start costs the connection (see `part::copy`). Partitions are locked by their
    /// rows, after the start.
    async fn check_copied(&self, heads: &[&str], groups: &[(&Group<'_>, Arc<Target>)]) -> Result<(), AgentError> {
        let client = &self.session.client;
        let tables: IndexMap<&TableName, String> = groups
            .iter()
            .filter(|(group, _)| group.copies())
            .map(|(group, target)| (&group.relation.table, sql::check_copy(target)))
            .collect();
        let heads = heads.iter().copied().filter(|head| !head.is_empty());
        let of = heads.clone().map(|_| None).chain(tables.keys().copied().map(Some));
        let mut calls: Vec<Call<'_, Result<Reply, tokio_postgres::Error>>> = Vec::new();
        for statement in heads.chain(tables.values().map(String::as_str)) {
            calls.push(Box::pin(command(client, statement)));
        }
        for (table, answer) in of.zip(in_order(calls).await) {
            // The first error is the cause; later ones only say that the transaction is aborted.
            answer.map_err(|source| AgentError::from_driver("begin a COPY", table, source).of_whole_table())?;
        }
        Ok(())
    }

    /// One round trip: `heads`, the parts' statements, `tail`.
    async fn round_trip(&mut self, heads: &[&str], parts: &[Part<'_>], tail: &str) -> Result<Vec<Reply>, AgentError> {
        let client = &self.session.client;
        let copied = parts
            .iter()
            .find(|part| part.group.copies())
            .map(|part| &part.group.relation.table);
        let copy_started = AtomicBool::new(false);
        let mut calls: Vec<Call<'_, Result<Reply, tokio_postgres::Error>>> = Vec::new();
        for head in heads.iter().filter(|head| !head.is_empty()) {
            calls.push(Box::pin(command(client, head)));
        }
        // The part that each call is for.
        let mut of: Vec<Option<&Part<'_>>> = calls.iter().map(|_| None).collect();
        for part in parts {
            calls.push(Box::pin(part.run(client, &copy_started)));
            of.push(Some(part));
            if part.fires {
                calls.push(Box::pin(command(client, self.session.pin_again())));
                of.push(Some(part));
            }
            for behind in &part.behind {
                calls.push(Box::pin(part.run_behind(client, behind)));
                of.push(Some(part));
            }
        }
        if !tail.is_empty() {
            calls.push(Box::pin(command(client, tail)));
            of.push(None);
        }
        let mut replies = Vec::with_capacity(parts.len());
        let mut changed = None;
        let work = Work {
            bytes: &|| parts.iter().map(Part::bytes).sum(),
            rows: parts.iter().map(|part| part.group.rows.len()).sum(),
            scanned: parts.iter().filter_map(Part::scanned).collect(),
        };
        let (answers, cancelled) = self.session.limit.within(&work, in_order(calls)).await;
        for (part, answer) in of.into_iter().zip(answers) {
            match answer {
                Ok(Reply::Done) => {}
                Ok(reply) => {
                    if let Some(part) = part.filter(|part| !part.expects(&reply)) {
                        changed = Some(&part.group.relation.table);
                    }
                    replies.push(reply);
                }
                Err(source) if copied.is_some() && !copy_started.load(Ordering::Relaxed) => {
                    self.session.cut();
                    return Err(AgentError::from_driver("begin a COPY", copied, source).of_whole_table());
                }
                Err(source)
                    if let Some(cancelled) = &cancelled
                        && is_cancelled(&source) =>
                {
                    return Err(too_slow(part.or(parts.first().filter(|_| parts.len() == 1)), cancelled));
                }
                // The first error is the cause; later ones only say that the transaction is aborted.
                Err(source) => {
                    let table = part.map(|part| &part.group.relation.table);
                    let error = AgentError::from_driver("write rows", table, source);
                    if let Some(table) = copied
                        && error.may_be_of_a_row()
                    {
                        self.copy_backoff.refused(table);
                    }
                    return Err(error);
                }
            }
        }
        if let Some(table) = changed {
            return Err(AgentError::TableChanged { table: table.clone() });
        }
        if let Some(table) = copied {
            self.copy_backoff.accepted(table);
        }
        Ok(replies)
    }
}

async fn command(client: &Client, sql: &str) -> Result<Reply, tokio_postgres::Error> {
    client.batch_execute(sql).await.map(|()| Reply::Done)
}

fn is_cancelled(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code() == sqlstate::QUERY_CANCELED)
}

/// The statement of a part, or what was sent with several, was cancelled.
fn too_slow(part: Option<&Part<'_>>, cancelled: &Cancelled) -> AgentError {
    let (action, table, rows) = match part {
        Some(part) => (
            part.group.kind.name(),
            Some(part.group.relation.table.clone()),
            part.group.rows.len(),
        ),
        None => ("the check of the constraints", None, 0),
    };
    cancelled.of(action, table, rows)
}
