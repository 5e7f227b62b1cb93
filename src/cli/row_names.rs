//! How people name tables and keys.

use crate::change::{Key, TableName};

/// `schema.table`, or a table of `public`.
pub(super) fn table_name(text: &str) -> TableName {
    match text.split_once('.') {
        Some((schema, name)) => TableName::new(schema, name),
        None => TableName::new("public", text),
    }
}

/// A key as entries have it: a JSON array of texts, however it is spaced; or the only value of one.
pub(super) fn key_of(text: &str) -> String {
    let key = Key::from_json(text).unwrap_or_else(|| Key([text.to_owned().into()].into()));
    key.to_json()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_an_array_of_texts_or_one_text() {
        for (text, key) in [
            (r#"["5"]"#, r#"["5"]"#),
            (r#" [ "a" , "b" ] "#, r#"["a","b"]"#),
            ("word", r#"["word"]"#),
            (r#"["broken"#, r#"["[\"broken"]"#),
        ] {
            assert_eq!(key_of(text), key);
        }
    }
}
