//! How the steps that the provider reports change a message's row: a pure fold, whose result does not depend on their order.
//!
//! Reports come early, late, twice and in any order. So the status is the highest that was reported, each step's time is
//! the earliest report that implies the step, and the status never goes back.

use time::OffsetDateTime;

use super::problem::Problem;
use super::status::MessageStatus;
use crate::provider::{AcceptedStatus, ReportedStatus, Wamid};

/// The columns of an outbound message that reports change.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct MessageState {
    pub(crate) status: MessageStatus,
    /// The provider's id, once known.
    pub(crate) wamid: Option<Wamid>,
    /// The error of the first failure, as long as the status is `failed`; before that, of the last attempt.
    pub(crate) error_code: Option<i32>,
    pub(crate) error_class: Option<String>,
    pub(crate) error_message: Option<String>,
    pub(crate) accepted_at: Option<OffsetDateTime>,
    pub(crate) held_at: Option<OffsetDateTime>,
    pub(crate) sent_at: Option<OffsetDateTime>,
    pub(crate) delivered_at: Option<OffsetDateTime>,
    pub(crate) read_at: Option<OffsetDateTime>,
    pub(crate) played_at: Option<OffsetDateTime>,
    pub(crate) failed_at: Option<OffsetDateTime>,
}

/// A step of a message of ours that the provider reports: in its answer to the send, or in a status report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedStep {
    /// `accepted`, `held`, `sent`, `delivered`, `read`, `played` or `failed`.
    step: MessageStatus,
    /// When it was reached: by the provider's clock in a report, by ours in an answer.
    at: OffsetDateTime,
    /// The reason, for `failed`.
    problem: Option<Problem>,
}

impl ReportedStep {
    /// From the answer to the send: the provider has the message.
    #[must_use]
    pub const fn accepted(status: AcceptedStatus, at: OffsetDateTime) -> Self {
        Self {
            step: MessageStatus::after_acceptance(status),
            at,
            problem: None,
        }
    }

    /// From a status report. A status that we don't know still proves that the provider has the message, and counts as
    /// `accepted`.
    #[must_use]
    pub const fn of(status: &ReportedStatus, at: OffsetDateTime, problem: Option<Problem>) -> Self {
        let step = match status {
            ReportedStatus::Accepted | ReportedStatus::Other(_) => MessageStatus::Accepted,
            ReportedStatus::Held => MessageStatus::Held,
            ReportedStatus::Sent => MessageStatus::Sent,
            ReportedStatus::Delivered => MessageStatus::Delivered,
            ReportedStatus::Read => MessageStatus::Read,
            ReportedStatus::Played => MessageStatus::Played,
            ReportedStatus::Failed => MessageStatus::Failed,
        };
        Self { step, at, problem }
    }
}

/// The order of the statuses: a report only raises the rank. A message that failed after it was sent becomes `failed`; one
/// that arrived anyway (at another of the user's devices) becomes `delivered`.
const fn rank(status: MessageStatus) -> u8 {
    match status {
        MessageStatus::Pending => 0,
        MessageStatus::Sending => 1,
        // Any report changes these: a cancelled message should not have been sent, but if it was, the report counts.
        MessageStatus::Unknown | MessageStatus::Cancelled => 2,
        MessageStatus::Accepted => 3,
        MessageStatus::Held => 4,
        MessageStatus::Sent => 5,
        MessageStatus::Failed => 6,
        MessageStatus::Delivered => 7,
        MessageStatus::Read => 8,
        MessageStatus::Played => 9,
        // Inbound: there is nothing to report.
        MessageStatus::Received => u8::MAX,
    }
}

impl MessageState {
    /// Applies a step. `wamid` is the id that the report names; `None` if another message has it already.
    pub(crate) fn fold(&mut self, wamid: Option<&Wamid>, reported: &ReportedStep) {
        use MessageStatus::{Delivered, Failed, Held, Played, Read, Sent, Unknown};
        // A message that was refused has no wamid. A report about it proves that the provider took it after all.
        if self.status == Failed && self.wamid.is_none() {
            self.status = Unknown;
            self.failed_at = None;
            self.clear_error();
        }
        if self.wamid.is_none() {
            self.wamid = wamid.cloned();
        }
        let (step, at) = (reported.step, reported.at);
        self.accepted_at = self.accepted_at.or(Some(at));
        match step {
            Held => earliest(&mut self.held_at, at),
            Failed => {
                if self.failed_at.is_none_or(|first| at < first)
                    && let Some(problem) = &reported.problem
                {
                    self.error_code = problem.code;
                    self.error_class = Some(problem.class.as_str().to_owned());
                    self.error_message = Some(problem.message.clone());
                }
                earliest(&mut self.failed_at, at);
            }
            _ => {}
        }
        // Meta skips `delivered` if a message is read at once: each step implies the earlier ones.
        if matches!(step, Sent | Delivered | Read | Played) {
            earliest(&mut self.sent_at, at);
        }
        if matches!(step, Delivered | Read | Played) {
            earliest(&mut self.delivered_at, at);
        }
        if matches!(step, Read | Played) {
            earliest(&mut self.read_at, at);
        }
        if step == Played {
            earliest(&mut self.played_at, at);
        }
        if rank(step) > rank(self.status) {
            self.status = step;
        }
        if self.status != Failed {
            self.clear_error();
        }
    }

