//! The one place that changes rows of `whatsapp_messages`: a [`Transition`] becomes a statement, which changes one or many
//! rows, and writes their notifications with it.
//!
//! A statement is one round trip for any number of rows. A row whose status is not one that the transition starts from, or
//! whose lease is another attempt's, is not changed and not returned.
//!
//! The text of a statement depends only on its transition, so that the server prepares it once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sqlx::Arguments;
use sqlx::postgres::PgArguments;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::fold::MessageState;
use super::problem::Problem;
use super::status::MessageStatus;
use super::transition::{Input, Notifies, Only, To, Transition, Write};
use crate::provider::{Response, Wamid};
use crate::site_db::notifications::{self, NotificationKind};
use crate::site_db::pool::Session;
use crate::site_db::{Pool, SiteError, Transaction};

/// A row that a transition changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Moved {
    pub(super) id: Uuid,
    /// The status that it has now.
    pub(super) status: MessageStatus,
}

/// A row to be changed, and what its transition needs (see [`Transition::inputs`]); the rest stays empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Change {
    pub(super) id: Uuid,
    pub(super) lease_owner: Option<Uuid>,
    pub(super) problem: Option<Problem>,
    pub(super) response: Option<Response>,
    pub(super) wait: Duration,
    pub(super) consumed: bool,
    pub(super) send_within: Option<Duration>,
    /// For [`To::Folded`]: the row's new values; its error is used instead of `problem`.
    pub(super) folded: Option<MessageState>,
    pub(super) notify: bool,
}

/// A transition's statement over rows that the caller names.
#[derive(Debug)]
pub(super) struct Statement {
    /// The transition's name, for the log.
    name: &'static str,
    text: String,
    inputs: Vec<Input>,
}

impl Statement {
    pub(super) fn new(transition: &Transition) -> Self {
        let inputs = transition.inputs();
        Self {
            name: transition.name,
            text: with_moved(&inputs, transition, "id, status"),
            inputs,
        }
    }

    /// Changes the rows; returns those that it changed.
    pub(super) async fn execute(
        &'static self,
        connection: &mut Session,
        changes: &[Change],
    ) -> Result<Vec<Moved>, SiteError> {
        let arguments = self.arguments(changes).map_err(sqlx::Error::Encode)?;
        let moved: Vec<Moved> = sqlx::query_as_with(self.text.as_str(), arguments)
            .fetch_all(connection)
            .await?;
        for row in &moved {
            tracing::trace!(message_id = %row.id, status = %row.status, transition = self.name, "a message changed");
        }
        Ok(moved)
    }

    fn arguments(&self, changes: &[Change]) -> Result<PgArguments, sqlx::error::BoxDynError> {
        let mut arguments = PgArguments::default();
        arguments.add(changes.iter().map(|change| change.id).collect::<Vec<_>>())?;
        for input in &self.inputs {
            add(&mut arguments, *input, changes)?;
        }
        Ok(arguments)
    }
}

/// The rows that the caller names, as the table `c`.
fn named_rows(inputs: &[Input]) -> String {
    let mut arrays = vec!["$1::uuid[]".to_owned()];
    let mut names = vec!["id"];
    for (input, number) in inputs.iter().zip(2..) {
        arrays.push(format!("${number}::{}[]", input.sql_type()));
        names.push(input.name());
    }
    format!("unnest({}) AS c({})", arrays.join(", "), names.join(", "))
}

/// A whole statement over rows that the caller names; returns `columns` of each row that it changed. The rows are locked in
/// the order of their ids, so that no two statements wait for each other in a circle.
fn with_moved(inputs: &[Input], transition: &Transition, columns: &str) -> String {
    let moved = moved(&named_rows(inputs), "held", transition);
    format!(
        "WITH held AS MATERIALIZED (SELECT h.id FROM public.whatsapp_messages h WHERE h.id = ANY ($1) ORDER BY h.id \
         FOR NO KEY UPDATE), {moved} SELECT {columns} FROM moved"
    )
}

/// The same for rows that `query` chooses and locks; it returns their ids, and its parameters are the statement's.
pub(super) fn chosen(query: &str, transition: &Transition, columns: &str) -> String {
    let moved = moved("chosen AS c", "chosen", transition);
    format!("WITH chosen AS MATERIALIZED ({query}), {moved} SELECT {columns} FROM moved")
}

