//! Bytes ↔ messages: those of `postgres-protocol`, and CopyBothResponse and the stream's frames, which it lacks. No I/O.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{COPY_DATA_TAG, DataRowBody, ErrorFields, Header, Message as BackendMessage};

use super::error::{Phase, ServerError, WireError};
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// The tag of CopyBothResponse, which `postgres-protocol` does not know.
const COPY_BOTH_TAG: u8 = b'W';
/// Bytes of a message's tag (1) and length (4).
const HEADER_LEN: usize = 5;
/// Longest message of the stream: Postgres cannot build one longer than its largest allocation (MaxAllocSize, 1 GiB).
pub(super) const MAX_STREAM_MESSAGE: usize = 1 << 30;
/// Longest message outside of the stream: the answers to our queries have some hundred bytes, an error can be long.
pub(super) const MAX_ANSWER: usize = 16 << 20;
/// Longest text of an error or a notice that is kept.
const MAX_TEXT: usize = 2048;
/// Fixed fields of `XLogData` after its kind: start, end, time.
const XLOG_DATA_LEN: usize = 24;
/// Fields of a keepalive after its kind: end, time, flag.
const KEEPALIVE_LEN: usize = 17;

/// One frame of the stream. The times are the server's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message of the output plugin (`w`).
    XLogData {
        /// The position of its change in the WAL; 0 for messages without one (relations, types).
        wal_start: Lsn,
        /// The end of what the server has sent.
        wal_end: Lsn,
        /// When it was sent.
        sent_at: PgTimestamp,
        /// The message; `pgoutput` reads it.
        payload: Bytes,
    },
    /// The server's position (`k`).
    KeepAlive {
        /// The end of the WAL that the server has decoded: everything that committed before it was sent, unless the stream is
        /// inside a transaction.
        wal_end: Lsn,
        /// When it was sent.
        sent_at: PgTimestamp,
        /// The server asked for a status update; the pump has sent it.
        reply_requested: bool,
    },
}

impl Frame {
    /// The highest position in it.
    pub(super) fn position(&self) -> Lsn {
        match *self {
            Self::XLogData { wal_start, wal_end, .. } => wal_start.max(wal_end),
            Self::KeepAlive { wal_end, .. } => wal_end,
        }
    }
}

/// A message that comes before the stream.
pub(super) enum Answer {
    /// CopyBothResponse: the stream begins.
    CopyBoth,
    /// Any other message.
    Message(BackendMessage),
}

/// A message that comes while the stream runs.
pub(super) enum Streamed {
    /// CopyData: a frame of the stream.
    Frame(Frame),
    /// Any other message: an error, a notice, the stream's end.
    Message(BackendMessage),
}

/// The tag and total length of the next message, if all of it was read.
fn next_message(buffer: &BytesMut, limit: usize) -> Result<Option<(u8, usize)>, WireError> {
    let Some(header) = Header::parse(buffer).map_err(|error| protocol(&error))? else {
        return Ok(None);
    };
    // The length counts itself and not the tag; `Header` has refused lengths below 4.
    let length = usize::try_from(header.len()).unwrap_or_default() + 1;
    if length > limit {
        return Err(WireError::Protocol(format!(
            "a message {:?} of {length} bytes, {limit} is the limit",
            char::from(header.tag())
        )));
    }
    Ok((buffer.len() >= length).then_some((header.tag(), length)))
}

/// Takes the next message before the stream off the buffer, if it is complete.
pub(super) fn take_answer(buffer: &mut BytesMut) -> Result<Option<Answer>, WireError> {
    match next_message(buffer, MAX_ANSWER)? {
        None => Ok(None),
        Some((COPY_BOTH_TAG, length)) => {
            buffer.advance(length);
            Ok(Some(Answer::CopyBoth))
        }
        Some(_) => Ok(BackendMessage::parse(buffer)
            .map_err(|error| protocol(&error))?
            .map(Answer::Message)),
    }
}

