//! `twinlog.events`: what listeners are told of, in an order that respects cause and effect, without gaps, from any position.
//!
//! Triggers write an event in the transaction of the change (`migrations/site/0003_events.sql`). Its place in the order is
//! given **after** its commit: [`place`] orders what was committed since it looked last, in a round. So nobody waits for a
//! transaction that is still open, whoever's it is and however long it lasts: its events are in a later round.
//!
//! - **Each event once.** A round keeps the snapshot that it saw. The next round has the events whose transactions are
//!   committed now and were not in that snapshot.
//! - **Cause and effect.** An event's id is drawn after its change was made. If a change saw another one, the other one was
//!   committed before, so it has the lower id, and a snapshot with the later one has both. A round is in the order of the ids.
//! - **No gaps.** One transaction places at a time, under an advisory lock that is held until its commit, so rounds become
//!   visible in their order: a reader that has read up to a position never misses an event before it.
//!
//! Not here: when to place and read, and who is told ([`realtime`](crate::realtime)).

use std::time::Duration;

use sqlx::FromRow;
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use time::OffsetDateTime;
use uuid::Uuid;

use super::pool::Listening;
use super::{Pool, SiteError};

/// The channel on which `twinlog.place_events` tells all processes that events have been placed.
const CHANNEL: &str = "twinlog_events";

/// Most events that one call reads or deletes: about 10 MB if each has 500 rows.
pub const PORTION: usize = 500;

/// What happened, as listeners are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
pub enum EventKind {
    /// Messages of any direction were stored.
    #[strum(serialize = "message.created")]
    MessageCreated,
    /// Messages have another status.
    #[strum(serialize = "message.status")]
    MessageStatus,
    /// Conversations are new, or have other times or counts.
    #[strum(serialize = "conversation.updated")]
    ConversationUpdated,
    /// Leads are new or changed.
    #[strum(serialize = "lead.updated")]
    LeadUpdated,
    /// A person should look at something.
    #[strum(serialize = "notification.created")]
    NotificationCreated,
    /// What only a newer version knows.
    #[strum(serialize = "other")]
    Other,
}

/// A place in the order of the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// `event_rounds.round`.
    pub round: i64,
    /// Which of the round's events, beginning with 1; 0: before the first one.
    pub index: i64,
    /// When the round was placed. After a failover that lost rounds, or a restore, others have their numbers.
    pub placed_at: OffsetDateTime,
}

/// What one statement did to rows of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the order.
    pub position: Position,
    /// What happened.
    pub kind: EventKind,
    /// The number (`whatsapp_accounts.id`) that the rows are about; `None` for leads.
    pub account_id: Option<Uuid>,
    /// The rows, in the order of the change.
    pub ids: Vec<Uuid>,
    /// For messages: the status that each was given, which may be one that only a newer version knows; otherwise empty.
    pub statuses: Vec<String>,
    /// The process that made the change, see [`Pool::process`]; `None`: another program.
    pub origin: Option<Uuid>,
    /// When the change was made; its commit came later.
    pub written_at: OffsetDateTime,
}

/// What [`read_after`] found.
#[derive(Debug)]
pub enum Read {
    /// The next events; fewer than [`PORTION`]: there are no more now.
    Events(Vec<Event>),
    /// The position's round is not there, or is another one now: events were deleted because of their age, or the Site DB lost
    /// its last commits. The listener must load its rows anew.
    Gone,
}

/// Gives the committed events that have no place their places, and returns how many they are. Other processes are told of it.
///
/// Waits for another process that does the same, for as long as its commit takes. Whatever was committed before the call is
/// placed after it.
///
/// # Errors
/// See [`SiteError`].
pub async fn place(pool: &Pool) -> Result<usize, SiteError> {
    let placed: i32 = sqlx::query_scalar("SELECT twinlog.place_events($1)")
        .bind(pool.process().to_string())
        .fetch_one(&pool.0)
        .await?;
    Ok(usize::try_from(placed).unwrap_or(0))
}

/// The position of the newest event.
///
/// # Errors
/// See [`SiteError`].
pub async fn newest(pool: &Pool) -> Result<Position, SiteError> {
    let (round, index, placed_at) = sqlx::query_as(
        "SELECT round, cardinality(ids)::bigint, placed_at FROM twinlog.event_rounds ORDER BY round DESC LIMIT 1",
    )
    .fetch_optional(&pool.0)
    .await?
    .ok_or(SiteError::Vanished("event_rounds"))?;
    Ok(Position {
        round,
        index,
        placed_at,
    })
}

