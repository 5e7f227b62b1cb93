//! The statuses of an accepted message: which are reported, when, and as what.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::envelope::unix_seconds;
use crate::dev::graph_simulator::codes::title;
use crate::dev::graph_simulator::fault::Reports;
use crate::dev::graph_simulator::settings::Delays;
use crate::dev::graph_simulator::world::World;
use crate::shutdown;

/// An accepted message, as far as its statuses need it.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) phone_number_id: String,
    pub(crate) wamid: String,
    pub(crate) to: String,
    pub(crate) opaque: Option<String>,
}

/// A status that will be reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    /// How long after the acceptance.
    after: Duration,
    /// Meta's word.
    status: &'static str,
    /// Meta's code, for `failed`.
    code: Option<i64>,
}

impl Step {
    const fn new(after: Duration, status: &'static str) -> Self {
        Self {
            after,
            status,
            code: None,
        }
    }
}

/// Reports `sent` and waits until the callback was tried.
pub(crate) async fn report_before_answer(world: &World, subject: &Subject) {
    let (attempted, done) = oneshot::channel();
    world.expect(1);
    report(world, subject, &Step::new(Duration::ZERO, "sent"), Some(attempted)).await;
    tokio::select! {
        () = world.stop.cancelled() => {}
        _ = done => {}
    }
}

/// Reports the rest of a message's statuses, in the background.
pub(crate) fn schedule(world: &Arc<World>, subject: Subject, reports: &Reports) {
    let steps = timetable(&world.settings.delays, reports);
    world.expect(steps.len());
    let task = Arc::clone(world);
    world.tasks.spawn(async move {
        let start = tokio::time::Instant::now();
        for step in steps {
            let left = (start + step.after).saturating_duration_since(tokio::time::Instant::now());
            if !shutdown::sleep(left, &task.stop).await {
                return;
            }
            report(&task, &subject, &step, None).await;
        }
    });
}

async fn report(world: &World, subject: &Subject, step: &Step, attempted: Option<oneshot::Sender<()>>) {
    world.ledger().report(&subject.wamid, step.status, step.code);
    let members = members(subject, step.status, step.code);
    world
        .enqueue(&subject.phone_number_id, "messages", members, attempted)
        .await;
}

/// When which status is reported.
fn timetable(delays: &Delays, reports: &Reports) -> Vec<Step> {
    if reports.silent {
        return Vec::new();
    }
    let held = reports.held_for.unwrap_or_default();
    let mut steps = Vec::new();
    if let Some(code) = reports.fail_with {
        steps.push(Step {
            code: Some(code),
            ..Step::new(held + delays.sent, "failed")
        });
    } else {
        if !reports.before_answer {
            steps.push(Step::new(held + delays.sent, "sent"));
        }
        let delivered = delays.delivered.filter(|_| !reports.skip_delivered);
        steps.extend(delivered.map(|after| Step::new(held + after, "delivered")));
        steps.extend(delays.read.map(|after| Step::new(held + after, "read")));
    }
    if reports.reversed {
        let times: Vec<_> = steps.iter().map(|step| step.after).collect();
        steps.reverse();
        for (step, time) in steps.iter_mut().zip(times) {
            step.after = time;
        }
    }
    if reports.duplicate {
        steps = steps.into_iter().flat_map(|step| [step, step]).collect();
    }
    steps
}

/// The members of a change's value for a status.
fn members(of: &Subject, name: &str, code: Option<i64>) -> Value {
    let mut status = json!({"id": of.wamid, "status": name, "timestamp": unix_seconds()});
    let digits: String = of.to.chars().filter(char::is_ascii_digit).collect();
    let hidden = of.to.contains('.');
    if hidden {
        status["recipient_user_id"] = json!(of.to);
    } else {
        status["recipient_id"] = json!(digits);
    }
    if let Some(opaque) = &of.opaque {
        status["biz_opaque_callback_data"] = json!(opaque);
    }
    if name == "sent" {
        status["pricing"] = json!({"billable": true, "pricing_model": "PMP", "type": "regular", "category": "service"});
    }
    if let Some(code) = code {
        status["errors"] = json!([{"code": code, "title": title(code), "message": title(code),
            "error_data": {"details": "simulated failure"},
            "href": "https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes/"}]);
    }
    let mut value = json!({"statuses": [status]});
    // Meta leaves the contacts out of failures.
    if name != "failed" {
        value["contacts"] = if hidden {
            json!([{"user_id": of.to}])
        } else {
            json!([{"wa_id": digits}])
        };
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_change_which_statuses_are_reported_and_when() {
        let delays = Delays::default();
        let words = |reports: Reports| -> Vec<&str> {
            let steps = timetable(&delays, &reports);
            assert!(steps.is_sorted_by_key(|step| step.after), "{steps:?}");
            steps.iter().map(|step| step.status).collect()
        };
        assert_eq!(words(Reports::default()), ["sent", "delivered", "read"]);
        let reversed = Reports {
            reversed: true,
            skip_delivered: true,
            ..Reports::default()
        };
        assert_eq!(words(reversed), ["read", "sent"]);
        let before_answer = Reports {
            before_answer: true,
            duplicate: true,
            ..Reports::default()
        };
        assert_eq!(words(before_answer), ["delivered", "delivered", "read", "read"]);
        let dropped = Reports {
            fail_with: Some(132_015),
            held_for: Some(Duration::from_secs(1)),
            ..Reports::default()
        };
        let steps = timetable(&delays, &dropped);
        assert_eq!(
            (steps.len(), steps[0].status, steps[0].code),
            (1, "failed", Some(132_015))
        );
        assert_eq!(steps[0].after, Duration::from_secs(1) + delays.sent);
    }
}