/// Takes the next message of the stream off the buffer, if it is complete. Payloads are slices of the buffer.
#[inline]
pub(super) fn take_streamed(buffer: &mut BytesMut) -> Result<Option<Streamed>, WireError> {
    match next_message(buffer, MAX_STREAM_MESSAGE)? {
        None => Ok(None),
        Some((COPY_DATA_TAG, length)) => {
            let mut body = buffer.split_to(length).freeze();
            body.advance(HEADER_LEN);
            frame(body).map(|frame| Some(Streamed::Frame(frame)))
        }
        Some(_) => Ok(BackendMessage::parse(buffer)
            .map_err(|error| protocol(&error))?
            .map(Streamed::Message)),
    }
}

#[inline]
fn frame(mut body: Bytes) -> Result<Frame, WireError> {
    let malformed = |body: &Bytes| WireError::Protocol(format!("a malformed frame of {} bytes", body.len()));
    match body.first() {
        // `Buf`'s `get_…` panic if bytes are missing, so lengths are checked first.
        Some(b'w') if body.len() > XLOG_DATA_LEN => {
            body.advance(1);
            Ok(Frame::XLogData {
                wal_start: Lsn(body.get_u64()),
                wal_end: Lsn(body.get_u64()),
                sent_at: PgTimestamp(body.get_i64()),
                payload: body,
            })
        }
        Some(b'k') if body.len() == KEEPALIVE_LEN + 1 => {
            body.advance(1);
            Ok(Frame::KeepAlive {
                wal_end: Lsn(body.get_u64()),
                sent_at: PgTimestamp(body.get_i64()),
                reply_requested: body.get_u8() != 0,
            })
        }
        _ => Err(malformed(&body)),
    }
}

/// What a status update reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StatusUpdate {
    /// The highest position that was received: reported as written.
    pub(super) received: Lsn,
    /// The position that is durable in the Agent DB: reported as flushed and as applied.
    pub(super) durable: Lsn,
    /// Asks the server for a keepalive.
    pub(super) reply_requested: bool,
}

/// Writes a standby status update as CopyData.
pub(super) fn put_status(status: StatusUpdate, now: PgTimestamp, out: &mut BytesMut) {
    /// Length field (4), kind (1), three positions and a time (32), flag (1).
    const LENGTH: i32 = 38;
    out.put_u8(COPY_DATA_TAG);
    out.put_i32(LENGTH);
    out.put_u8(b'r');
    out.put_u64(status.received.max(status.durable).0);
    out.put_u64(status.durable.0);
    out.put_u64(status.durable.0);
    out.put_i64(now.0);
    out.put_u8(status.reply_requested.into());
}

/// Role and database of the connection, for hints.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) user: String,
    pub(super) database: String,
}

/// An ErrorResponse or NoticeResponse as an error of this module.
pub(super) fn server_error(mut fields: ErrorFields<'_>, phase: Phase, identity: &Identity) -> WireError {
    let mut error = ServerError {
        sqlstate: String::new(),
        message: String::new(),
        detail: None,
        hint: None,
        routine: None,
        phase,
        user: identity.user.clone(),
        database: identity.database.clone(),
    };
    // Before the login, a message may be in any encoding: what is not UTF-8 is replaced.
    loop {
        match fields.next() {
            Ok(Some(field)) => {
                let value = || text_of(field.value_bytes());
                match field.type_() {
                    b'C' => error.sqlstate = value(),
                    b'M' => error.message = value(),
                    b'D' => error.detail = Some(value()),
                    b'H' => error.hint = Some(value()),
                    b'R' => error.routine = Some(value()),
                    _ => {}
                }
            }
            Ok(None) => return WireError::Server(Box::new(error)),
            Err(error) => return protocol(&error),
        }
    }
}

/// A text of a message, cut if it is long: it goes into logs and states.
fn text_of(value: &[u8]) -> String {
    match value.get(..MAX_TEXT) {
        None => String::from_utf8_lossy(value).into_owned(),
        Some(beginning) => format!("{}… ({} bytes)", String::from_utf8_lossy(beginning), value.len()),
    }
}

