//! What a report of Meta's does to a message's row: a pure fold, whose result does not depend on the order of the reports.
//!
//! Reports come early, late, twice and in any order. So the status is the highest of those reported, each step's time the
//! earliest that implies the step, and nothing is ever taken back.

use time::OffsetDateTime;

/// The columns of a message that reports change.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct MessageState {
    /// The status that is shown.
    pub status: String,
    /// Meta's id, once known.
    pub wamid: Option<String>,
    /// The error that is shown: of the first failure, as long as the status is `failed`.
    pub error_code: Option<i32>,
    /// Its class.
    pub error_class: Option<String>,
    /// Its text.
    pub error_message: Option<String>,
    /// When Meta took it.
    pub accepted_at: Option<OffsetDateTime>,
    /// When Meta said that it holds it.
    pub held_at: Option<OffsetDateTime>,
    /// When it left.
    pub sent_at: Option<OffsetDateTime>,
    /// When it was on the user's phone.
    pub delivered_at: Option<OffsetDateTime>,
    /// When the user saw it.
    pub read_at: Option<OffsetDateTime>,
    /// When the user listened to it.
    pub played_at: Option<OffsetDateTime>,
    /// When it failed first.
    pub failed_at: Option<OffsetDateTime>,
}

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Meta's word, or `accepted` and `held` from the answer to the send.
    pub status: String,
    /// When, by the clock of who said it.
    pub at: OffsetDateTime,
    /// Why, for `failed`.
    pub error: Option<(i32, &'static str, String)>,
}

impl Report {
    /// A report without an error.
    #[must_use]
    pub fn of(status: &str, at: OffsetDateTime) -> Self {
        Self {
            status: status.to_owned(),
            at,
            error: None,
        }
    }
}

/// How far a status is. A message that failed after it was sent shows `failed`; one that arrived nevertheless (it had
/// several devices to go to) shows that it arrived.
fn rank(status: &str) -> u8 {
    match status {
        "pending" => 0,
        "sending" => 1,
        // Any report is news for these: a cancelled message should not have left, but if it did, that is what counts.
        "unknown" | "cancelled" => 2,
        "accepted" => 3,
        "held" => 4,
        "sent" => 5,
        "failed" => 6,
        "delivered" => 7,
        "read" => 8,
        "played" => 9,
        // Inbound, or a word of the future.
        _ => u8::MAX,
    }
}

impl MessageState {
    /// Folds a report about `wamid` in.
    pub fn fold(&mut self, wamid: &str, report: &Report) {
        // A message that was refused has no wamid. A report about it proves that Meta took it after all.
        if self.status == "failed" && self.wamid.is_none() {
            "unknown".clone_into(&mut self.status);
            self.failed_at = None;
            self.clear_error();
        }
        if self.wamid.is_none() {
            self.wamid = Some(wamid.to_owned());
        }
        let at = report.at;
        let known = match report.status.as_str() {
            "accepted" | "held" | "sent" | "failed" | "delivered" | "read" | "played" => report.status.as_str(),
            // A word that we don't know still says that Meta has the message.
            _ => "accepted",
        };
        self.accepted_at = self.accepted_at.or(Some(at));
        match known {
            "held" => earliest(&mut self.held_at, at),
            "failed" => {
                if self.failed_at.is_none_or(|first| at < first)
                    && let Some((code, class, message)) = &report.error
                {
                    self.error_code = Some(*code);
                    self.error_class = Some((*class).to_owned());
                    self.error_message = Some(message.clone());
                }
                earliest(&mut self.failed_at, at);
            }
            _ => {}
        }
        // `delivered` is skipped when a message is read at once: each step implies those before.
        if matches!(known, "sent" | "delivered" | "read" | "played") {
            earliest(&mut self.sent_at, at);
        }
        if matches!(known, "delivered" | "read" | "played") {
            earliest(&mut self.delivered_at, at);
        }
        if matches!(known, "read" | "played") {
            earliest(&mut self.read_at, at);
        }
        if known == "played" {
            earliest(&mut self.played_at, at);
        }
        if rank(known) > rank(&self.status) {
            known.clone_into(&mut self.status);
        }
        if self.status != "failed" {
            self.clear_error();
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

    fn state(status: &str) -> MessageState {
        MessageState {
            status: status.to_owned(),
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

    fn report(status: &str, second: i64) -> Report {
        Report {
            status: status.to_owned(),
            at: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(second),
            error: (status == "failed").then(|| (131_047, "window", format!("at {second}"))),
        }
    }

    fn after(status: &str, reports: &[Report]) -> MessageState {
        let mut state = state(status);
        for report in reports {
            state.fold("w", report);
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
            assert_eq!(after(before, &reports).status, shown, "{before} {reports:?}");
        }
    }

    #[test]
    fn reading_implies_delivery() {
        let read = after("accepted", &[report("read", 5)]);
        assert_eq!(read.delivered_at, read.read_at);
        assert!(read.sent_at.is_some());
        let late = after("accepted", &[report("read", 5), report("delivered", 3)]);
        assert_eq!(late.delivered_at, Some(report("delivered", 3).at));
        assert_eq!(late.status, "read");
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
        refused.fold("w", &report("sent", 1));
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
