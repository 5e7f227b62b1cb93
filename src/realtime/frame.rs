//! An event's row as listeners get it, made once for all of them; and who wants it.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;
use uuid::Uuid;

use super::place::Place;
use crate::metrics;
use crate::retry::Disposition;
use crate::site_db::event_rows::{self, EventRow, RowOf, WantedRows};
use crate::site_db::events::{Event, EventKind};
use crate::site_db::{Pool, SiteError};

/// Most rows that are read at once: about 4 MB of JSON.
const ROWS: usize = 2000;
/// How long reading rows may take: the statement takes milliseconds.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A row of an event.
#[derive(Debug)]
pub struct Frame {
    /// After it.
    pub place: Place,
    /// What happened.
    pub kind: EventKind,
    /// As a server-sent event: `id`, `event`, `data`.
    pub text: Bytes,
    /// When the change was made, by the clock of the Site DB.
    pub written_at: OffsetDateTime,
    numbers: Vec<String>,
    /// The conversations that the row belongs to.
    pub conversations: Vec<Uuid>,
}

/// What a listener wants to hear.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of these numbers (`phone_number_id`) alone; `None`: of all, and of what belongs to no number.
    pub numbers: Option<Vec<String>>,
    /// Of these conversations alone.
    pub conversations: Option<Vec<Uuid>>,
    /// Of these kinds alone.
    pub kinds: Option<Vec<EventKind>>,
}

impl Frame {
    /// The rows alone, as JSON.
    #[must_use]
    pub fn data(&self) -> &str {
        let text = std::str::from_utf8(&self.text).unwrap_or_default();
        let data = text.split_once("\ndata: ").map_or("", |(_, data)| data);
        data.trim_end_matches('\n')
    }
}

impl Filter {
    /// Whether the listener wants it.
    #[must_use]
    pub fn wants(&self, frame: &Frame) -> bool {
        let number = |wanted: &Vec<String>| frame.numbers.iter().any(|number| wanted.contains(number));
        let conversation = |wanted: &Vec<Uuid>| frame.conversations.iter().any(|id| wanted.contains(id));
        self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&frame.kind))
            && self.numbers.as_ref().is_none_or(number)
            && self.conversations.as_ref().is_none_or(conversation)
    }
}

/// How many of these events, at least one, are few enough to be read at once.
pub(super) fn at_once(events: &[Event]) -> usize {
    let mut rows = 0;
    let fits = |event: &&Event| {
        rows += event.ids.len();
        rows <= ROWS
    };
    events.iter().take_while(fits).count().max(1).min(events.len())
}

/// Reads the rows that these events are about, in one round trip, and makes their frames, in order. What is not there any more has
/// none. Nor has a row that the Site DB can't read: it is passed over, counted and logged, so that the others are heard of.
pub(super) async fn frames(pool: &Pool, events: &[Event]) -> Result<Vec<Frame>, SiteError> {
    let mut wanted = Vec::new();
    for event in events {
        if let Some(of) = row_of(event.kind) {
            wanted.extend(event.ids.iter().map(|id| (of, *id)));
        }
    }
    wanted.sort_unstable();
    wanted.dedup();
    let rows = readable(pool, &wanted).await?;
    let known: HashMap<(RowOf, Uuid), EventRow> = rows
        .into_iter()
        .filter_map(|row| Some(((row.row_of()?, row.id), row)))
        .collect();
    let mut frames = Vec::new();
    for event in events {
        let Some(of) = row_of(event.kind) else { continue };
        for (number, id) in event.ids.iter().enumerate() {
            if let Some(row) = known.get(&(of, *id)) {
                frames.push(frame(event, number, of, row));
            }
        }
    }
    Ok(frames)
}

/// Those of these rows that can be read.
async fn readable(pool: &Pool, wanted: &[(RowOf, Uuid)]) -> Result<Vec<EventRow>, SiteError> {
    let (mut rows, mut parts) = (Vec::new(), vec![wanted]);
    while let Some(part) = parts.pop() {
        let read = tokio::time::timeout(READ_TIMEOUT, event_rows::read(pool, &WantedRows::of(part))).await;
        let error = match read.unwrap_or(Err(SiteError::timed_out())) {
            Ok(read) => {
                rows.extend(read);
                continue;
            }
            Err(error) => error,
        };
        let (one, other) = part.split_at(part.len() / 2);
        match (part, is_of_rows(&error)) {
            ([(of, id)], true) => {
                metrics::count_listener_events("unreadable", 1);
                tracing::error!(
                    table = of.table(),
                    %id,
                    sqlstate = error.sqlstate(),
                    hint = "SELECT * FROM the table WHERE id is this one, and mend the row; listeners hear of its next change",
                    "a row can't be read: listeners are not told of it"
                );
            }
            (_, true) => parts.extend([other, one]),
            (_, false) => return Err(error),
        }
    }
    Ok(rows)
}

/// Whether a single row may be the cause: its content, or a damage of the table's files.
fn is_of_rows(error: &SiteError) -> bool {
    error.disposition() == Disposition::Row || error.sqlstate().starts_with("XX")
}

/// The table of an event's rows; `None`: this version does not know it.
const fn row_of(kind: EventKind) -> Option<RowOf> {
    match kind {
        EventKind::MessageCreated | EventKind::MessageStatus => Some(RowOf::Message),
        EventKind::ConversationUpdated => Some(RowOf::Conversation),
        EventKind::LeadUpdated => Some(RowOf::Lead),
        EventKind::NotificationCreated => Some(RowOf::Notification),
        EventKind::Other => None,
    }
}

fn frame(event: &Event, number: usize, of: RowOf, row: &EventRow) -> Frame {
    let place = Place::after_row(event.position, number, event.ids.len());
    let mut text = format!("id: {place}\nevent: {}\ndata: {{\"{of}\":{}", event.kind, row.shown);
    if let Some(conversation) = &row.conversation {
        text.push_str(",\"conversation\":");
        text.push_str(conversation);
    }
    // The status that the message was given then: the row may have a later one already.
    if let Some(status) = event.statuses.get(number) {
        text.push_str(",\"status\":\"");
        text.push_str(status);
        text.push('"');
    }
    text.push_str("}\n\n");
    Frame {
        place,
        kind: event.kind,
        text: Bytes::from(text),
        written_at: event.written_at,
        numbers: row.numbers.clone(),
        conversations: row.conversations.clone(),
    }
}
