//! Stopping cleanly: one token, passed as an argument, that every loop and every wait watches.
//!
//! The order is always the same: take no new work, finish what is under way, acknowledge, join. After [`GRACE`] the process
//! ends in any case: what was not acknowledged is done again at the next start.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long the parts may take to end. systemd waits 90 s by default; an operator at a terminal waits less.
pub const GRACE: Duration = Duration::from_secs(10);

/// The exit code by which shells report a process that Ctrl-C ended: 128 plus the signal's number.
const EXIT_INTERRUPTED: i32 = 130;

/// A token that is cancelled by SIGTERM, SIGINT (Ctrl-C) or SIGHUP (a closed terminal).
///
/// A second Ctrl-C ends the process at once. Nothing is lost by that, as nothing is lost by `kill -9`.
///
/// # Errors
/// A signal handler could not be installed.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
        stop.cancel();
        if interrupt.recv().await.is_some() {
            at_once();
        }
    });
    Ok(token)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a second Ctrl-C must wait for nothing, destructors included"
)]
fn at_once() -> ! {
    std::process::exit(EXIT_INTERRUPTED)
}

/// Sleeps until the time is over (true) or the token is cancelled (false).
pub async fn sleep(duration: Duration, token: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = token.cancelled() => false,
        () = tokio::time::sleep(duration) => true,
    }
}
