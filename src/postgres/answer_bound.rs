//! Bounds the memory that the answers of a server take: sqlx keeps whatever comes. It makes room for as many bytes as a message's
//! header names, keeps all rows of an answer, and counts nothing.
//!
//! Follows the messages of the backend (a tag, a length, as many bytes) and counts all of one answer, from the request until the
//! server is ready for the next one (`ReadyForQuery`). Pure: who passes the bytes on asks before each piece.
//!
//! Source: <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What the answers of all connections may take together. The longest that the server needs are claims of 256 messages, whose
/// requests have a kilobyte as a rule and `http.max_body_bytes` at most.
const MOST_BYTES: usize = 128 << 20;

/// What a message takes in memory beside its bytes. A row without a value has 11 bytes, and takes some hundred, twice while the list of
/// rows grows.
const MESSAGE_BYTES: usize = 512;

/// SQLSTATE `configuration_limit_exceeded`: passes, and is no row's fault.
const LIMIT_EXCEEDED: &str = "53400";
/// SQLSTATE `protocol_violation`.
const PROTOCOL_VIOLATION: &str = "08P01";

/// A tag and a length.
const HEADER: usize = 5;
const NOTIFICATION: u8 = b'A';
const READY_FOR_QUERY: u8 = b'Z';

/// The bytes of answers that are being read.
#[derive(Debug, Clone, Default)]
pub(super) struct AnswerBytes(Arc<AtomicUsize>);

/// Follows what the server of one connection sends.
#[derive(Debug)]
pub(super) struct AnswerBound {
    all: AnswerBytes,
    /// What is counted of the present answer.
    counted: usize,
    /// The first bytes of a header whose rest has not come.
    header: Vec<u8>,
    /// Bytes of the present message that have not come.
    rest: usize,
    /// The client has sent something since the server was ready. Notifications that come without having been asked for are read
    /// one by one, and count for nothing.
    asked: Arc<AtomicBool>,
}

/// Why the connection can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    /// The answers have more than [`MOST_BYTES`].
    TooLong,
    /// A message with a length that none has.
    Malformed,
}

/// A message must not be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    /// How many bytes of the piece are before it; `None`: its first bytes are passed on already.
    pub(super) before: Option<usize>,
    pub(super) why: Excess,
}

impl AnswerBound {
    /// `asked` is to be set before anything is sent to the server.
    pub(super) fn new(all: AnswerBytes, asked: Arc<AtomicBool>) -> Self {
        Self {
            all,
            counted: 0,
            header: Vec::with_capacity(HEADER),
            rest: 0,
            asked,
        }
    }

    /// Whether a piece may be passed on, the next one of what the server sends.
    pub(super) fn look(&mut self, piece: &[u8]) -> Result<(), Refused> {
        let mut left = piece;
        loop {
            let known = self.rest.min(left.len());
            self.rest -= known;
            left = left.get(known..).unwrap_or_default();
            if left.is_empty() {
                return Ok(());
            }
            let before = (self.header.is_empty()).then_some(piece.len() - left.len());
            let lacking = HEADER - self.header.len();
            let part = left.get(..lacking).unwrap_or(left);
            self.header.extend_from_slice(part);
            left = left.get(part.len()..).unwrap_or_default();
            let &[tag, a, b, c, d] = self.header.as_slice() else {
                return Ok(());
            };
            self.header.clear();
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            // The length counts itself.
            let refused = |why| Refused { before, why };
            self.rest = length.checked_sub(4).ok_or(refused(Excess::Malformed))?;
            self.count(tag, length).map_err(refused)?;
        }
    }

    /// A message begins.
    fn count(&mut self, tag: u8, length: usize) -> Result<(), Excess> {
        if tag == NOTIFICATION && !self.asked.load(Ordering::Relaxed) {
            // Its own bytes are bounded all the same.
            return if length <= MOST_BYTES {
                Ok(())
            } else {
                Err(Excess::TooLong)
            };
        }
        if tag == READY_FOR_QUERY {
            self.asked.store(false, Ordering::Relaxed);
            self.release();
        }
        let bytes = length.saturating_add(MESSAGE_BYTES);
        self.all.add(bytes)?;
        self.counted += bytes;
        Ok(())
    }

    fn release(&mut self) {
        self.all.0.fetch_sub(self.counted, Ordering::Relaxed);
        self.counted = 0;
    }
}

impl Drop for AnswerBound {
    fn drop(&mut self) {
        self.release();
    }
}

