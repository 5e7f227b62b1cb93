//! Whose the object of a call is, and so with which number's token the call is made.
//!
//! A client reaches only what its numbers own. Numbers and business accounts are in the configuration. Whose a medium, a
//! template or a flow is, its id does not say: media that came or went through this server are known; any other id is looked
//! for with the tokens of the client's own numbers, so that Meta decides. Where such a token belongs to a number of somebody
//! else as well, Meta can't decide: then Meta is asked for media of the client's number alone, and nothing else passes.

use secrecy::ExposeSecret;

use super::allow_list::{Allowed, Node};
use crate::config::ApiToken;
use crate::http::state::PassthroughAccount;

/// The entry that a call has, and what is known of its object.
#[derive(Debug)]
pub(super) struct Resolved<'a> {
    pub(super) entry: &'static Allowed,
    pub(super) owner: Owner<'a>,
}

/// Who owns an object.
#[derive(Debug)]
pub(super) enum Owner<'a> {
    /// A number of the client's.
    Client(&'a PassthroughAccount),
    /// Not said by the id: to be found out.
    Open,
    /// Nobody, or a number that the client may not use.
    Nobody,
}

/// A number of the client's with whose token an object is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) account: &'a PassthroughAccount,
    pub(super) token: TokenReach,
}

/// Whose objects the token of a candidate reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenReach {
    /// Only those of the client's numbers.
    Own,
    /// Also those of other numbers of the same business account.
    SameWaba,
    /// Also those of business accounts that are not the client's.
    Others,
}

/// The numbers that a client may use.
pub(super) fn usable<'a>(
    accounts: &'a [PassthroughAccount],
    client: &ApiToken,
) -> impl Iterator<Item = &'a PassthroughAccount> {
    accounts
        .iter()
        .filter(|known| client.may_use(known.account.phone_number_id().as_str()))
}

/// Chooses the entry of a call, and says whose its first part is. `None`: nothing of the table fits.
pub(super) fn resolve<'a>(
    entries: &[&'static Allowed],
    id: &str,
    accounts: &'a [PassthroughAccount],
    client: &ApiToken,
) -> Option<Resolved<'a>> {
    let is_number = accounts
        .iter()
        .any(|known| known.account.phone_number_id().as_str() == id);
    let is_waba = accounts.iter().any(|known| known.waba_id.as_deref() == Some(id));
    let own_number = usable(accounts, client).find(|known| known.account.phone_number_id().as_str() == id);
    let own_waba = usable(accounts, client).find(|known| known.waba_id.as_deref() == Some(id));
    let of = |node: Node| entries.iter().copied().find(|entry| entry.node() == node);

    let known = match (is_number, is_waba) {
        (true, _) => of(Node::Number).map(|entry| (entry, own_number)),
        (false, true) => of(Node::Waba).map(|entry| (entry, own_waba)),
        (false, false) => None,
    };
    // Somebody else's is looked for as any other id is, so that the time tells nothing either.
    if let Some((entry, owner)) = known
        && (owner.is_some() || of(Node::Object).is_none())
    {
        let owner = owner.map_or(Owner::Nobody, Owner::Client);
        return Some(Resolved { entry, owner });
    }
    if let Some(entry) = of(Node::Object) {
        let owner = match (is_number || is_waba, own_number.or(own_waba)) {
            (false, _) => Owner::Open,
            // No call for numbers and business accounts, whoever owns this one.
            (true, Some(_)) => return None,
            (true, None) => Owner::Nobody,
        };
        return Some(Resolved { entry, owner });
    }
    if let Some(entry) = of(Node::Waba) {
        let owner = Owner::Open;
        return Some(Resolved { entry, owner });
    }
    // A number that is not configured.
    of(Node::Number).map(|entry| Resolved {
        entry,
        owner: Owner::Nobody,
    })
}

/// The client's numbers with whose tokens an object is looked for, one for each token. A business account that the
/// configuration does not name can only be that of a number whose business account it does not name.
pub(super) fn candidates<'a>(accounts: &'a [PassthroughAccount], client: &ApiToken, node: Node) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for account in usable(accounts, client).filter(|account| node != Node::Waba || account.waba_id.is_none()) {
        let token = reach(account, accounts, client);
        // A shared token is tried for each number, because Meta is asked for the number's own media then.
        let known = candidates.iter().any(|known| same_token(known.account, account));
        if !known || token != TokenReach::Own {
            candidates.push(Candidate { account, token });
        }
    }
    candidates
}

/// Whose objects the token of a number of the client's reaches.
pub(super) fn reach(account: &PassthroughAccount, accounts: &[PassthroughAccount], client: &ApiToken) -> TokenReach {
    let mut reach = TokenReach::Own;
    for other in accounts {
        if client.may_use(other.account.phone_number_id().as_str()) || !same_token(account, other) {
            continue;
        }
        if other.waba_id.is_none() || other.waba_id != account.waba_id {
            return TokenReach::Others;
        }
        reach = TokenReach::SameWaba;
    }
    reach
}

fn same_token(one: &PassthroughAccount, other: &PassthroughAccount) -> bool {
    one.account.access_token().expose_secret() == other.account.access_token().expose_secret()
}