/// `moved`, the changed rows, and their notifications, as members of a `WITH`. `source` is a table `c` with the rows' ids;
/// `locked` a member with the ids of rows that the statement has locked.
pub(super) fn moved(source: &str, locked: &str, transition: &Transition) -> String {
    let mut text = format!("moved AS ({})", update(source, locked, transition));
    if let Some(insert) = notification(transition.notifies) {
        text.push_str(&format!(", notified AS ({insert})"));
    }
    text
}

fn update(source: &str, locked: &str, transition: &Transition) -> String {
    let status = match transition.to {
        To::Status(status) => format!("'{status}'"),
        To::Same => "m.status".to_owned(),
        To::Folded => "c.status".to_owned(),
    };
    let writes: Vec<String> = transition
        .writes
        .iter()
        .copied()
        .flatten()
        .copied()
        .map(assignment)
        .collect();
    let from: Vec<String> = transition.from.iter().map(|status| format!("'{status}'")).collect();
    let only = match transition.only {
        Only::Any => String::new(),
        Only::LeaseHeld => " AND m.lease_owner = c.lease_owner".to_owned(),
        Only::WithoutWamid => " AND m.wamid IS NULL".to_owned(),
        Only::HasDeadline => " AND m.send_by IS NOT NULL".to_owned(),
        Only::Class(class) => format!(" AND m.error_class = '{class}'"),
    };
    let marked = if transition.notifies == Notifies::MarkedFailure {
        ", c.notify"
    } else {
        ""
    };
    // An array of the ids, so that the rows are found by the primary key whatever the planner believes of the tables' sizes.
    // Inside `coalesce`, so that the planner takes the primary key: it would believe a partial index on these statuses to be
    // nearly empty, as it is most of the time, and read a whole backlog for each statement.
    format!(
        "UPDATE public.whatsapp_messages AS m SET status = {status}, {}, updated_at = now() FROM {source} \
         WHERE m.id = c.id AND m.id = ANY (ARRAY(SELECT l.id FROM {locked} AS l)) \
         AND coalesce(m.status IN ({}), false){only} RETURNING m.*{marked}",
        writes.join(", "),
        from.join(", ")
    )
}

fn assignment(write: Write) -> String {
    match write {
        Write::Now(column) => format!("{column} = now()"),
        Write::Clear(column) => format!("{column} = NULL"),
        Write::Text(column, text) => format!("{column} = '{text}'"),
        Write::Given(column, input) => format!("{column} = c.{}", input.name()),
        Write::Computed(column, expression, _) => format!("{column} = {expression}"),
    }
}

fn notification(notifies: Notifies) -> Option<String> {
    use NotificationKind::{MessageFailed, MessageUnknown};
    let (kind, detail, only) = match notifies {
        Notifies::Nothing => return None,
        Notifies::Failure => (MessageFailed, "error_message", None),
        Notifies::MarkedFailure => (
            MessageFailed,
            "concat_ws(' ', error_code, error_message)",
            Some("notify"),
        ),
        Notifies::Loss => (MessageUnknown, "error_message", None),
        Notifies::ExpiredLease => (MessageUnknown, "NULL", None),
    };
    Some(notifications::of_messages("moved", kind, detail, only))
}

/// Adds a column of the rows to the statement's arguments.
fn add(arguments: &mut PgArguments, input: Input, changes: &[Change]) -> Result<(), sqlx::error::BoxDynError> {
    macro_rules! each {
        ($value:expr) => {
            arguments.add(changes.iter().map($value).collect::<Vec<_>>())
        };
    }
    macro_rules! folded {
        ($column:ident) => {
            each!(|change| change.folded.as_ref().and_then(|folded| folded.$column.clone()))
        };
    }
    match input {
        Input::LeaseOwner => each!(|change| change.lease_owner),
        Input::ErrorCode => each!(|change| match &change.folded {
            Some(folded) => folded.error_code,
            None => change.problem.as_ref().and_then(|problem| problem.code),
        }),
        Input::ErrorClass => each!(|change| match &change.folded {
            Some(folded) => folded.error_class.clone(),
            None => change.problem.as_ref().map(|problem| problem.class.as_str().to_owned()),
        }),
        Input::ErrorMessage => each!(|change| match &change.folded {
            Some(folded) => folded.error_message.clone(),
            None => change.problem.as_ref().map(|problem| problem.message.clone()),
        }),
        Input::ResponseStatus => each!(|change| change.response.as_ref().map(|response| i32::from(response.status))),
        Input::Response => each!(|change| change.response.as_ref().map(|response| response.body.clone())),
        Input::WaitSeconds => each!(|change| change.wait.as_secs_f64()),
        Input::Consumed => each!(|change| change.consumed),
        Input::SendWithinSeconds => each!(|change| change.send_within.map(|within| within.as_secs_f64())),
        Input::Status => each!(|change| change.folded.as_ref().map(|folded| folded.status)),
        Input::Wamid => folded!(wamid),
        Input::AcceptedAt => folded!(accepted_at),
        Input::HeldAt => folded!(held_at),
        Input::SentAt => folded!(sent_at),
        Input::DeliveredAt => folded!(delivered_at),
        Input::ReadAt => folded!(read_at),
        Input::PlayedAt => folded!(played_at),
        Input::FailedAt => folded!(failed_at),
        Input::Notify => each!(|change| change.notify),
    }
}

