//! A recipient as people copy it, from a web page, a spreadsheet or a contact card: marks that nobody sees, spaces and
//! dashes of other kinds, full-width digits.
//!
//! Meta is sent only what everybody reads alike: with an invisible mark before the `+`, it might take the number for a
//! national one and put the business's country code in front.

use std::borrow::Cow;

/// The text without what nobody sees, and with plain digits, spaces and signs. A character that has no place in a phone
/// number or an id stays, so that the text is refused and not read as something else.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let text = text.trim_matches(|character: char| character.is_whitespace() || is_invisible(character));
    if text
        .chars()
        .all(|character| character.is_ascii_graphic() || character == ' ')
    {
        return Cow::Borrowed(text);
    }
    Cow::Owned(
        text.chars()
            .filter(|&character| !is_invisible(character))
            .map(plain_character)
            .collect(),
    )
}

/// Marks without a shape: zero-width spaces and joiners, directions of writing, soft hyphens, byte order marks.
const fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
    )
}

fn digit(character: char, zero: char) -> char {
    let value = u32::from(character) - u32::from(zero);
    char::from_digit(value, 10).unwrap_or(character)
}

fn plain_character(character: char) -> char {
    match character {
        // The full-width forms of ASCII's characters are in the same order.
        '\u{ff01}'..='\u{ff5e}' => {
            let ascii = u32::from(character) - 0xfee0;
            char::from_u32(ascii).unwrap_or(character)
        }
        // The digits of Arabic and Persian, from zero on.
        '\u{660}'..='\u{669}' => digit(character, '\u{660}'),
        '\u{6f0}'..='\u{6f9}' => digit(character, '\u{6f0}'),
        '\u{fe62}' => '+',
        '\u{2010}'..='\u{2015}' | '\u{2212}' => '-',
        _ if character.is_whitespace() => ' ',
        _ => character,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_with_a_number_goes() {
        for (copied, read) in [
            ("+16505551234", "+16505551234"),
            (" +1 (650) 555-1234\n", "+1 (650) 555-1234"),
            ("\u{202a}+1\u{a0}650\u{2011}555\u{2212}1234\u{202c}", "+1 650-555-1234"),
            (
                "\u{feff}+\u{200e}1\u{2009}650\t555\u{3000}1234\u{200b}",
                "+1 650 555 1234",
            ),
            ("＋１６５０（５５５）１２３４", "+1650(555)1234"),
            ("\u{fe62}\u{661}\u{662}\u{663}\u{6f4}", "+1234"),
            ("\u{2066}US.13\u{2069}", "US.13"),
            ("anna\u{e9}", "anna\u{e9}"),
        ] {
            assert_eq!(plain(copied), read, "{copied:?}");
        }
    }
}
