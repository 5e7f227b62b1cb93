//! A counted row's values as they are kept with its entry: what a retry counts in the Site DB. ASCII, so that a database in
//! any encoding can hold them.

use bytes::Bytes;

use crate::agent_db::bookkeeping::encoding::Encoding;
use crate::change::{ColumnValue, Row};

/// A JSON array of texts and nulls.
pub(super) fn to_json(row: &Row) -> String {
    let values: Vec<_> = row
        .0
        .iter()
        .map(|value| match value {
            ColumnValue::Text(text) => Some(String::from_utf8_lossy(text)),
            ColumnValue::Null | ColumnValue::Unchanged => None,
        })
        .collect();
    Encoding::Limited.json(serde_json::to_string(&values).unwrap_or_default())
}

/// Parses what [`to_json`] wrote; `None` if it is anything else.
pub(super) fn from_json(text: &str) -> Option<Row> {
    let values: Vec<Option<String>> = serde_json::from_str(text).ok()?;
    Some(Row(values
        .into_iter()
        .map(|value| value.map_or(ColumnValue::Null, |text| ColumnValue::Text(Bytes::from(text))))
        .collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_value_survives_in_ascii() {
        let text = |text: &'static str| ColumnValue::Text(Bytes::from_static(text.as_bytes()));
        let row = Row([
            text(""),
            ColumnValue::Null,
            text("null"),
            text("é 🚀 \\u0000 \"x\" \\ \n\u{7f}\u{ffff}"),
        ]
        .into());
        let json = to_json(&row);
        assert!(json.is_ascii(), "{json}");
        assert_eq!(from_json(&json), Some(row));
        assert_eq!(from_json("[1]"), None);
    }
}
