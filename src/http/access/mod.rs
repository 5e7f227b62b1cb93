//! Who may look at conversations and hear of changes: clients with an API token, and users of another system (a Supabase
//! project) with its JSON Web Tokens; and from which web pages browsers may ask.
//!
//! A user may look and mark as read, and send texts by a route of its own if `auth.jwt_users` says so: all other sending, and everything that is passed on to Meta, needs an API token (`auth`). An API token
//! looks at what its numbers own; a JSON Web Token at the numbers that it lists (`auth.jwt_numbers_claim`), or at all that are configured.
//!
//! | file | its job |
//! |---|---|
//! | `viewer` | [`Viewer`]: what somebody may see, and until when |
//! | `jwt` | checks a JSON Web Token; pure |
//! | `keys` | the keys that it may be signed with, read from a file or an address |
//! | `cors` | what browsers are told about calls from web pages |

mod cors;
mod jwt;
mod keys;
mod viewer;

use axum::http::StatusCode;
use axum::response::Response;

pub(super) use self::cors::cors;
use self::jwt::Refused;
use self::keys::{Keys, Lookup};
pub(super) use self::viewer::{USERS, Viewer, Who};
use super::{answer, auth};
use crate::config::{ApiToken, Jwt, JwtUsers};

/// Checks tokens.
#[derive(Debug)]
pub(super) struct Access {
    tokens: Vec<ApiToken>,
    jwt: Option<(Jwt, Keys)>,
    /// The numbers of this server.
    configured: Vec<String>,
}

/// Why somebody may not look.
#[derive(Debug, thiserror::Error)]
pub(super) enum Denied {
    #[error(
        "send an API token of this server, or a token of a user who has logged in, as: Authorization: Bearer TOKEN"
    )]
    NoToken,
    #[error("the token is none of this server's API tokens")]
    Unknown,
    #[error("the token is refused: {0}")]
    Refused(#[from] Refused),
    #[error("the keys that tokens are signed with can't be read now; try again")]
    NoKeys,
}

impl Access {
    /// `configured`: the numbers of this server.
    pub(super) fn new(tokens: Vec<ApiToken>, jwt: Option<Jwt>, configured: Vec<String>) -> Self {
        let jwt = jwt.map(|jwt| {
            let keys = Keys::new(jwt.secret.as_ref(), jwt.keys.clone());
            (jwt, keys)
        });
        Self {
            tokens,
            jwt,
            configured,
        }
    }

    /// Who has this token, of either kind.
    pub(super) async fn viewer(&self, token: Option<&str>) -> Result<Viewer, Denied> {
        let token = token.filter(|token| !token.is_empty()).ok_or(Denied::NoToken)?;
        if let Some(client) = auth::known(&self.tokens, token) {
            return Ok(Viewer::client(client, &self.configured));
        }
        let Some((rules, keys)) = &self.jwt else {
            return Err(Denied::Unknown);
        };
        let header = jwt::header(token).ok_or(Denied::Unknown)?;
        let candidates = match keys.find(&header).await {
            Lookup::Found(candidates) => candidates,
            Lookup::None => return Err(Refused::Key.into()),
            Lookup::Unreadable => return Err(Denied::NoKeys),
        };
        let claims = jwt::check(token, header.alg, &candidates, rules)?;
        let viewer = Viewer::user(&claims, rules, &self.configured);
        if viewer.numbers.as_ref().is_some_and(Vec::is_empty) {
            return Err(Refused::Numbers.into());
        }
        Ok(viewer)
    }
}

impl Access {
    /// The client that somebody sends as. `None`: a user who may not.
    pub(super) fn sender(&self, viewer: &Viewer) -> Option<ApiToken> {
        match &viewer.who {
            Who::Client(name) => self.tokens.iter().find(|token| token.name == *name).cloned(),
            Who::User(_) => {
                let (rules, _) = self.jwt.as_ref()?;
                (rules.users == JwtUsers::Send).then(|| ApiToken {
                    // No token of the configuration has it: names of clients are kept apart by it.
                    name: USERS.to_owned(),
                    sha256: [0; 32],
                    numbers: viewer.numbers.clone(),
                    automation: false,
                })
            }
        }
    }
}

impl Denied {
    /// The answer, in our shape.
    pub(super) fn into_response(self) -> Response {
        let (status, code) = match self {
            Self::NoKeys => (StatusCode::SERVICE_UNAVAILABLE, "keys_unavailable"),
            _ => (StatusCode::UNAUTHORIZED, "unauthorized"),
        };
        answer::soon_if_busy(answer::plain_error(status, code, &self.to_string(), None))
    }
}
