//! What an answer, or a missing one, means for the message and its number: one pure function.
//!
//! The question that decides everything: can the provider have the message? Certainly yes: accepted. Certainly no: the
//! class of the refusal decides. Perhaps: `unknown`, and the message is not sent again automatically.

use std::time::Duration;

use crate::provider::{Accepted, Answer, Code, ErrorClass, Refusal, ThrottleScope};
use crate::retry::backoff;
use crate::site_db::accounts::ThrottleReach;
use crate::site_db::messages::ProblemClass;

/// What happens to the message next.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    /// The provider has it; with the provider's id of the message, and the recipient's ids.
    Accepted(Accepted),
    /// It will not be sent.
    Failed(Cause),
    /// It was not sent and will be tried again.
    Pending {
        /// Time until the next attempt, at least.
        wait: Duration,
        /// Whether the attempt counts towards the limit; false if the message is not to blame.
        consumed: bool,
        /// Which other messages pause too, and for how long.
        pause: Option<(ThrottleReach, Duration)>,
        /// Why it was not sent.
        cause: Cause,
    },
    /// The number can't send: hold it; the message waits for its release.
    HoldNumber(Cause),
    /// Perhaps it was sent; the text says what went wrong.
    Unknown(&'static str),
}

/// Why a message was not sent, as the row and the metrics keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    /// The provider's code, if it refused the message itself.
    pub(super) code: Option<Code>,
    /// What kind of problem it is.
    pub(super) class: ProblemClass,
    /// The reason as a sentence for people.
    pub(super) message: String,
}

/// How often and how soon a message is tried again.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Most attempts at a message, the first included, that fail with a transient error.
    pub max_attempts: u32,
    /// Wait before the second attempt; it doubles with each further one.
    pub initial: Duration,
    /// Longest wait between two attempts.
    pub max: Duration,
}

/// The message's attempts so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tries {
    /// Which attempt this was, from 1.
    pub(super) attempt: u32,
    /// How many earlier attempts did not count towards the limit (throttled, number held, network down).
    pub(super) uncounted: u32,
}

/// Longest pause that an answer's `Retry-After` may impose: an absurd value must not stop a number for a day.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Attempts for code 1, which means a failure at Meta or an invalid request: as Meta does not say which, one more try.
const MAX_ATTEMPTS_AMBIGUOUS: u32 = 2;
/// Longest pause of a number whose calls cannot be sent: during an outage a long queue is not tried message by message,
/// and sending starts again soon after the network is back.
const MAX_OUTAGE_PAUSE: Duration = Duration::from_secs(5);
/// Exponent at which the pair limit's wait of 4^X seconds ends: 4^5 s are 17 minutes, after which the recipient's
/// allowance (one message in 6 s, 45 at most) is whole again.
const MAX_PAIR_EXPONENT: u32 = 5;

/// Decides what happens to the message next.
///
/// | answer | next |
/// |---|---|
/// | accepted | accepted; `held` if the provider assesses the template first |
/// | refused, class account or permission | hold the number, the message waits, no attempt consumed (one of class permission, if others pass: it waits, and fails in the end: [`message_blame`](super::message_blame)) |
/// | throttle | wait as the provider says, else backoff (pair: 4^X s), no attempt consumed; the scope waits with it |
/// | transient, ambiguous | backoff, up to `max_attempts` (ambiguous: 2), then failed |
/// | window, permanent, template | failed |
/// | later | failed, class `later`: a day later the text may be out of date, so a person decides |
/// | not sent | wait with backoff, without a limit, and pause the number: a network outage is not the message's fault |
/// | lost | unknown |
#[must_use]
pub(super) fn next(answer: Answer, tries: Tries, policy: RetryPolicy) -> Next {
    match answer {
        Answer::Accepted(accepted) => Next::Accepted(accepted),
        Answer::Refused(refusal) => after_refusal(refusal, tries, policy),
        Answer::NotSent(why) => {
            let wait = uncounted_wait(None, tries, policy);
            Next::Pending {
                wait,
                consumed: false,
                pause: Some((ThrottleReach::Number, wait.min(MAX_OUTAGE_PAUSE))),
                cause: Cause {
                    code: None,
                    class: ProblemClass::NotSent,
                    message: why.to_owned(),
                },
            }
        }
        Answer::Lost(why) => Next::Unknown(why),
    }
}

