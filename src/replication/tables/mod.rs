//! Each table's life: what it is doing, how that changes, and the one writer of it.
//!
//! ```text
//!              copy started           copy finished
//!  seen first ─▶ NEW ─────────▶ COPYING ─────────▶ STREAMING ◀─────────┐ copy finished,
//!                 ▲                                    │               │ or given up
//!                 │                       resync asked └─▶ RESYNCING ──┘
//!                 │
//!                 ├── from any state: the shape is outdated (copied rows do not do)
//!                 └── released, where it was never copied whole
//!
//!  from any state:  held (reason) ─▶ HELD ── released ─▶ NEW, or RESYNCING where it was copied before
//!  from any state:  left the publication ─▶ forgotten
//!  copied states:   a gap accepted, the checkpoint lost ─▶ RESYNCING; the others begin again
//! ```
//!
//! | file | its job |
//! |---|---|
//! | [`life`] | the transitions, as one pure function; here is the place to hold one table |
//! | [`at_start`] | which transitions a start finds due: pure, from what is stored and what the Site DB has |
//! | [`book`] | the one writer of `twinlog.tables`: every change of a state goes through it, in the order of the stream |
//!
//! Everything that changes a table's state sends an event; nothing else writes `twinlog.tables`. A copy's progress is an
//! event too, written in the Agent transaction that holds the rows it speaks of.

pub(super) mod at_start;
pub(super) mod book;
pub(super) mod life;
