//! Shows the templates of which Meta told that it stopped them, or will: notices of all processes are in the Site DB.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::health::{Component, Standing, Trouble};
use crate::provider::quoted;
use crate::shutdown;
use crate::site_db::Pool;
use crate::site_db::template_notices::{self, Troubled};

/// How often to look. Templates change a few times a day.
const EVERY: Duration = Duration::from_secs(5);
/// How long a look may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until the stop.
pub(super) async fn run(pool: Pool, component: Component, stop: CancellationToken) {
    component.ready(json!(null));
    loop {
        let looked = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            looked = tokio::time::timeout(TIMEOUT, template_notices::troubled(&pool)) => looked,
        };
        // The Site DB's own component says why it can't be asked; what was known stays.
        if let Ok(Ok(troubled)) = looked {
            let (stopped, all) = (troubled.first()).map_or((0, 0), |first| (first.stopped, first.troubled));
            let detail = json!({"stopped": stopped, "of_low_quality": all - stopped});
            component.stands(standing(&troubled), detail);
        }
        if !shutdown::sleep(EVERY, &stop).await {
            return;
        }
    }
}

fn standing(troubled: &[Troubled]) -> Standing {
    let Some(first) = troubled.first() else {
        return Standing::Ready;
    };
    let named = troubled.iter().map(|template| {
        let word = template.stopped_by.as_ref().or(template.quality.as_ref());
        let [name, language] =
            [&template.name, &template.language].map(|text| quoted(&text.replace(char::is_control, " ")));
        format!("{name} ({language}): {}", word.map_or("", String::as_str))
    });
    let mut named = named.collect::<Vec<_>>().join(", ");
    let shown = i64::try_from(troubled.len()).unwrap_or(i64::MAX);
    if first.troubled > shown {
        named.push_str(&format!(", and {} more", first.troubled - shown));
    }
    Standing::Degraded(if first.stopped > 0 {
        Trouble::new(
            "template",
            format!(
                "Meta has stopped templates, messages with them fail ({named}): see their status and quality in Meta's WhatsApp \
                 Manager, send others meanwhile, and delete those that nobody needs; this ends when Meta approves them again"
            ),
        )
    } else {
        Trouble::new(
            "template_quality",
            format!(
                "people refuse messages with templates, and Meta will stop these ({named}): send them to fewer people, or others"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(name: &str, stopped_by: Option<&str>, (stopped, troubled): (i64, i64)) -> Troubled {
        Troubled {
            name: name.to_owned(),
            language: "en_US".to_owned(),
            stopped_by: stopped_by.map(str::to_owned),
            quality: Some("RED".to_owned()),
            stopped,
            troubled,
        }
    }

    #[test]
    fn what_is_stopped_is_told_before_what_will_be_and_the_rest_is_counted() {
        let reason = |troubled: &[Troubled]| match standing(troubled) {
            Standing::Degraded(Trouble { kind, reason }) => (kind, reason),
            other => panic!("{other:?}"),
        };
        assert_eq!(standing(&[]), Standing::Ready);
        let (kind, why) = reason(&[template("order", None, (0, 1))]);
        assert!(
            kind == "template_quality" && why.contains("order (en_US): RED"),
            "{why}"
        );
        let two = [
            template("offer\n+49 1701234567", Some("PAUSED"), (1, 9)),
            template("order", None, (1, 9)),
        ];
        let (kind, why) = reason(&two);
        assert!(
            kind == "template" && why.contains("(en_US): PAUSED, order (en_US): RED, and 7 more"),
            "{why}"
        );
        assert!(!why.contains('\n') && !why.contains("1701234567"), "{why}");
    }
}