fn after_refusal(refusal: Refusal, tries: Tries, policy: RetryPolicy) -> Next {
    let retry_after = refusal.retry_after;
    let cause = Cause {
        code: refusal.code,
        class: ProblemClass::Refused(refusal.class),
        message: refusal.message,
    };
    match refusal.class {
        ErrorClass::Account | ErrorClass::Permission => Next::HoldNumber(cause),
        ErrorClass::Throttle(scope) => throttled(scope, retry_after, cause, tries, policy),
        ErrorClass::Transient => try_again(policy.max_attempts, retry_after, cause, tries, policy),
        ErrorClass::Ambiguous => {
            let limit = policy.max_attempts.min(MAX_ATTEMPTS_AMBIGUOUS);
            try_again(limit, retry_after, cause, tries, policy)
        }
        ErrorClass::Window | ErrorClass::Permanent | ErrorClass::Later | ErrorClass::Template => Next::Failed(cause),
    }
}

/// How long a message waits whose attempt does not count towards the limit.
fn uncounted_wait(asked: Option<Duration>, tries: Tries, policy: RetryPolicy) -> Duration {
    asked
        .unwrap_or_else(|| {
            let initial = policy.initial.max(Duration::from_millis(100));
            backoff(tries.uncounted + 1, initial, policy.max)
        })
        .min(MAX_RETRY_AFTER)
}

fn throttled(
    scope: ThrottleScope,
    retry_after: Option<Duration>,
    cause: Cause,
    tries: Tries,
    policy: RetryPolicy,
) -> Next {
    let reach = match scope {
        ThrottleScope::Pair => None,
        ThrottleScope::Number => Some(ThrottleReach::Number),
        ThrottleScope::Waba => Some(ThrottleReach::Waba),
        ThrottleScope::App => Some(ThrottleReach::App),
    };
    let pair = Duration::from_secs(4_u64.pow(tries.uncounted.min(MAX_PAIR_EXPONENT)));
    let wait = uncounted_wait(retry_after.or(reach.is_none().then_some(pair)), tries, policy);
    Next::Pending {
        wait,
        consumed: false,
        pause: reach.map(|reach| (reach, wait)),
        cause,
    }
}

