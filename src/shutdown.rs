//! Stopping cleanly: one token, passed as an argument, that every loop and every wait watches.
//!
//! The order is always the same: stop intake, drain what is in flight, acknowledge, join. After [`GRACE`] the process
//! ends anyway: what was not acknowledged is simply done again.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long draining may take: systemd's default patience is 90 s, an operator's is shorter.
pub const GRACE: Duration = Duration::from_secs(10);

/// What a shell says of a process that Ctrl-C ended: 128 and the signal's number.
const EXIT_INTERRUPTED: i32 = 130;

/// A token that is cancelled by SIGTERM, SIGINT (Ctrl-C) or SIGHUP (a closed terminal).
///
/// Whoever presses Ctrl-C once more does not want to wait for what is being ended: the process ends at once. Nothing is lost
/// by that, as nothing is by `kill -9`.
///
/// # Errors
/// The signal handlers could not be installed.
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
    reason = "it is asked for not to wait for anything, destructors included"
)]
fn at_once() -> ! {
    std::process::exit(EXIT_INTERRUPTED)
}

/// Sleeps, but not through a shutdown. Returns false if the token was cancelled.
pub async fn sleep(duration: Duration, token: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = token.cancelled() => false,
        () = tokio::time::sleep(duration) => true,
    }
}
