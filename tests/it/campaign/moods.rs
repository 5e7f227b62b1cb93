//! What Meta does to sends and to numbers, and to which server it sends its webhooks.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use twinlog::dev::graph_simulator::{Fault, Simulator};

use super::NUMBERS;
use super::servers::Servers;
use crate::harness::{Background, Rounds, pace};

/// All faults; each that takes an answer away twice.
fn faults() -> Vec<Fault> {
    // Number, pair, account and app are throttled; something is wrong with the person, the window, the template; Meta is
    // ill; Meta does not say whether it took the message; the number is held.
    let codes = [
        130_429, 131_056, 80_007, 4, 131_026, 131_047, 132_015, 131_000, 2, 1, 131_031,
    ];
    let errors = codes.map(|code| Fault::Error { code, subcode: None });
    let others = [
        Fault::AcceptThenHang,
        Fault::AcceptThenHang,
        Fault::AcceptThenReset,
        Fault::AcceptThenReset,
        Fault::AcceptThenBadGateway,
        Fault::AcceptThenBadGateway,
        Fault::AcceptThenServerError,
        Fault::AcceptThenServerError,
        Fault::ServerError,
        Fault::ResetUnaccepted,
        Fault::TooManyRequests { retry_after_seconds: 0 },
        Fault::TooManyRequests { retry_after_seconds: 1 },
        Fault::SlowAnswer { delay_ms: 300 },
        Fault::SlowAnswer { delay_ms: 1300 },
        Fault::StatusBeforeAnswer,
        Fault::FailLater { code: 131_047 },
        Fault::HeldThenReleased { after_ms: 100 },
        Fault::HeldThenDropped { after_ms: 100 },
        Fault::DuplicateStatuses,
        Fault::ReversedStatuses,
        Fault::SkipDelivered,
        Fault::WithoutEcho,
        Fault::Silent,
    ];
    errors.into_iter().chain(others).collect()
}

/// Until it is ended; then all is well again.
pub(super) fn start(meta: &Arc<Simulator>, servers: &Servers, seed: u64) -> Background<()> {
    let callbacks = servers.urls().into_iter().map(|url| format!("{url}/webhook"));
    let (meta, callbacks): (_, Vec<String>) = (Arc::clone(meta), callbacks.collect());
    meta.set_callback(Some(callbacks[0].parse().unwrap()));
    Background::start(|rounds| run(meta, callbacks, StdRng::seed_from_u64(seed), rounds))
}

async fn run(meta: Arc<Simulator>, callbacks: Vec<String>, mut random: StdRng, rounds: Rounds) {
    let faults = faults();
    let mut expired = None;
    while rounds.go_on() {
        let callback = &callbacks[random.random_range(0..callbacks.len())];
        meta.set_callback(Some(callback.parse().unwrap()));
        let number = NUMBERS[random.random_range(0..NUMBERS.len())];
        if random.random_bool(0.4) {
            let fault = faults[random.random_range(0..faults.len())];
            meta.set_fault_times(number, fault, random.random_range(1..3)).unwrap();
        }
        if let Some(number) = expired.take() {
            meta.set_token(number, "simulator-token").unwrap();
        } else if random.random_bool(0.02) {
            meta.expire_token(number).unwrap();
            expired = Some(number);
        }
        rounds.count();
        pace(Duration::from_millis(random.random_range(20..80))).await;
    }
    for number in NUMBERS {
        meta.clear_faults(number).unwrap();
        meta.set_token(number, "simulator-token").unwrap();
    }
}
