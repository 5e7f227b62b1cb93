//! What an answer, or the lack of one, means for the message, its conversation and its number: one pure function.
//!
//! The question that decides everything: could Meta have taken the message? Certainly yes: accepted. Certainly no: by
//! the class of the error. Perhaps: `unknown`, and nobody sends it again by himself.

use std::time::Duration;

use crate::provider::cloud::GraphError;
use crate::provider::cloud::send::{Accepted, AcceptedStatus};
use crate::provider::{Code, ErrorClass, ThrottleScope};
use crate::retry::backoff;
use crate::site_db::accounts::ThrottleReach;

/// What came of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// 2xx with a wamid.
    Accepted(Accepted),
    /// An error of the Graph API: it read the request and refused it.
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        error: GraphError,
        /// `Retry-After`, where it came.
        retry_after: Option<Duration>,
    },
    /// An answer that is not the Graph API's: a proxy's page, an empty body, a 2xx without a wamid.
    Foreign {
        /// HTTP status.
        status: u16,
        /// `Retry-After`, where it came.
        retry_after: Option<Duration>,
    },
    /// The request never left: no address, no connection, no TLS.
    NotSent(&'static str),
    /// The request may have arrived, its answer did not.
    Lost(&'static str),
}

/// What happens next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Meta has it.
    Accepted {
        /// Its id and the recipient's.
        accepted: Accepted,
        /// Meta keeps it until it has judged the template.
        held: bool,
    },
    /// It will not be sent.
    Failed(Cause),
    /// It was not sent and waits.
    Pending {
        /// At least this long.
        wait: Duration,
        /// Whether the attempt counts towards the limit: not where the message is not to blame.
        consumed: bool,
        /// What else pauses, and for how long.
        pause: Option<(ThrottleReach, Duration)>,
        /// Why.
        cause: Cause,
    },
    /// The number can't send: hold it; the message waits for its release.
    Hold(Cause),
    /// Perhaps it was sent.
    Unknown(&'static str),
}

/// An error, as the row and the metrics keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Meta's code.
    pub code: Option<i32>,
    /// The code as a metric's label: only those of Meta's table.
    pub label: Option<i64>,
    /// Our class.
    pub class: &'static str,
    /// A sentence for a person.
    pub message: String,
}

/// The limits of trying.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Attempts for errors that pass.
    pub max_attempts: u32,
    /// First wait.
    pub initial: Duration,
    /// Longest wait.
    pub max: Duration,
}

/// What was tried before.
#[derive(Debug, Clone, Copy)]
pub struct Tries {
    /// Which attempt this was, from 1.
    pub attempt: u32,
    /// How often it was sent back without blame before.
    pub throttles: u32,
}

/// Longest pause that an answer's `Retry-After` may impose: a nonsensical one must not stop a number for a day.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Attempts for code 1, which is Meta's trouble or an invalid request: nobody can tell, so one more try.
const MAX_ATTEMPTS_AMBIGUOUS: u32 = 2;
/// Longest pause of a number whose calls don't get out: it keeps a long queue from running into the same wall, and ends
/// soon after the network is back.
const MAX_OUTAGE_PAUSE: Duration = Duration::from_secs(5);
/// Exponent at which the pair limit's wait of 4^X seconds ends: 4^5 s are 17 minutes, after which the recipient's
/// allowance (one message in 6 s, 45 at most) is whole again.
const MAX_PAIR_EXPONENT: u32 = 5;