/// The values of a DataRow as text.
pub(super) fn row_values(row: &DataRowBody) -> Result<Vec<Option<String>>, WireError> {
    let mut values = Vec::new();
    let mut ranges = row.ranges();
    while let Some(range) = ranges.next().map_err(|error| protocol(&error))? {
        values.push(
            range
                .map(|range| {
                    let bytes = row.buffer().get(range).unwrap_or_default();
                    String::from_utf8(bytes.to_vec())
                        .map_err(|_| WireError::Protocol("a value is not UTF-8".to_owned()))
                })
                .transpose()?,
        );
    }
    Ok(values)
}

/// An error of a message that cannot be parsed or built.
pub(super) fn protocol(error: &std::io::Error) -> WireError {
    WireError::Protocol(error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn copy_data(body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_u8(b'd');
        out.put_i32(body.len() as i32 + 4);
        out.put_slice(body);
        out
    }

    fn xlog_data(payload: &[u8]) -> BytesMut {
        let mut body = BytesMut::new();
        body.put_u8(b'w');
        body.put_u64(1);
        body.put_u64(2);
        body.put_i64(3);
        body.put_slice(payload);
        copy_data(&body)
    }

    #[test]
    fn a_frame_is_taken_when_it_is_whole() {
        let whole = xlog_data(b"payload");
        for end in 0..whole.len() {
            assert!(take_streamed(&mut BytesMut::from(&whole[..end])).unwrap().is_none());
        }
        let mut buffer = whole;
        let Some(Streamed::Frame(frame)) = take_streamed(&mut buffer).unwrap() else {
            panic!("no frame")
        };
        assert_eq!(
            frame,
            Frame::XLogData {
                wal_start: Lsn(1),
                wal_end: Lsn(2),
                sent_at: PgTimestamp(3),
                payload: Bytes::from_static(b"payload"),
            }
        );
        assert!(buffer.is_empty());
    }

    #[test]
    fn malformed_frames_are_refused() {
        for body in [&b""[..], b"x", b"w", &[b'w'; 24], &[b'k'; 17], &[b'k'; 19]] {
            assert!(
                matches!(take_streamed(&mut copy_data(body)), Err(WireError::Protocol(_))),
                "{body:?}"
            );
        }
        let mut oversized = BytesMut::from(&b"d\x7f\xff\xff\xff"[..]);
        assert!(matches!(take_streamed(&mut oversized), Err(WireError::Protocol(_))));
        let mut negative = BytesMut::from(&b"d\xff\xff\xff\xff"[..]);
        assert!(matches!(take_streamed(&mut negative), Err(WireError::Protocol(_))));
    }

    #[test]
    fn a_status_never_claims_more_durable_than_written() {
        let mut out = BytesMut::new();
        let status = StatusUpdate {
            received: Lsn(5),
            durable: Lsn(7),
            reply_requested: true,
        };
        put_status(status, PgTimestamp(9), &mut out);
        let mut expected = copy_data(&[
            b'r', 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 7,
        ]);
        expected.put_i64(9);
        expected.put_u8(1);
        expected[4] = 38;
        assert_eq!(out, expected);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes: Vec<u8>, tag in prop::sample::select(b"dENScZWRDT".to_vec())) {
            for streamed in [true, false] {
                let mut buffer = BytesMut::new();
                buffer.put_u8(tag);
                buffer.put_i32(bytes.len() as i32 + 4);
                buffer.put_slice(&bytes);
                if streamed {
                    if let Ok(Some(Streamed::Message(BackendMessage::ErrorResponse(body)))) = take_streamed(&mut buffer) {
                        let identity = Identity { user: String::new(), database: String::new() };
                        let _ = server_error(body.fields(), Phase::Stream, &identity);
                    }
                } else if let Ok(Some(Answer::Message(BackendMessage::DataRow(body)))) = take_answer(&mut buffer) {
                    let _ = row_values(&body);
                }
            }
        }
    }
}
