//! `X-Hub-Signature-256`: HMAC-SHA256 with the app secret over the exact bytes of the body.
//!
//! Never over JSON that was parsed and written again: Meta escapes characters (`\u00e9`, `\/`) that another writer would
//! not, and then the signature differs.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// The header's name.
pub const HEADER: &str = "x-hub-signature-256";

/// Why a body is not accepted as Meta's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The header is absent.
    #[error("the webhook carries no X-Hub-Signature-256")]
    Missing,
    /// The header is not `sha256=` and 64 hexadecimal digits.
    #[error("the webhook's X-Hub-Signature-256 is malformed")]
    Malformed,
    /// No configured secret gives this signature for these bytes.
    #[error("the webhook's signature does not match any configured app secret")]
    Wrong,
    /// No secret is configured, so no signature can be checked and every webhook is refused.
    #[error("no app secret is configured")]
    NoSecret,
}

impl SignatureError {
    /// What an operator should look at.
    #[must_use]
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Missing => {
                "the request does not come from Meta, or a proxy strips the header: pass X-Hub-Signature-256 through"
            }
            Self::Malformed => "the request does not come from Meta, or a proxy rewrites the header",
            Self::Wrong => {
                "compare whatsapp.app_secrets with the app's secret (App settings → Basic); a proxy that rewrites bodies breaks it too"
            }
            Self::NoSecret => "set whatsapp.app_secrets",
        }
    }
}

/// Checks the header against every secret (several, so that one can be rotated), in constant time.
///
/// # Errors
/// [`SignatureError`]: the body must be neither parsed nor stored.
pub fn verify(secrets: &[SecretString], header: Option<&str>, body: &[u8]) -> Result<(), SignatureError> {
    if secrets.is_empty() {
        return Err(SignatureError::NoSecret);
    }
    let header = header.ok_or(SignatureError::Missing)?.trim();
    let digits = header.strip_prefix("sha256=").ok_or(SignatureError::Malformed)?;
    let mut claimed = [0_u8; 32];
    hex::decode_to_slice(digits, &mut claimed).map_err(|_| SignatureError::Malformed)?;
    // Every secret is tried, even after a match, so that the time taken does not show which one matched.
    let mut genuine = false;
    for secret in secrets {
        genuine |= mac(secret, body).is_some_and(|mac| mac.verify_slice(&claimed).is_ok());
    }
    if genuine { Ok(()) } else { Err(SignatureError::Wrong) }
}

/// The header that Meta would send with these bytes.
#[must_use]
pub fn sign(secret: &SecretString, body: &[u8]) -> String {
    // A key of any length is valid for HMAC, so there is always a code.
    let code = mac(secret, body).map(|mac| hex::encode(mac.finalize().into_bytes()));
    format!("sha256={}", code.unwrap_or_default())
}

fn mac(secret: &SecretString, body: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).ok()?;
    mac.update(body);
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(values: &[&str]) -> Vec<SecretString> {
        values.iter().map(|&value| SecretString::from(value)).collect()
    }

    #[test]
    fn a_known_vector_is_signed_as_rfc_4231_says() {
        // RFC 4231, test case 2.
        assert_eq!(
            sign(&SecretString::from("Jefe"), b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn the_signature_is_over_the_bytes_as_they_came() {
        let escaped = br#"{"body":"caf\u00e9 \ud83d\ude00 a\/b"}"#;
        let rewritten = "{\"body\":\"café 😀 a/b\"}".as_bytes();
        let header = sign(&SecretString::from("s"), escaped);
        assert_eq!(verify(&secrets(&["s"]), Some(&header), escaped), Ok(()));
        assert_eq!(
            verify(&secrets(&["s"]), Some(&header), rewritten),
            Err(SignatureError::Wrong)
        );
    }

    #[test]
    fn any_configured_secret_is_accepted_and_nothing_else_is() {
        let header = sign(&SecretString::from("new"), b"{}");
        assert_eq!(verify(&secrets(&["old", "new"]), Some(&header), b"{}"), Ok(()));
        assert_eq!(
            verify(&secrets(&["old"]), Some(&header), b"{}"),
            Err(SignatureError::Wrong)
        );
        assert_eq!(verify(&[], Some(&header), b"{}"), Err(SignatureError::NoSecret));
        assert_eq!(verify(&secrets(&["new"]), None, b"{}"), Err(SignatureError::Missing));
        for malformed in ["", "sha1=00", "sha256=", "sha256=zz", &header[..header.len() - 2]] {
            assert_eq!(
                verify(&secrets(&["new"]), Some(malformed), b"{}"),
                Err(SignatureError::Malformed),
                "{malformed}"
            );
        }
    }
}
