//! Our access tokens, and how they are cut from what comes from the Graph API: Meta puts the token of a call into links to the
//! next page, and quotes an unreadable token in its errors. None may reach a client, a row or a log line, also not the token
//! of another number than the call's.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};

use super::json_strings;

/// What stands instead of a token.
const INSTEAD: &str = "ACCESS_TOKEN";
/// How often a text may be percent-encoded: a link within a parameter of a link within a parameter.
const ENCODINGS: usize = 3;
/// A shorter secret is not looked for: it would be found in ordinary words.
const SHORTEST: usize = 4;

/// All access tokens that the server has.
#[derive(Clone, Default)]
pub struct Secrets {
    tokens: Vec<String>,
    /// The tokens in every usual spelling.
    written: Vec<String>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.tokens.len())
    }
}

impl Secrets {
    /// The secrets to cut; a secret of a few characters is left alone.
    #[must_use]
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let mut tokens: Vec<String> = secrets
            .into_iter()
            .map(|secret| secret.expose_secret().to_owned())
            .filter(|token| token.len() >= SHORTEST)
            .collect();
        // Longest first: a token may begin with another one.
        tokens.sort_by_key(|token| std::cmp::Reverse(token.len()));
        tokens.dedup();
        let mut written = Vec::new();
        for token in &tokens {
            let in_urls: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
            let in_json = serde_json::Value::from(token.as_str()).to_string();
            for spelling in [
                token.clone(),
                with_lower_case_escapes(&in_urls),
                in_urls,
                in_json.trim_matches('"').to_owned(),
            ] {
                if !written.contains(&spelling) {
                    written.push(spelling);
                }
            }
        }
        Self { tokens, written }
    }

    /// An answer's body without the tokens.
    #[must_use]
    pub fn cut(&self, body: Vec<u8>) -> Bytes {
        // The API's answers are text.
        let text = match String::from_utf8(body) {
            Ok(text) => text,
            Err(error) => return self.cut_bytes(error.into_bytes()).into(),
        };
        // Escapes of JSON or of URLs may hide a token from the search for it as it is.
        let hidden = text.contains('\\') || text.contains('%');
        let text = match self.cut_spellings(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(cut) => cut,
        };
        if !hidden {
            return text.into();
        }
        json_strings::rewrite(&text, |_, value| self.cut_text(value))
            .unwrap_or(text)
            .into()
    }

    /// A text without the tokens, also where they are percent-encoded; `None`: it has none.
    #[must_use]
    pub fn cut_text(&self, text: &str) -> Option<String> {
        let cut = self.cut_spellings(text);
        let mut decoded = cut.clone().into_owned();
        for _ in 0..ENCODINGS {
            if !decoded.contains('%') {
                break;
            }
            decoded = percent_decode_str(&decoded).decode_utf8_lossy().into_owned();
            if self.tokens.iter().any(|token| decoded.contains(token)) {
                // Encoded in a way of its own: the whole text goes, as where the token ends is not known.
                return Some(INSTEAD.to_owned());
            }
        }
        match cut {
            Cow::Borrowed(_) => None,
            Cow::Owned(cut) => Some(cut),
        }
    }

    fn cut_spellings<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut cut = Cow::Borrowed(text);
        for spelling in &self.written {
            if cut.contains(spelling.as_str()) {
                cut = Cow::Owned(cut.replace(spelling.as_str(), INSTEAD));
            }
        }
        cut
    }

    /// A body that is no text.
    fn cut_bytes(&self, mut body: Vec<u8>) -> Vec<u8> {
        for token in &self.tokens {
            let token = token.as_bytes();
            while let Some(at) = body.windows(token.len()).position(|window| window == token) {
                body.splice(at..at + token.len(), INSTEAD.bytes());
            }
        }
        body
    }
}

/// The same with lower-case digits in its percent-encodings, as some encoders write them.
fn with_lower_case_escapes(encoded: &str) -> String {
    let mut digits = 0;
    encoded
        .chars()
        .map(|character| {
            if character == '%' {
                digits = 2;
            } else if digits > 0 {
                digits -= 1;
                return character.to_ascii_lowercase();
            }
            character
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_cut_however_they_are_written() {
        let secrets = [SecretString::from("EAA|1\"2"), SecretString::from("EAA|1\"2345")];
        let secrets = Secrets::new(&secrets);
        for (body, clean) in [
            (
                r#"{"message":"Malformed access token EAA|1\"2"}"#,
                r#"{"message":"Malformed access token ACCESS_TOKEN"}"#,
            ),
            (
                "next?access_token=EAA%7C1%222&after=x",
                "next?access_token=ACCESS_TOKEN&after=x",
            ),
            (
                "next?access_token=EAA%7c1%222345&after=x",
                "next?access_token=ACCESS_TOKEN&after=x",
            ),
            (
                r#"{"a":"\u0045AA|1\u00222 %","b":1.50}"#,
                r#"{"a":"ACCESS_TOKEN %","b":1.50}"#,
            ),
            (r#"{"a":"x%2545%2541A%7C1%222y"}"#, r#"{"a":"ACCESS_TOKEN"}"#),
            ("EAA|1\"2", "ACCESS_TOKEN"),
            ("{\"data\":[]}", "{\"data\":[]}"),
        ] {
            assert_eq!(secrets.cut(body.into()), clean);
        }
        assert_eq!(secrets.cut(vec![0xff, b'E']), &[0xff, b'E'][..]);
        assert_eq!(secrets.cut(b"\xffEAA|1\"2\xff".to_vec()), &b"\xffACCESS_TOKEN\xff"[..]);
        assert_eq!(Secrets::new(&[SecretString::from("")]).cut(b"x".to_vec()), "x");
    }
}
