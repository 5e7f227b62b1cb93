//! The listener with real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const BOUNDS: Bounds = Bounds {
    connections: 8,
    per_address: 8,
    silence: Duration::from_secs(90),
};

/// Far more than any step takes.
const SOON: Duration = Duration::from_secs(20);

/// Serves one route that answers and one that does not; its address and what stops it.
async fn served(bounds: Bounds) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let router = Router::new()
        .route("/", axum::routing::get(|| async { "here" }))
        .route("/waits", axum::routing::get(std::future::pending::<()>));
    let serving = tokio::spawn(serve(listener, router, bounds, stop.clone()));
    (address, stop, serving)
}

async fn is_answered(client: &mut TcpStream) {
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 1024];
    let length = client.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"), "{length}");
}

/// Ends when the other side has closed the connection.
async fn is_closed(client: &mut TcpStream) {
    // An error of the protocol first, or nothing.
    let mut read = Vec::new();
    let ended = tokio::time::timeout(SOON, client.read_to_end(&mut read));
    let _ = ended.await.expect("the connection is closed");
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let (address, stop, serving) = served(Bounds {
        silence: Duration::from_millis(300),
        ..BOUNDS
    })
    .await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    is_closed(&mut silent).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    is_answered(&mut idle).await;
    is_closed(&mut idle).await;
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_ends_with_the_time_of_a_head() {
    let registry = Registry::new(BOUNDS);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let tracked = registry.admit(address.ip()).await.unwrap();
    let mut connection = Connection::new(accepted.unwrap().0, tracked, BOUNDS.silence);
    let (begun, mut client) = (Instant::now(), client.unwrap());
    let ended = loop {
        client.write_all(b"y").await.unwrap();
        match connection.read(&mut [0; 8]).await {
            Ok(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(ended.kind(), std::io::ErrorKind::TimedOut);
    assert!((10..13).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_answer_that_nobody_reads_ends_with_its_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let long = axum::routing::get(|| async { vec![0_u8; 32 << 20] });
    let serving = tokio::spawn(serve(listener, Router::new().route("/", long), BOUNDS, stop.clone()));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // Well after the grace; the buffers between us hold a few megabytes at most.
    tokio::time::sleep(Pace::GRACE + Duration::from_secs(1)).await;
    let mut read = Vec::new();
    let _ = tokio::time::timeout(SOON, client.read_to_end(&mut read))
        .await
        .expect("it is closed");
    assert!(read.len() < 32 << 20);
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn new_connections_are_answered_though_idle_and_slow_ones_fill_the_listener() {
    let (address, stop, serving) = served(BOUNDS).await;
    let mut answering = TcpStream::connect(address).await.unwrap();
    answering
        .write_all(b"GET /waits HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut others = Vec::new();
    for other in 0..40 {
        let mut client = TcpStream::connect(address).await.unwrap();
        match other % 3 {
            0 => {}
            1 => client.write_all(b"GET / HTT").await.unwrap(),
            _ => is_answered(&mut client).await,
        }
        others.push(client);
    }
    let mut client = TcpStream::connect(address).await.unwrap();
    tokio::time::timeout(SOON, is_answered(&mut client))
        .await
        .expect("it is answered");
    // The oldest made room, and not the one whose request is being answered.
    is_closed(&mut others[0]).await;
    let quiet = tokio::time::timeout(Duration::from_millis(50), answering.read(&mut [0; 8])).await;
    assert!(quiet.is_err(), "{quiet:?}");
    drop(answering);
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn a_stop_ends_idle_connections_and_takes_no_new_ones() {
    let (address, stop, serving) = served(BOUNDS).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    is_answered(&mut client).await;
    stop.cancel();
    let ending = tokio::time::timeout(SOON, serving);
    ending
        .await
        .expect("an idle connection does not delay the end")
        .unwrap();
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    assert!(TcpStream::connect(address).await.is_err());
}
