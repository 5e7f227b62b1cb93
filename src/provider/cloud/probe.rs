//! The probe of `twinlog doctor`: a webhook of our own, which shows that the public URL leads to this server, that the body comes
//! through unchanged, and that the app secret is the same. It is answered and never stored.

/// The body. Meta's webhooks have another `object`, and only who has the app secret can sign it.
pub const BODY: &str = r#"{"object":"twinlog_probe"}"#;

/// The answer to a probe that is signed rightly.
pub const ANSWER: &str = "twinlog: the probe is signed rightly\n";

/// Whether a body is the probe.
#[must_use]
pub fn is_probe(body: &[u8]) -> bool {
    body == BODY.as_bytes()
}
