//! Sending groups of rows in one round trip, and counting what each did.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::TryStreamExt;
use tokio_postgres::{Client, Statement};

use super::Sink;
use super::array::TextArray;
use super::bulk;
use super::ledger::{Kind as Counted, Ledger};
use super::pipeline::{Request, in_order};
use super::plan::{Group, Line};
use super::sql::{self, Kind, Parameter};
use super::write::count;
use crate::agent_db::bookkeeping::failed_rows::entries::ParkReason;
use crate::agent_db::catalog::Target;
use crate::agent_db::error::AgentError;
use crate::change::{Key, Origin, Row};
use crate::retry::Disposition;

/// A prepared statement of a table.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Keeps the address alive by which it is found.
    _target: Arc<Target>,
    statement: Statement,
    parameters: Vec<Parameter>,
}

/// An answer to one request of a pipeline.
#[derive(Debug)]
enum Reply {
    /// A command without rows.
    Done,
    /// Rows written.
    Count(u64),
    /// Positions (from 1) of the rows that were there.
    Found(Vec<i64>),
}

impl Sink {
    /// Sends the groups' statements in one round trip and counts what they did. Nothing is parked and nothing counts as
    /// healed before all of them have succeeded.
    pub(super) async fn write_groups(
        &mut self,
        groups: &[Group<'_>],
        before: &str,
        after: &str,
        ledger: &mut Ledger,
    ) -> Result<(), AgentError> {
        // A key that the Agent DB generates always can't be updated: the row is deleted and inserted.
        let mut replaced = Vec::new();
        let mut kept = Vec::new();
        for group in groups {
            let target = self.target(group.relation).await?;
            if matches!(group.kind, Kind::Move { .. }) && !target.key_can_change() {
                replaced.push(group);
            } else {
                kept.push((group, target));
            }
        }
        // Moves may need a second statement before the savepoint is released.
        let is_plain = replaced.is_empty() && !kept.iter().any(|(group, _)| matches!(group.kind, Kind::Move { .. }));
        let replies = self.send(&kept, before, if is_plain { after } else { "" }).await?;

        let mut rootless: Vec<Line<'_>> = Vec::new();
        let mut missing: Vec<(&Group<'_>, Vec<Line<'_>>)> = Vec::new();
        for ((group, _), reply) in kept.iter().zip(&replies) {
            missing.push((group, not_found(group, reply)));
        }
        for &group in &replaced {
            missing.push((group, group.lines.clone()));
        }
        // A moved row that was not there: its full image is all that is needed.
        let mut second: Vec<Group<'_>> = Vec::new();
        for (group, lines) in &missing {
            if matches!(group.kind, Kind::Move { .. }) {
                if replaced.iter().any(|other| std::ptr::eq(*other, *group)) {
                    second.extend(group.as_deletes(lines));
                }
                second.extend(group.as_upserts(lines));
                rootless.extend(lines.iter().filter(|line| !line.row.is_some_and(Row::is_full)));
            }
        }
        let mut with_targets = Vec::new();
        for group in &second {
            with_targets.push((group, self.target(group.relation).await?));
        }
        if !is_plain && (!with_targets.is_empty() || !after.is_empty()) {
            self.send(&with_targets, "", after).await?;
        }

        for line in &rootless {
            self.park(line.change, &ParkReason::missing_base(), ledger)?;
        }
        for ((group, lines), reply) in missing
            .iter()
            .zip(replies.iter().map(Some).chain(std::iter::repeat(None)))
        {
            self.settle(group, reply, lines, ledger)?;
        }
        Ok(())
    }

    /// Counts what a group did.
    fn settle(
        &mut self,
        group: &Group<'_>,
        reply: Option<&Reply>,
        missing: &[Line<'_>],
        ledger: &mut Ledger,
    ) -> Result<(), AgentError> {
        let table = &group.relation.table;
        let total = group.lines.len() as u64;
        if group.heal {
            for line in &group.lines {
                self.lot.healed(table, line.key);
            }
            ledger.of(table, Counted::Copy).healed += total;
            return Ok(());
        }
        if group.origin == Origin::Chunk {
            ledger.of(table, Counted::Copy).copied += match reply {
                Some(Reply::Count(rows)) => *rows,
                _ => total,
            };
            return Ok(());
        }
        match &group.kind {
            Kind::Delete => {
                let deleted = match reply {
                    Some(Reply::Count(rows)) => (*rows).min(total),
                    _ => total,
                };
                let tally = ledger.of(table, Counted::Delete);
                tally.applied += deleted;
                tally.unchanged += total - deleted;
            }
            Kind::Partial { .. } => {
                let is_copying = self.copying.contains(table);
                for line in missing {
                    if is_copying {
                        count(line.change, ledger).superseded += 1;
                    } else {
                        self.park(line.change, &ParkReason::missing_base(), ledger)?;
                    }
                }
                ledger.of(table, Counted::Update).applied += total - missing.len() as u64;
            }
            Kind::Move { .. } => {
                let parked = missing
                    .iter()
                    .filter(|line| !line.row.is_some_and(Row::is_full))
                    .count();
                ledger.of(table, Counted::Update).applied += total - parked as u64;
            }
            Kind::Copy | Kind::Upsert { .. } => {
                let inserts = group
                    .lines
                    .iter()
                    .filter(|line| Counted::of(line.change) == Counted::Insert)
                    .count() as u64;
                ledger.of(table, Counted::Insert).applied += inserts;
                ledger.of(table, Counted::Update).applied += total - inserts;
            }
        }
        Ok(())
    }

    /// `before`, the groups' statements, `after`: one round trip, and one more for each COPY.
    async fn send(
        &mut self,
        groups: &[(&Group<'_>, Arc<Target>)],
        before: &str,
        after: &str,
    ) -> Result<Vec<Reply>, AgentError> {
        let mut parts = Vec::with_capacity(groups.len());
        for (group, target) in groups {
            parts.push(Part {
                group,
                prepared: self.prepared(target, &group.kind).await?,
                rows: group.lines.iter().filter_map(|line| line.row).collect(),
                keys: group.lines.iter().map(|line| line.key).collect(),
            });
        }
        let opening = self.opening.take().unwrap_or_default();
        let mut heads = vec![&*opening, before];
        let mut replies = Vec::with_capacity(groups.len());
        let mut rest = parts.as_slice();
        loop {
            // A COPY flies alone: behind a statement that fails it would not be taken up.
            let until = rest.iter().position(|part| part.group.copies()).unwrap_or(rest.len());
            let (flight, others) = rest.split_at(until.max(usize::from(!rest.is_empty())));
            rest = others;
            let tail = if rest.is_empty() { after } else { "" };
            replies.extend(self.fly(&heads, flight, tail).await?);
            heads.clear();
            if rest.is_empty() {
                return Ok(replies);
            }
        }
    }

    /// One round trip: `heads`, the parts' statements, `tail`.
    async fn fly(&mut self, heads: &[&str], parts: &[Part<'_>], tail: &str) -> Result<Vec<Reply>, AgentError> {
        let client = &self.client;
        let copied = parts
            .iter()
            .find(|part| part.group.copies())
            .map(|part| &part.group.relation.table);
        let started = AtomicBool::new(false);
        let mut requests: Vec<Request<'_, Result<Reply, tokio_postgres::Error>>> = Vec::new();
        for head in heads.iter().filter(|head| !head.is_empty()) {
            requests.push(Box::pin(command(client, head)));
        }
        let first = requests.len();
        for part in parts {
            requests.push(Box::pin(part.run(client, &started)));
        }
        if !tail.is_empty() {
            requests.push(Box::pin(command(client, tail)));
        }
        let mut replies = Vec::with_capacity(parts.len());
        for (position, answer) in in_order(requests).await.into_iter().enumerate() {
            let part = position.checked_sub(first).and_then(|position| parts.get(position));
            match answer {
                Ok(reply) if part.is_some() => replies.push(reply),
                Ok(_) => {}
                Err(source) if copied.is_some() && !started.load(Ordering::Relaxed) => {
                    self.connection.abort();
                    return Err(AgentError::from_driver("begin a COPY", copied, source));
                }
                // The first error is the true one; those behind it only say that the transaction is aborted.
                Err(source) => {
                    let table = part.map(|part| &part.group.relation.table);
                    let error = AgentError::from_driver("write rows", table, source);
                    if let Some(table) = copied
                        && error.disposition() == Disposition::Row
                    {
                        self.spared.refused(table);
                    }
                    return Err(error);
                }
            }
        }
        if let Some(table) = copied {
            self.spared.accepted(table);
        }
        Ok(replies)
    }

    async fn prepared(&mut self, target: &Arc<Target>, kind: &Kind) -> Result<Arc<Prepared>, AgentError> {
        /// Partial images can come in many shapes; beyond this many statements start over rather than fill the server.
        const MAX_STATEMENTS: usize = 1000;
        let address = Arc::as_ptr(target) as usize;
        if let Some(prepared) = self.statements.get(&(address, kind.clone())) {
            return Ok(Arc::clone(prepared));
        }
        let text = sql::statement(target, kind);
        let statement =
            self.client.prepare(&text.sql).await.map_err(|source| {
                AgentError::from_driver("prepare a statement", Some(&target.relation.table), source)
            })?;
        if self.statements.len() >= MAX_STATEMENTS {
            self.statements.clear();
        }
        let prepared = Arc::new(Prepared {
            _target: Arc::clone(target),
            statement,
            parameters: text.parameters,
        });
        self.statements.insert((address, kind.clone()), Arc::clone(&prepared));
        Ok(prepared)
    }
}

async fn command(client: &Client, sql: &str) -> Result<Reply, tokio_postgres::Error> {
    client.batch_execute(sql).await.map(|()| Reply::Done)
}

/// A group's statement and what goes into it.
struct Part<'e> {
    group: &'e Group<'e>,
    prepared: Arc<Prepared>,
    rows: Vec<&'e Row>,
    keys: Vec<&'e Key>,
}

impl Part<'_> {
    /// Runs the statement. `started` is for a COPY, see [`bulk::copy`].
    async fn run(&self, client: &Client, started: &AtomicBool) -> Result<Reply, tokio_postgres::Error> {
        let Prepared {
            statement, parameters, ..
        } = &*self.prepared;
        let parameters = parameters.iter().map(|parameter| match *parameter {
            Parameter::Column(column) => TextArray::Column {
                rows: &self.rows,
                column,
            },
            Parameter::KeyPart(part) => TextArray::KeyPart { keys: &self.keys, part },
        });
        match self.group.kind {
            Kind::Copy => bulk::copy(client, statement, &self.rows, started)
                .await
                .map(Reply::Count),
            Kind::Partial { .. } | Kind::Move { .. } => {
                let found = client
                    .query_raw(statement, parameters)
                    .await?
                    .and_then(|row| std::future::ready(row.try_get::<_, i64>(0)))
                    .try_collect()
                    .await?;
                Ok(Reply::Found(found))
            }
            Kind::Upsert { .. } | Kind::Delete => client.execute_raw(statement, parameters).await.map(Reply::Count),
        }
    }
}

/// The lines whose rows were not there.
fn not_found<'e>(group: &Group<'e>, reply: &Reply) -> Vec<Line<'e>> {
    let Reply::Found(found) = reply else {
        return Vec::new();
    };
    if found.len() == group.lines.len() {
        return Vec::new();
    }
    let found: ahash::AHashSet<i64> = found.iter().copied().collect();
    (1..)
        .zip(&group.lines)
        .filter(|(position, _)| !found.contains(position))
        .map(|(_, line)| *line)
        .collect()
}