    /// A row that has only its status.
    #[cfg(test)]
    pub(super) const fn new(status: MessageStatus) -> Self {
        Self {
            status,
            wamid: None,
            error_code: None,
            error_class: None,
            error_message: None,
            accepted_at: None,
            held_at: None,
            sent_at: None,
            delivered_at: None,
            read_at: None,
            played_at: None,
            failed_at: None,
        }
    }

    fn clear_error(&mut self) {
        self.error_code = None;
        self.error_class = None;
        self.error_message = None;
    }
}

fn earliest(slot: &mut Option<OffsetDateTime>, at: OffsetDateTime) {
    if slot.is_none_or(|before| at < before) {
        *slot = Some(at);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::provider::ErrorClass;
    use crate::site_db::messages::ProblemClass;

    fn state(status: &str) -> MessageState {
        MessageState::new(status.parse().unwrap())
    }

    fn report(status: &str, second: i64) -> ReportedStep {
        let problem = (status == "failed").then(|| Problem {
            code: Some(131_047),
            class: ProblemClass::Refused(ErrorClass::Window),
            message: format!("at {second}"),
        });
        ReportedStep::of(
            &ReportedStatus::parse(status),
            OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(second),
            problem,
        )
    }

    fn wamid() -> Wamid {
        Wamid::parse("wamid.1").unwrap()
    }

    fn after(status: &str, reports: &[ReportedStep]) -> MessageState {
        let mut state = state(status);
        for report in reports {
            state.fold(Some(&wamid()), report);
        }
        state
    }

    #[test]
    fn the_shown_status_is_the_furthest() {
        for (before, reports, shown) in [
            ("sending", &["sent"][..], "sent"),
            ("unknown", &["sent"], "sent"),
            ("pending", &["accepted"], "accepted"),
            ("cancelled", &["sent"], "sent"),
            ("sending", &["delivered", "sent", "accepted"], "delivered"),
            ("accepted", &["sent", "failed"], "failed"),
            ("accepted", &["failed", "delivered"], "delivered"),
            ("accepted", &["delivered", "failed"], "delivered"),
            ("held", &["accepted"], "held"),
            ("held", &["failed"], "failed"),
            ("read", &["played"], "played"),
            ("unknown", &["brand_new"], "accepted"),
            ("delivered", &["brand_new"], "delivered"),
        ] {
            let reports: Vec<_> = reports.iter().zip(1..).map(|(status, at)| report(status, at)).collect();
            assert_eq!(after(before, &reports).status.as_str(), shown, "{before} {reports:?}");
        }
    }

    #[test]
    fn reading_implies_delivery() {
        let read = after("accepted", &[report("read", 5)]);
        assert_eq!(read.delivered_at, read.read_at);
        assert!(read.sent_at.is_some());
        let late = after("accepted", &[report("read", 5), report("delivered", 3)]);
        assert_eq!(late.delivered_at, Some(report("delivered", 3).at));
        assert_eq!(late.status, MessageStatus::Read);
    }

    #[test]
    fn an_error_is_shown_only_while_the_message_failed() {
        let failed = after("sending", &[report("sent", 1), report("failed", 2)]);
        assert_eq!(
            (failed.error_code, failed.error_class.as_deref()),
            (Some(131_047), Some("window"))
        );
        let arrived = after("sending", &[report("failed", 2), report("delivered", 3)]);
        assert_eq!(arrived.error_code, None);
        assert!(arrived.failed_at.is_some());
    }

    #[test]
    fn a_report_proves_that_a_refused_message_left() {
        let mut refused = state("failed");
        refused.error_code = Some(131_000);
        refused.failed_at = Some(report("failed", 0).at);
        refused.fold(Some(&wamid()), &report("sent", 1));
        assert_eq!(
            (refused.status.as_str(), refused.error_code, refused.failed_at),
            ("sent", None, None)
        );
    }

    proptest! {
        #[test]
        fn order_and_repetition_of_the_reports_do_not_matter(
            before in prop::sample::select(vec!["pending", "sending", "unknown", "cancelled", "accepted"]),
            reports in prop::collection::vec(
                (prop::sample::select(vec!["accepted", "held", "sent", "delivered", "read", "played", "failed", "new"]), 0_i64..20)
                    .prop_map(|(status, at)| report(status, at)), 1..8),
            order in any::<prop::sample::Index>(),
        ) {
            let straight = after(before, &reports);
            let mut turned = reports.clone();
            turned.rotate_left(order.index(reports.len()));
            turned.reverse();
            turned.extend(reports.iter().cloned());
            let mut other = after(before, &turned);
            // The first report's own time stands in until the answer to the send is known: the one thing that may differ.
            other.accepted_at = straight.accepted_at;
            prop_assert_eq!(straight, other);
        }
    }
}
