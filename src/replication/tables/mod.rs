//! The life of each table: its states, how they change, and the one writer of them. To **hold one table**, or to release
//! it, send its event.
//!
//! ```text
//!              copy started           copy finished
//!  seen first ─▶ NEW ─────────▶ COPYING ─────────▶ STREAMING ◀─────────┐ copy finished,
//!                 ▲                                    │               │ or given up
//!                 │                       resync asked └─▶ RESYNCING ──┘
//!                 │
//!                 ├── from any state: the shape is outdated (the copied rows are unusable)
//!                 └── released, if it was never copied completely
//!
//!  from any state:  held (reason) ─▶ HELD ── released ─▶ NEW, or RESYNCING if it was copied before
//!  from any state:  left the publication ─▶ forgotten
//!  gap accepted, checkpoint lost, may differ: a copied table ─▶ RESYNCING, another ─▶ NEW, HELD stays
//! ```
//!
//! | file | its job |
//! |---|---|
//! | [`life`] | the transitions, as one pure function; the events `Held` and `Released` hold and release one table |
//! | [`at_start`] | which events happened while no daemon ran: pure, from what is stored and what the Site DB has now |
//! | [`book`] | the one writer of `twinlog.tables`: applies every event, in the order of the stream |
//!
//! Every change of a table's state is sent as an event; nothing else writes `twinlog.tables`. A copy's progress is an
//! event too, and is committed in the Agent DB together with the rows that were copied.

pub(super) mod at_start;
pub(super) mod book;
pub(super) mod life;
