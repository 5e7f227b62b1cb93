//! Whether a number is degraded, told by evidence. That nobody has written for a while is none: a number may merely be quiet.

use crate::site_db::accounts::{AccountStatus, Signs};

/// How a number does.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// `active`, `held` or `degraded`.
    pub(super) status: &'static str,
    /// Whether messages can go out and events come in, as far as is known.
    pub(super) connected: bool,
    /// What is wrong, and what to do.
    pub(super) warning: Option<String>,
}

/// `troubles`: what the server says is wrong with the number, or with webhooks; the first counts.
pub(super) fn verdict(signs: &Signs, troubles: &[String]) -> Verdict {
    let warning = match signs.status {
        AccountStatus::Held => Some(format!(
            "Meta refuses to send for this number{}: messages wait until the cause is gone",
            signs
                .hold_reason
                .as_ref()
                .map(|reason| format!(" ({reason})"))
                .unwrap_or_default()
        )),
        AccountStatus::Active if signs.unreported > 0 => Some(format!(
            "Meta took {} messages more than five minutes ago and has reported nothing about them since: look whether the app's \
             webhook still leads to this server, and whether it is subscribed to the WhatsApp Business account (field messages)",
            signs.unreported
        )),
        AccountStatus::Active => troubles.first().cloned(),
    };
    Verdict {
        status: match (signs.status, &warning) {
            (AccountStatus::Held, _) => "held",
            (AccountStatus::Active, Some(_)) => "degraded",
            (AccountStatus::Active, None) => "active",
        },
        connected: warning.is_none(),
        warning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(status: AccountStatus, unreported: i64) -> Signs {
        Signs {
            id: uuid::Uuid::nil(),
            phone_number_id: "1".to_owned(),
            status,
            hold_reason: Some("token expired".to_owned()),
            last_real_ms: None,
            now_ms: 0,
            unreported,
        }
    }

    #[test]
    fn a_number_is_degraded_by_evidence_and_not_by_silence() {
        let quiet = verdict(&signs(AccountStatus::Active, 0), &[]);
        assert_eq!((quiet.status, quiet.connected, quiet.warning), ("active", true, None));
        let held = verdict(&signs(AccountStatus::Held, 0), &[]);
        assert!(held.status == "held" && held.warning.unwrap().contains("token expired"));
        let unreported = verdict(&signs(AccountStatus::Active, 3), &[]);
        assert!(unreported.status == "degraded" && unreported.warning.unwrap().contains("webhook"));
        let trouble = verdict(
            &signs(AccountStatus::Active, 0),
            &["the Graph API does not answer".to_owned()],
        );
        assert!(!trouble.connected && trouble.status == "degraded");
    }
}
