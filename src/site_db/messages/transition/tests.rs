//! The list of transitions as a table, and what no order of them may do.

use proptest::prelude::*;
use strum::IntoEnumIterator;
use time::OffsetDateTime;

use super::super::fold::{MessageState, ReportedStep};
use super::*;
use crate::provider::{AcceptedStatus, ReportedStatus, Wamid};

const SCHEMA: &str = include_str!("../../../../migrations/site/0001_conversations.sql");

fn column(write: Write) -> &'static str {
    match write {
        Write::Now(column)
        | Write::Clear(column)
        | Write::Text(column, _)
        | Write::Given(column, _)
        | Write::Computed(column, ..) => column,
    }
}

fn writes(transition: &Transition) -> Vec<Write> {
    transition.writes.iter().copied().flatten().copied().collect()
}

fn list(statuses: &[MessageStatus]) -> String {
    let names: Vec<_> = statuses.iter().map(|status| status.as_str()).collect();
    names.join(" ")
}

#[test]
fn the_table_of_transitions() {
    let table: Vec<String> = ALL
        .iter()
        .map(|transition| {
            let to = match transition.to {
                To::Status(status) => status.as_str(),
                To::Same => "the same",
                To::Folded => "as reported",
            };
            let columns: Vec<_> = writes(transition).into_iter().map(column).collect();
            format!(
                "{} | {} | {to} | {:?} | {} | {:?}",
                transition.name,
                list(transition.from),
                transition.only,
                columns.join(" "),
                transition.notifies
            )
        })
        .collect();
    let outbound = "pending sending accepted held sent delivered read played failed unknown cancelled";
    let problem = "error_code error_class error_message";
    let response = "response_status response";
    let reported = "wamid accepted_at held_at sent_at delivered_at read_at played_at failed_at";
    let problem_of_person = problem;
    let fresh = "lease_owner lease_until next_attempt_at send_by attempt throttles failed_at error_code error_class \
                 error_message";
    let no_attempt = "lease_owner lease_until next_attempt_at";
    assert_eq!(
        table,
        [
            "claim | pending | sending | Any | attempt lease_owner lease_until sending_at | Nothing".to_owned(),
            format!(
                "accept | {outbound} | as reported | Any | {reported} {problem} {response} {no_attempt} | MarkedFailure"
            ),
            format!(
                "put back | sending unknown | pending | LeaseHeld | lease_owner lease_until next_attempt_at \
                 attempt throttles {problem} {response} | Nothing"
            ),
            format!(
                "fail | sending unknown | failed | LeaseHeld | failed_at {problem} {response} {no_attempt} | Failure"
            ),
            format!("lose | sending | unknown | LeaseHeld | unknown_at lease_until {problem} {response} | Loss"),
            "expire | sending | unknown | Any | unknown_at error_class error_message | ExpiredLease".to_owned(),
            "cancel | pending | cancelled | HasDeadline | cancelled_at error_class | Nothing".to_owned(),
            "repeat | pending | cancelled | Any | cancelled_at error_class error_message | Nothing".to_owned(),
            "revive | cancelled | pending | Class(\"wait_elapsed\") | error_code error_class error_message \
             cancelled_at next_attempt_at send_by | Nothing"
                .to_owned(),
            "make due | pending | pending | Class(\"account\") | next_attempt_at | Nothing".to_owned(),
            format!("report | {outbound} | as reported | Any | {reported} {problem} | MarkedFailure"),
            "give back | sending | pending | Any | attempt lease_owner lease_until | Nothing".to_owned(),
            "leave | pending sending accepted held sent delivered read played unknown | the same | Any | unknown_at | Nothing"
                .to_owned(),
            format!("retry | pending failed | pending | WithoutWamid | {fresh} | Nothing"),
            format!("retry unknown | unknown | pending | WithoutWamid | {fresh} | Nothing"),
            format!("call off | pending | cancelled | Any | cancelled_at {problem_of_person} {no_attempt} | Nothing"),
            format!("settle as sent | unknown | accepted | Any | accepted_at {problem_of_person} {no_attempt} | Nothing"),
            format!("settle as not sent | unknown | failed | WithoutWamid | failed_at {problem_of_person} {no_attempt} | Nothing"),
        ]
    );
}

#[test]
fn each_step_has_its_time_and_each_column_is_written_once() {
    for transition in ALL {
        let writes = writes(transition);
        if let To::Status(to) = transition.to
            && to != Pending
        {
            let time = format!("{to}_at");
            let stamped = writes
                .iter()
                .any(|write| matches!(write, Write::Now(column) if *column == time));
            assert!(stamped, "{} does not write {time}", transition.name);
        }
        let mut columns: Vec<_> = writes.into_iter().map(column).collect();
        for name in &columns {
            assert!(SCHEMA.contains(&format!("\n    {name} ")), "{name} is no column");
        }
        columns.sort_unstable();
        let count = columns.len();
        columns.dedup();
        assert_eq!(count, columns.len(), "{} writes a column twice", transition.name);
    }
}

