//! `twinlog.lead_statements`: what is known of a person's ids and is not in the leads yet, because it concerns leads that the
//! transaction which learnt it may not lock any more, or several leads that are to be merged.
//!
//! They are stored with what they were learnt from, so that none is lost, and settled in transactions of their own (see
//! [`merging`](crate::site_db::merging)).

use std::time::Duration;

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::provider::event::IdentityChange;
use crate::provider::{ContactIdentity, UserId, WaId};
use crate::site_db::{Pool, SiteError, Transaction};

/// What is known of a person's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// WhatsApp showed these ids together.
    Seen(ContactIdentity),
    /// WhatsApp told that the ids changed, and when.
    Told(Box<IdentityChange>, OffsetDateTime),
}

/// A lead that a message of ours was sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// `leads.id`.
    pub lead_id: Uuid,
    /// The recipient as the client wrote it; `None` if it is not known.
    pub dialled: Option<String>,
}

/// What is known of a person's ids, and of which lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The person's lead, if it is known by a message and not only by the ids.
    pub lead: Option<Reached>,
    /// What is known.
    pub word: Word,
}

impl Statement {
    /// All ids that it names.
    pub(in crate::site_db) fn contacts(&self) -> Vec<&ContactIdentity> {
        match &self.word {
            Word::Seen(contact) => vec![contact],
            Word::Told(change, _) => vec![&change.current, &change.previous, &change.other],
        }
    }
}

/// A statement that is being settled.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// Its row.
    pub id: Uuid,
    /// What it says.
    pub statement: Statement,
}

/// Stores statements.
///
/// # Errors
/// See [`SiteError`].
pub async fn add(tx: &mut Transaction<'_>, statements: &[Statement]) -> Result<(), SiteError> {
    if statements.is_empty() {
        return Ok(());
    }
    let none = IdentityChange::default();
    let rows: Vec<(
        Option<&Reached>,
        &ContactIdentity,
        &IdentityChange,
        Option<OffsetDateTime>,
    )> = statements
        .iter()
        .map(|statement| match &statement.word {
            Word::Seen(contact) => (statement.lead.as_ref(), contact, &none, None),
            Word::Told(change, at) => (statement.lead.as_ref(), &change.current, &**change, Some(*at)),
        })
        .collect();
    macro_rules! each {
        ($value:expr) => {
            rows.iter().map($value).collect::<Vec<_>>()
        };
    }
    sqlx::query(
        "INSERT INTO twinlog.lead_statements (lead_id, dialled, current_wa_id, current_user_id, previous_wa_id,
             previous_user_id, other_wa_id, other_user_id, told_at)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
             $8::text[], $9::timestamptz[])",
    )
    .bind(each!(|row| row.0.map(|lead| lead.lead_id)))
    .bind(each!(|row| row.0.and_then(|lead| lead.dialled.as_deref())))
    .bind(each!(|row| row.1.wa_id.as_ref()))
    .bind(each!(|row| row.1.user_id.as_ref()))
    .bind(each!(|row| row.2.previous.wa_id.as_ref()))
    .bind(each!(|row| row.2.previous.user_id.as_ref()))
    .bind(each!(|row| row.2.other.wa_id.as_ref()))
    .bind(each!(|row| row.2.other.user_id.as_ref()))
    .bind(each!(|row| row.3))
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Claims the oldest statement that is due, for this transaction.
pub(in crate::site_db) async fn claim(tx: &mut Transaction<'_>) -> Result<Option<Claimed>, SiteError> {
    #[derive(FromRow)]
    struct Row {
        id: Uuid,
        lead_id: Option<Uuid>,
        dialled: Option<String>,
        previous_wa_id: Option<WaId>,
        previous_user_id: Option<UserId>,
        current_wa_id: Option<WaId>,
        current_user_id: Option<UserId>,
        other_wa_id: Option<WaId>,
        other_user_id: Option<UserId>,
        told_at: Option<OffsetDateTime>,
    }
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, lead_id, dialled, previous_wa_id, previous_user_id, current_wa_id, current_user_id, other_wa_id,
                other_user_id, told_at FROM twinlog.lead_statements
          WHERE next_attempt_at <= now() ORDER BY next_attempt_at, id LIMIT 1 FOR UPDATE SKIP LOCKED",
    )
    .fetch_optional(tx.connection())
    .await?;
    let contact = |wa_id, user_id| ContactIdentity {
        wa_id,
        user_id,
        ..ContactIdentity::default()
    };
    Ok(row.map(|row| {
        let current = contact(row.current_wa_id, row.current_user_id);
        let word = match row.told_at {
            None => Word::Seen(current),
            Some(at) => {
                let change = IdentityChange {
                    previous: contact(row.previous_wa_id, row.previous_user_id),
                    current,
                    other: contact(row.other_wa_id, row.other_user_id),
                    at: Some(at),
                };
                Word::Told(Box::new(change), at)
            }
        };
        let (lead_id, dialled) = (row.lead_id, row.dialled);
        Claimed {
            id: row.id,
            statement: Statement {
                lead: lead_id.map(|lead_id| Reached { lead_id, dialled }),
                word,
            },
        }
    }))
}

/// Removes a statement that is settled.
pub(in crate::site_db) async fn done(tx: &mut Transaction<'_>, id: Uuid) -> Result<(), SiteError> {
    sqlx::query("DELETE FROM twinlog.lead_statements WHERE id = $1")
        .bind(id)
        .execute(tx.connection())
        .await?;
    Ok(())
}

/// Lets the other statements go first for a while.
pub(in crate::site_db) async fn postpone(pool: &Pool, id: Uuid, wait: Duration) -> Result<(), SiteError> {
    sqlx::query(
        "UPDATE twinlog.lead_statements SET attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => $2)
          WHERE id = $1",
    )
    .bind(id)
    .bind(wait.as_secs_f64())
    .execute(&pool.0)
    .await?;
    Ok(())
}
