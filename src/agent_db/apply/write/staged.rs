//! Sends values that are too large for parameters ahead of their statements, piece by piece, into a temporary table.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::SinkExt;

use super::part::Part;
use super::writer::Writer;
use crate::agent_db::apply::sql::{
    self, COPY_STAGED, CREATE_STAGED, Parameter, StatementKind, StatementText, read_staged, staged_lines,
};
use crate::agent_db::apply::targets::Prepared;
use crate::agent_db::catalog::Target;
use crate::agent_db::error::AgentError;

/// A part by its position, its target, and the kinds of its statements: its own, and those behind it.
pub(super) type LargePart = (usize, Arc<Target>, Vec<StatementKind>);

impl Writer {
    /// Sends `heads`, then the values of some parts, whose statements read them then in the temporary table. Where the role may
    /// make none, they stay parameters.
    pub(super) async fn send_ahead(
        &mut self,
        parts: &mut [Part<'_>],
        large: &[LargePart],
        heads: &[&str],
    ) -> Result<(), AgentError> {
        for head in heads.iter().filter(|head| !head.is_empty()) {
            self.session.command(head).await?;
        }
        if !self.make_staged().await? {
            return Ok(());
        }
        let mut first = 0;
        for (position, target, kinds) in large {
            let Some(part) = parts.get_mut(*position) else {
                continue;
            };
            let texts: Vec<StatementText> = kinds.iter().map(|kind| sql::statement(target, kind)).collect();
            let mut arrays: Vec<Parameter> = Vec::new();
            for &parameter in texts.iter().flat_map(|text| &text.parameters) {
                if !arrays.contains(&parameter) {
                    arrays.push(parameter);
                }
            }
            self.copy_staged(part, first, &arrays).await?;
            let mut prepared = Vec::with_capacity(texts.len());
            for text in &texts {
                let places = text
                    .parameters
                    .iter()
                    .map(|parameter| arrays.iter().position(|array| array == parameter));
                let numbers: Vec<usize> = places.flatten().map(|place| first + place).collect();
                let statement = self.session.client.prepare(&read_staged(&text.sql, &numbers)).await;
                let statement = statement.map_err(|source| {
                    AgentError::from_driver("prepare a statement", Some(&target.relation.table), source)
                        .whatever_the_row()
                })?;
                prepared.push(Arc::new(Prepared {
                    statement,
                    parameters: Vec::new(),
                }));
            }
            part.behind = prepared.split_off(1);
            part.prepared = prepared.remove(0);
            first += arrays.len();
        }
        Ok(())
    }

    /// Whether there is an empty temporary table now: the role may not be allowed to make one, and an event trigger may
    /// refuse it.
    async fn make_staged(&self) -> Result<bool, AgentError> {
        self.session.command("SAVEPOINT staged").await?;
        let made = self.session.client.batch_execute(CREATE_STAGED).await;
        match made {
            Ok(()) => {
                self.session.command("RELEASE SAVEPOINT staged").await?;
                Ok(true)
            }
            Err(source) if source.as_db_error().is_some() => {
                let error = AgentError::from_driver("make a temporary table for large values", None, source);
                tracing::debug!(%error, "large values are sent as parameters, which takes more memory");
                self.session
                    .command("ROLLBACK TO SAVEPOINT staged; RELEASE SAVEPOINT staged")
                    .await?;
                Ok(false)
            }
            Err(source) => Err(AgentError::from_driver(
                "make a temporary table for large values",
                None,
                source,
            )),
        }
    }

    /// Sends the values of a part's parameters. The first has the number `first` in the temporary table.
    async fn copy_staged(&self, part: &Part<'_>, first: usize, parameters: &[Parameter]) -> Result<(), AgentError> {
        let table = &part.group.relation.table;
        let failed = |source| {
            // A COPY that the server has not started leaves answers that can't be told apart.
            self.session.cut();
            AgentError::from_driver("send large values", Some(table), source).whatever_the_row()
        };
        let client = &self.session.client;
        let mut copy = pin!(client.copy_in::<_, Bytes>(COPY_STAGED).await.map_err(failed)?);
        let arrays = (first..).zip(parameters.iter().map(|&parameter| part.array(parameter)));
        for line in staged_lines(arrays) {
            copy.feed(line).await.map_err(failed)?;
        }
        copy.finish().await.map_err(failed)?;
        Ok(())
    }
}
