//! Parameters that change what a call of the Graph API is (another method, several calls at once, another token). Meta reads
//! them in the query and in the body. None is passed on: a call with one could send a message that has no row.

/// Their names, in lower case and as PHP reads them: `method[]` and ` method` are `method` as well.
const CONTROL: &[&str] = &[
    "access_token",
    "appsecret_proof",
    "appsecret_time",
    "attached_files",
    "batch",
    "include_headers",
    "include_headers_in_response",
    "method",
    "method_override",
    "relative_url",
    "_method",
    "x_http_method_override",
];

/// Whether a name is one of theirs, however it is written.
#[must_use]
pub fn is_control(name: &str) -> bool {
    let odd = |character: char| character.is_whitespace() || character.is_control();
    let name = name.trim_matches(odd);
    let name = name.split(['[', '\0']).next().unwrap_or_default();
    let name: String = name
        .trim_matches(odd)
        .chars()
        .map(|character| match character {
            ' ' | '.' | '-' => '_',
            other => other.to_ascii_lowercase(),
        })
        .collect();
    CONTROL.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_parameters_are_known_in_every_spelling() {
        for name in [
            "method",
            "METHOD",
            " method",
            "\u{a0}Method\t",
            "method[]",
            "method [x]",
            "access_token",
            "ACCESS_TOKEN",
            "Access.Token",
            "access token",
            "batch",
            "batch\0x",
            "X-HTTP-Method-Override",
        ] {
            assert!(is_control(name), "{name:?}");
        }
        for name in ["messaging_product", "to", "text", "methods", "code_method", ""] {
            assert!(!is_control(name), "{name:?}");
        }
    }
}
