//! Keeps a process that a database holds up able to answer probes and to end.
//!
//! sqlx reads what a server sends in a loop that gives its thread back only when nothing more has come. A server that sends
//! notices, parameters or a row without an end, broken or hostile, so keeps the threads of all connections to it, and neither a
//! time-out nor a signal is ever looked at. It can't be bounded from outside: sqlx takes no socket of ours. So:
//!
//! - the runtime has more threads than the server has connections ([`worker_threads`]), so that there is always one left;
//! - a thread of its own wakes one of them again and again ([`start`]): the thread that a connection holds up may have been
//!   the one that waits for sockets and timers, and another takes that over only when it is woken;
//! - if the process does not end in time after a signal all the same, that thread ends it. Nothing is lost by that, as
//!   nothing is lost by `kill -9`.

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::config::Config;
use crate::shutdown;

/// How often a thread of the runtime is woken: how late a timer may be while connections are held up.
const WAKE_EVERY: Duration = Duration::from_millis(50);

/// What the process may take to end after [`shutdown::GRACE`], in which its parts end.
const AFTER_GRACE: Duration = Duration::from_secs(5);

/// The exit code after a stop that was not clean.
const EXIT_NOT_CLEAN: i32 = 1;

/// How many threads the runtime of a process with a server needs.
pub(super) fn worker_threads(config: &Config) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    cores.saturating_add(usize::try_from(config.site.max_connections).unwrap_or(usize::MAX))
}

/// Starts the thread, for as long as the process lives.
///
/// # Errors
/// The thread or its signal handlers can't be set up.
pub(super) fn start(runtime: Handle) -> std::io::Result<()> {
    let own = Builder::new_current_thread().enable_all().build()?;
    let named = std::thread::Builder::new().name("keep-alive".to_owned());
    named.spawn(move || {
        if let Err(error) = own.block_on(run(&runtime)) {
            tracing::warn!("a process that a database holds up will not be ended: {error}");
        }
    })?;
    Ok(())
}

async fn run(runtime: &Handle) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut wake = interval(WAKE_EVERY);
    wake.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut end: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = wake.tick() => {
                runtime.spawn(std::future::ready(()));
            }
            _ = terminate.recv(), if end.is_none() => end = Some(latest_end()),
            _ = interrupt.recv(), if end.is_none() => end = Some(latest_end()),
            _ = hangup.recv(), if end.is_none() => end = Some(latest_end()),
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => give_up(),
        }
    }
}

fn latest_end() -> Instant {
    Instant::now() + shutdown::GRACE + AFTER_GRACE
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing else ends a process whose threads are all held up"
)]
fn give_up() -> ! {
    tracing::error!(
        "the process did not stop in time, and is ended; what is unfinished is done again at the next start"
    );
    std::process::exit(EXIT_NOT_CLEAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_run_while_tasks_hold_their_threads() {
        const HELD: usize = 4;
        let runtime = Builder::new_multi_thread()
            .worker_threads(HELD + 1)
            .enable_all()
            .build()
            .unwrap();
        start(runtime.handle().clone()).unwrap();
        let late = runtime.block_on(async {
            for _ in 0..HELD {
                tokio::spawn(async {
                    // A timer first, so that the thread that waits for timers is among those that are held.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    std::thread::sleep(Duration::from_secs(3));
                });
            }
            tokio::spawn(async {
                let begun = Instant::now();
                for _ in 0..10 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                begun.elapsed()
            })
            .await
            .unwrap()
        });
        runtime.shutdown_background();
        assert!(late < Duration::from_secs(2), "{late:?}");
    }
}
