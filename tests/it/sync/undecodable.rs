//! A Site DB that can't decode its own log past a change: the stream is held with the steps, and goes on when it can.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::harness::{NOTES, SOON, Twins};

/// The answer to START_REPLICATION of a server that fails in decoding: CopyBothResponse, then the error.
fn fails_to_decode(message: &str) -> Vec<u8> {
    let error = format!("SERROR\0VERROR\0CXX000\0M{message}\0RReorderBufferProcessTXN\0\0");
    let mut answer = vec![b'W', 0, 0, 0, 7, 0, 0, 0, b'E'];
    answer.extend((error.len() as u32 + 4).to_be_bytes());
    answer.extend(error.as_bytes());
    answer
}

/// Passes everything on to a server, but answers START_REPLICATION by itself while it `fails`.
async fn walsender_that(fails: &Arc<AtomicBool>, server_port: u16, message: &'static str) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let fails = Arc::clone(fails);
    let accepting = tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let fails = Arc::clone(&fails);
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", server_port)).await?;
                let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
                loop {
                    tokio::select! {
                        bytes = client.read(&mut asked) => {
                            let bytes = &asked[..bytes?];
                            let starts = bytes.windows(17).any(|part| part == b"START_REPLICATION");
                            if starts && fails.load(Ordering::SeqCst) {
                                client.write_all(&fails_to_decode(message)).await?;
                                break;
                            }
                            if bytes.is_empty() {
                                break;
                            }
                            server.write_all(bytes).await?;
                        }
                        bytes = server.read(&mut answered) => {
                            let bytes = &answered[..bytes?];
                            if bytes.is_empty() {
                                break;
                            }
                            client.write_all(bytes).await?;
                        }
                    }
                }
                // Until the client has read it.
                let _ = client.shutdown().await;
                while client.read(&mut asked).await? > 0 {}
                std::io::Result::Ok(())
            });
        }
    });
    (port, accepting)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_can_not_be_decoded_holds_the_stream_with_the_steps_until_it_can() {
    // GIVEN a daemon whose server finds no table for a change, as it is called before 16 and since
    for message in [
        "could not map filenode \"base/5/16384\" to relation OID",
        "could not map filenumber \"base/5/16384\" to relation OID",
    ] {
        let mut twins = Twins::new(NOTES).await;
        let fails = Arc::new(AtomicBool::new(false));
        let (port, gate) = walsender_that(&fails, twins.site.cluster.port(), message).await;
        twins.set_site_url(&twins.site.url_through(port));
        let mut daemon = twins.start().await;
        twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
        twins.until_equal(&["notes"]).await;

        // WHEN the stream breaks off there again and again
        fails.store(true, Ordering::SeqCst);
        twins.terminate_walsender().await;
        twins.on_site("INSERT INTO notes VALUES (2, 'b', 2)").await;

        // THEN it is held, once said, with what can be done; and nothing is given up by itself
        daemon.until_state("held").await;
        let words = [
            "can't decode its log",
            "could not map file",
            "pg_drop_replication_slot",
            "resync --all",
        ];
        twins.until_status_says(&words, SOON).await;
        daemon.until_ready(503, &["can't decode its log"]).await;
        assert_eq!(
            daemon.output().matches("the stream is held").count(),
            1,
            "{}",
            daemon.output()
        );
        assert_eq!(
            twins
                .site
                .value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
                .await,
            "1"
        );

        // WHEN the server can decode it, THEN it goes on by itself
        fails.store(false, Ordering::SeqCst);
        twins.until_equal(&["notes"]).await;
        twins.until_status_is_good(&[]).await;
        daemon.until_flowing().await;
        daemon.stop().await;
        gate.abort();
    }
}
