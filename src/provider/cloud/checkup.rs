//! What Meta says about a number, its token, its WhatsApp Business account and its app's webhooks: for `twinlog doctor`. Only
//! reads, and never quotes more of an answer than the fields that are named here.
//!
//! Sources: <https://developers.facebook.com/docs/graph-api/reference/whats-app-business-account-to-number-current-status/>,
//! <https://developers.facebook.com/docs/whatsapp/cloud-api/support/health-status>,
//! <https://developers.facebook.com/docs/graph-api/reference/debug_token>,
//! <https://developers.facebook.com/docs/graph-api/reference/app/subscriptions>.

use bytes::Bytes;
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use time::OffsetDateTime;

use super::client::{Account, PassedCall};
use super::error::GraphError;
use super::members::scalar;
use crate::provider::quoted;

/// Meta's longest callback URL has 200 characters.
const MAX_ADDRESS: usize = 400;

/// Why Meta did not say it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckupError {
    /// Meta refuses the call.
    #[error("Meta refuses it (code {code}: {message})")]
    Refused {
        /// Meta's code.
        code: i64,
        /// Meta's words, fit for a line.
        message: String,
    },
    /// No answer.
    #[error("{0}")]
    NoAnswer(&'static str),
    /// Something answers that is not the Graph API.
    #[error("something that is not the Graph API answers with HTTP {0}")]
    Stranger(u16),
}

/// A number, as Meta shows it. A field that Meta left out is [`None`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumberFacts {
    /// `CONNECTED`, `PENDING`, `BANNED`, …
    pub status: Option<String>,
    /// `CLOUD_API`, or `NOT_APPLICABLE` while the number is not registered.
    pub platform: Option<String>,
    /// `GREEN`, `YELLOW`, `RED`.
    pub quality: Option<String>,
    /// `APPROVED`, `DECLINED`, `EXPIRED`, …
    pub name_status: Option<String>,
    /// `STANDARD` (80 messages a second), `HIGH` (1,000).
    pub throughput: Option<String>,
    /// Whether the number is also used in the WhatsApp Business app: then 20 messages a second.
    pub is_in_app: Option<bool>,
    /// Where its webhooks go: its own override, its account's, its app's.
    pub callback: Option<String>,
    /// What stops or limits sending.
    pub health: Vec<HealthFact>,
}

/// A part of a number's health that is not `AVAILABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthFact {
    /// Whether nothing can be sent (`BLOCKED`), or less (`LIMITED`).
    pub is_blocked: bool,
    /// `PHONE_NUMBER`, `WABA`, `BUSINESS`, `APP`.
    pub entity: String,
    /// Meta's words, and its solution.
    pub why: String,
}

/// An access token, as Meta shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenFacts {
    /// Whether Meta takes it.
    pub is_valid: bool,
    /// The app that it is of.
    pub app_id: Option<String>,
    /// When it ends; [`None`]: never.
    pub expires_at: Option<OffsetDateTime>,
    /// Its permissions.
    pub scopes: Vec<String>,
    /// `SYSTEM_USER`, `USER`, …
    pub kind: Option<String>,
}

/// What an app has subscribed to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppSubscription {
    /// Where its webhooks go.
    pub callback: Option<String>,
    /// Whether it gets any.
    pub is_active: bool,
    /// The fields.
    pub fields: Vec<String>,
}

impl Account {
    /// What Meta says about the number.
    ///
    /// # Errors
    /// See [`CheckupError`].
    pub async fn number_facts(&self) -> Result<NumberFacts, CheckupError> {
        let id = self.phone_number_id();
        let fields = "id,status,platform_type,quality_rating,name_status,throughput,is_on_biz_app,webhook_configuration,\
                      health_status";
        // A token or a version that may not see one of these is refused for all of them: then the plain fields.
        let all = self.ask(&format!("{id}?fields={fields}")).await;
        let value = match all {
            Err(CheckupError::Refused { code: 100, .. }) => {
                self.ask(&format!("{id}?fields=id,quality_rating,platform_type,throughput"))
                    .await?
            }
            other => other?,
        };
        Ok(number(&value))
    }

    /// What Meta says about the number's access token.
    ///
    /// # Errors
    /// See [`CheckupError`].
    pub async fn token_facts(&self) -> Result<TokenFacts, CheckupError> {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("input_token", self.access_token().expose_secret())
            .finish();
        let value = self.ask(&format!("debug_token?{query}")).await?;
        Ok(token(value.get("data").unwrap_or(&Value::Null)))
    }

