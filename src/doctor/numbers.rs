//! Asks Meta about each number: the token, the number, its account's webhooks; and about the app.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use time::OffsetDateTime;
use url::Url;

use super::examination::Examination;
use super::finding::{Code, Finding};
use super::{addresses, meta};
use crate::config::{self, Config};
use crate::provider::PhoneNumberId;
use crate::provider::cloud::checkup::CheckupError;
use crate::provider::cloud::secrets::Secrets;
use crate::provider::cloud::{Account, Client, ClientSettings};

/// What is known of a number after it was examined.
struct Examined {
    own: Examination,
    /// The app of its token.
    app: Option<String>,
    /// Whether Meta has said where its webhooks go.
    has_callback: bool,
    account: Account,
}

/// Examines every number of the configuration.
pub(super) async fn examine(config: &Config) -> Examination {
    let mut all = Examination::default();
    let whatsapp = &config.whatsapp;
    if whatsapp.accounts.is_empty() {
        return all;
    }
    let client = Client::new(&ClientSettings {
        graph_url: whatsapp.graph_url.clone(),
        api_version: whatsapp.api_version.clone(),
        timeout: whatsapp.send_timeout.min(super::examination::LIMIT),
        secrets: Secrets::new(
            whatsapp
                .accounts
                .iter()
                .map(|account| &account.access_token)
                .chain(&whatsapp.app_secrets),
        ),
        media_hosts: whatsapp.media_hosts.clone(),
    });
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            let what = format!("could not be checked, because of an error: {error}");
            all.add([Finding::new(Code::CheckFailed, "the numbers", what).fix("install ca-certificates")]);
            return all;
        }
    };
    let callback = config.http.public_url.as_ref().and_then(addresses::callback);
    let numbers = whatsapp.accounts.iter().filter_map(|configured| {
        // Never fails: the configuration accepts only digits.
        let number = PhoneNumberId::parse(&configured.phone_number_id)?;
        let account = Account::new(client.clone(), number, configured.access_token.clone());
        Some(Box::pin(number_at_meta(configured, account, callback.as_ref())))
    });
    let mut apps = BTreeSet::new();
    for examined in join_all(numbers).await {
        if let Some(app) = examined.app
            && apps.insert(app.clone())
        {
            let is_known = examined.has_callback;
            all.add(Box::pin(of_app(config, &examined.account, &app, callback.as_ref(), is_known)).await);
            all.done(format!("the webhooks of app {app}"));
        }
        all.merge(examined.own);
    }
    all
}

async fn number_at_meta(configured: &config::Account, account: Account, callback: Option<&Url>) -> Examined {
    let about = meta::about(configured);
    let mut examined = Examined {
        own: Examination::default(),
        app: None,
        has_callback: false,
        account,
    };
    let Examined {
        own,
        app,
        has_callback,
        account,
    } = &mut examined;
    let number = account.number_facts().await;
    match &number {
        Ok(number) => {
            own.done(about.clone());
            *has_callback = number.callback.is_some();
            own.add(meta::of_number(configured, number, callback));
        }
        Err(error) => {
            own.add(told(&about, error));
            // Nothing else would be answered.
            if matches!(error, CheckupError::NoAnswer(_) | CheckupError::Stranger(_)) {
                return examined;
            }
        }
    }
    match account.token_facts().await {
        Ok(token) => {
            own.done(format!("{about}: its token"));
            own.add(
                meta::of_token(&about, &token, OffsetDateTime::now_utc())
                    .into_iter()
                    .filter(|finding| {
                        // Said already.
                        !own_codes(&number).contains(&finding.code)
                    }),
            );
            app.clone_from(&token.app_id);
        }
        Err(error) => own.add(unchecked(&format!("{about}: its token"), &error)),
    }
    let Some(waba) = &configured.waba_id else {
        let fix = format!("waba_id = \"…\" in the block of {}", configured.phone_number_id);
        own.add([Finding::new(Code::WabaUnset, &about, "whatsapp.accounts.waba_id is not set").fix(fix)]);
        return examined;
    };
    match account.subscribed_apps(waba).await {
        Ok(apps) => {
            own.done(format!("{about}: who gets its webhooks"));
            own.add(meta::of_subscribed_apps(&about, waba, &apps, app.as_deref()));
        }
        Err(error) => own.add(unchecked(&format!("{about}: who gets its webhooks"), &error)),
    }
    examined
}

/// The code that a refusal of the number has led to already.
fn own_codes(number: &Result<crate::provider::cloud::checkup::NumberFacts, CheckupError>) -> Vec<Code> {
    let error = number.as_ref().err();
    error
        .and_then(|error| meta::of_error("", error))
        .map(|finding| vec![finding.code])
        .unwrap_or_default()
}

/// A refusal of the number itself.
fn told(about: &str, error: &CheckupError) -> Vec<Finding> {
    meta::of_error(about, error).map_or_else(|| unchecked(about, error), |finding| vec![finding])
}

/// A question beside the number that Meta did not answer: the token may lack the right to ask.
fn unchecked(about: &str, error: &CheckupError) -> Vec<Finding> {
    vec![Finding::new(
        Code::Unchecked,
        about,
        format!("could not be checked, because {error}"),
    )]
}

/// The app of a token: whether one of our secrets is its own, and what it has subscribed to.
async fn of_app(config: &Config, account: &Account, app: &str, callback: Option<&Url>, is_known: bool) -> Vec<Finding> {
    let mut last = None;
    for secret in &config.whatsapp.app_secrets {
        match account.app_subscription(app, secret).await {
            Ok(subscription) => return meta::of_subscription(app, subscription.as_ref(), callback, is_known),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(
            error @ CheckupError::Refused {
                code: 1 | 101 | 190, ..
            },
        ) => vec![meta::of_app_secrets(app, &error)],
        Some(error) => unchecked(&format!("the webhooks of app {app}"), &error),
        None => Vec::new(),
    }
}
