//! Which of some rows can't be written with the others: they are refused for reasons of their own, or depend on rows that
//! are not written.

use super::attempt::{Keep, Room};
use super::rows::{Cause, Refused, by_table};
use crate::agent_db::apply::write::writer::Writer;
use crate::agent_db::error::AgentError;
use crate::change::Change;

impl Writer {
    /// Rows among `rows` that are refused, whatever of the others is written, with their reasons. Nothing is written.
    pub(super) async fn blocked<'e>(
        &mut self,
        rows: &[&'e Change],
        budget: &mut usize,
    ) -> Result<Vec<(&'e Change, Refused)>, AgentError> {
        let mut found = Box::pin(self.refused_alone(rows, budget)).await?;
        let rest: Vec<&'e Change> = rows
            .iter()
            .copied()
            .filter(|row| !found.iter().any(|(other, _)| std::ptr::eq(*row, *other)))
            .collect();
        found.extend(Box::pin(self.dependent(&rest)).await?);
        Ok(found)
    }

    /// Finds rows that are refused though no other of the rows is in their way, by halving.
    async fn refused_alone<'e>(
        &mut self,
        rows: &[&'e Change],
        budget: &mut usize,
    ) -> Result<Vec<(&'e Change, Refused)>, AgentError> {
        self.session.command("SAVEPOINT room").await?;
        let tables = by_table(rows);
        for room in [Room::Null, Room::Delete] {
            self.session.command("SAVEPOINT piece").await?;
            let made = Box::pin(self.make_room(&tables, room)).await;
            let made = self.tolerated(made)?;
            let undo = if made.is_none() {
                ""
            } else {
                "ROLLBACK TO SAVEPOINT piece; "
            };
            self.back_to(&format!("{undo}RELEASE SAVEPOINT piece")).await?;
        }
        let mut found = Vec::new();
        let mut pieces: Vec<&[&'e Change]> = vec![rows];
        while let Some(piece) = pieces.pop() {
            if piece.is_empty() {
                continue;
            }
            let refused = match Box::pin(self.attempt_rows(piece, Keep::Nothing)).await? {
                // A missing parent is found at the end of a statement: nothing else is wrong with the rows.
                None => continue,
                Some(refused) if refused.cause == Cause::Reference => continue,
                Some(refused) => refused,
            };
            *budget = budget.saturating_sub(1);
            if piece.len() == 1 || *budget == 0 {
                found.extend(piece.iter().map(|row| (*row, refused.clone())));
            } else {
                let (first, second) = piece.split_at(piece.len() / 2);
                pieces.push(second);
                pieces.push(first);
            }
        }
        self.back_to("ROLLBACK TO SAVEPOINT room; RELEASE SAVEPOINT room")
            .await?;
        Ok(found)
    }
}