    /// The ids of the apps that get the webhooks of a WhatsApp Business account.
    ///
    /// # Errors
    /// See [`CheckupError`].
    pub async fn subscribed_apps(&self, waba: &str) -> Result<Vec<String>, CheckupError> {
        let value = self.ask(&format!("{waba}/subscribed_apps")).await?;
        let apps = value.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(apps
            .iter()
            .filter_map(|app| app.pointer("/whatsapp_business_api_data/id").and_then(scalar))
            .collect())
    }

    /// What an app has subscribed to for WhatsApp Business accounts; [`None`] if nothing. `app_secret` is the app's: with it Meta
    /// knows the caller as the app itself.
    ///
    /// # Errors
    /// See [`CheckupError`]; Meta refuses a wrong secret.
    pub async fn app_subscription(
        &self,
        app_id: &str,
        app_secret: &SecretString,
    ) -> Result<Option<AppSubscription>, CheckupError> {
        let token = SecretString::from(format!("{app_id}|{}", app_secret.expose_secret()));
        let app = Self::new(self.client().clone(), self.phone_number_id().clone(), token);
        let value = app.ask(&format!("{app_id}/subscriptions")).await?;
        let all = value.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
        let whatsapp = all
            .iter()
            .find(|one| one.get("object").and_then(Value::as_str) == Some("whatsapp_business_account"));
        Ok(whatsapp.map(subscription))
    }

    async fn ask(&self, path: &str) -> Result<Value, CheckupError> {
        let call = PassedCall {
            method: Method::GET,
            path: format!("{}/{path}", self.version()),
            content_type: None,
            body: Bytes::new(),
        };
        let answer = self.pass(call).await.map_err(|error| CheckupError::NoAnswer(error.0))?;
        if let Some(error) = GraphError::from_body(&answer.body) {
            return Err(CheckupError::Refused {
                code: error.code,
                message: quoted(&error.message),
            });
        }
        let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
        match value.filter(|value| value.is_object() && (200..300).contains(&answer.status)) {
            Some(value) => Ok(value),
            None => Err(CheckupError::Stranger(answer.status)),
        }
    }
}

/// An address of ours, as Meta has it: compared as it is.
fn address(value: &Value, pointer: &str) -> Option<String> {
    let text = value.pointer(pointer).and_then(Value::as_str)?;
    (!text.is_empty()).then(|| text.chars().take(MAX_ADDRESS).collect())
}

/// A word of Meta's, fit for a line.
fn word(value: &Value, pointer: &str) -> Option<String> {
    value.pointer(pointer).and_then(scalar).map(|text| quoted(&text))
}

fn number(value: &Value) -> NumberFacts {
    let callback = ["phone_number", "whatsapp_business_account", "application"]
        .iter()
        .find_map(|level| address(value, &format!("/webhook_configuration/{level}")));
    NumberFacts {
        status: word(value, "/status"),
        platform: word(value, "/platform_type"),
        quality: word(value, "/quality_rating"),
        name_status: word(value, "/name_status"),
        throughput: word(value, "/throughput/level"),
        is_in_app: value.get("is_on_biz_app").and_then(Value::as_bool),
        callback,
        health: value
            .pointer("/health_status/entities")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(health)
            .collect(),
    }
}

fn health(entity: &Value) -> Option<HealthFact> {
    let can = word(entity, "/can_send_message")?;
    if can == "AVAILABLE" {
        return None;
    }
    let errors = entity.get("errors").and_then(Value::as_array).into_iter().flatten();
    let words: Vec<String> = errors
        .flat_map(|error| [word(error, "/error_description"), word(error, "/possible_solution")])
        .flatten()
        .collect();
    Some(HealthFact {
        is_blocked: can == "BLOCKED",
        entity: word(entity, "/entity_type").unwrap_or_default(),
        why: words.join("; "),
    })
}

fn token(data: &Value) -> TokenFacts {
    let expires = data.get("expires_at").and_then(Value::as_i64).filter(|at| *at > 0);
    TokenFacts {
        is_valid: data.get("is_valid").and_then(Value::as_bool).unwrap_or(false),
        app_id: word(data, "/app_id"),
        expires_at: expires.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok()),
        scopes: data
            .get("scopes")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|scope| scope.as_str().map(str::to_owned))
            .collect(),
        kind: word(data, "/type"),
    }
}

fn subscription(value: &Value) -> AppSubscription {
    AppSubscription {
        callback: address(value, "/callback_url"),
        is_active: value.get("active").and_then(Value::as_bool).unwrap_or(true),
        fields: value
            .get("fields")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            // Older versions of the API list names alone.
            .filter_map(|field| word(field, "/name").or_else(|| field.as_str().map(quoted)))
            .collect(),
    }
}
