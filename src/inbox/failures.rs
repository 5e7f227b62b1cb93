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

/// Most failures that a webhook's row keeps, and most that its log line names.
const MOST_KEPT: usize = 200;
const MOST_LOGGED: usize = 10;

/// The JSON for the column `webhook_events.failures`; `None` if there are no failures.
pub(super) fn to_json(failures: &[Failure]) -> Option<Value> {
    first(failures, MOST_KEPT)
}

/// The same for the log.
pub(super) fn to_log(failures: &[Failure]) -> Option<Value> {
    first(failures, MOST_LOGGED)
}

fn first(failures: &[Failure], most: usize) -> Option<Value> {
    let more = failures.len().saturating_sub(most);
    let more = (more > 0).then(|| json!({"reason": format!("and {more} more")}));
    (!failures.is_empty()).then(|| failures.iter().take(most).map(Failure::to_json).chain(more).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_of_failures_are_named_by_their_first_ones() {
        let failures: Vec<Failure> = (0..5000)
            .map(|index| Failure::of_event(index, "messages", "why"))
            .collect();
        for (shown, most) in [(to_json(&failures), MOST_KEPT), (to_log(&failures), MOST_LOGGED)] {
            let shown = shown.unwrap();
            assert_eq!(shown.as_array().unwrap().len(), most + 1);
            assert_eq!(shown[0], json!({"index": 0, "field": "messages", "reason": "why"}));
            assert_eq!(shown[most], json!({"reason": format!("and {} more", 5000 - most)}));
        }
        assert_eq!(to_json(&[]), None);
    }
}
