//! Other Graph calls that a client makes: passed on with the number's own token.
//!
//! These are set-up calls, templates, media and the like. No call that is passed on may send a message, because then a message
//! would be sent without a row, and the Graph API has several ways to send one (`marketing_messages`, `method=post` on a GET,
//! batches). So there is one table of what passes, and what goes to Meta is written anew from it: path, query, and none of
//! the client's headers. And a client reaches only what its numbers own: anything else is answered as Meta answers for what
//! does not exist.
//!
//! | file | its job |
//! |---|---|
//! | `allow_list` | the table |
//! | `query`, `body` | what of a query and a body passes |
//! | `owner` | whose an object is, and so whose token is used |
//! | `search` | makes the call, with each token that may be the right one |
//! | `links` | links in answers lead to this server |

mod allow_list;
mod body;
mod links;
mod owner;
mod query;
mod search;

use axum::extract::{Request, State as Extract};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;

use self::allow_list::{Allowed, Node};
use self::owner::Owner;
use self::search::Call;
use super::budget::Family;
use super::media_link::Place;
use super::state::State;
use super::{answer, auth};
use crate::config::ApiToken;
use crate::provider::ApiVersion;
use crate::provider::cloud::GraphError;
use crate::site_db::media;

/// All paths that no other family has. A path that begins with a version is a Graph call.
pub(super) async fn call(
    Extract(state): Extract<State>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let Some(path) = uri.path().strip_prefix('/') else {
        return answer::not_found(&uri);
    };
    let mut parts: Vec<&str> = path.split('/').collect();
    let version = parts.first().and_then(|first| ApiVersion::parse(first));
    let version = if version.is_some() {
        parts.remove(0);
        version
    } else {
        let first = parts.first().copied().unwrap_or_default();
        state.settings.default_version(first).cloned()
    };
    let Some(version) = version else {
        return answer::not_found(&uri);
    };
    let Some(client) = auth::client(&state.settings.tokens, &headers, &uri) else {
        return answer::graph_unauthorized();
    };
    // Some clients end the path of a list with a slash, where the id of one would be. Meta does not mind.
    if method == Method::GET && parts.len() > 1 && parts.last() == Some(&"") {
        parts.pop();
    }
    let entries = allow_list::find(&method, &parts);
    let Some(resolved) = parts
        .first()
        .and_then(|id| owner::resolve(&entries, id, &state.settings.accounts, client))
    else {
        return not_passed_on(uri).await;
    };
    let asked = Asked {
        state: &state,
        client,
        entry: resolved.entry,
        version: &version,
        parts: &parts,
        headers: &headers,
    };
    asked.answer(&uri, resolved.owner, request).await
}

/// A call of the table.
struct Asked<'a> {
    state: &'a State,
    client: &'a ApiToken,
    entry: &'static Allowed,
    version: &'a ApiVersion,
    parts: &'a [&'a str],
    headers: &'a HeaderMap,
}

impl<'a> Asked<'a> {
    async fn answer(&self, uri: &Uri, owner: Owner<'a>, request: Request) -> Response {
        let query = match query::check(self.entry, uri) {
            Ok(query) => query,
            Err(error) => return bad_request(error.to_string()),
        };
        let held = match self.state.bodies.read_clients(request).await {
            Ok(held) => held,
            Err(error) => return answer::graph_body_error(error),
        };
        let Ok(_place) = self.state.budgets.client_place(Family::Passthrough, &self.client.name) else {
            return answer::busy(uri);
        };
        let body = match body::check(self.entry.body, self.headers, held.bytes.clone()) {
            Ok(body) => body,
            Err(error) => return bad_request(error.to_string()),
        };
        let accounts = &self.state.settings.accounts;
        let named = query.iter().find(|(name, _)| name == "phone_number_id");
        let named = named.map(|(_, number)| {
            owner::usable(accounts, self.client).find(|known| known.account.phone_number_id().as_str() == number)
        });
        let owner = match (owner, named) {
            // Another number than the client's own.
            (_, Some(None)) => Owner::Nobody,
            (Owner::Open, named) => match self.object(named.flatten()).await {
                Ok(owner) => owner,
                Err(response) => return response,
            },
            (owner, _) => owner,
        };
        let method = match self.entry.method {
            allow_list::Verb::Get => Method::GET,
            allow_list::Verb::Post => Method::POST,
            allow_list::Verb::Delete => Method::DELETE,
        };
        let id = self.parts.first().copied().unwrap_or_default();
        let call = Call {
            method,
            version: self.version,
            parts: self.parts,
            query: &query,
            body,
            place: Place::of(self.state.settings.public_url.as_ref(), self.headers),
            links: &self.state.settings.links,
        };
        match owner {
            Owner::Client(known) => call.make(&known.account).await,
            // Numbers are known without a question to Meta, whoever's they are.
            Owner::Nobody if self.entry.node() == Node::Number => call.unknown(id),
            Owner::Nobody => call.search_in_vain(&self.candidates(named.flatten())).await,
            Owner::Open => {
                call.search(&self.candidates(named.flatten()), !self.reaches_all())
                    .await
            }
        }
    }

    /// Whose an object is, as far as this server knows.
    async fn object(&self, named: Option<&'a super::state::PassthroughAccount>) -> Result<Owner<'a>, Response> {
        let accounts = &self.state.settings.accounts;
        if accounts.len() == 1 || self.entry.node() != Node::Object {
            return Ok(Owner::Open);
        }
        let id = self.parts.first().copied().unwrap_or_default();
        let number = match media::owner(&self.state.pool, id).await {
            Ok(number) => number,
            // The client may use every number: it gets nothing that is not its own.
            Err(_) if self.reaches_all() => None,
            Err(error) => {
                answer::log_unavailable(&error);
                let error = GraphError::new(2, "Service temporarily unavailable")
                    .with_details("the database is not available; try again");
                return Err(answer::graph_error(StatusCode::SERVICE_UNAVAILABLE, &error));
            }
        };
        let Some(number) = number else {
            return Ok(Owner::Open);
        };
        let known = accounts.iter().find(|known| *known.account.phone_number_id() == number);
        Ok(match known {
            // A number that is not configured any more: another one of its business account may reach the medium.
            None if self.reaches_all() => Owner::Open,
            Some(known) if self.client.may_use(number.as_str()) => {
                let other =
                    named.is_some_and(|named| named.account.phone_number_id() != known.account.phone_number_id());
                if other { Owner::Nobody } else { Owner::Client(known) }
            }
            _ => Owner::Nobody,
        })
    }

    /// Whether the client may use every configured number.
    fn reaches_all(&self) -> bool {
        let accounts = &self.state.settings.accounts;
        owner::usable(accounts, self.client).count() == accounts.len()
    }

    /// The client's numbers whose tokens are tried; the one that the call names, if it names one.
    fn candidates(&self, named: Option<&'a super::state::PassthroughAccount>) -> Vec<owner::Candidate<'a>> {
        let accounts = &self.state.settings.accounts;
        match named {
            Some(account) => vec![owner::Candidate {
                account,
                token: owner::reach(account, accounts, self.client),
            }],
            None => owner::candidates(accounts, self.client, self.entry.node()),
        }
    }
}

fn bad_request(details: String) -> Response {
    answer::graph_error(
        StatusCode::BAD_REQUEST,
        &GraphError::new(100, "Invalid parameter").with_details(details),
    )
}

async fn not_passed_on(uri: Uri) -> Response {
    answer::method_not_allowed(uri).await
}
