//! Names as SQL has them: in a statement that runs, and in one that is shown to be pasted.

use std::fmt::Write;

use postgres_protocol::escape::escape_identifier;

/// Quotes an identifier. Characters that can't be printed stand as escapes (`U&"a\000Ab"`), which Postgres reads as the same
/// name: so a statement that is shown can be pasted.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    if !name.contains(is_unprintable) {
        return escape_identifier(name);
    }
    let mut quoted = "U&\"".to_owned();
    for character in name.chars() {
        match character {
            '"' => quoted.push_str("\"\""),
            '\\' => quoted.push_str("\\\\"),
            // All of these have four digits at most.
            unprintable if is_unprintable(unprintable) => {
                let _ = write!(quoted, "\\{:04X}", u32::from(unprintable));
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

/// Control characters, those that break a line or turn the direction of the text (CVE-2021-42574), and those without width,
/// which hide in a name. Not the joiners, without which some scripts can't be written.
#[must_use]
pub fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_can_be_printed_stands_as_it_is_and_another_one_in_escapes() {
        for (name, quoted) in [
            ("plain", r#""plain""#),
            (r#"a"b\c"#, r#""a""b\c""#),
            ("a\nb", r#"U&"a\000Ab""#),
            ("a\"\\\u{202e}\x1b", r#"U&"a""\\\202E\001B""#),
        ] {
            assert_eq!(quote_identifier(name), quoted);
        }
    }
}