fn try_again(limit: u32, retry_after: Option<Duration>, cause: Cause, tries: Tries, policy: RetryPolicy) -> Next {
    if tries.attempt >= limit {
        return Next::Failed(cause);
    }
    let own = backoff(tries.attempt, policy.initial, policy.max);
    Next::Pending {
        wait: retry_after.map_or(own, |asked| own.max(asked.min(MAX_RETRY_AFTER))),
        consumed: true,
        pause: None,
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::cloud::GraphError;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 6,
        initial: Duration::from_millis(500),
        max: Duration::from_secs(60),
    };

    const fn tries(attempt: u32, uncounted: u32) -> Tries {
        Tries { attempt, uncounted }
    }

    fn refused(status: u16, code: i64) -> Answer {
        Answer::Refused(GraphError::new(code, "x").refusal(status, None))
    }

    fn word(next: &Next) -> &'static str {
        match next {
            Next::Accepted(_) => "accepted",
            Next::Failed(_) => "failed",
            Next::Pending { consumed: true, .. } => "retry",
            Next::Pending {
                consumed: false,
                pause: Some((ThrottleReach::Number, _)),
                ..
            } => "throttle number",
            Next::Pending {
                consumed: false,
                pause: Some((ThrottleReach::Waba, _)),
                ..
            } => "throttle waba",
            Next::Pending {
                consumed: false,
                pause: Some((ThrottleReach::App, _)),
                ..
            } => "throttle app",
            Next::Pending { consumed: false, .. } => "wait",
            Next::HoldNumber(_) => "hold",
            Next::Unknown(_) => "unknown",
        }
    }

    #[test]
    fn every_code_has_its_consequence() {
        for (code, status, expected) in [
            (0, 401, "hold"),
            (1, 400, "retry"),
            (2, 503, "retry"),
            (3, 500, "hold"),
            (4, 400, "throttle app"),
            (10, 403, "hold"),
            (33, 400, "hold"),
            (80_007, 400, "throttle waba"),
            (100, 400, "failed"),
            (190, 401, "hold"),
            (200, 403, "hold"),
            (299, 403, "hold"),
            (368, 403, "hold"),
            (130_429, 429, "throttle number"),
            (130_472, 400, "failed"),
            (131_000, 500, "retry"),
            (131_005, 403, "hold"),
            (131_008, 400, "failed"),
            (131_009, 400, "failed"),
            (131_016, 500, "retry"),
            (131_026, 400, "failed"),
            (131_031, 403, "hold"),
            (131_042, 400, "hold"),
            (131_047, 400, "failed"),
            (131_048, 400, "hold"),
            (131_049, 400, "failed"),
            (131_056, 400, "wait"),
            (131_057, 500, "throttle number"),
            (132_001, 404, "failed"),
            (132_015, 400, "failed"),
            (133_004, 503, "retry"),
            (133_010, 400, "hold"),
            (134_101, 400, "retry"),
            // A Graph error is an answer, even with a status that would be a lost one.
            (131_000, 502, "retry"),
            (190, 504, "hold"),
            // Codes that Meta does not document.
            (999_999, 400, "failed"),
            (999_999, 500, "retry"),
        ] {
            assert_eq!(
                word(&next(refused(status, code), tries(1, 0), POLICY)),
                expected,
                "{code} with {status}"
            );
        }
        let missing = Answer::Refused(GraphError::new(100, "x").with_subcode(33).refusal(400, None));
        assert_eq!(word(&next(missing, tries(1, 0), POLICY)), "hold");
    }

    #[test]
    fn every_failure_of_the_transport_has_its_consequence() {
        let on_the_way = |class| {
            Answer::Refused(Refusal {
                class,
                code: None,
                message: "HTTP 403 from something that is not the Graph API".to_owned(),
                retry_after: None,
            })
        };
        for (answer, expected) in [
            (on_the_way(ErrorClass::Transient), "retry"),
            (
                on_the_way(ErrorClass::Throttle(ThrottleScope::Number)),
                "throttle number",
            ),
            (Answer::NotSent("refused"), "throttle number"),
            (Answer::Lost("time-out"), "unknown"),
        ] {
            assert_eq!(word(&next(answer.clone(), tries(1, 0), POLICY)), expected, "{answer:?}");
        }
    }

    #[test]
    fn errors_that_pass_are_tried_a_bounded_number_of_times() {
        assert_eq!(word(&next(refused(500, 131_000), tries(5, 0), POLICY)), "retry");
        assert_eq!(word(&next(refused(500, 131_000), tries(6, 0), POLICY)), "failed");
        assert_eq!(word(&next(refused(400, 1), tries(2, 0), POLICY)), "failed");
        // Without blame there is no bound.
        assert_eq!(word(&next(refused(400, 131_056), tries(6, 99), POLICY)), "wait");
        assert_eq!(
            word(&next(Answer::NotSent("x"), tries(6, 99), POLICY)),
            "throttle number"
        );
        assert_eq!(word(&next(refused(401, 190), tries(6, 99), POLICY)), "hold");
    }

    #[test]
    fn waits_follow_meta_and_grow_to_a_cap() {
        let wait = |answer, tries| match next(answer, tries, POLICY) {
            Next::Pending { wait, .. } => wait,
            other => panic!("{other:?}"),
        };
        for (uncounted, seconds) in [(0, 1), (1, 4), (2, 16), (5, 1024), (50, 1024)] {
            assert_eq!(
                wait(refused(400, 131_056), tries(1, uncounted)),
                Duration::from_secs(seconds)
            );
        }
        let asked = |seconds| {
            let wait = Some(Duration::from_secs(seconds));
            Answer::Refused(GraphError::new(130_429, "x").refusal(429, wait))
        };
        assert_eq!(wait(asked(7), tries(1, 9)), Duration::from_secs(7));
        assert_eq!(wait(asked(1_000_000), tries(1, 0)), MAX_RETRY_AFTER);
        for uncounted in 0..80 {
            assert!(wait(refused(400, 130_429), tries(1, uncounted)) <= POLICY.max);
        }
    }
}
