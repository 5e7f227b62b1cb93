//! A socket with its buffers: whole messages in, whole messages out.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::codec::{self, Answer, Identity};
use super::error::{Phase, WireError};
use super::socket::Socket;

/// A connection's socket and buffers.
pub(super) struct Channel {
    pub(super) socket: Socket,
    /// Bytes that were read and not parsed.
    pub(super) inbox: BytesMut,
    /// Messages that were written and not sent.
    outbox: BytesMut,
    /// What the connection is doing, for the errors that the server sends.
    pub(super) phase: Phase,
    pub(super) identity: Identity,
    pub(super) notices: Notices,
}

impl Channel {
    pub(super) fn new(socket: Socket, identity: Identity) -> Self {
        Self {
            socket,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            phase: Phase::Login,
            identity,
            notices: Notices::default(),
        }
    }

    /// The buffer to write the next message into.
    pub(super) fn out(&mut self) -> &mut BytesMut {
        &mut self.outbox
    }

    /// The server's certificate (DER), if the connection uses TLS.
    pub(super) fn peer_certificate(&self) -> Option<&[u8]> {
        self.socket.peer_certificate()
    }

    /// Sends what was written into [`Self::out`].
    pub(super) async fn flush(&mut self) -> Result<(), WireError> {
        self.socket
            .write_all_buf(&mut self.outbox)
            .await
            .map_err(WireError::Io)?;
        self.socket.flush().await.map_err(WireError::Io)
    }

    /// The next message. Notices are logged on the way; an error message is an error.
    pub(super) async fn receive(&mut self) -> Result<Message, WireError> {
        match self.receive_answer().await? {
            Answer::Message(message) => Ok(message),
            Answer::CopyBoth => Err(WireError::Protocol(
                "CopyBothResponse without START_REPLICATION".to_owned(),
            )),
        }
    }

    /// Waits for CopyBothResponse, the answer to START_REPLICATION.
    pub(super) async fn receive_copy_both(&mut self) -> Result<(), WireError> {
        loop {
            match self.receive_answer().await? {
                Answer::CopyBoth => return Ok(()),
                Answer::Message(Message::ParameterStatus(_)) => {}
                Answer::Message(_) => {
                    return Err(WireError::Protocol(
                        "an unexpected answer to START_REPLICATION".to_owned(),
                    ));
                }
            }
        }
    }

    async fn receive_answer(&mut self) -> Result<Answer, WireError> {
        loop {
            match codec::take_answer(&mut self.inbox)? {
                Some(Answer::Message(Message::ErrorResponse(body))) => {
                    return Err(codec::server_error(body.fields(), self.phase, &self.identity));
                }
                Some(Answer::Message(Message::NoticeResponse(body))) => {
                    self.notices
                        .log(&codec::server_error(body.fields(), self.phase, &self.identity));
                }
                Some(answer) => return Ok(answer),
                None => {
                    if self.socket.read_buf(&mut self.inbox).await.map_err(WireError::Io)? == 0 {
                        return Err(WireError::Closed);
                    }
                }
            }
        }
    }

    /// All rows up to ReadyForQuery. An error that the server sends is returned only then, so that the connection can be used
    /// again.
    pub(super) async fn receive_rows(&mut self) -> Result<Vec<Vec<Option<String>>>, WireError> {
        let mut rows = Vec::new();
        let mut failure = None;
        let mut bytes = 0;
        loop {
            match self.receive().await {
                Ok(Message::DataRow(row)) => {
                    bytes += row.buffer().len();
                    if bytes > codec::MAX_ANSWER {
                        return Err(WireError::Protocol("an answer to a query is too long".to_owned()));
                    }
                    rows.push(codec::row_values(&row)?);
                }
                Ok(Message::ReadyForQuery(_)) => return failure.map_or(Ok(rows), Err),
                Ok(
                    Message::RowDescription(_)
                    | Message::CommandComplete(_)
                    | Message::EmptyQueryResponse
                    | Message::ParameterStatus(_),
                ) => {}
                Ok(_) => return Err(WireError::Protocol("an unexpected answer to a query".to_owned())),
                // After a fatal error the server closes the connection; the error says why.
                Err(error @ WireError::Server(_)) => failure = Some(error),
                Err(WireError::Closed | WireError::Io(_)) if failure.is_some() => {
                    return failure.map_or(Ok(rows), Err);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Logs the notices that the server sends, but not a flood of them.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// When the present period began.
    since: Option<Instant>,
    /// Notices in this period.
    count: u64,
}

impl Notices {
    /// Most notices that are logged in a period, and its length. A server sends a few in a day.
    const MOST: u64 = 10;
    const PERIOD: Duration = Duration::from_secs(60);

    /// Logs a notice, unless there were many already.
    pub(super) fn log(&mut self, notice: &WireError) {
        let WireError::Server(notice) = notice else { return };
        let (logs, left_out) = self.count(Instant::now());
        if left_out > 0 {
            tracing::warn!(left_out, "the source sent more notices, which were not logged");
        }
        if logs {
            tracing::warn!(
                sqlstate = notice.sqlstate,
                "the source sends a notice: {}",
                notice.message
            );
        }
    }

    /// Counts a notice. Whether it is logged, and how many were left out in the period that has ended with it.
    fn count(&mut self, now: Instant) -> (bool, u64) {
        let mut left_out = 0;
        if self.since.is_none_or(|since| now.duration_since(since) >= Self::PERIOD) {
            left_out = self.count.saturating_sub(Self::MOST);
            self.since = Some(now);
            self.count = 0;
        }
        self.count += 1;
        (self.count <= Self::MOST, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_notices_is_counted_and_not_logged() {
        let (mut notices, start) = (Notices::default(), Instant::now());
        let logged = (0..1000).filter(|_| notices.count(start).0).count();
        assert_eq!(logged, 10);
        assert_eq!(notices.count(start + Notices::PERIOD), (true, 990));
        assert_eq!(notices.count(start + 2 * Notices::PERIOD), (true, 0));
    }
}