#[test]
fn an_inbound_message_never_changes() {
    for transition in ALL {
        assert!(
            !transition.from.contains(&MessageStatus::Received),
            "{}",
            transition.name
        );
        assert_ne!(
            transition.to,
            To::Status(MessageStatus::Received),
            "{}",
            transition.name
        );
    }
}

#[test]
fn only_a_claim_leads_to_an_attempt_and_it_starts_from_pending_alone() {
    for transition in ALL {
        if transition.to == To::Status(Sending) {
            assert_eq!((transition.name, transition.from), ("claim", &[Pending][..]));
        }
    }
}

#[test]
fn a_released_number_finds_the_messages_that_its_hold_kept_waiting() {
    assert_eq!(NUMBER_HELD, ErrorClass::Account.as_str());
    assert_eq!(NUMBER_HELD, ErrorClass::Permission.as_str());
}

/// What the provider has: it must not be called for it again. What it has refused is without its id, and a person may try it again.
fn is_decided(state: &MessageState) -> bool {
    match state.status {
        Accepted | Held | Sent | Delivered | Read | Played => true,
        Failed => state.wamid.is_some(),
        _ => false,
    }
}

/// A row, as far as the conditions of the transitions look at it.
#[derive(Debug, Clone)]
struct Row {
    state: MessageState,
    lease: Option<u8>,
    class: Option<&'static str>,
}

impl Row {
    fn new() -> Self {
        Self {
            state: MessageState::new(Pending),
            lease: None,
            class: None,
        }
    }

    /// What the writer's statement does, by the same list.
    fn apply(&mut self, transition: &Transition, holder: u8, report: &ReportedStep) {
        let allowed = transition.from.contains(&self.state.status)
            && match transition.only {
                Only::Any | Only::HasDeadline => true,
                Only::LeaseHeld => self.lease == Some(holder),
                Only::Class(class) => self.class == Some(class),
                Only::WithoutWamid => self.state.wamid.is_none(),
            };
        if !allowed {
            return;
        }
        match transition.to {
            To::Status(status) => self.state.status = status,
            To::Same => {}
            To::Folded => self.state.fold(Wamid::parse("wamid.1").as_ref(), report),
        }
        for write in writes(transition) {
            match write {
                Write::Clear("lease_owner") => self.lease = None,
                Write::Computed("lease_owner", ..) => self.lease = Some(holder),
                Write::Text("error_class", class) => self.class = Some(class),
                Write::Clear("error_class") => self.class = None,
                _ => {}
            }
        }
    }
}

/// The statuses that a provider reports, and one that is new.
const WORDS: [&str; 8] = [
    "accepted",
    "held",
    "sent",
    "delivered",
    "read",
    "played",
    "failed",
    "new",
];

proptest! {
    #[test]
    fn what_the_provider_has_is_never_sent_again_and_never_goes_back(
        steps in prop::collection::vec((0..ALL.len(), 0_u8..3, prop::sample::select(&WORDS[..]), 0_i64..20), 1..40),
    ) {
        let mut row = Row::new();
        for (number, holder, word, second) in steps {
            let before = row.state.clone();
            let at = OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(second);
            row.apply(ALL[number], holder, &ReportedStep::of(&ReportedStatus::parse(word), at, None));
            let after = &row.state;
            if is_decided(&before) {
                prop_assert!(is_decided(after), "{} → {} by {}", before.status, after.status, ALL[number].name);
            }
            if matches!(before.status, Delivered | Read | Played) {
                prop_assert!(matches!(after.status, Delivered | Read | Played), "{} → {}", before.status, after.status);
            }
            if before.status != after.status && after.status == Sending {
                prop_assert_eq!(before.status, Pending);
            }
        }
    }

    #[test]
    fn an_outcome_of_an_attempt_that_lost_its_lease_changes_nothing(
        status in prop::sample::select(MessageStatus::iter().collect::<Vec<_>>()),
        number in prop::sample::select(vec![2_usize, 3, 4]),
    ) {
        let mut row = Row::new();
        row.state.status = status;
        row.lease = Some(1);
        row.apply(ALL[number], 2, &ReportedStep::accepted(AcceptedStatus::Delivering, OffsetDateTime::UNIX_EPOCH));
        prop_assert_eq!(row.state.status, status);
    }
}