/// Moves the messages of a conversation to another one, or to another lead; returns their ids. Their state does not change.
pub(in crate::site_db) async fn move_to(
    tx: &mut Transaction<'_>,
    conversation: Uuid,
    into: Uuid,
    lead_id: Uuid,
) -> Result<Vec<Uuid>, SiteError> {
    Ok(sqlx::query_scalar(
        "WITH held AS MATERIALIZED (SELECT h.id FROM public.whatsapp_messages h WHERE h.conversation_id = $1 ORDER BY h.id \
         FOR NO KEY UPDATE) \
         UPDATE public.whatsapp_messages AS m SET conversation_id = $2, lead_id = $3, updated_at = now() \
         FROM held WHERE m.id = held.id RETURNING m.id",
    )
    .bind(conversation)
    .bind(into)
    .bind(lead_id)
    .fetch_all(tx.connection())
    .await?)
}

/// What a placeholder of the history stands for.
#[derive(Debug, Clone, Copy)]
pub struct Medium<'a> {
    /// The row of the number that the message is from or to.
    pub account_id: Uuid,
    /// Meta's id of the message.
    pub wamid: &'a Wamid,
    /// Meta's name of the type.
    pub kind: &'a str,
    /// The text that a person sees.
    pub text: Option<&'a str>,
    /// The message's whole object in the webhook.
    pub payload: &'a Value,
}

/// The type of a message of the history whose medium comes with an event of its own.
pub(super) const PLACEHOLDER: &str = "media_placeholder";

/// Puts the medium into the message that stands for it; false if there is none.
///
/// # Errors
/// See [`SiteError`].
pub async fn replace_placeholder(tx: &mut Transaction<'_>, medium: &Medium<'_>) -> Result<bool, SiteError> {
    Ok(sqlx::query(
        "UPDATE public.whatsapp_messages SET type = $3, body = $4, payload = payload || $5, updated_at = now() \
         WHERE account_id = $1 AND wamid = $2 AND type = $6 AND $3 <> $6",
    )
    .bind(medium.account_id)
    .bind(medium.wamid)
    .bind(medium.kind)
    .bind(medium.text)
    .bind(Json(medium.payload))
    .bind(PLACEHOLDER)
    .execute(tx.connection())
    .await?
    .rows_affected()
        > 0)
}

/// Checks that this role may change messages. An update of no row needs the same rights as a real one, and fails on a
/// standby.
///
/// # Errors
/// It may not, or the Site DB did not answer.
pub(in crate::site_db) async fn check_writable(pool: &Pool) -> Result<(), SiteError> {
    sqlx::query("UPDATE public.whatsapp_messages SET updated_at = updated_at WHERE false")
        .execute(&pool.0)
        .await?;
    Ok(())
}

/// A person's message that is stored already, as another webhook brought it.
#[derive(Debug, Clone, Copy)]
pub struct Repeated<'a> {
    /// The row of the number that it is to.
    pub account_id: Uuid,
    /// Meta's id of the message.
    pub wamid: &'a Wamid,
    /// When that webhook was committed.
    pub received_at: OffsetDateTime,
}

