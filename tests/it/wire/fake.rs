//! A scripted walsender over a real socket: sends what a real one never sends, and checks when it is answered.

use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use twinlog::config::DatabaseUrl;
use twinlog::lsn::Lsn;
use twinlog::retry::Disposition;
use twinlog::wire::{Feedback, Frame, FrameStream, Phase, ReplicationConnection, ServerFault, WireError};

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.put_u32(body.len() as u32 + 4);
    out.extend(body);
    out
}

fn xlog_data(position: u64, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    body.put_u64(position);
    body.put_u64(position);
    body.put_i64(0);
    body.extend(payload);
    message(b'd', &body)
}

fn keepalive(position: u64, reply_requested: bool) -> Vec<u8> {
    let mut body = vec![b'k'];
    body.put_u64(position);
    body.put_i64(0);
    body.put_u8(reply_requested.into());
    message(b'd', &body)
}

/// A row of one text column.
fn row(value: &str) -> Vec<u8> {
    let mut body = vec![0, 1];
    body.put_u32(value.len() as u32);
    body.extend(value.as_bytes());
    message(b'D', &body)
}

const READY: &[u8] = b"Z\0\0\0\x05I";

/// A server with one connection that accepts every login.
struct Walsender {
    socket: TcpStream,
    inbox: BytesMut,
}

/// The length of a status update: tag, length, kind, three positions, a time, whether a reply is wanted.
const STATUS_UPDATE: usize = 1 + 4 + 1 + 3 * 8 + 8 + 1;

/// A status update as the server receives it.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    written: u64,
    flushed: u64,
    applied: u64,
    reply_requested: bool,
}

impl Walsender {
    /// The next message of the client's: tag and body.
    async fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if self.inbox.len() >= 5 {
                let length = u32::from_be_bytes(self.inbox[1..5].try_into().unwrap()) as usize + 1;
                if self.inbox.len() >= length {
                    let message = self.inbox.split_to(length);
                    return Some((message[0], message[5..].to_vec()));
                }
            }
            if self.socket.read_buf(&mut self.inbox).await.ok()? == 0 {
                return None;
            }
        }
    }

    async fn status(&mut self) -> Status {
        let (tag, body) = self.receive().await.expect("a status update");
        assert_eq!(tag, b'd');
        Status::of(&body)
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }
}

impl Status {
    /// From the body of its message.
    fn of(body: &[u8]) -> Self {
        assert_eq!(body.len(), STATUS_UPDATE - 5);
        let mut fields = body;
        assert_eq!(fields.get_u8(), b'r');
        let (written, flushed, applied) = (fields.get_u64(), fields.get_u64(), fields.get_u64());
        fields.advance(8);
        Self {
            written,
            flushed,
            applied,
            reply_requested: fields.get_u8() != 0,
        }
    }
}

/// Listens, and gives the address.
async fn listen() -> (TcpListener, DatabaseUrl) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, format!("postgres://me@127.0.0.1:{port}/crm").parse().unwrap())
}

/// Takes the one connection up to the client's first message, with the body of its startup packet.
async fn accept(listener: TcpListener) -> (Walsender, Vec<u8>) {
    let (mut socket, _) = listener.accept().await.unwrap();
    let length = socket.read_u32().await.unwrap() as usize;
    let mut startup = vec![0; length - 4];
    socket.read_exact(&mut startup).await.unwrap();
    let walsender = Walsender {
        socket,
        inbox: BytesMut::new(),
    };
    (walsender, startup)
}

/// A stream of a walsender with this `wal_sender_timeout`, in milliseconds.
async fn streaming(timeout: &str) -> (Walsender, FrameStream, Feedback) {
    let (listener, url) = listen().await;
    let server = async {
        let (mut server, _) = accept(listener).await;
        server.send(&message(b'R', &[0, 0, 0, 0])).await;
        server.send(READY).await;
        let (tag, _) = server.receive().await.unwrap();
        assert_eq!(tag, b'Q');
        server.send(&row(timeout)).await;
        server.send(&message(b'C', b"SELECT 1\0")).await;
        server.send(READY).await;
        let (tag, start) = server.receive().await.unwrap();
        assert_eq!(tag, b'Q');
        assert!(start.starts_with(b"START_REPLICATION"));
        server.send(&message(b'W', &[0, 0, 0])).await;
        server
    };
    let client = async {
        let connection = ReplicationConnection::connect(&url, "twinlog-test").await.unwrap();
        let slot = "s".parse().unwrap();
        connection
            .start_replication(&slot, Lsn::INVALID, &["p".to_owned()])
            .await
            .unwrap()
    };
    let (server, (stream, feedback)) = tokio::join!(server, client);
    (server, stream, feedback)
}

