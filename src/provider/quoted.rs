//! Words of a provider, made fit for a log line: short, without people's numbers, message ids and tokens.
//!
//! Meta's texts usually name parameters, not their values; usually. What must not be in the log is cut by its shape.

/// Longest quotation, in characters: Meta's longest documented texts fit.
const LONGEST: usize = 300;

/// As many digits may be a telephone number. Meta's error codes have at most six.
const NUMBER_DIGITS: usize = 7;

/// As many letters and digits without a space are an id or a token, and no word.
const TOKEN_LENGTH: usize = 32;

/// The text as it may be logged.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if out.chars().count() >= LONGEST {
            out.push('…');
            break;
        }
        let token = leading(rest, is_of_token);
        let number = leading_number(rest);
        if is_secret(token) {
            out.push('…');
            rest = &rest[token.len()..];
        } else if !number.is_empty() {
            out.push('…');
            rest = &rest[number.len()..];
        } else if first.is_alphabetic() {
            // A word as a whole, so that its end is not taken for the beginning of another.
            let word = leading(rest, char::is_alphabetic);
            out.push_str(word);
            rest = &rest[word.len()..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    if out.chars().count() > LONGEST + 1 {
        return out.chars().take(LONGEST).chain(['…']).collect();
    }
    out
}

fn leading(text: &str, is_part: impl Fn(char) -> bool) -> &str {
    let end = text.find(|character| !is_part(character)).unwrap_or(text.len());
    &text[..end]
}

fn is_of_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._-=+/|%".contains(character)
}

/// A token or a message's id, which contains the person's number in base64.
fn is_secret(token: &str) -> bool {
    token.len() >= TOKEN_LENGTH || token.to_ascii_lowercase().starts_with("wamid.")
}

/// A telephone number at the beginning of the text, however it is written; empty if there is none.
fn leading_number(text: &str) -> &str {
    let (mut digits, mut end, mut between) = (0, 0, 0);
    for (at, character) in text.char_indices() {
        if character.is_numeric() {
            digits += 1;
            between = 0;
            end = at + character.len_utf8();
        } else if character.is_alphabetic() || between == 3 {
            break;
        } else if digits > 0 || "+(".contains(character) {
            // Spaces, dashes, brackets, characters without width.
            between += 1;
        } else {
            break;
        }
    }
    if digits >= NUMBER_DIGITS { &text[..end] } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ids_and_tokens_are_cut_and_words_and_codes_stay() {
        for (text, expected) in [
            (
                "Session has expired: (#190), code 131048",
                "Session has expired: (#190), code 131048",
            ),
            ("to +49 (151) 234-567 89!", "to …!"),
            ("16505551234", "…"),
            ("user 1\u{200b}650\u{200e}555\u{2060}1234.", "user …."),
            ("٠١٢٣٤٥٦٧٨", "…"),
            ("id wamid.HBgLMTY1MDU1NTEyMzQ= gone", "id … gone"),
            (
                "token EAAGm0PX4ZCpsBAKZCZBbcdefghijklmnopqrstuvwxyz is bad",
                "token … is bad",
            ),
            ("é 12 x", "é 12 x"),
            ("", ""),
        ] {
            assert_eq!(quoted(text), expected, "{text}");
        }
        assert_eq!(quoted(&"ab ".repeat(1000)).chars().count(), LONGEST + 1);
        assert!(quoted(&"é".repeat(4000)).chars().count() <= LONGEST + 1);
    }

    proptest::proptest! {
        #[test]
        fn no_run_of_digits_passes(text in "[0-9a-z +().é\u{200b}-]{0,60}") {
            let most = quoted(&text).split(|c: char| !c.is_ascii_digit()).map(str::len).max();
            proptest::prop_assert!(most.unwrap_or(0) < NUMBER_DIGITS);
        }
    }
}
