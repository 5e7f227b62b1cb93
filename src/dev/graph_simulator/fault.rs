//! The faults that can be switched on, and the one function that decides what a set of them means for a send.
//!
//! A new fault is a variant and an arm of [`decide`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Something that goes wrong with the sends of a number. Several may be active; each adds its part to the [`Plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// The message is accepted, and no answer ever comes.
    AcceptThenHang,
    /// The message is accepted, and the connection is reset.
    AcceptThenReset,
    /// The message is accepted, and a proxy answers 502 with a page of HTML.
    AcceptThenBadGateway,
    /// The message is accepted, and the answer is 500 without JSON.
    AcceptThenServerError,
    /// The message is not accepted, and the answer is 500 without JSON.
    ServerError,
    /// The message is not accepted, and the connection is reset.
    ResetUnaccepted,
    /// 429 with `Retry-After` and Meta's 130429.
    TooManyRequests {
        /// The value of `Retry-After`.
        retry_after_seconds: u64,
    },
    /// Meta's error object with this code.
    Error {
        /// Meta's error code, such as 131056.
        code: i64,
        /// Meta's `error_subcode`.
        #[serde(default)]
        subcode: Option<i64>,
    },
    /// The answer, whatever it is, comes late; an accepted message does not.
    SlowAnswer {
        /// Milliseconds from the decision to the answer.
        delay_ms: u64,
    },
    /// The status `sent` arrives at the callback before the answer leaves.
    StatusBeforeAnswer,
    /// The message is accepted and fails later, by a status with this code.
    FailLater {
        /// The status's error code, such as 131047.
        code: i64,
    },
    /// The answer says `held_for_quality_assessment`; the message is released later.
    HeldThenReleased {
        /// Milliseconds until its release.
        after_ms: u64,
    },
    /// The answer says `held_for_quality_assessment`; the message is dropped later (132015).
    HeldThenDropped {
        /// Milliseconds until it is dropped.
        after_ms: u64,
    },
    /// Every status comes twice.
    DuplicateStatuses,
    /// The statuses come in reverse order.
    ReversedStatuses,
    /// `delivered` is left out, as for a message that is read at once.
    SkipDelivered,
    /// The statuses lack `biz_opaque_callback_data`, by which the sender finds its message.
    WithoutEcho,
    /// No status ever comes.
    Silent,
}

/// What happens to one send under the faults that apply to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// The send is refused with this, before its body is looked at.
    pub(super) refusal: Option<Refusal>,
    /// What the client gets if it is accepted.
    pub(super) answer: Answer,
    /// How late the client gets its answer.
    pub(super) delay: Duration,
    /// What the callback gets.
    pub(super) reports: Reports,
}

/// Why a send is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 500 without JSON.
    ServerError,
    /// The connection is reset.
    Reset,
    /// 429, code 130429.
    TooManyRequests { retry_after_seconds: u64 },
    /// An error of Meta's.
    Error { code: i64, subcode: Option<i64> },
}

/// What the client gets for an accepted send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Answer {
    /// 200.
    #[default]
    Accepted,
    /// Nothing.
    Hang,
    /// A reset connection.
    Reset,
    /// 502 and HTML.
    BadGateway,
    /// 500 and no JSON.
    ServerError,
}

/// What the callback gets for an accepted send.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Reports {
    /// `sent` is reported before the client has its answer.
    pub(super) before_answer: bool,
    /// `failed` with this code is reported instead of everything else.
    pub(super) fail_with: Option<i64>,
    /// How much later everything is reported; the answer says `held_for_quality_assessment`.
    pub(super) held_for: Option<Duration>,
    /// Each status is reported twice.
    pub(super) duplicate: bool,
    /// The last status comes first.
    pub(super) reversed: bool,
    /// `delivered` is not reported.
    pub(super) skip_delivered: bool,
    /// The statuses lack `biz_opaque_callback_data`.
    pub(super) without_echo: bool,
    /// Nothing is reported.
    pub(super) silent: bool,
}

/// Meta's code for a template that was paused while the message was held.
const TEMPLATE_PAUSED: i64 = 132_015;

