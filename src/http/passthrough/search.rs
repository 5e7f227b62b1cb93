//! Makes a call, with each token that may be the right one.
//!
//! An object of somebody else is answered exactly as one that does not exist: with the same text, after calls to Meta of the
//! same number and kind.

use axum::http::{Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value;

use super::allow_list::is_group;
use super::owner::{Candidate, TokenReach};
use super::{links, query};
use crate::http::answer;
use crate::http::media_link::{MediaLinks, Place};
use crate::provider::ApiVersion;
use crate::provider::cloud::client::{NoAnswer, PassedAnswer, PassedCall};
use crate::provider::cloud::{Account, GraphError};

/// Stands for an object of somebody else: an id that no object has.
const NO_OBJECT: &str = "0";

/// A call that was checked.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) version: &'a ApiVersion,
    /// The path after the version.
    pub(super) parts: &'a [&'a str],
    pub(super) query: &'a [(String, String)],
    /// Media type and bytes.
    pub(super) body: Option<(String, Bytes)>,
    pub(super) place: Place,
    pub(super) links: &'a MediaLinks,
}

impl Call<'_> {
    /// Makes the call with a number's token.
    pub(super) async fn make(&self, account: &Account) -> Response {
        match self.pass(account, self.parts, self.query).await {
            Ok(passed) => self.passed(account, passed),
            Err(error) => no_answer(account, &error),
        }
    }

    /// The answer for an object that does not exist.
    pub(super) fn unknown(&self, id: &str) -> Response {
        answer::graph_unknown_object(&self.method.as_str().to_ascii_lowercase(), id)
    }

    /// Makes the call with each token, until Meta knows the object. `plain`: Meta's own words for an object that it does not
    /// know are not passed on, as they would tell what is somebody else's from what does not exist.
    pub(super) async fn search(&self, candidates: &[Candidate<'_>], plain: bool) -> Response {
        let mut refused = None;
        for candidate in candidates {
            let account = &candidate.account.account;
            match self.try_with(candidate, self.parts).await {
                Ok(Some(passed)) if !is_unknown(&passed) => return self.passed(account, passed),
                Ok(Some(passed)) if !plain => refused = Some(self.passed(account, passed)),
                Ok(_) => {}
                Err(error) => return no_answer(account, &error),
            }
        }
        refused.unwrap_or_else(|| self.unknown(self.parts.first().copied().unwrap_or_default()))
    }

    /// The same calls for an object that nobody has.
    pub(super) async fn search_in_vain(&self, candidates: &[Candidate<'_>]) -> Response {
        let id = self.parts.first().copied().unwrap_or_default();
        let mut parts = self.parts.to_vec();
        if let Some(first) = parts.first_mut() {
            *first = NO_OBJECT;
        }
        for candidate in candidates {
            if let Err(error) = self.try_with(candidate, &parts).await {
                return no_answer(&candidate.account.account, &error);
            }
        }
        self.unknown(id)
    }

    /// One try. `None`: Meta knows the object, but it may be somebody else's.
    async fn try_with(&self, candidate: &Candidate<'_>, parts: &[&str]) -> Result<Option<PassedAnswer>, NoAnswer> {
        let account = &candidate.account.account;
        let group = parts.first().is_some_and(|first| is_group(first));
        // A group is a number's, and Meta can't be asked for the number's own.
        if group && candidate.token != TokenReach::Own {
            return Ok(None);
        }
        let [_] = parts else {
            // What is below an object: Meta can't be asked for the number's own.
            if candidate.token == TokenReach::Others {
                return Ok(None);
            }
            return self.pass(account, parts, self.query).await.map(Some);
        };
        let mut own = self.query.to_vec();
        if candidate.token != TokenReach::Own && !own.iter().any(|(name, _)| name == "phone_number_id") {
            // Meta then knows only the media of this number. It means nothing for other objects.
            own.push((
                "phone_number_id".to_owned(),
                account.phone_number_id().as_str().to_owned(),
            ));
        }
        match self.method {
            Method::GET => {
                let passed = self.pass(account, parts, &own).await?;
                let may_pass = candidate.token != TokenReach::Others || is_unknown(&passed) || is_medium(&passed);
                Ok(may_pass.then_some(passed))
            }
            Method::DELETE if group => self.pass(account, parts, self.query).await.map(Some),
            Method::DELETE => {
                // Of what the token reaches, only media and flows may be deleted, never a number or an account.
                let look = self.look(account, parts, &own).await?;
                let kind_fits = match candidate.token {
                    TokenReach::Own | TokenReach::SameWaba => is_medium(&look) || is_flow(&look) || look.status != 200,
                    TokenReach::Others => is_medium(&look),
                };
                if !kind_fits {
                    return Ok(None);
                }
                self.pass(account, parts, &own).await.map(Some)
            }
            _ if candidate.token == TokenReach::Others => Ok(None),
            _ => self.pass(account, parts, self.query).await.map(Some),
        }
    }

    /// What an object is.
    async fn look(
        &self,
        account: &Account,
        parts: &[&str],
        query: &[(String, String)],
    ) -> Result<PassedAnswer, NoAnswer> {
        account
            .pass(PassedCall {
                method: Method::GET,
                path: format!("{}/{}{}", self.version, parts.join("/"), query::write(query)),
                content_type: None,
                body: Bytes::new(),
            })
            .await
    }

    async fn pass(
        &self,
        account: &Account,
        parts: &[&str],
        query: &[(String, String)],
    ) -> Result<PassedAnswer, NoAnswer> {
        let (content_type, body) = self.body.clone().unzip();
        account
            .pass(PassedCall {
                method: self.method.clone(),
                path: format!("{}/{}{}", self.version, parts.join("/"), query::write(query)),
                content_type,
                body: body.unwrap_or_default(),
            })
            .await
    }

    fn passed(&self, account: &Account, passed: PassedAnswer) -> Response {
        let body = links::ours(passed.body, account, self.links, &self.place);
        answer::passed(passed.status, passed.content_type.as_deref(), body)
    }
}

/// Whether Meta says that the object does not exist, or that this token may not see it.
fn is_unknown(passed: &PassedAnswer) -> bool {
    if passed.status < 400 {
        return false;
    }
    match GraphError::from_body(&passed.body) {
        Some(error) => match error.code {
            100 => error.subcode == Some(33) || error.message.contains("does not exist"),
            10 | 33 | 803 | 200..=299 => true,
            _ => false,
        },
        None => passed.status == 404,
    }
}

fn is_medium(passed: &PassedAnswer) -> bool {
    has_member(passed, &["mime_type", "sha256", "file_size"])
}

fn is_flow(passed: &PassedAnswer) -> bool {
    has_member(
        passed,
        &["validation_errors", "json_version", "data_api_version", "categories"],
    )
}

fn has_member(passed: &PassedAnswer, names: &[&str]) -> bool {
    let answer: Option<Value> = serde_json::from_slice(&passed.body).ok();
    passed.status == 200 && answer.is_some_and(|answer| names.iter().any(|name| answer.get(name).is_some()))
}

fn no_answer(account: &Account, error: &NoAnswer) -> Response {
    tracing::warn!(phone_number_id = %account.phone_number_id(), "a call was not passed on: {error}");
    answer::graph_error(
        StatusCode::BAD_GATEWAY,
        &GraphError::new(2, "Service temporarily unavailable").with_details(error.to_string()),
    )
}
