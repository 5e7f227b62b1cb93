//! Checks a JSON Web Token: its signature, expiry, audience and role.

use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::Jwt;

/// How far the issuer's clock may be from ours.
pub(super) const LEEWAY: Duration = Duration::from_secs(30);

/// Longest token that is looked at. A user's claims have a few kilobytes at most.
const LONGEST: usize = 16 * 1024;

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::http) enum Refused {
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    Early,
    #[error("its claim aud is not auth.jwt_audience")]
    Audience,
    #[error("its claim role is not in auth.jwt_roles")]
    Role,
    #[error("it is an anonymous visitor's (is_anonymous)")]
    Anonymous,
    #[error("it lacks the claim sub, which says whose it is")]
    Nobodys,
    #[error("it lists no number at the place that auth.jwt_numbers_claim names, and auth.jwt_numbers is not \"all\"")]
    Numbers,
    #[error("none of the keys in auth.jwt_secret and auth.jwt_keys is the one that it names")]
    Key,
    #[error("its signature is not right")]
    Signature,
    #[error("it is malformed, or lacks one of the claims exp, aud and role")]
    Malformed,
}

/// What a token says.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    /// Unix time.
    pub(super) exp: u64,
    pub(super) sub: Option<String>,
    pub(super) role: Option<String>,
    #[serde(flatten)]
    pub(super) others: Map<String, Value>,
}

/// The token's header, which says how it is signed and by which key. `None`: this is no JSON Web Token.
pub(super) fn header(token: &str) -> Option<Header> {
    if token.len() > LONGEST {
        return None;
    }
    jsonwebtoken::decode_header(token).ok()
}

/// Checks a token with each of the keys, until one fits. A key fits only algorithms of its own family: a public key is never
/// taken as the secret of an HMAC.
pub(super) fn check(token: &str, algorithm: Algorithm, keys: &[DecodingKey], rules: &Jwt) -> Result<Claims, Refused> {
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY.as_secs();
    validation.validate_nbf = true;
    validation.set_required_spec_claims(&["exp", "aud"]);
    validation.set_audience(&[&rules.audience]);
    let mut refused = Refused::Key;
    for key in keys {
        match jsonwebtoken::decode::<Claims>(token, key, &validation) {
            Ok(decoded) => {
                let role = decoded.claims.role.as_ref().ok_or(Refused::Malformed)?;
                if !rules.roles.contains(role) {
                    return Err(Refused::Role);
                }
                return of_somebody(decoded.claims);
            }
            Err(error) => refused = reason(error.kind()),
        }
        if refused != Refused::Signature {
            return Err(refused);
        }
    }
    Err(refused)
}

/// Visitors who signed in anonymously have the role of those who have logged in. Users are kept apart by `sub`.
fn of_somebody(claims: Claims) -> Result<Claims, Refused> {
    if claims
        .others
        .get("is_anonymous")
        .is_some_and(|anonymous| *anonymous != Value::Bool(false))
    {
        return Err(Refused::Anonymous);
    }
    if claims.sub.as_ref().is_none_or(String::is_empty) {
        return Err(Refused::Nobodys);
    }
    Ok(claims)
}

fn reason(error: &ErrorKind) -> Refused {
    match error {
        ErrorKind::ExpiredSignature => Refused::Expired,
        ErrorKind::ImmatureSignature => Refused::Early,
        ErrorKind::InvalidAudience => Refused::Audience,
        // Another curve's key, or a key of another family.
        ErrorKind::InvalidSignature
        | ErrorKind::InvalidAlgorithm
        | ErrorKind::InvalidKeyFormat
        | ErrorKind::InvalidEcdsaKey
        | ErrorKind::InvalidRsaKey(_) => Refused::Signature,
        _ => Refused::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, encode};
    use serde_json::json;

    use super::*;

    const NOW: u64 = 4_000_000_000;

    fn rules() -> Jwt {
        Jwt {
            secret: None,
            keys: None,
            audience: "authenticated".to_owned(),
            roles: vec!["authenticated".to_owned()],
            numbers: crate::config::JwtNumbers::Configured,
            users: crate::config::JwtUsers::Look,
        }
    }

    fn checked(claims: &Value) -> Result<Claims, Refused> {
        let token = encode(&Header::default(), claims, &EncodingKey::from_secret(b"secret")).unwrap();
        let keys = [DecodingKey::from_secret(b"old"), DecodingKey::from_secret(b"secret")];
        check(&token, header(&token).unwrap().alg, &keys, &rules())
    }

    #[test]
    fn expiry_audience_and_role_are_checked() {
        let good = json!({"exp": NOW, "aud": "authenticated", "role": "authenticated", "sub": "u"});
        assert_eq!(checked(&good).unwrap().sub.as_deref(), Some("u"));
        for (name, value, refused) in [
            ("exp", json!(1), Refused::Expired),
            ("exp", json!(null), Refused::Malformed),
            ("nbf", json!(NOW), Refused::Early),
            ("aud", json!("anon"), Refused::Audience),
            ("aud", json!(null), Refused::Malformed),
            ("aud", json!([]), Refused::Audience),
            ("role", json!("anon"), Refused::Role),
            ("role", json!(null), Refused::Malformed),
            ("is_anonymous", json!(true), Refused::Anonymous),
            ("sub", json!(null), Refused::Nobodys),
            ("sub", json!(""), Refused::Nobodys),
        ] {
            let mut claims = good.clone();
            claims[name] = value.clone();
            assert_eq!(checked(&claims).unwrap_err(), refused, "{name} {value}");
        }
        let mut several = good;
        several["is_anonymous"] = json!(false);
        several["aud"] = json!(["x", "authenticated"]);
        checked(&several).unwrap();
    }

    #[test]
    fn a_token_without_a_signature_of_ours_is_refused() {
        let claims = json!({"exp": NOW, "aud": "authenticated", "role": "authenticated"});
        let forged = encode(&Header::default(), &claims, &EncodingKey::from_secret(b"guess")).unwrap();
        let keys = [DecodingKey::from_secret(b"secret")];
        let refused = check(&forged, Algorithm::HS256, &keys, &rules());
        assert_eq!(refused.unwrap_err(), Refused::Signature);
        // Not signed at all, or not a token.
        for token in ["", "a.b.c", "eyJhbGciOiJub25lIn0.e30.", &"x".repeat(LONGEST + 1)] {
            assert!(header(token).is_none(), "{token}");
        }
        // A public key that the issuer shows to everybody, taken as the secret.
        let public = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
        let hmac = encode(
            &Header::default(),
            &claims,
            &EncodingKey::from_secret(public.as_bytes()),
        )
        .unwrap();
        let keys = [DecodingKey::from_ec_der(public.as_bytes())];
        let refused = check(&hmac, Algorithm::HS256, &keys, &rules());
        assert_eq!(refused.unwrap_err(), Refused::Signature);
    }
}