/// What a set of faults means for a send. Of two that contradict each other the later one counts.
pub(super) fn decide(faults: impl IntoIterator<Item = Fault>) -> Plan {
    let mut plan = Plan::default();
    for fault in faults {
        match fault {
            Fault::AcceptThenHang => plan.answer = Answer::Hang,
            Fault::AcceptThenReset => plan.answer = Answer::Reset,
            Fault::AcceptThenBadGateway => plan.answer = Answer::BadGateway,
            Fault::AcceptThenServerError => plan.answer = Answer::ServerError,
            Fault::ServerError => plan.refusal = Some(Refusal::ServerError),
            Fault::ResetUnaccepted => plan.refusal = Some(Refusal::Reset),
            Fault::TooManyRequests { retry_after_seconds } => {
                plan.refusal = Some(Refusal::TooManyRequests { retry_after_seconds });
            }
            Fault::Error { code, subcode } => plan.refusal = Some(Refusal::Error { code, subcode }),
            Fault::SlowAnswer { delay_ms } => plan.delay = Duration::from_millis(delay_ms),
            Fault::StatusBeforeAnswer => plan.reports.before_answer = true,
            Fault::FailLater { code } => plan.reports.fail_with = Some(code),
            Fault::HeldThenReleased { after_ms } => plan.reports.held_for = Some(Duration::from_millis(after_ms)),
            Fault::HeldThenDropped { after_ms } => {
                plan.reports.held_for = Some(Duration::from_millis(after_ms));
                plan.reports.fail_with = Some(TEMPLATE_PAUSED);
            }
            Fault::DuplicateStatuses => plan.reports.duplicate = true,
            Fault::ReversedStatuses => plan.reports.reversed = true,
            Fault::SkipDelivered => plan.reports.skip_delivered = true,
            Fault::WithoutEcho => plan.reports.without_echo = true,
            Fault::Silent => plan.reports.silent = true,
        }
    }
    plan
}

/// A fault that is switched on.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ActiveFault {
    pub(super) fault: Fault,
    /// Only for sends to this recipient, as the request has it; `None`: for all.
    pub(super) to: Option<String>,
    /// For how many more sends; `None`: until it is cleared.
    pub(super) remaining: Option<u32>,
}

/// The plan for the next send. Faults that were switched on for a number of sends are counted down.
pub(super) fn take(faults: &mut Vec<ActiveFault>, recipient: Option<&str>) -> Plan {
    let meets = |active: &ActiveFault| active.to.is_none() || active.to.as_deref() == recipient;
    let plan = decide(faults.iter().filter(|active| meets(active)).map(|active| active.fault));
    for active in faults.iter_mut().filter(|active| meets(active)) {
        active.remaining = active.remaining.map(|remaining| remaining.saturating_sub(1));
    }
    faults.retain(|active| active.remaining != Some(0));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_add_up() {
        let plan = decide([
            Fault::AcceptThenHang,
            Fault::StatusBeforeAnswer,
            Fault::DuplicateStatuses,
        ]);
        assert_eq!(plan.answer, Answer::Hang);
        assert!(plan.reports.before_answer && plan.reports.duplicate && plan.refusal.is_none());
        assert_eq!(decide([]), Plan::default());
    }

    #[test]
    fn a_counted_fault_ends_and_one_for_a_recipient_meets_nobody_else() {
        let active = |fault, to: Option<&str>, remaining| ActiveFault {
            fault,
            to: to.map(ToOwned::to_owned),
            remaining,
        };
        let mut faults = vec![
            active(Fault::ServerError, None, Some(2)),
            active(Fault::Silent, None, None),
            active(Fault::AcceptThenHang, Some("1"), Some(1)),
        ];
        assert!(take(&mut faults, Some("2")).refusal.is_some());
        let second = take(&mut faults, None);
        assert!(second.refusal.is_some() && second.answer == Answer::Accepted);
        let third = take(&mut faults, Some("1"));
        assert!(third.refusal.is_none() && third.reports.silent);
        assert_eq!(third.answer, Answer::Hang);
        assert_eq!(take(&mut faults, Some("1")).answer, Answer::Accepted);
    }

    #[test]
    fn a_fault_is_written_as_its_kind() {
        let fault: Fault = serde_json::from_str(r#"{"kind":"error","code":131056}"#).expect("a fault");
        assert_eq!(
            fault,
            Fault::Error {
                code: 131_056,
                subcode: None
            }
        );
        assert_eq!(
            serde_json::to_string(&Fault::AcceptThenHang).expect("JSON"),
            r#"{"kind":"accept_then_hang"}"#
        );
    }
}
