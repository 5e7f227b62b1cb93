//! What the process tells systemd, over a socket like systemd's own.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use tokio_util::sync::CancellationToken;
use twinlog::cli::systemd::supervise;
use twinlog::health::Health;

use crate::harness::SOON;

/// Makes the test, started by itself in a process of its own, the one that systemd watches: the protocol's variables belong
/// to a whole process.
const SERVICE: &str = "TWINLOG_TEST_SERVICE";

#[test]
fn systemd_is_told_ready_then_watchdog_and_state_then_stopping() {
    if std::env::var_os(SERVICE).is_some() {
        return be_the_service();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let receive = || -> String {
        let mut message = [0; 1024];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    };
    let mut service = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "systemd::systemd_is_told_ready_then_watchdog_and_state_then_stopping",
        ])
        .env(SERVICE, "1")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "90000")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();

    assert_eq!(receive(), "READY=1");
    assert_eq!(receive(), "STATUS=sync: connecting");
    for _ in 0..3 {
        assert_eq!(receive(), "WATCHDOG=1");
    }

    drop(service.stdin.take());
    let last = std::iter::repeat_with(receive)
        .find(|message| message != "WATCHDOG=1")
        .unwrap();
    assert_eq!(last, "STOPPING=1\nSTATUS=stopping");
    assert!(service.wait().unwrap().success());
}

fn be_the_service() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let stop = CancellationToken::new();
    let health = Health::default();
    health
        .component("sync")
        .not_ready("connecting", serde_json::Value::Null);
    let told = stop.clone();
    std::thread::spawn(move || {
        // Ends with the other side's end of the pipe.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        told.cancel();
    });
    runtime.block_on(supervise(health, stop));
}
