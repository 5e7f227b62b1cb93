//! `twinlog.events`: what listeners are told of, in an order that respects cause and effect, without gaps, from any position.
//!
//! Triggers write an event in the transaction of the change (`migrations/site/0003_events.sql`). Its place in the order is
//! given **after** its commit: [`place`] numbers what is committed and has no position yet. So nobody waits for a
//! transaction that is still open, whoever's it is and however long it lasts: its events get later positions.
//!
//! - **Cause and effect.** An event's id is drawn after its change was made. If a change saw another one, the other one was
//!   committed before, so it has the lower id, and whoever sees the later one sees both. [`place`] numbers what it sees in the
//!   order of the ids.
//! - **No gaps.** One transaction places at a time, under an advisory lock that is held until its commit, so positions become
//!   visible in their order: a reader that has read up to a position never misses an event before it. (Numbers may be
//!   skipped.)
//!
//! Not here: when to place and read, and who is told ([`realtime`](crate::realtime)).

use std::time::Duration;

use sqlx::FromRow;
use sqlx::postgres::PgListener;
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{MessageStatus, Pool, SiteError};

/// The table and its newest column, for the check of the schema.
pub(super) const NEWEST_COLUMN: (&str, &str) = ("twinlog.events", "position");

/// The channel on which [`place`] tells all processes that events have been placed.
const CHANNEL: &str = "twinlog_events";

/// Most events that one call places or reads: about 10 MB if each has 500 rows.
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

/// A place in the order of the events. The first event has a higher one than zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub struct Position(pub i64);

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
    /// For messages: the status that each was given; otherwise empty.
    pub statuses: Vec<MessageStatus>,
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
    /// Events after this position were deleted because of their age: the listener must load its rows anew.
    Gone,
}

/// Gives positions to committed events that have none, and returns how many it placed: [`PORTION`] if there may be more.
/// Other processes are told of it.
///
/// Waits for another process that does the same, for as long as its commit takes. Whatever was committed before the call is
/// placed after it.
///
/// # Errors
/// See [`SiteError`].
pub async fn place(pool: &Pool) -> Result<usize, SiteError> {
    // The statement may have begun before the last holder of the lock committed: so the condition again, in the update.
    let placed: i64 = sqlx::query_scalar(
        "WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtextextended('twinlog.events', 0))::text AS taken), \
         fresh AS MATERIALIZED (SELECT e.id FROM twinlog.events e, turn WHERE turn.taken IS NOT NULL AND e.position IS NULL \
           ORDER BY e.id LIMIT $1), \
         numbered AS MATERIALIZED (SELECT id, nextval('twinlog.event_position') AS position \
           FROM (SELECT id FROM fresh ORDER BY id) AS f), \
         placed AS (UPDATE twinlog.events e SET position = n.position FROM numbered n \
           WHERE e.id = n.id AND e.position IS NULL RETURNING e.position), \
         counted AS MATERIALIZED (SELECT count(*) AS placed FROM placed), \
         told AS MATERIALIZED (SELECT pg_notify($2, $3) FROM counted WHERE placed > 0) \
         SELECT placed + 0 * (SELECT count(*) FROM told) FROM counted",
    )
    .bind(i64::try_from(PORTION).unwrap_or(i64::MAX))
    .bind(CHANNEL)
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
    Ok(sqlx::query_scalar(
        "SELECT coalesce((SELECT max(position) FROM twinlog.events), (SELECT max(position) FROM twinlog.events_floor), 0)",
    )
    .fetch_one(&pool.0)
    .await?)
}

/// The events after a position, in their order, at most [`PORTION`].
///
/// # Errors
/// See [`SiteError`].
pub async fn read_after(pool: &Pool, position: Position) -> Result<Read, SiteError> {
    #[derive(FromRow)]
    struct Row {
        gone: bool,
        position: Option<Position>,
        kind: Option<String>,
        account_id: Option<Uuid>,
        ids: Option<Vec<Uuid>>,
        statuses: Option<Vec<MessageStatus>>,
        origin: Option<Uuid>,
        written_at: Option<OffsetDateTime>,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT f.position > $1 AS gone, e.* FROM twinlog.events_floor f LEFT JOIN LATERAL ( \
           SELECT position, kind, account_id, ids, statuses, origin, written_at FROM twinlog.events \
           WHERE position > $1 AND position > f.position ORDER BY position LIMIT $2) AS e ON true ORDER BY e.position",
    )
    .bind(position)
    .bind(i64::try_from(PORTION).unwrap_or(i64::MAX))
    .fetch_all(&pool.0)
    .await?;
    if rows.iter().any(|row| row.gone) {
        return Ok(Read::Gone);
    }
    let event = |row: Row| {
        Some(Event {
            position: row.position?,
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

/// Deletes the oldest events if they were written longer than `keep` ago, and remembers up to which position. Returns how
/// many were deleted: [`PORTION`] if there may be more.
///
/// # Errors
/// See [`SiteError`].
pub async fn delete_old(pool: &Pool, keep: Duration) -> Result<usize, SiteError> {
    let deleted: i64 = sqlx::query_scalar(
        "WITH oldest AS MATERIALIZED (SELECT id FROM (SELECT id, written_at, position FROM twinlog.events ORDER BY id LIMIT $2) AS o \
           WHERE position IS NOT NULL AND written_at < now() - make_interval(secs => $1)), \
         deleted AS (DELETE FROM twinlog.events e USING oldest o WHERE e.id = o.id RETURNING e.position), \
         floor AS (UPDATE twinlog.events_floor f SET position = greatest(f.position, d.position) \
           FROM (SELECT max(position) AS position FROM deleted) AS d WHERE d.position IS NOT NULL) \
         SELECT count(*) FROM deleted",
    )
    .bind(keep.as_secs_f64())
    .bind(i64::try_from(PORTION).unwrap_or(i64::MAX))
    .fetch_one(&pool.0)
    .await?;
    Ok(usize::try_from(deleted).unwrap_or(0))
}

/// Hears when another process has placed events. Holds a connection of the pool.
#[derive(Debug)]
pub struct Listener {
    listener: PgListener,
    /// This process.
    own: String,
}

impl Listener {
    /// Listens from now on.
    ///
    /// # Errors
    /// See [`SiteError`].
    pub async fn start(pool: &Pool) -> Result<Self, SiteError> {
        let mut listener = PgListener::connect_with(&pool.0).await?;
        listener.listen(CHANNEL).await?;
        Ok(Self {
            listener,
            own: pool.process().to_string(),
        })
    }

    /// Waits until another process has placed something.
    ///
    /// # Errors
    /// The connection broke: what was placed meanwhile was not heard.
    pub async fn heard(&mut self) -> Result<(), SiteError> {
        while let Some(notification) = self.listener.try_recv().await? {
            if notification.payload() != self.own {
                return Ok(());
            }
        }
        Err(SiteError::Unreachable(sqlx::Error::WorkerCrashed))
    }
}
