//! Every way in which a message may change: from which statuses to which, by whom, and what is written with it. Pure; the
//! one writer is [`write`](super::write).
//!
//! ```text
//!              claim            accept                      report
//!   pending ───────────→ sending ───────→ accepted or held ─────────→ sent → delivered → read → played
//!     │   ↑ ←─ put back ─┘ │ │                           └─ report ─→ failed
//!     │   │                │ └─ fail ────────────────────────────────→ failed
//!  cancel │ revive         └─ lose, expire ─→ unknown
//!     ↓   │
//!   cancelled
//! ```
//!
//! The diagram shows the usual ways; the table has all of them. An `unknown` message is settled by accept or report, or by a late fail or put back of the same attempt. A report about a
//! message that we believe unsent (pending, cancelled, failed without the provider's id) proves that it was sent.
//!
//! | transition | who, when | from | to |
//! |---|---|---|---|
//! | [`CLAIM`] | outbox, before it calls the provider | pending | sending |
//! | [`ACCEPT`] | outbox, from the provider's answer | any outbound | as reported: accepted, held, or what a report knew before |
//! | [`PUT_BACK`] | outbox, certain that nothing was sent | sending, unknown | pending |
//! | [`FAIL`] | outbox, from the provider's answer | sending, unknown | failed |
//! | [`LOSE`] | outbox, without an answer | sending | unknown |
//! | [`EXPIRE`] | any server, after the lease of a dead process | sending | unknown |
//! | [`CANCEL`] | outbox, when its client stops waiting | pending | cancelled |
//! | [`REPEAT`] | outbox, when it repeats a message whose client left | pending | cancelled |
//! | [`REVIVE`] | outbox, when the same client asks again | cancelled | pending |
//! | [`MAKE_DUE`] | outbox, when the number is released | pending | pending, due now |
//! | [`REPORT`] | inbox, from the provider's reports | any outbound | as reported |
//! | [`RETRY`], [`RETRY_UNKNOWN`], [`CALL_OFF`] | a person | pending, failed; unknown; pending | pending; pending; cancelled |
//! | [`SETTLE_SENT`], [`SETTLE_NOT_SENT`] | a person | unknown | accepted; failed |
//! | [`GIVE_BACK`] | outbox, when the answer to its claim was lost | sending | pending |
//! | [`LEAVE`] | outbox, when its client leaves before it has an answer | any but failed and cancelled | the same |
//!
//! **What an outcome may overwrite.** A report often arrives before the answer to the send. So an outcome counts only for
//! a row that still carries this attempt's lease and is `sending` or, after the lease has expired, `unknown`. An
//! acceptance counts always, even if the row already waits for another attempt: the message must not be sent twice. What
//! was reported is never undone: see [`fold`](super::fold).
//!
//! A message begins as `pending` (a client's), `received` (a person's) or `accepted` (written on the phone): see
//! [`insert`](mod@super::insert). `received` never changes.

mod input;

use super::problem::ProblemClass;
use super::status::MessageStatus;
use crate::provider::ErrorClass;
use MessageStatus::{Accepted, Cancelled, Delivered, Failed, Held, Pending, Played, Read, Sending, Sent, Unknown};
pub(crate) use input::Input;

/// A change of a message that is allowed.
#[derive(Debug)]
pub(crate) struct Transition {
    /// For the log and the tests.
    pub(crate) name: &'static str,
    /// The statuses that it starts from; a row with another status is not changed.
    pub(crate) from: &'static [MessageStatus],
    pub(crate) to: To,
    /// A further condition on the row.
    pub(crate) only: Only,
    /// The columns that it writes in addition to `status` and `updated_at`, in groups that belong together.
    pub(crate) writes: &'static [&'static [Write]],
    pub(crate) notifies: Notifies,
}

/// The status that a transition leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    Status(MessageStatus),
    /// The one that the row has.
    Same,
    /// The caller has locked the row and folded reports into it; see [`fold`](super::fold).
    Folded,
}

/// A condition on the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Only {
    /// None. For [`CANCEL`] by the sweeper, [`EXPIRE`] and [`GIVE_BACK`], the rows were chosen and locked by the same statement.
    Any,
    /// The row still carries the lease of this attempt.
    LeaseHeld,
    /// The row's `error_class` is this.
    Class(&'static str),
    /// The provider has given it no id: it does not have it, as far as we know.
    WithoutWamid,
    /// It is sent within a time or never: it has no other client than those who wait for it.
    HasDeadline,
}

