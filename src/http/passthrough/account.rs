//! Chooses the number whose token is used to pass a call on.

use axum::http::Uri;

use crate::http::auth;
use crate::http::state::PassthroughAccount;

/// The number or business account that the call names, else the only one.
pub(super) fn choose<'a>(
    accounts: &'a [PassthroughAccount],
    segments: &[&str],
    uri: &Uri,
) -> Option<&'a PassthroughAccount> {
    let named = auth::query(uri, "phone_number_id");
    let first = segments.first().copied().unwrap_or_default();
    let number = |id: &str| {
        accounts
            .iter()
            .find(|known| known.account.phone_number_id().as_str() == id)
    };
    number(first)
        .or_else(|| accounts.iter().find(|known| known.waba_id.as_deref() == Some(first)))
        .or_else(|| number(&named?))
        .or(match accounts {
            [only] => Some(only),
            _ => None,
        })
}
