//! Why an event of a webhook could not be stored: kept with the webhook, for the person who replays it after a fix.

use serde_json::{Value, json};

use crate::retry::Disposition;
use crate::site_db::SiteError;

/// An event that could not be stored, or a webhook that could not be read. Names no value of the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// Which event of the webhook, from 0, and the webhook field that it came under; `None`: the webhook as a whole.
    event: Option<(usize, String)>,
    reason: String,
}

impl Failure {
    pub(super) fn of_webhook(reason: impl Into<String>) -> Self {
        Self {
            event: None,
            reason: reason.into(),
        }
    }

    pub(super) fn of_event(index: usize, field: &str, reason: impl Into<String>) -> Self {
        Self {
            event: Some((index, field.to_owned())),
            reason: reason.into(),
        }
    }

    fn to_json(&self) -> Value {
        match &self.event {
            Some((index, field)) => json!({"index": index, "field": field, "reason": self.reason}),
            None => json!({"reason": self.reason}),
        }
    }
}

/// The JSON for the column `webhook_events.failures` and the log; `None` if there are no failures.
pub(super) fn to_json(failures: &[Failure]) -> Option<Value> {
    (!failures.is_empty()).then(|| failures.iter().map(Failure::to_json).collect())
}

/// If the Site DB refused an event because of its content: the reason, without values. `None` for any other error.
pub(super) fn of_row(error: &SiteError) -> Option<String> {
    if error.disposition() != Disposition::Row {
        return None;
    }
    Some(match (error.sqlstate(), error.constraint()) {
        ("", _) => error.to_string(),
        (sqlstate, Some(constraint)) => format!("SQLSTATE {sqlstate}, constraint {constraint}"),
        (sqlstate, None) => format!("SQLSTATE {sqlstate}"),
    })
}