impl AnswerBytes {
    fn add(&self, bytes: usize) -> Result<(), Excess> {
        let added = |all: usize| all.checked_add(bytes).filter(|all| *all <= MOST_BYTES);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, added)
            .map(drop)
            .map_err(|_| Excess::TooLong)
    }
}

impl Excess {
    /// As a message of the server (`ErrorResponse`), so that the error of the statement says it.
    pub(super) fn error_response(self) -> Vec<u8> {
        let (sqlstate, message) = match self {
            Self::TooLong => (LIMIT_EXCEEDED, "the server's answers are longer than Twinlog takes"),
            Self::Malformed => (
                PROTOCOL_VIOLATION,
                "the server sends what is no message of the protocol",
            ),
        };
        let fields = format!("SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0");
        let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
        let mut response = vec![b'E'];
        response.extend(length.to_be_bytes());
        response.extend(fields.as_bytes());
        response
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(tag: u8, bytes: usize) -> Vec<u8> {
        let mut message = vec![tag];
        message.extend(u32::try_from(bytes + 4).unwrap().to_be_bytes());
        message.resize(HEADER + bytes, 0);
        message
    }

    fn header(tag: u8, length: u32) -> Vec<u8> {
        let mut header = vec![tag];
        header.extend(length.to_be_bytes());
        header
    }

    fn bound(all: &AnswerBytes) -> AnswerBound {
        AnswerBound::new(all.clone(), Arc::new(AtomicBool::new(true)))
    }

    #[test]
    fn a_message_that_names_too_many_bytes_is_refused_at_its_header() {
        let all = AnswerBytes::default();
        let piece = [message(b'D', 10), header(b'D', 1 << 30)].concat();
        let refused = Refused {
            before: Some(15),
            why: Excess::TooLong,
        };
        assert_eq!(bound(&all).look(&piece), Err(refused));
        // One whose first bytes are passed on can't be left out.
        let mut cut = bound(&all);
        cut.look(&piece[..17]).unwrap();
        assert_eq!(
            cut.look(&piece[17..]),
            Err(Refused {
                before: None,
                ..refused
            })
        );
    }

    #[test]
    fn an_answer_of_many_small_messages_ends_and_a_new_answer_begins_anew() {
        let all = AnswerBytes::default();
        let mut one = bound(&all);
        let piece = message(b'N', 0).repeat(1000);
        let pieces = MOST_BYTES / (1000 * (4 + MESSAGE_BYTES));
        for _ in 0..pieces {
            one.look(&piece).unwrap();
        }
        // All connections together.
        let mut other = bound(&all);
        assert_eq!(other.look(&piece).unwrap_err().why, Excess::TooLong);
        drop(other);
        one.look(&message(b'Z', 1)).unwrap();
        for _ in 0..pieces {
            one.look(&piece).unwrap();
        }
        assert_eq!(one.look(&piece).unwrap_err().why, Excess::TooLong);
        drop(one);
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn notifications_that_nobody_asked_for_count_for_nothing() {
        let all = AnswerBytes::default();
        let mut bound = bound(&all);
        bound.look(&message(b'Z', 1)).unwrap();
        let before = all.0.load(Ordering::Relaxed);
        bound.look(&message(b'A', 100).repeat(1000)).unwrap();
        assert_eq!(all.0.load(Ordering::Relaxed), before);
        bound.asked.store(true, Ordering::Relaxed);
        bound.look(&message(b'A', 100)).unwrap();
        assert!(all.0.load(Ordering::Relaxed) > before);
    }

    #[test]
    fn no_message_has_a_length_below_four() {
        for length in 0..4 {
            let refused = bound(&AnswerBytes::default()).look(&header(b'Z', length));
            assert_eq!(refused.unwrap_err().why, Excess::Malformed);
        }
    }

    proptest! {
        #[test]
        fn pieces_are_counted_as_the_whole(
            messages in prop::collection::vec((any::<u8>(), 0usize..300), 0..30),
            cuts in prop::collection::vec(1usize..40, 1..40),
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|(tag, bytes)| message(*tag, *bytes)).collect();
            let (whole, parts) = (AnswerBytes::default(), AnswerBytes::default());
            let (mut at_once, mut in_parts) = (bound(&whole), bound(&parts));
            at_once.look(&stream).unwrap();
            let mut left = stream.as_slice();
            for cut in cuts.iter().cycle() {
                if left.is_empty() {
                    break;
                }
                let (piece, rest) = left.split_at(left.len().min(*cut));
                in_parts.look(piece).unwrap();
                left = rest;
            }
            prop_assert_eq!(at_once.counted, in_parts.counted);
            prop_assert_eq!((at_once.rest, in_parts.rest), (0, 0));
        }
    }
}
