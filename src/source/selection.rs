//! `sync.tables`: which tables are synchronised.

use globset::{GlobBuilder, GlobMatcher};

use super::error::SourceError;
use crate::change::TableName;

/// `sync.tables`: the last pattern that matches decides.
#[derive(Debug, Clone)]
pub struct Selection(Vec<(bool, GlobMatcher)>);

impl Selection {
    /// Compiles the patterns.
    ///
    /// # Errors
    /// One of them is not a glob.
    pub fn new(patterns: &[String]) -> Result<Self, SourceError> {
        let compile = |pattern: &String| {
            let (takes, glob) = pattern
                .strip_prefix('!')
                .map_or((true, pattern.as_str()), |rest| (false, rest));
            // A name may hold a slash; `*` must match it.
            Ok((
                takes,
                GlobBuilder::new(glob)
                    .literal_separator(false)
                    .build()?
                    .compile_matcher(),
            ))
        };
        Ok(Self(patterns.iter().map(compile).collect::<Result<_, SourceError>>()?))
    }

    /// Whether a table is synchronised. Our own schema never is.
    #[must_use]
    pub fn takes(&self, table: &TableName) -> bool {
        let name = table.to_string();
        &*table.schema != "twinlog"
            && self
                .0
                .iter()
                .rev()
                .find(|(_, glob)| glob.is_match(&name))
                .is_some_and(|&(takes, _)| takes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_matching_pattern_decides() {
        let patterns = ["public.*", "!public.audit_*", "public.audit_keep", "crm.leads"].map(String::from);
        let selection = Selection::new(&patterns).unwrap();
        let takes = |schema: &str, name: &str| selection.takes(&TableName::new(schema, name));
        assert!(takes("public", "leads") && takes("public", "audit_keep") && takes("crm", "leads"));
        assert!(takes("public", "with.dot") && takes("public", "with/slash"));
        assert!(!takes("public", "audit_log") && !takes("crm", "other"));
        assert!(
            !Selection::new(&["*".into()])
                .unwrap()
                .takes(&TableName::new("twinlog", "checkpoint"))
        );
        assert!(Selection::new(&["a[".into()]).is_err());
    }
}
