//! What is found about numbers at Meta: the token, the number, its account's webhooks, the app's.

use time::OffsetDateTime;
use url::Url;

use super::finding::{Code, Finding};
use crate::config;
use crate::provider::cloud::checkup::{AppSubscription, CheckupError, NumberFacts, TokenFacts};
use crate::provider::cloud::remedy;

/// A token that ends sooner is worth a warning: people are away for two weeks.
const EXPIRES_SOON: time::Duration = time::Duration::days(14);

/// Fields that bring messages and statuses.
const NEEDED_FIELD: &str = "messages";
/// Fields by which Meta tells of restrictions; what is done with them is in `provider::cloud::webhook`.
const USEFUL_FIELDS: [&str; 4] = [
    "account_alerts",
    "account_update",
    "message_template_status_update",
    "phone_number_quality_update",
];

/// The permission to send.
const MESSAGING: &str = "whatsapp_business_messaging";
/// The permission to see templates and subscriptions.
const MANAGEMENT: &str = "whatsapp_business_management";

/// The name of a number in findings: its id, never the telephone number.
pub(super) fn about(account: &config::Account) -> String {
    format!("number {}", account.phone_number_id)
}

/// A call that Meta did not answer as hoped. [`None`]: it says nothing about the number, as the right to ask is missing.
pub(super) fn of_error(about: &str, error: &CheckupError) -> Option<Finding> {
    let what = error.to_string();
    Some(match error {
        CheckupError::Refused { code, .. } => {
            let fix = i32::try_from(*code).map_or("", remedy);
            let code = match code {
                0 | 190 => Code::TokenInvalid,
                33 | 100 => Code::NumberUnknown,
                3 | 10 | 200..=299 => Code::TokenPermission,
                _ => return None,
            };
            Finding::new(code, about, what).fix(fix)
        }
        CheckupError::NoAnswer(_) | CheckupError::Stranger(_) => Finding::new(Code::GraphUnreachable, about, what)
            .fix("check whatsapp.graph_url, and that this machine may open connections to graph.facebook.com:443"),
    })
}

/// The token.
pub(super) fn of_token(about: &str, token: &TokenFacts, now: OffsetDateTime) -> Vec<Finding> {
    let mut found = Vec::new();
    let new_token = "in Meta's Business settings, System users: generate a token that never expires, with \
                     whatsapp_business_messaging and whatsapp_business_management; put it into whatsapp.accounts.access_token and \
                     restart twinlog";
    if !token.is_valid || token.expires_at.is_some_and(|at| at <= now) {
        found.push(
            Finding::new(
                Code::TokenInvalid,
                about,
                "Meta says that its access token is not valid",
            )
            .fix(new_token),
        );
        return found;
    }
    if let Some(left) = token.expires_at.map(|at| at - now).filter(|left| *left < EXPIRES_SOON) {
        let what = match left.whole_days() {
            0 => format!("its access token expires in {} h", left.whole_hours()),
            days => format!("its access token expires in {days} day(s)"),
        };
        found.push(Finding::new(Code::TokenExpires, about, what).fix(new_token));
    }
    let lacks = |permission: &str| !token.scopes.iter().any(|scope| scope == permission);
    let missing: Vec<&str> = [MESSAGING, MANAGEMENT].into_iter().filter(|name| lacks(name)).collect();
    // Without any scope, Meta has not told them.
    if !missing.is_empty() && !token.scopes.is_empty() {
        let what = format!("its access token lacks: {}", missing.join(", "));
        found.push(Finding::new(Code::TokenPermission, about, what).fix(new_token));
    }
    if token.kind.as_deref() == Some("USER") {
        found.push(Finding::new(Code::TokenOfUser, about, "its access token is a person's").fix(new_token));
    }
    found
}

/// The number.
pub(super) fn of_number(account: &config::Account, number: &NumberFacts, callback: Option<&Url>) -> Vec<Finding> {
    let about = about(account);
    let mut found = Vec::new();
    let manager = "see the number in Meta's WhatsApp Manager (business.facebook.com/wa/manage)";
    if number
        .platform
        .as_deref()
        .is_some_and(|platform| platform != "CLOUD_API")
    {
        let what = format!("its platform is {}", shown(number.platform.as_ref()));
        found.push(Finding::new(Code::NumberNotRegistered, &about, what).fix(remedy(133_010)));
    } else if number.status.as_deref().is_some_and(|status| status != "CONNECTED") {
        let what = format!("its status is {}", shown(number.status.as_ref()));
        found.push(Finding::new(Code::NumberNotConnected, &about, what).fix(manager));
    }
    if matches!(number.name_status.as_deref(), Some("DECLINED" | "EXPIRED")) {
        let what = format!("its display name is {}", shown(number.name_status.as_ref()));
        found.push(Finding::new(Code::NumberName, &about, what).fix(remedy(131_037)));
    }
    if number.quality.as_deref() == Some("RED") {
        found.push(Finding::new(Code::Quality, &about, "its quality is RED").fix(remedy(131_048)));
    }
    for health in &number.health {
        let (code, how) = if health.is_blocked {
            (Code::SendingBlocked, "can't send")
        } else {
            (Code::SendingLimited, "is limited")
        };
        let what = format!("{} {how}: {}", health.entity, health.why);
        found.push(Finding::new(code, &about, what).fix(manager));
    }
    found.extend(of_rate(account, number));
    if let (Some(goes_to), Some(callback)) = (&number.callback, callback) {
        found.extend(of_callback(&about, Some(goes_to), callback));
    }
    found
}

