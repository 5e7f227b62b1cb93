//! A socket with its buffers: whole messages in, whole messages out.

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
}

impl Channel {
    pub(super) fn new(socket: Socket, identity: Identity) -> Self {
        Self {
            socket,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            phase: Phase::Login,
            identity,
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
                    log_notice(&codec::server_error(body.fields(), self.phase, &self.identity));
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
        loop {
            match self.receive().await {
                Ok(Message::DataRow(row)) => rows.push(codec::row_values(&row)?),
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

/// Logs a notice that the server sent.
pub(super) fn log_notice(notice: &WireError) {
    if let WireError::Server(notice) = notice {
        tracing::warn!(
            sqlstate = notice.sqlstate,
            "the source sends a notice: {}",
            notice.message
        );
    }
}