/// The events after a position, in their order, at most [`PORTION`].
///
/// # Errors
/// See [`SiteError`].
pub async fn read_after(pool: &Pool, position: Position) -> Result<Read, SiteError> {
    #[derive(FromRow)]
    struct Row {
        gone: bool,
        round: Option<i64>,
        index: Option<i64>,
        placed_at: Option<OffsetDateTime>,
        kind: Option<String>,
        account_id: Option<Uuid>,
        ids: Option<Vec<Uuid>>,
        statuses: Option<Vec<String>>,
        origin: Option<Uuid>,
        written_at: Option<OffsetDateTime>,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT NOT EXISTS (SELECT FROM twinlog.event_rounds WHERE round = $1 AND placed_at = $4) AS gone, e.* \
         FROM (SELECT) AS one LEFT JOIN LATERAL ( \
           SELECT r.round, p.index, r.placed_at, e.kind, e.account_id, e.ids, e.statuses::text[], e.origin, e.written_at \
           FROM twinlog.event_rounds r CROSS JOIN LATERAL unnest(r.ids) WITH ORDINALITY AS p(id, index) \
             JOIN twinlog.events e ON e.id = p.id \
           WHERE r.round >= $1 AND (r.round > $1 OR p.index > $2) ORDER BY r.round, p.index LIMIT $3) AS e ON true \
         ORDER BY e.round, e.index",
    )
    .bind(position.round)
    .bind(position.index)
    .bind(i64::try_from(PORTION).unwrap_or(i64::MAX))
    .bind(position.placed_at)
    .fetch_all(&pool.0)
    .await?;
    if rows.iter().any(|row| row.gone) {
        return Ok(Read::Gone);
    }
    let event = |row: Row| {
        Some(Event {
            position: Position {
                round: row.round?,
                index: row.index?,
                placed_at: row.placed_at?,
            },
            kind: row.kind?.parse().unwrap_or(EventKind::Other),
            account_id: row.account_id,
            ids: row.ids?,
            statuses: row.statuses.unwrap_or_default(),
            origin: row.origin,
            written_at: row.written_at?,
        })
    };
    Ok(Read::Events(rows.into_iter().filter_map(event).collect()))
}

/// Deletes the oldest rounds, and their events, if the round after them was placed longer than `keep` ago too: a listener that
/// has read everything before that time has missed nothing. Returns how many were deleted: [`PORTION`] if there may be more.
///
/// # Errors
/// See [`SiteError`].
pub async fn delete_old(pool: &Pool, keep: Duration) -> Result<usize, SiteError> {
    let deleted: i64 = sqlx::query_scalar(
        "WITH oldest AS MATERIALIZED (SELECT round, lead(placed_at) OVER (ORDER BY round) AS followed_at \
           FROM (SELECT round, placed_at FROM twinlog.event_rounds ORDER BY round LIMIT $2 + 1) AS r), \
         due AS MATERIALIZED (SELECT r.round FROM twinlog.event_rounds r JOIN oldest o USING (round) \
           WHERE o.followed_at < now() - make_interval(secs => $1) ORDER BY r.round FOR UPDATE OF r SKIP LOCKED), \
         deleted AS (DELETE FROM twinlog.event_rounds r USING due d WHERE r.round = d.round RETURNING r.ids), \
         emptied AS (DELETE FROM twinlog.events e USING (SELECT unnest(ids) AS id FROM deleted) AS d WHERE e.id = d.id) \
         SELECT count(*) FROM deleted",
    )
    .bind(keep.as_secs_f64())
    .bind(i64::try_from(PORTION).unwrap_or(i64::MAX))
    .fetch_one(&pool.0)
    .await?;
    Ok(usize::try_from(deleted).unwrap_or(0))
}

/// Hears when another process has placed events. Holds a place of the pool.
#[derive(Debug)]
pub struct Listener {
    listening: Listening,
    /// This process.
    own: String,
}

impl Listener {
    /// Listens from now on.
    ///
    /// # Errors
    /// See [`SiteError`].
    pub async fn start(pool: &Pool) -> Result<Self, SiteError> {
        Ok(Self {
            listening: pool.listen(CHANNEL).await?,
            own: pool.process().to_string(),
        })
    }

    /// Waits until another process has placed something.
    ///
    /// # Errors
    /// The connection broke, or may have: what was placed meanwhile was not heard.
    pub async fn heard(&mut self) -> Result<(), SiteError> {
        while self.listening.next().await? == self.own {}
        Ok(())
    }
}
