//! Stopping cleanly: one token, passed as an argument, that every loop and every wait watches.
//!
//! The order is always the same: stop intake, drain what is in flight, acknowledge, join. After [`GRACE`] the process
//! ends anyway: what was not acknowledged is simply done again.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long draining may take: systemd's default patience is 90 s, an operator's is shorter.
pub const GRACE: Duration = Duration::from_secs(10);

/// A token that is cancelled by SIGTERM, SIGINT (Ctrl-C) or SIGHUP (a closed terminal).
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
    });
    Ok(token)
}

/// Sleeps, but not through a shutdown. Returns false if the token was cancelled.
pub async fn sleep(duration: Duration, token: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = token.cancelled() => false,
        () = tokio::time::sleep(duration) => true,
    }
}