/// The notification that a transition writes, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notifies {
    Nothing,
    /// `message_failed`, with the problem's text.
    Failure,
    /// `message_failed`, with code and text, for the rows that the caller marked.
    MarkedFailure,
    /// `message_unknown`, with the problem's text.
    Loss,
    /// `message_unknown`, without a text.
    ExpiredLease,
}

/// A column that a transition writes, and the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// The time of the transaction.
    Now(&'static str),
    /// NULL.
    Clear(&'static str),
    /// This text.
    Text(&'static str, &'static str),
    /// The caller's value for the row.
    Given(&'static str, Input),
    /// An SQL expression over the row (`m`) and the caller's values (`c`).
    Computed(&'static str, &'static str, &'static [Input]),
}

impl Transition {
    /// The values that the caller gives for each row, each once, in the order of the statement's parameters.
    pub(crate) fn inputs(&self) -> Vec<Input> {
        let mut inputs = Vec::new();
        let mut add = |input| {
            if !inputs.contains(&input) {
                inputs.push(input);
            }
        };
        if self.only == Only::LeaseHeld {
            add(Input::LeaseOwner);
        }
        if self.to == To::Folded {
            add(Input::Status);
        }
        for write in self.writes.iter().copied().flatten() {
            match *write {
                Write::Given(_, input) => add(input),
                Write::Computed(_, _, inputs) => inputs.iter().copied().for_each(&mut add),
                Write::Now(_) | Write::Clear(_) | Write::Text(..) => {}
            }
        }
        if self.notifies == Notifies::MarkedFailure {
            add(Input::Notify);
        }
        inputs
    }
}

const WAIT_ELAPSED: &str = ProblemClass::WaitElapsed.as_str();
const REPEATS: &str = ProblemClass::Repeat.as_str();
const DECIDED: &str = ProblemClass::Decided.as_str();
const OUTCOME_UNKNOWN: &str = ProblemClass::OutcomeUnknown.as_str();
/// Messages of a held number wait with this class.
const NUMBER_HELD: &str = ErrorClass::Account.as_str();

/// Every status of a message of ours.
const OUTBOUND: &[MessageStatus] = &[
    Pending, Sending, Accepted, Held, Sent, Delivered, Read, Played, Failed, Unknown, Cancelled,
];

/// Why the message failed, waits, or has no outcome.
const PROBLEM: &[Write] = &[
    Write::Given("error_code", Input::ErrorCode),
    Write::Given("error_class", Input::ErrorClass),
    Write::Given("error_message", Input::ErrorMessage),
];
const NO_PROBLEM: &[Write] = &[
    Write::Clear("error_code"),
    Write::Clear("error_class"),
    Write::Clear("error_message"),
];
const RESPONSE: &[Write] = &[
    Write::Given("response_status", Input::ResponseStatus),
    Write::Given("response", Input::Response),
];
/// The attempt is over, and no other one is due.
const NO_ATTEMPT: &[Write] = &[
    Write::Clear("lease_owner"),
    Write::Clear("lease_until"),
    Write::Clear("next_attempt_at"),
];
/// All that reports change. The lease stays: it counts only while the status is `sending`.
const REPORTED: &[Write] = &[
    Write::Given("wamid", Input::Wamid),
    Write::Given("accepted_at", Input::AcceptedAt),
    Write::Given("held_at", Input::HeldAt),
    Write::Given("sent_at", Input::SentAt),
    Write::Given("delivered_at", Input::DeliveredAt),
    Write::Given("read_at", Input::ReadAt),
    Write::Given("played_at", Input::PlayedAt),
    Write::Given("failed_at", Input::FailedAt),
];

/// Begins the next attempt, under a new lease. The statement that chooses the rows gives the lease's length (`$3`) and its
/// owner (`$4`): all messages of a claim have the same.
pub(crate) const CLAIM: Transition = Transition {
    name: "claim",
    from: &[Pending],
    to: To::Status(Sending),
    only: Only::Any,
    writes: &[&[
        Write::Computed("attempt", "m.attempt + 1", &[]),
        Write::Computed("lease_owner", "$4", &[]),
        Write::Computed("lease_until", "now() + make_interval(secs => $3)", &[]),
        Write::Now("sending_at"),
    ]],
    notifies: Notifies::Nothing,
};

/// The claim's answer was lost, so the provider was not called: as if it had not been claimed.
pub(crate) const GIVE_BACK: Transition = Transition {
    name: "give back",
    from: &[Sending],
    to: To::Status(Pending),
    only: Only::Any,
    writes: &[&[
        Write::Computed("attempt", "m.attempt - 1", &[]),
        Write::Clear("lease_owner"),
        Write::Clear("lease_until"),
    ]],
    notifies: Notifies::Nothing,
};

/// The provider accepted the message.
pub(crate) const ACCEPT: Transition = Transition {
    name: "accept",
    from: OUTBOUND,
    to: To::Folded,
    only: Only::Any,
    writes: &[REPORTED, PROBLEM, RESPONSE, NO_ATTEMPT],
    notifies: Notifies::MarkedFailure,
};

/// Certainly nothing was sent; the message waits for another attempt.
pub(crate) const PUT_BACK: Transition = Transition {
    name: "put back",
    from: &[Sending, Unknown],
    to: To::Status(Pending),
    only: Only::LeaseHeld,
    writes: &[
        &[
            Write::Clear("lease_owner"),
            Write::Clear("lease_until"),
            Write::Computed(
                "next_attempt_at",
                "now() + make_interval(secs => c.wait_seconds)",
                &[Input::WaitSeconds],
            ),
            Write::Computed(
                "attempt",
                "CASE WHEN c.consumed THEN m.attempt ELSE m.attempt - 1 END",
                &[Input::Consumed],
            ),
            Write::Computed(
                "throttles",
                "CASE WHEN c.consumed THEN m.throttles ELSE m.throttles + 1 END",
                &[Input::Consumed],
            ),
        ],
        PROBLEM,
        RESPONSE,
    ],
    notifies: Notifies::Nothing,
};

/// The message will not be sent.
pub(crate) const FAIL: Transition = Transition {
    name: "fail",
    from: &[Sending, Unknown],
    to: To::Status(Failed),
    only: Only::LeaseHeld,
    writes: &[&[Write::Now("failed_at")], PROBLEM, RESPONSE, NO_ATTEMPT],
    notifies: Notifies::Failure,
};

/// The answer was lost. `lease_owner` stays, so that a late outcome of the same attempt still counts.
pub(crate) const LOSE: Transition = Transition {
    name: "lose",
    from: &[Sending],
    to: To::Status(Unknown),
    only: Only::LeaseHeld,
    writes: &[
        &[Write::Now("unknown_at"), Write::Clear("lease_until")],
        PROBLEM,
        RESPONSE,
    ],
    notifies: Notifies::Loss,
};

/// The process died, or could not commit the outcome in time. `lease_owner` stays here too.
pub(crate) const EXPIRE: Transition = Transition {
    name: "expire",
    from: &[Sending],
    to: To::Status(Unknown),
    only: Only::Any,
    writes: &[&[
        Write::Now("unknown_at"),
        Write::Text("error_class", OUTCOME_UNKNOWN),
        Write::Text("error_message", "the process that sent it did not record an outcome"),
    ]],
    notifies: Notifies::ExpiredLease,
};

/// The client stopped waiting before the message was sent.
pub(crate) const CANCEL: Transition = Transition {
    name: "cancel",
    from: &[Pending],
    to: To::Status(Cancelled),
    only: Only::HasDeadline,
    writes: &[&[Write::Now("cancelled_at"), Write::Text("error_class", WAIT_ELAPSED)]],
    notifies: Notifies::Nothing,
};

/// It repeats a message whose client left without the answer: its client gets that one's.
pub(crate) const REPEAT: Transition = Transition {
    name: "repeat",
    from: &[Pending],
    to: To::Status(Cancelled),
    only: Only::Any,
    writes: &[&[
        Write::Now("cancelled_at"),
        Write::Text("error_class", REPEATS),
        Write::Text(
            "error_message",
            "an equal request came before, whose client left without its answer",
        ),
    ]],
    notifies: Notifies::Nothing,
};

/// The client that stopped waiting asks again.
pub(crate) const REVIVE: Transition = Transition {
    name: "revive",
    from: &[Cancelled],
    to: To::Status(Pending),
    only: Only::Class(WAIT_ELAPSED),
    writes: &[
        NO_PROBLEM,
        &[
            Write::Clear("cancelled_at"),
            Write::Now("next_attempt_at"),
            Write::Computed(
                "send_by",
                "now() + make_interval(secs => c.send_within_seconds)",
                &[Input::SendWithinSeconds],
            ),
        ],
    ],
    notifies: Notifies::Nothing,
};

/// The client broke the connection before it had its answer: it does not know whether the message was sent, as if the
/// provider's answer had been lost. If it repeats the request, that is no other message.
pub(crate) const LEAVE: Transition = Transition {
    name: "leave",
    from: &[Pending, Sending, Accepted, Held, Sent, Delivered, Read, Played, Unknown],
    to: To::Same,
    only: Only::Any,
    writes: &[&[Write::Now("unknown_at")]],
    notifies: Notifies::Nothing,
};

/// All that an attempt, or its end, has left behind, but the time at which the message was `unknown`.
const FRESH: &[Write] = &[
    Write::Clear("lease_owner"),
    Write::Clear("lease_until"),
    Write::Now("next_attempt_at"),
    Write::Clear("send_by"),
    Write::Computed("attempt", "0", &[]),
    Write::Computed("throttles", "0", &[]),
    Write::Clear("failed_at"),
];
/// A person has decided.
const BY_PERSON: &[Write] = &[
    Write::Clear("error_code"),
    Write::Text("error_class", DECIDED),
    Write::Text("error_message", "an operator decided so"),
];

/// A person wants it sent now: nobody waits for it any more, and the attempts are counted anew.
pub(crate) const RETRY: Transition = Transition {
    name: "retry",
    from: &[Pending, Failed],
    to: To::Status(Pending),
    only: Only::WithoutWamid,
    writes: &[FRESH, NO_PROBLEM],
    notifies: Notifies::Nothing,
};

/// The same, though it may have been sent: that is the person's decision. A late answer of the old attempt that refuses the
/// message does not count any more, as the lease is gone; one that accepts it counts as ever.
pub(crate) const RETRY_UNKNOWN: Transition = Transition {
    name: "retry unknown",
    from: &[Unknown],
    ..RETRY
};

/// A person does not want it sent. Its client can't revive it.
pub(crate) const CALL_OFF: Transition = Transition {
    name: "call off",
    from: &[Pending],
    to: To::Status(Cancelled),
    only: Only::Any,
    writes: &[&[Write::Now("cancelled_at")], BY_PERSON, NO_ATTEMPT],
    notifies: Notifies::Nothing,
};

/// A person knows that it was sent. Reports count as ever.
pub(crate) const SETTLE_SENT: Transition = Transition {
    name: "settle as sent",
    from: &[Unknown],
    to: To::Status(Accepted),
    only: Only::Any,
    writes: &[&[Write::Now("accepted_at")], NO_PROBLEM, NO_ATTEMPT],
    notifies: Notifies::Nothing,
};

/// A person knows that it was not sent, and does not want it sent any more. A late acceptance or a report counts as ever.
pub(crate) const SETTLE_NOT_SENT: Transition = Transition {
    name: "settle as not sent",
    from: &[Unknown],
    to: To::Status(Failed),
    only: Only::WithoutWamid,
    writes: &[&[Write::Now("failed_at")], BY_PERSON, NO_ATTEMPT],
    notifies: Notifies::Nothing,
};

/// The number can send again: its waiting messages are due.
pub(crate) const MAKE_DUE: Transition = Transition {
    name: "make due",
    from: &[Pending],
    to: To::Status(Pending),
    only: Only::Class(NUMBER_HELD),
    writes: &[&[Write::Now("next_attempt_at")]],
    notifies: Notifies::Nothing,
};

/// The provider reported.
pub(crate) const REPORT: Transition = Transition {
    name: "report",
    from: OUTBOUND,
    to: To::Folded,
    only: Only::Any,
    writes: &[REPORTED, PROBLEM],
    notifies: Notifies::MarkedFailure,
};

/// All of them, in the order of the table above.
#[cfg(test)]
pub(super) const ALL: [&Transition; 18] = [
    &CLAIM,
    &ACCEPT,
    &PUT_BACK,
    &FAIL,
    &LOSE,
    &EXPIRE,
    &CANCEL,
    &REPEAT,
    &REVIVE,
    &MAKE_DUE,
    &REPORT,
    &GIVE_BACK,
    &LEAVE,
    &RETRY,
    &RETRY_UNKNOWN,
    &CALL_OFF,
    &SETTLE_SENT,
    &SETTLE_NOT_SENT,
];

#[cfg(test)]
mod tests;