/// The decision.
///
/// | answer | next |
/// |---|---|
/// | wamid | accepted; held where Meta assesses (or has paused) the template |
/// | error of class account | hold the number, the message waits, no attempt consumed (one that alone is refused so fails in the end: `suspects`) |
/// | throttle | wait as Meta says, else backoff (pair: 4^X s), no attempt consumed; the scope waits with it |
/// | transient | backoff, up to `max_attempts` (code 1: 2), then failed |
/// | window, permanent, template | failed |
/// | later (131049) | failed, class `later`: a day later the text may be wrong, a person decides |
/// | 5xx or 2xx that is not the Graph API's | unknown |
/// | 429 that is not the Graph API's | as a throttle of the number |
/// | 3xx, 4xx that is not the Graph API's | as transient: something on the way refused it |
/// | not sent | wait with backoff, for ever, and the number with it: an outage of the network is no message's fault |
/// | lost | unknown |
#[must_use]
pub fn next(answer: Answer, tries: Tries, policy: Policy) -> Next {
    let sent_back = |wait: Option<Duration>| {
        wait.unwrap_or_else(|| {
            let initial = policy.initial.max(Duration::from_millis(100));
            backoff(tries.throttles + 1, initial, policy.max)
        })
        .min(MAX_RETRY_AFTER)
    };
    let transient = |cause: Cause, max_attempts: u32| {
        if tries.attempt >= max_attempts {
            Next::Failed(cause)
        } else {
            Next::Pending {
                wait: backoff(tries.attempt, policy.initial, policy.max),
                consumed: true,
                pause: None,
                cause,
            }
        }
    };
    match answer {
        Answer::Accepted(accepted) => Next::Accepted {
            held: matches!(accepted.status, AcceptedStatus::Held | AcceptedStatus::Paused),
            accepted,
        },
        Answer::Refused {
            status,
            error,
            retry_after,
        } => {
            let refusal = error.refusal(status, retry_after);
            let cause = Cause {
                code: refusal.code.map(Code::number),
                label: refusal.code.and_then(Code::label).map(i64::from),
                class: refusal.class.as_str(),
                message: refusal.message,
            };
            match refusal.class {
                ErrorClass::Account | ErrorClass::Permission => Next::Hold(cause),
                ErrorClass::Throttle(scope) => {
                    let pair = Duration::from_secs(4_u64.pow(tries.throttles.min(MAX_PAIR_EXPONENT)));
                    let reach = match scope {
                        ThrottleScope::Pair => None,
                        ThrottleScope::Number => Some(ThrottleReach::Number),
                        ThrottleScope::Waba => Some(ThrottleReach::Waba),
                        ThrottleScope::App => Some(ThrottleReach::App),
                    };
                    let wait = sent_back(retry_after.or(reach.is_none().then_some(pair)));
                    Next::Pending {
                        wait,
                        consumed: false,
                        pause: reach.map(|reach| (reach, wait)),
                        cause,
                    }
                }
                ErrorClass::Transient | ErrorClass::Ambiguous => {
                    let limit = if refusal.class == ErrorClass::Ambiguous {
                        policy.max_attempts.min(MAX_ATTEMPTS_AMBIGUOUS)
                    } else {
                        policy.max_attempts
                    };
                    match (transient(cause, limit), retry_after) {
                        (
                            Next::Pending {
                                wait,
                                consumed,
                                pause,
                                cause,
                            },
                            Some(asked),
                        ) => Next::Pending {
                            wait: wait.max(asked.min(MAX_RETRY_AFTER)),
                            consumed,
                            pause,
                            cause,
                        },
                        (next, _) => next,
                    }
                }
                ErrorClass::Window | ErrorClass::Permanent | ErrorClass::Later | ErrorClass::Template => {
                    Next::Failed(cause)
                }
            }
        }
        Answer::Foreign { status, retry_after } => {
            let cause = |class| Cause {
                code: None,
                label: None,
                class,
                message: format!("HTTP {status} from something that is not the Graph API"),
            };
            match status {
                429 => {
                    let wait = sent_back(retry_after);
                    Next::Pending {
                        wait,
                        consumed: false,
                        pause: Some((ThrottleReach::Number, wait)),
                        cause: cause(ErrorClass::Throttle(ThrottleScope::Number).as_str()),
                    }
                }
                300..=499 => transient(cause(ErrorClass::Transient.as_str()), policy.max_attempts),
                200..=299 => Next::Unknown("the answer names no message"),
                _ => Next::Unknown("a server error that is not the Graph API's"),
            }
        }
        Answer::NotSent(why) => {
            let wait = sent_back(None);
            Next::Pending {
                wait,
                consumed: false,
                pause: Some((ThrottleReach::Number, wait.min(MAX_OUTAGE_PAUSE))),
                cause: Cause {
                    code: None,
                    label: None,
                    class: "not_sent",
                    message: why.to_owned(),
                },
            }
        }
        Answer::Lost(why) => Next::Unknown(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        max_attempts: 6,
        initial: Duration::from_millis(500),
        max: Duration::from_secs(60),
    };

    const fn tries(attempt: u32, throttles: u32) -> Tries {
        Tries { attempt, throttles }
    }

    fn refused(status: u16, code: i64) -> Answer {
        Answer::Refused {
            status,
            error: GraphError::new(code, "x"),
            retry_after: None,
        }
    }

    fn word(next: &Next) -> &'static str {
        match next {
            Next::Accepted { held: false, .. } => "accepted",
            Next::Accepted { held: true, .. } => "held",
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
            Next::Hold(_) => "hold",
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
            // Codes that nobody documented.
            (999_999, 400, "failed"),
            (999_999, 500, "retry"),
        ] {
            assert_eq!(
                word(&next(refused(status, code), tries(1, 0), POLICY)),
                expected,
                "{code} with {status}"
            );
        }
        let missing = Answer::Refused {
            status: 400,
            error: GraphError::new(100, "x").with_subcode(33),
            retry_after: None,
        };
        assert_eq!(word(&next(missing, tries(1, 0), POLICY)), "hold");
    }

    #[test]
    fn every_failure_of_the_transport_has_its_consequence() {
        let foreign = |status| Answer::Foreign {
            status,
            retry_after: None,
        };
        for (answer, expected) in [
            (foreign(200), "unknown"),
            (foreign(302), "retry"),
            (foreign(403), "retry"),
            (foreign(404), "retry"),
            (foreign(429), "throttle number"),
            (foreign(500), "unknown"),
            (foreign(502), "unknown"),
            (foreign(503), "unknown"),
            (foreign(504), "unknown"),
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
        for (throttles, seconds) in [(0, 1), (1, 4), (2, 16), (5, 1024), (50, 1024)] {
            assert_eq!(
                wait(refused(400, 131_056), tries(1, throttles)),
                Duration::from_secs(seconds)
            );
        }
        let asked = |seconds| Answer::Refused {
            status: 429,
            error: GraphError::new(130_429, "x"),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(wait(asked(7), tries(1, 9)), Duration::from_secs(7));
        assert_eq!(wait(asked(1_000_000), tries(1, 0)), MAX_RETRY_AFTER);
        for throttles in 0..80 {
            assert!(wait(refused(400, 130_429), tries(1, throttles)) <= POLICY.max);
        }
    }
}
