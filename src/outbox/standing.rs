//! How a number stands, for the health report: what its tasks have learned, and one pure function over it.
//!
//! The light comes from the work: the number's task tells what the Site DB says in each of its rounds, and each call of the
//! provider tells how it ended. Where no call is made, the task looks at the provider now and then.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::health::{Component, Standing, Trouble};
use crate::provider::{self, Answer, Code, ErrorClass, Looked, Refusal, quoted};
use crate::site_db::SiteError;
use crate::site_db::accounts::{AccountStatus, Gate};

/// A round of the number's task takes less: a question to the Site DB, and the longest wait after an error.
const ROUND: Duration = Duration::from_secs(12);
/// A pause that is shorter is the everyday work of a rate limit.
const LONG_PAUSE: Duration = Duration::from_secs(10);
/// Calls without the provider's answer, one after the other, that make a trouble of it. One alone happens.
const CALLS: u32 = 2;
/// How often the provider is looked at while it does not answer, and while nothing is sent.
const LOOK: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// How long a template's refusal shows: Meta does not say when it takes the template again.
const TEMPLATE_SHOWS: Duration = Duration::from_secs(15 * 60);

/// What is known of a number.
#[derive(Debug)]
pub(super) struct NumberStanding {
    component: Component,
    account: provider::Account,
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    /// Whether anything was heard from the Site DB yet.
    started: bool,
    /// Why the Site DB can't be asked for the number.
    site_db: Option<Trouble>,
    /// Whether this process sends for the number.
    leased: bool,
    /// For which code it is held, and the provider's words.
    hold: Option<(i32, String)>,
    pause: Option<Pause>,
    /// A template that the provider has stopped.
    template: Option<StoppedTemplate>,
    /// Calls in a row without the provider's answer, and what was there instead.
    unanswered: (u32, String),
    /// The provider refused a look at the number.
    refused: Option<(i32, String)>,
    /// When the provider was asked last, by a call or a look.
    asked: Option<Instant>,
}

#[derive(Debug)]
struct StoppedTemplate {
    code: i32,
    why: String,
    refused: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    until: OffsetDateTime,
    /// Whether it is, or was, a long one.
    long: bool,
}

impl NumberStanding {
    pub(super) fn new(component: Component, account: provider::Account) -> Self {
        Self {
            component: component.reports_every(ROUND),
            account,
            facts: Mutex::default(),
        }
    }

    /// The Site DB has told the number's state.
    pub(super) fn stands(&self, gate: &Gate, leased: bool) {
        self.learn(|facts| {
            facts.started = true;
            facts.site_db = None;
            facts.leased = leased;
            let reason = || gate.hold_reason.clone().unwrap_or_default();
            facts.hold = (gate.status == AccountStatus::Held).then(|| (gate.hold_code.unwrap_or_default(), reason()));
            let is_old = |template: &mut StoppedTemplate| template.refused.elapsed() >= TEMPLATE_SHOWS;
            facts.template.take_if(is_old);
            let left = Duration::try_from_secs_f64(gate.throttled_seconds).unwrap_or_default();
            facts.pause = (!left.is_zero()).then(|| Pause {
                until: OffsetDateTime::now_utc() + left,
                long: left > LONG_PAUSE || facts.pause.is_some_and(|before| before.long),
            });
        });
    }

    /// The Site DB could not be asked.
    pub(super) fn site_db_failed(&self, error: &SiteError) {
        self.learn(|facts| {
            facts.started = true;
            facts.site_db = Some(error.trouble("its messages can't be claimed"));
        });
    }

    /// A call of the provider has ended.
    pub(super) fn answered(&self, answer: &Answer) {
        let instead = match answer {
            Answer::Accepted(_) => None,
            Answer::Refused(Refusal { code: Some(_), .. }) => None,
            Answer::Refused(refusal) => Some(refusal.message.as_str()),
            Answer::NotSent(why) | Answer::Lost(why) => Some(*why),
        };
        let stopped = self.stopped_template(answer);
        self.learn(|facts| {
            facts.asked = Some(Instant::now());
            if stopped.is_some() {
                facts.template = stopped;
            }
            match instead {
                None => facts.unanswered = (0, String::new()),
                Some(why) => facts.unanswered = (facts.unanswered.0.saturating_add(1), why.to_owned()),
            }
            if matches!(answer, Answer::Accepted(_)) {
                facts.refused = None;
            }
        });
    }

    fn stopped_template(&self, answer: &Answer) -> Option<StoppedTemplate> {
        let Answer::Refused(refusal) = answer else { return None };
        let code = refusal
            .code
            .map(Code::number)
            .filter(|code| self.account.stops_template(*code))?;
        Some(StoppedTemplate {
            code,
            why: refusal.message.clone(),
            refused: Instant::now(),
        })
    }