fn positions(frames: &[Frame]) -> Vec<u64> {
    frames
        .iter()
        .map(|frame| match frame {
            Frame::XLogData { wal_end, .. } | Frame::KeepAlive { wal_end, .. } => wal_end.0,
        })
        .collect()
}

#[tokio::test]
async fn a_startup_packet_pins_what_values_are_printed_under() {
    let (listener, url) = listen().await;
    let (connection, (_server, startup)) = tokio::join!(ReplicationConnection::connect(&url, "twinlog-test"), async {
        let (mut server, startup) = accept(listener).await;
        // An error before anything else, as when all connections are taken.
        server.send(&message(b'E', b"SFATAL\0C53300\0Msorry\0\0")).await;
        (server, startup)
    });
    let text = String::from_utf8_lossy(&startup[4..]).into_owned();
    for pair in [
        "replication\0database\0",
        "DateStyle\0ISO, YMD\0",
        "extra_float_digits\x003\0",
        "TimeZone\0UTC\0",
    ] {
        assert!(text.contains(pair), "{text:?}");
    }
    let error = connection.err().unwrap();
    assert_eq!(error.fault(), Some(ServerFault::NoFreeConnection));
    assert_eq!(error.disposition(), Disposition::Transient);
}

#[tokio::test]
async fn a_single_frame_is_delivered_at_once_and_a_reply_request_is_answered_at_once() {
    let (mut server, mut stream, feedback) = streaming("60000").await;
    let began = Instant::now();
    server.send(&xlog_data(100, b"x")).await;
    assert_eq!(positions(&stream.next().await.unwrap().unwrap()), [100]);
    server.send(&keepalive(200, true)).await;
    // The position is received, but nothing was reported as durable yet.
    let expected = Status {
        written: 200,
        flushed: 0,
        applied: 0,
        reply_requested: false,
    };
    assert_eq!(server.status().await, expected);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    drop(feedback);
}

#[tokio::test]
async fn a_durable_position_is_reported_promptly_never_lower_and_never_higher() {
    let (mut server, stream, feedback) = streaming("60000").await;
    feedback.durable(Lsn(100));
    assert_eq!(server.status().await.flushed, 100);
    feedback.durable(Lsn(50));
    feedback.durable(Lsn(120));
    let status = server.status().await;
    assert_eq!((status.written, status.flushed, status.applied), (120, 120, 120));
    // The last report of a stream that is closed has what was told last, though the throttle held it back.
    feedback.durable(Lsn(130));
    let closing = tokio::spawn(stream.close());
    let mut last = server.status().await;
    loop {
        let (tag, body) = server.receive().await.unwrap();
        if tag == b'c' {
            break;
        }
        last = Status::of(&body);
    }
    assert_eq!(last.flushed, 130);
    server.send(&message(b'c', b"")).await;
    server.send(&message(b'C', b"COPY 0\0")).await;
    server.send(READY).await;
    closing.await.unwrap().unwrap();
    assert_eq!(server.receive().await.unwrap().0, b'X');
    assert!(server.receive().await.is_none());
}

