//! The text of the events, as a body that does not end by itself: it ends when the process stops, or when the listener's token is
//! not valid any more. The browser then comes back with its place.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::Instant;

use crate::http::listener_places::Place;
use crate::realtime::{Listening, Told};

/// How long browsers wait before they come back: not all at the same moment after a restart. In milliseconds.
const RETRY: std::ops::Range<u32> = 500..2500;
/// The longest time for which a token is looked at; a timer can't be set to the end of time.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

struct Listener {
    listening: Listening,
    /// When its token ends.
    until: Option<Instant>,
    /// The last `id` that it was told.
    id: String,
    _place: Place,
}

pub(super) fn events(
    listening: Listening,
    place: Place,
    valid_for: Option<Duration>,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let listener = Listener {
        listening,
        until: valid_for.map(|time| Instant::now() + time.min(LONGEST)),
        id: String::new(),
        _place: place,
    };
    let begin = format!("retry: {}\n\n", rand::random_range(RETRY));
    let told = stream::unfold(listener, |mut listener| async move {
        let told = match listener.until {
            Some(until) => tokio::time::timeout_at(until, listener.listening.next()).await.ok()?,
            None => listener.listening.next().await,
        };
        let texts = listener.texts(told?);
        Some((stream::iter(texts), listener))
    });
    stream::iter([Bytes::from(begin)]).chain(told.flatten()).map(Ok)
}

impl Listener {
    fn texts(&mut self, told: Told) -> Vec<Bytes> {
        match told {
            // Shared by all listeners: thousands that come back at once get as many events each.
            Told::Frames(frames) => frames.iter().map(|frame| frame.text.clone()).collect(),
            // No event: browsers note the id, and tell nobody.
            Told::Quiet(place) => {
                let id = place.to_string();
                let text = if id == self.id {
                    ":\n\n".to_owned()
                } else {
                    format!("id: {id}\n\n")
                };
                self.id = id;
                vec![text.into()]
            }
            Told::Reload(place) => {
                let reason = "events were missed: load what is shown anew; everything after that comes";
                vec![format!("id: {place}\nevent: reload\ndata: {{\"reason\":\"{reason}\"}}\n\n").into()]
            }
        }
    }
}