    /// A look at the provider has ended.
    pub(super) fn looked(&self, looked: Looked) {
        self.learn(|facts| {
            facts.asked = Some(Instant::now());
            facts.refused = None;
            let instead = match looked {
                Looked::Well => None,
                Looked::Refused(refusal) => {
                    if matches!(refusal.class, ErrorClass::Account | ErrorClass::Permission) {
                        facts.refused = Some((refusal.code.map(Code::number).unwrap_or_default(), refusal.message));
                    }
                    None
                }
                Looked::Stranger { status } => Some(format!("HTTP {status} from something that is not the Graph API")),
                Looked::NoAnswer(why) => Some(why.to_owned()),
            };
            // A look is made to find out: one is enough.
            facts.unanswered = instead.map_or_else(|| (0, String::new()), |why| (CALLS, why));
        });
    }

    /// Whether this process sends for the number, as the Site DB said last.
    pub(super) fn is_leased(&self) -> bool {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).leased
    }

    /// Whether the provider is to be looked at.
    pub(super) fn look_due(&self, now: Instant) -> bool {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let well = facts.unanswered.0 == 0 && facts.refused.is_none();
        let wait = if well { LOOK.1 } else { LOOK.0 };
        facts.asked.is_none_or(|asked| now >= asked + wait)
    }

    fn learn(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut facts);
        // Until the Site DB was asked, it is starting.
        if facts.started {
            self.component
                .stands(standing(&facts, |code| self.account.remedy(code)), detail(&facts));
        }
    }
}

/// The worst comes first.
fn standing(facts: &Facts, remedy: impl Fn(i32) -> &'static str) -> Standing {
    let trouble = if let Some(trouble) = &facts.site_db {
        trouble.clone()
    } else if let Some((code, why)) = &facts.hold {
        let reason = format!(
            "held, its messages wait: Meta refuses to send for it (code {code}: {})",
            quoted(why)
        );
        Trouble::new("held", format!("{reason}; {}", remedy(*code)))
    } else if facts.unanswered.0 >= CALLS {
        let reason = format!("nothing can be sent: {}", quoted(&facts.unanswered.1));
        Trouble::new("graph", format!("{reason}; check whatsapp.graph_url and the network"))
    } else if let Some((code, why)) = &facts.refused {
        let reason = format!("Meta refuses calls for it (code {code}: {})", quoted(why));
        Trouble::new("refused", format!("{reason}; {}", remedy(*code)))
    } else if let Some(StoppedTemplate { code, why, .. }) = &facts.template {
        let reason = format!(
            "Meta has stopped a template that its clients send (code {code}: {}): these messages fail, others go out; see the \
             template's quality and status in Meta's WhatsApp Manager, and send another one meanwhile",
            quoted(why)
        );
        Trouble::new("template", reason)
    } else if let Some(Pause { until, long: true }) = facts.pause {
        let until = until.replace_nanosecond(0).unwrap_or(until);
        let until = until.format(&Rfc3339).unwrap_or_default();
        let reason =
            format!("Meta asked to send nothing until {until} (its limit was reached); messages wait and go then");
        Trouble::new("paused", reason)
    } else {
        return Standing::Ready;
    };
    Standing::Degraded(trouble)
}

fn detail(facts: &Facts) -> Value {
    json!({
        "leased_here": facts.leased,
        "held_code": facts.hold.as_ref().map(|(code, _)| code),
        "paused_until": facts.pause.and_then(|pause| pause.until.format(&Rfc3339).ok()),
        "calls_without_answer": facts.unanswered.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(facts: &Facts) -> (&'static str, String) {
        match standing(facts, provider::cloud::remedy) {
            Standing::Ready => ("ready", String::new()),
            Standing::Degraded(trouble) | Standing::NotReady(trouble) => (trouble.kind, trouble.reason),
        }
    }

    #[test]
    fn the_worst_trouble_of_a_number_is_shown_with_its_remedy() {
        let mut facts = Facts::default();
        assert_eq!(shown(&facts).0, "ready");
        let pause = |long| Pause {
            until: OffsetDateTime::UNIX_EPOCH,
            long,
        };
        facts.pause = Some(pause(false));
        assert_eq!(shown(&facts).0, "ready");
        facts.pause = Some(pause(true));
        let (kind, reason) = shown(&facts);
        assert!(
            kind == "paused" && reason.contains("until 1970-01-01T00:00:00Z"),
            "{reason}"
        );
        facts.template = Some(StoppedTemplate {
            code: 132_015,
            why: "(#132015) Template is Paused".to_owned(),
            refused: Instant::now(),
        });
        let (kind, reason) = shown(&facts);
        assert!(kind == "template" && reason.contains("132015"), "{reason}");
        facts.refused = Some((190, "expired".to_owned()));
        assert!(shown(&facts).1.contains("access_token"));
        facts.unanswered = (1, "reset".to_owned());
        assert_eq!(shown(&facts).0, "refused");
        facts.unanswered = (2, "HTTP 404 from something that is not the Graph API".to_owned());
        let (kind, reason) = shown(&facts);
        assert!(
            kind == "graph" && reason.contains("HTTP 404") && reason.contains("graph_url"),
            "{reason}"
        );
        facts.hold = Some((131_042, "for +49 1701234567\n\u{1b}[31mpay".to_owned()));
        let (kind, reason) = shown(&facts);
        assert!(kind == "held" && reason.contains("payment method"), "{reason}");
        assert!(
            !reason.contains("1701234567") && !reason.contains(['\n', '\u{1b}']),
            "{reason}"
        );
    }
}