#[tokio::test]
async fn closing_a_stream_waits_at_most_two_seconds_for_the_server() {
    let (server, stream, _feedback) = streaming("60000").await;
    let began = Instant::now();
    let error = stream.close().await.unwrap_err();
    assert!(matches!(error, WireError::Timeout { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    drop(server);
}

#[tokio::test]
async fn status_updates_are_periodic_and_ask_a_silent_server_for_a_reply() {
    let (mut server, _stream, _feedback) = streaming("1000").await;
    for _ in 0..3 {
        assert!(server.status().await.reply_requested);
        server.send(&keepalive(7, false)).await;
    }
    assert_eq!(server.status().await.written, 7);
}

#[tokio::test]
async fn reports_go_on_while_the_consumer_takes_nothing() {
    let (server, mut stream, feedback) = streaming("1000").await;
    // More than the pump may hold for a consumer, in the background: the server's writes block.
    let frame = xlog_data(9, &[b'x'; 100_000]);
    let (mut read, mut write) = server.socket.into_split();
    let total = 600;
    let writing = tokio::spawn(async move {
        for _ in 0..total {
            write.write_all(&frame).await.unwrap();
        }
        write
    });
    for round in 0_u64..4 {
        feedback.durable(Lsn(round + 1));
        let mut status = [0; STATUS_UPDATE];
        read.read_exact(&mut status).await.unwrap();
    }
    assert!(!writing.is_finished(), "the pump reads without limit");
    // No frame is lost.
    let mut frames = 0;
    while frames < total {
        frames += stream.next().await.unwrap().unwrap().len();
    }
    // The server's half stays open, because closing it would be a signal too.
    let _write = writing.await.unwrap();
    assert!(futures_util::FutureExt::now_or_never(stream.next()).is_none());
}

#[tokio::test]
async fn a_stream_whose_consumer_is_behind_still_closes_cleanly() {
    let (server, stream, _feedback) = streaming("60000").await;
    let (mut read, mut write) = server.socket.into_split();
    let writing = tokio::spawn(async move {
        let frame = xlog_data(9, &[b'x'; 100_000]);
        for _ in 0..600 {
            write.write_all(&frame).await.unwrap();
        }
        for end in [message(b'c', b""), message(b'C', b"COPY 0\0"), READY.to_vec()] {
            write.write_all(&end).await.unwrap();
        }
    });
    let (closed, said) = tokio::join!(stream.close(), async {
        let mut said = Vec::new();
        read.read_to_end(&mut said).await.unwrap();
        said
    });
    closed.unwrap();
    writing.await.unwrap();
    let (status, ends) = said.split_at(STATUS_UPDATE);
    assert_eq!(status[0], b'd');
    let (copy_done, terminate) = (message(b'c', b""), message(b'X', b""));
    assert_eq!(ends, [copy_done, terminate].concat(), "nothing else is said");
}

#[tokio::test]
async fn a_connection_is_unusable_after_a_dropped_query() {
    let (listener, url) = listen().await;
    let (connection, mut server) = tokio::join!(ReplicationConnection::connect(&url, "twinlog-test"), async {
        let (mut server, _) = accept(listener).await;
        server.send(&message(b'R', &[0, 0, 0, 0])).await;
        server.send(READY).await;
        server
    });
    let mut connection = connection.unwrap();
    let given_up = tokio::time::timeout(Duration::from_millis(50), connection.simple_query("SELECT 1")).await;
    assert!(given_up.is_err());
    // The late answer must not be taken for the answer to the next query.
    server.send(&row("1")).await;
    server.send(READY).await;
    assert!(matches!(
        connection.simple_query("SELECT 2").await,
        Err(WireError::Closed)
    ));
}

#[tokio::test]
async fn frames_before_an_error_are_delivered_and_nothing_after_it() {
    let (mut server, mut stream, _feedback) = streaming("60000").await;
    let mut bytes = xlog_data(1, b"a");
    bytes.extend(xlog_data(2, b"b"));
    bytes.extend(message(b'E', b"SERROR\0C42704\0Mpublication \"p\" does not exist\0\0"));
    bytes.extend(xlog_data(3, b"c"));
    server.send(&bytes).await;
    let mut seen = Vec::new();
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(frames) => seen.extend(positions(&frames)),
            Err(error) => break error,
        }
    };
    assert_eq!(seen, [1, 2]);
    assert_eq!(error.fault(), Some(ServerFault::PublicationMissing));
    let WireError::Server(error) = error else {
        panic!("{error}")
    };
    assert_eq!(error.phase, Phase::Stream);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn every_end_of_a_stream_is_a_typed_error() {
    let mut cut = xlog_data(1, b"payload");
    cut.truncate(10);
    for (bytes, expected) in [
        (message(b'd', b"w123"), "protocol"),
        (message(b'd', b"?"), "protocol"),
        (b"d\x7f\xff\xff\xff".to_vec(), "protocol"),
        (b"d\0\0\0\x01".to_vec(), "protocol"),
        (message(b'?', b""), "protocol"),
        (message(b'D', b"\0\0"), "protocol"),
        (message(b'E', b"SERROR"), "protocol"),
        (message(b'c', b""), "ended"),
        (message(b'C', b"COPY 0\0"), "ended"),
        (cut, "closed"),
        (Vec::new(), "closed"),
    ] {
        let (mut server, mut stream, _feedback) = streaming("60000").await;
        server.send(&bytes).await;
        drop(server);
        let error = stream.next().await.unwrap().unwrap_err();
        let kind = match &error {
            WireError::Protocol(_) => "protocol",
            WireError::StreamEnded => "ended",
            WireError::Closed => "closed",
            other => panic!("{bytes:?}: {other:?}"),
        };
        assert_eq!(kind, expected, "{bytes:?}: {error}");
        assert_eq!(error.disposition(), Disposition::Transient);
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn closing_a_stream_that_failed_says_why_it_failed() {
    let (mut server, stream, feedback) = streaming("60000").await;
    server.send(&message(b'E', b"SFATAL\0C57P01\0Mshutting down\0\0")).await;
    // The error ends the pump, and with it the channel that it reads.
    drop(feedback);
    assert!(server.receive().await.is_none());
    let error = stream.close().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("57P01"), "{error}");
}

#[tokio::test]
async fn frames_arrive_whole_however_they_are_cut() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    // GIVEN mostly rows, some larger than a socket's buffer, one larger than what is read together.
    let payloads: Vec<Vec<u8>> = (0..3_000)
        .map(|i| {
            let length = match i % 500 {
                499 => 200_000,
                250 if i == 1_250 => 3_000_000,
                _ => random.random_range(0..300),
            };
            vec![random.random(); length]
        })
        .collect();
    let bytes: Vec<u8> = (1..)
        .zip(&payloads)
        .flat_map(|(at, payload)| xlog_data(at, payload))
        .collect();

    // WHEN they arrive in pieces
    let (server, mut stream, _feedback) = streaming("60000").await;
    let (_read, mut write) = server.socket.into_split();
    let writing = tokio::spawn(async move {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let most = if random.random_bool(0.9) { 700 } else { 100_000 };
            let piece = random.random_range(1..=most).min(rest.len());
            write.write_all(&rest[..piece]).await.unwrap();
            rest = &rest[piece..];
        }
        write
    });

    // THEN each is delivered complete
    let mut seen = 0;
    while seen < payloads.len() {
        for frame in stream.next().await.unwrap().unwrap() {
            let Frame::XLogData { wal_start, payload, .. } = frame else {
                panic!("{frame:?}")
            };
            assert_eq!(wal_start, Lsn(seen as u64 + 1));
            assert!(payload == payloads[seen], "frame {seen}");
            seen += 1;
        }
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn a_silent_server_times_out_after_its_wal_sender_timeout() {
    let (server, mut stream, _feedback) = streaming("1000").await;
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(matches!(error, WireError::Timeout { .. }), "{error}");
    drop(server);
}

#[tokio::test]
async fn a_server_that_omits_its_scram_signature_is_refused() {
    let (listener, url) = listen().await;
    let url: DatabaseUrl = format!("{url}").replace("me@", "me:secret@").parse().unwrap();
    let (connection, _server) = tokio::join!(ReplicationConnection::connect(&url, "twinlog-test"), async {
        let (mut server, _) = accept(listener).await;
        server.send(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")).await;
        server.receive().await.unwrap();
        server.send(&message(b'R', &[0, 0, 0, 0])).await;
        server.send(READY).await;
        server
    });
    assert!(matches!(connection.err().unwrap(), WireError::Protocol(_)));
}

#[tokio::test]
async fn an_unsupported_login_method_is_named() {
    for (request, name) in [(7, "GSSAPI"), (9, "SSPI")] {
        let (listener, url) = listen().await;
        let (connection, _server) = tokio::join!(ReplicationConnection::connect(&url, "twinlog-test"), async {
            let (mut server, _) = accept(listener).await;
            server.send(&message(b'R', &[0, 0, 0, request])).await;
            server
        });
        let error = connection.err().unwrap();
        assert!(
            matches!(error, WireError::AuthMethod(method) if method == name),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("scram-sha-256"));
    }
}