/// Messages of people that are stored already, and were received now or before: those whose webhook was received before the
/// one that was processed first get its time, so that a person's messages stay in the order of their arrival when Meta
/// repeats a webhook.
///
/// # Errors
/// See [`SiteError`].
pub async fn received_before(tx: &mut Transaction<'_>, repeated: &[Repeated<'_>]) -> Result<(), SiteError> {
    if repeated.is_empty() {
        return Ok(());
    }
    // Locked in one order. Nearly always there is none.
    let later: Vec<(Uuid, OffsetDateTime)> = sqlx::query_as(
        "SELECT m.id, r.created_at FROM public.whatsapp_messages m
           JOIN unnest($1::uuid[], $2::text[], $3::timestamptz[]) AS r(account_id, wamid, created_at)
             ON m.account_id = r.account_id AND m.direction = 'inbound' AND m.wamid = r.wamid
          WHERE m.created_at > r.created_at ORDER BY m.id, r.created_at DESC FOR NO KEY UPDATE OF m",
    )
    .bind(repeated.iter().map(|one| one.account_id).collect::<Vec<_>>())
    .bind(repeated.iter().map(|one| one.wamid).collect::<Vec<_>>())
    .bind(repeated.iter().map(|one| one.received_at).collect::<Vec<_>>())
    .fetch_all(tx.connection())
    .await?;
    if later.is_empty() {
        return Ok(());
    }
    // Of several times of one message the last one is the earliest.
    let later: BTreeMap<Uuid, OffsetDateTime> = later.into_iter().collect();
    sqlx::query(
        "UPDATE public.whatsapp_messages AS m SET created_at = r.at, received_at = r.at, updated_at = now()
           FROM unnest($1::uuid[], $2::timestamptz[]) AS r(id, at) WHERE m.id = r.id AND m.created_at > r.at",
    )
    .bind(later.keys().copied().collect::<Vec<_>>())
    .bind(later.values().copied().collect::<Vec<_>>())
    .execute(tx.connection())
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::transition;
    use super::*;

    #[test]
    fn a_transition_becomes_one_statement_over_many_rows() {
        assert_eq!(
            Statement::new(&transition::FAIL).text,
            "WITH held AS MATERIALIZED (SELECT h.id FROM public.whatsapp_messages h WHERE h.id = ANY ($1) ORDER BY h.id \
             FOR NO KEY UPDATE), moved AS (UPDATE public.whatsapp_messages AS m SET status = 'failed', failed_at = now(), \
             error_code = c.error_code, error_class = c.error_class, error_message = c.error_message, \
             response_status = c.response_status, response = c.response, lease_owner = NULL, lease_until = NULL, \
             next_attempt_at = NULL, updated_at = now() \
             FROM unnest($1::uuid[], $2::uuid[], $3::integer[], $4::text[], $5::text[], $6::integer[], $7::text[]) \
             AS c(id, lease_owner, error_code, error_class, error_message, response_status, response) \
             WHERE m.id = c.id AND m.id = ANY (ARRAY(SELECT l.id FROM held AS l)) \
             AND coalesce(m.status IN ('sending', 'unknown'), false) \
             AND m.lease_owner = c.lease_owner RETURNING m.*), \
             notified AS (INSERT INTO public.notifications (kind, account_id, conversation_id, message_id, detail) \
             SELECT 'message_failed', account_id, conversation_id, id, error_message FROM moved) \
             SELECT id, status FROM moved"
        );
    }

    #[test]
    fn a_query_may_choose_the_rows() {
        assert_eq!(
            chosen("SELECT 1", &transition::EXPIRE, "id"),
            "WITH chosen AS MATERIALIZED (SELECT 1), moved AS (UPDATE public.whatsapp_messages AS m SET status = 'unknown', \
             unknown_at = now(), error_class = 'unknown', \
             error_message = 'the process that sent it did not record an outcome', updated_at = now() \
             FROM chosen AS c WHERE m.id = c.id AND m.id = ANY (ARRAY(SELECT l.id FROM chosen AS l)) \
             AND coalesce(m.status IN ('sending'), false) RETURNING m.*), \
             notified AS (INSERT INTO public.notifications (kind, account_id, conversation_id, message_id, detail) \
             SELECT 'message_unknown', account_id, conversation_id, id, NULL FROM moved) SELECT id FROM moved"
        );
    }

    #[test]
    fn the_text_names_every_input_once() {
        for transition in transition::ALL {
            let statement = Statement::new(transition);
            let numbers = statement.inputs.len() + 1;
            assert!(statement.text.contains(&format!("${numbers}::")), "{}", transition.name);
            assert!(
                !statement.text.contains(&format!("${}::", numbers + 1)),
                "{}",
                transition.name
            );
        }
    }
}
