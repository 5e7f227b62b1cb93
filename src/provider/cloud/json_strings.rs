//! Changes some strings of a JSON text, and leaves every other byte as it is.
//!
//! Why not parse and write again: numbers, the order of members and escapes of Meta's answer would change on the way, and
//! clients would get another text than Meta's.

/// Calls `change` for every string (names of members too) with the name of the member that it is the value of; writes what
/// it returns in the string's place. `None`: nothing was changed, or the text is no JSON that we can read.
pub fn rewrite(text: &str, mut change: impl FnMut(Option<&str>, &str) -> Option<String>) -> Option<String> {
    let mut changed = String::new();
    let mut copied = 0;
    let mut name: Option<String> = None;
    let mut at = 0;
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        if byte != b'"' {
            if matches!(byte, b',' | b'[' | b']' | b'{' | b'}') {
                name = None;
            }
            at += 1;
            continue;
        }
        let end = end_of_string(bytes, at)?;
        let literal = text.get(at..end)?;
        let is_name = bytes.get(end..)?.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
        // A lone surrogate is no text for Rust; then the escapes stay as they are.
        let decoded = serde_json::from_str::<String>(literal)
            .unwrap_or_else(|_| literal.get(1..literal.len() - 1).unwrap_or_default().to_owned());
        let member = if is_name { None } else { name.as_deref() };
        if let Some(new) = change(member, &decoded) {
            changed.push_str(text.get(copied..at)?);
            changed.push_str(&serde_json::Value::from(new).to_string());
            copied = end;
        }
        if is_name {
            name = Some(decoded);
        }
        at = end;
    }
    if copied == 0 {
        return None;
    }
    changed.push_str(text.get(copied..)?);
    Some(changed)
}

/// The position after the closing quote of the string that begins at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_chosen_strings_change() {
        let text = r#"{ "a" : "x\/1", "b":[ "x\/1", 1.50 ], "c": {"a":"\ud83d x"}, "a" :"\u0078/1"}"#;
        let new = rewrite(text, |name, value| {
            (name == Some("a") && value == "x/1").then(|| "new \"q\"".to_owned())
        });
        assert_eq!(
            new.as_deref(),
            Some(r#"{ "a" : "new \"q\"", "b":[ "x\/1", 1.50 ], "c": {"a":"\ud83d x"}, "a" :"new \"q\""}"#)
        );
        assert_eq!(rewrite(text, |_, _| None), None);
        for broken in ["{\"a\":\"x", "\"\\", "\"", "no json"] {
            assert_eq!(rewrite(broken, |_, _| Some("y".to_owned())), None, "{broken}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "[\\\\\"{}:,a\u{e9} ]{0,60}") {
            let _ = rewrite(&text, |_, value| Some(value.to_owned()));
        }
    }
}
