//! Which keys of the Agent DB the Site DB's types can be: an Agent DB that has texts for numbers may have a key that is none.

use tokio_postgres::types::ToSql;

use super::chunks::{Source, text_of};
use super::error::{SourceError, failed};
use crate::change::Key;
use crate::postgres::row_digest::widest;

impl Source {
    /// The positions of the keys that can be read as these columns (names and types): by halves, as one that can't be read fails
    /// the statement.
    pub(super) async fn readable(&self, columns: &[(String, String)], keys: &[Key]) -> Result<Vec<usize>, SourceError> {
        let casts: Vec<String> = (columns.iter().enumerate())
            .map(|(part, (_, kind))| {
                let kind = widest(kind).unwrap_or(kind);
                // Counted, so that the server has to read each.
                format!(
                    "(SELECT pg_catalog.count(k::{kind}) FROM pg_catalog.unnest(${}::text[]) k)",
                    part + 1
                )
            })
            .collect();
        let sql = format!("SELECT {}", casts.join(" + "));
        let mut readable = Vec::new();
        let mut open = vec![(0, keys.len())];
        while let Some((start, end)) = open.pop() {
            let some = keys.get(start..end).unwrap_or_default();
            if some.is_empty() {
                continue;
            }
            let parts: Vec<Vec<String>> = (0..columns.len())
                .map(|part| some.iter().map(|key| text_of(key.0.get(part))).collect())
                .collect();
            let parameters: Vec<&(dyn ToSql + Sync)> = parts.iter().map(|part| part as _).collect();
            let read = self.client().query_one(&sql, &parameters).await;
            match read.map_err(failed("read keys")) {
                Ok(_) => readable.extend(start..end),
                Err(error) if !error.is_of_a_value() => return Err(error),
                Err(_) if some.len() == 1 => {}
                Err(_) => {
                    let middle = start + some.len() / 2;
                    // The first half is taken from the end first.
                    open.push((middle, end));
                    open.push((start, middle));
                }
            }
        }
        Ok(readable)
    }
}
