//! What Meta tells of a template: its status, its quality.

use serde_json::Value;
use time::OffsetDateTime;

use crate::provider::cloud::members::scalar;
use crate::provider::event::{TemplateNews, TemplateNotice};

/// Meta's name for a template that it will stop if people go on refusing it.
const LOW_QUALITY: &str = "RED";
/// Longest name that Meta takes.
const MAX_NAME: usize = 512;
/// Longest word for a status, and longest code of a language.
const MAX_WORD: usize = 32;

/// Reads a change of one of the template fields; `None` if it is another field, or does not say which template it is about.
/// `at`: when Meta wrote it.
pub(super) fn read(field: &str, value: &Value, at: Option<OffsetDateTime>) -> Option<TemplateNotice> {
    let string = |key: &str| value.get(key).and_then(scalar);
    let word = |key: &str| {
        let word = string(key).filter(|word| word.len() <= MAX_WORD)?;
        Some(word.trim().to_ascii_uppercase()).filter(|word| !word.is_empty())
    };
    let news = match field {
        "message_template_status_update" => status(&word("event")?)?,
        "message_template_quality_update" if word("new_quality_score")? == LOW_QUALITY => {
            TemplateNews::Quality(Some(LOW_QUALITY.to_owned()))
        }
        "message_template_quality_update" => TemplateNews::Quality(None),
        _ => return None,
    };
    let mut name = string("message_template_name").unwrap_or_default();
    name.truncate(name.floor_char_boundary(MAX_NAME));
    Some(TemplateNotice {
        id: string("message_template_id").filter(|id| !id.is_empty() && id.len() <= MAX_WORD)?,
        name,
        language: string("message_template_language")
            .filter(|language| language.len() <= MAX_WORD)
            .unwrap_or_default(),
        news,
        at,
    })
}

/// What a status means for who sends the template. `FLAGGED` stops nothing yet; one that the business itself deletes or
/// archives is nobody's trouble. `None`: nothing that is known.
fn status(event: &str) -> Option<TemplateNews> {
    Some(match event {
        "PAUSED" | "DISABLED" | "REJECTED" | "LOCKED" | "LIMIT_EXCEEDED" | "IN_APPEAL" => {
            TemplateNews::Stopped(event.to_owned())
        }
        "FLAGGED" => TemplateNews::Quality(Some(event.to_owned())),
        "APPROVED" | "REINSTATED" | "UNARCHIVED" | "ARCHIVED" | "PENDING_DELETION" | "DELETED" => TemplateNews::Usable,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn news(field: &str, value: &Value) -> Option<TemplateNews> {
        read(field, value, None).map(|notice| notice.news)
    }

    #[test]
    fn a_status_says_whether_the_template_can_be_sent() {
        let of = |event: &str| {
            let value = json!({"event": event, "message_template_id": 594_425_479_261_596_u64, "message_template_name": "order",
                "message_template_language": "en_US", "reason": null});
            news("message_template_status_update", &value)
        };
        let stopped = |word: &str| Some(TemplateNews::Stopped(word.to_owned()));
        assert_eq!(of("PAUSED"), stopped("PAUSED"));
        assert_eq!(of("disabled"), stopped("DISABLED"));
        assert_eq!(of("FLAGGED"), Some(TemplateNews::Quality(Some("FLAGGED".to_owned()))));
        assert_eq!(of("APPROVED"), Some(TemplateNews::Usable));
        assert_eq!(of("DELETED"), Some(TemplateNews::Usable));
        assert_eq!(of("PENDING"), None);
        assert_eq!(of(&"X".repeat(100)), None);
    }

    #[test]
    fn a_quality_says_whether_meta_will_stop_it_soon() {
        let of = |score: &str| {
            let value =
                json!({"new_quality_score": score, "message_template_id": "1", "message_template_name": "order"});
            news("message_template_quality_update", &value)
        };
        assert_eq!(of("RED"), Some(TemplateNews::Quality(Some("RED".to_owned()))));
        assert_eq!(of("YELLOW"), Some(TemplateNews::Quality(None)));
        assert_eq!(
            news("message_template_quality_update", &json!({"new_quality_score": "RED"})),
            None
        );
        assert_eq!(news("messages", &json!({})), None);
    }
}