fn of_rate(account: &config::Account, number: &NumberFacts) -> Option<Finding> {
    // Source: <https://developers.facebook.com/docs/whatsapp/cloud-api/overview#throughput>.
    let limit = match (number.is_in_app, number.throughput.as_deref()) {
        (Some(true), _) => 20,
        (_, Some("STANDARD")) => 80,
        (_, Some("HIGH")) => 1000,
        _ => return None,
    };
    let ours = account.messages_per_second;
    let about = about(account);
    let fix = format!(
        "whatsapp.accounts.messages_per_second = {limit} for {}",
        account.phone_number_id
    );
    let what = format!("messages_per_second is {ours}, and Meta's limit for the number is {limit}");
    match ours.cmp(&limit) {
        std::cmp::Ordering::Greater => Some(Finding::new(Code::RateAboveLimit, about, what).fix(fix)),
        std::cmp::Ordering::Less => Some(Finding::new(Code::RateBelowLimit, about, what).fix(fix)),
        std::cmp::Ordering::Equal => None,
    }
}

/// Where webhooks go. `callback`: where they should.
fn of_callback(about: &str, goes_to: Option<&String>, callback: &Url) -> Option<Finding> {
    let fix = format!("in Meta's dashboard (WhatsApp, Configuration), set the callback URL to {callback}");
    match goes_to {
        None => Some(Finding::new(Code::CallbackUnset, about, "Meta has no callback URL for its webhooks").fix(fix)),
        Some(url) if same_url(url, callback) => None,
        Some(url) => {
            let what = format!("its webhooks go to {url}");
            Some(Finding::new(Code::CallbackElsewhere, about, what).fix(fix))
        }
    }
}

fn same_url(text: &str, url: &Url) -> bool {
    text.parse::<Url>()
        .is_ok_and(|other| other.as_str().trim_end_matches('/') == url.as_str().trim_end_matches('/'))
}

/// Which apps get the account's webhooks.
pub(super) fn of_subscribed_apps(about: &str, waba: &str, apps: &[String], app_id: Option<&str>) -> Option<Finding> {
    let fix = format!(
        "curl -X POST \"https://graph.facebook.com/v26.0/{waba}/subscribed_apps\" -H \"Authorization: Bearer $TOKEN\" (the number's \
         access token), or the same call through twinlog"
    );
    let what = match app_id {
        _ if apps.is_empty() => format!("no app gets the webhooks of WhatsApp Business account {waba}"),
        Some(app) if !apps.iter().any(|id| id == app) => {
            format!("other apps than the token's ({app}) get the webhooks of WhatsApp Business account {waba}")
        }
        _ => return None,
    };
    Some(Finding::new(Code::NotSubscribed, about, what).fix(fix))
}

/// What the app has subscribed to. `secrets` says how many app secrets are configured.
pub(super) fn of_subscription(
    app: &str,
    subscription: Option<&AppSubscription>,
    callback: Option<&Url>,
    is_overridden: bool,
) -> Vec<Finding> {
    let about = format!("app {app}");
    let dashboard = "in Meta's dashboard (WhatsApp, Configuration)";
    let Some(subscription) = subscription.filter(|subscription| subscription.is_active) else {
        let what = "it has no active subscription for WhatsApp Business accounts";
        let fix = format!("{dashboard}: set the callback URL and the verify token, and subscribe to {NEEDED_FIELD}");
        return vec![Finding::new(Code::CallbackUnset, about, what).fix(fix)];
    };
    let mut found = Vec::new();
    let has = |field: &str| subscription.fields.iter().any(|name| name == field);
    if !has(NEEDED_FIELD) {
        let what = format!("it is not subscribed to the field {NEEDED_FIELD}");
        found.push(
            Finding::new(Code::FieldMissing, &about, what).fix(format!("{dashboard}: subscribe to {NEEDED_FIELD}")),
        );
    }
    let useful: Vec<&str> = USEFUL_FIELDS.into_iter().filter(|field| !has(field)).collect();
    if !useful.is_empty() {
        let what = format!("it is not subscribed to {}", useful.join(", "));
        let fix = format!("{dashboard}: subscribe to {}", useful.join(", "));
        found.push(Finding::new(Code::FieldOptional, &about, what).fix(fix));
    }
    // A number's own override counts more, and is compared by itself.
    if let Some(callback) = callback.filter(|_| !is_overridden) {
        found.extend(of_callback(&about, subscription.callback.as_ref(), callback));
    }
    found
}

/// That none of the configured secrets is the app's.
pub(super) fn of_app_secrets(app: &str, error: &CheckupError) -> Finding {
    let what = format!("no secret in whatsapp.app_secrets is this app's: {error}");
    Finding::new(Code::AppSecretWrong, format!("app {app}"), what).fix(
        "copy the App Secret from Meta's dashboard (App settings, Basic) into the file that whatsapp.app_secrets names, and restart \
         twinlog",
    )
}

fn shown(word: Option<&String>) -> &str {
    word.map_or("unknown", String::as_str)
}
